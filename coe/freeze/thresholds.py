"""When a lookup is a hit: its confidence is strictly greater than the threshold of its cache.

Both rules look at validation lookups alone: `confidence` (n,) and `right` (n,), whether the cached label is the one that
the wrapped model gives. Confidences are positive and are compared within one cache only. What is zero or small on
validation items is so because the threshold was chosen on them; what it is on new items must be measured on others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coe.types import BoolArray, FloatArray

ALWAYS = 0.0
"""Threshold under which every lookup is a hit, since confidences are positive."""


def pessimistic(confidence: FloatArray, right: BoolArray) -> float:
    """The largest confidence of a wrong lookup, so that no validation hit is wrong (Kumar et al.).

    With no wrong lookup at all every lookup is a hit; from n validation items that says little more than that fewer
    than 3/n of lookups are wrong, at 95%.
    """
    wrong = confidence[~right]
    return float(wrong.max()) if len(wrong) else ALWAYS


def tuned(confidence: FloatArray, right: BoolArray, error_budget: float) -> float:
    """The lowest threshold whose wrong hits are at most `error_budget` of all validation items.

    So the hit share is as large as the budget allows; a budget of 0 gives the pessimistic threshold.
    """
    curve = hit_curve(confidence, right)
    within = (1 - curve.hit_accuracy) * curve.hit_share <= error_budget + 1e-12
    return float(curve.threshold[np.flatnonzero(within)[-1]])


@dataclass(frozen=True, eq=False)
class HitCurve:
    """Hit share against hit accuracy over all thresholds that differ on the sample, highest threshold first."""

    threshold: FloatArray
    hit_share: FloatArray
    hit_accuracy: FloatArray
    """1 where there is no hit."""


def hit_curve(confidence: FloatArray, right: BoolArray) -> HitCurve:
    """Every cut between two distinct confidences, from no hit to nothing but hits."""
    order = np.argsort(-confidence, kind="stable")
    value, wrong = confidence[order], np.cumsum(~right[order])
    n = len(value)
    last: NDArray[np.intp] = (
        np.flatnonzero(np.append(value[1:] != value[:-1], True)) if n else np.array([], dtype=np.intp)
    )
    hits = np.concatenate([[0], last + 1])
    errors = np.concatenate([[0], wrong[last]])
    cut = np.append(value, ALWAYS)  # strictly greater than the first value that is left out
    accuracy = 1 - errors / np.maximum(hits, 1)
    return HitCurve(cut[hits].astype(np.float64), hits / max(n, 1), accuracy.astype(np.float64))
