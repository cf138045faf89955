"""Freeze Inference: let easy items leave a network early, with the label that a cache at that depth remembers.

`freeze` wraps any torch model that is a chain of blocks. After each block that keeps a cache, the activation is reduced
and looked up; items whose confidence is above the cache's threshold leave with the cached label, and the batch is
re-formed from the rest. The method is that of Kumar et al. (Freeze Inference, HotCloud 2019, arXiv 2002.02645), with the
learned caches and the composition under budgets of its follow-up GATI (arXiv 2101.07344); what those leave open is read
as each module states.

==============  ======================================================================================
`blocks`        a model as a chain of blocks
`reduce`        activations to short vectors: pooling and the one-layer network
`knn` `kmeans`  the two caches of the paper
`learned`       predictor and selector networks as a cache
`thresholds`    when a lookup is a hit: pessimistic or tuned (numpy alone)
`compose`       which caches to keep, under budgets for errors and memory (numpy alone)
`costs`         seconds or multiplications of blocks and lookups, measured
`exploration`   trains every variant at every depth and asks it about validation items
`caches`        a cache behind a block: pooling, lookup, threshold, what a hit says
`wrap`          the frozen model
`making`        `freeze` and its steps
`measuring`     what a frozen model does on held-out items
`store`         one safetensors file, and `load_frozen` for a pool
`curves`        shares leaving before each block against the perfect-threshold bound
==============  ======================================================================================

A frozen model is a new member with its own errors: calibrate a cascade after wrapping, never before, since members whose
caches err together agree wrongly. Importing this package needs no torch; using any of its names but those of
`thresholds`, `compose` and `curves` does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from coe.errors import Unavailable

if TYPE_CHECKING:
    from coe.freeze.blocks import split
    from coe.freeze.exploration import Exploration, Settings, explore
    from coe.freeze.making import assemble, every_block, freeze
    from coe.freeze.measuring import Measured, measure, right_labels
    from coe.freeze.store import load, load_frozen, save
    from coe.freeze.wrap import Frozen

_HOME = {
    "Exploration": "exploration",
    "Frozen": "wrap",
    "Measured": "measuring",
    "Settings": "exploration",
    "assemble": "making",
    "every_block": "making",
    "explore": "exploration",
    "freeze": "making",
    "load": "store",
    "load_frozen": "store",
    "measure": "measuring",
    "right_labels": "measuring",
    "save": "store",
    "split": "blocks",
}

__all__ = [
    "Exploration",
    "Frozen",
    "Measured",
    "Settings",
    "assemble",
    "every_block",
    "explore",
    "freeze",
    "load",
    "load_frozen",
    "measure",
    "right_labels",
    "save",
    "split",
]


def __getattr__(name: str) -> Any:
    """Public names, from their modules, when they are first asked for: the pure modules stay free of torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    try:
        found = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        raise Unavailable(
            f"{__name__}.{name} needs torch and safetensors ({error}): pip install 'coe[torch]'"
        ) from error
    globals()[name] = found
    return found
