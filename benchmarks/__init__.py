"""Every figure that README or docs quote; one command each, and `python -m benchmarks.run` for all."""
