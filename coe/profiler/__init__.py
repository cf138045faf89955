"""Measuring members: how long a batch takes, how much memory a model needs."""
