"""What a cascade does on a prediction table: routing, accuracy, reach and calls.

The same `decide` that the router calls is walked over the whole table, so what is predicted here is what the service does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import beta

from coe.cascade.decide import decide
from coe.errors import InvalidInput, Problem
from coe.table import PredictionTable
from coe.types import MISSING_VOTE, BoolArray, Cascade, CascadeStats, IntArray, Tier

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Routing:
    """Where every item ends; all arrays have shape (items,).

    answer: class index, `MISSING_VOTE` where no member of the last tier answered.
    tier: index of the tier that answered.    degraded: True where that tier lacked a vote.
    """

    answer: IntArray
    tier: IntArray
    degraded: BoolArray


def route(cascade: Cascade, table: PredictionTable) -> Routing:
    """Send every item of the table through the cascade."""
    answer = np.full(len(table), MISSING_VOTE, dtype=np.int64)
    last = np.full(len(table), len(cascade.tiers) - 1, dtype=np.int64)
    degraded = np.zeros(len(table), dtype=np.bool_)
    waiting = np.ones(len(table), dtype=np.bool_)
    for number, tier in enumerate(cascade.tiers):
        decision = decide(tier, table.outputs(tier.members))
        done = waiting & (decision.accepted if number < len(cascade.tiers) - 1 else True)
        answer[done] = decision.answer[done]
        last[done] = number
        degraded[done] = decision.degraded[done]
        waiting &= ~done
    return Routing(answer, last, degraded)


def evaluate(cascade: Cascade, table: PredictionTable) -> CascadeStats:
    """Accuracy with its exact 95% interval, reach and calls of a cascade on a table.

    Raises `InvalidInput` for members that the table lacks and for gates that can never or always accept.
    """
    check_against(cascade, table)
    routing = route(cascade, table)
    return stats_of(cascade, routing, table.labels)


def stats_of(cascade: Cascade, routing: Routing, labels: IntArray) -> CascadeStats:
    """The statistics of a routing against the labels, both of shape (items,)."""
    n = len(labels)
    right = routing.answer == labels
    low, high = accuracy_interval(int(right.sum()), n)
    at = [routing.tier == t for t in range(len(cascade.tiers))]
    reach = [float((routing.tier >= t).mean()) for t in range(len(cascade.tiers))]
    return CascadeStats(
        items=n,
        accuracy=float(right.mean()),
        accuracy_low=low,
        accuracy_high=high,
        reach=tuple(reach),
        accepted=tuple(float(mask.mean()) for mask in at),
        accuracy_accepted=tuple(float(right[mask].mean()) if mask.any() else None for mask in at),
        calls={m: share for tier, share in zip(cascade.tiers, reach, strict=True) for m in tier.members},
    )


def accuracy_interval(right: int, items: int) -> tuple[float, float]:
    """Exact two-sided 95% interval of a share (Clopper and Pearson 1934)."""
    tail = (1 - CONFIDENCE) / 2
    low = float(beta.ppf(tail, right, items - right + 1)) if right else 0.0
    high = float(beta.ppf(1 - tail, right + 1, items - right)) if right < items else 1.0
    return low, high


def losses(answer: IntArray, reference: IntArray, labels: IntArray) -> BoolArray:
    """True where the cascade is wrong and the reference is right; all of shape (items,)."""
    result: BoolArray = (answer != labels) & (reference == labels)
    return result


def check_against(cascade: Cascade, table: PredictionTable) -> None:
    """Refuse a cascade whose members the table lacks, or with a gate that these classes make meaningless."""
    table.columns(cascade.members)
    problems = [
        Problem(f"tiers[{i}]", trouble, remedy="raise it, or leave the tier out")
        for i, tier in enumerate(cascade.tiers)
        if (trouble := always_accepts(tier, len(table.classes)))
    ]
    if problems:
        raise InvalidInput(problems)


def always_accepts(tier: Tier, classes: int) -> str:
    """Why the gate of `tier` accepts whatever its members say, or an empty string.

    With few classes some agreement is certain: two of three votes are always equal when there are two classes.
    """
    k = len(tier.members)
    if tier.quorum is not None and tier.quorum <= -(-k // classes):
        return f"quorum {tier.quorum} of {k} members always accepts with {classes} classes"
    if tier.rule == "score" and tier.threshold is not None and tier.threshold <= 1 / (classes * k):
        return f"threshold {tier.threshold} always accepts: the score of {k} members is at least 1/{classes * k}"
    return ""
