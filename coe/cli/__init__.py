"""The command line: every verb reads files, calls one function and writes one file."""
