"""The live service and the local cluster. The only package that imports Ray."""
