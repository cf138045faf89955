"""Published methods as search spaces: the same engine, restricted to what each paper tries.

``idk-probability`` and ``idk-entropy``: IDK cascades, Wang et al. 2018 (arXiv 1706.00885): single models, one gate by maximum
probability or entropy. (Its neural gate is a rule, ``gate:FILE``, trained by `coe train-gate`.)
``model-cascades``: conditional execution, Lebovitz et al. 2023: all ordered pairs and triples of single models by maximum
probability.
``agreement``: cascades of ensembles, Kolawole et al. 2024 (arXiv 2407.02348): up to three members vote, or are weighed by
probability, before one larger model.
"""

from __future__ import annotations

from dataclasses import replace

from coe.cascade.space import Space
from coe.errors import InvalidInput, Problem

_PAIRS = Space(first_members=1, last_members=1, carry=(False,))

PRESETS: dict[str, Space] = {
    "idk-probability": replace(_PAIRS, rules=("score",)),
    "idk-entropy": replace(_PAIRS, rules=("entropy",)),
    "model-cascades": replace(_PAIRS, rules=("score",), tiers=3),
    "agreement": Space(first_members=3, last_members=1, carry=(False,)),
    "coe": Space(tiers=3),
}


def preset(name: str) -> Space:
    """The space called `name`; `InvalidInput` names those there are."""
    if name not in PRESETS:
        raise InvalidInput(Problem("--method", f"must be one of {', '.join(PRESETS)}", name))
    return PRESETS[name]
