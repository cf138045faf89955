"""Cost-aware scheduling for cascades of ensembles on heterogeneous clusters."""

__version__ = "0.1.0"
