"""What `serve run` loads, and one folder per example."""
