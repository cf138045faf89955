"""Does a cascade pay? In words, against the best single model and against the cheapest that any router could do."""

from __future__ import annotations

import numpy as np

from coe.cost.calls import CallCosts
from coe.table import PredictionTable
from coe.types import FloatArray, FrontPoint


def oracle_cost(table: PredictionTable, cost: FloatArray) -> float:
    """Mean cost per item of an oracle that asks only the cheapest member that is right, or the cheapest where none is.

    cost: (items, members). No cascade that gets as many items right costs less; it is a floor, not a promise.
    """
    right = table.answers == table.labels[:, None]
    cheapest_right = np.where(right, cost, np.inf).min(axis=1)
    return float(np.where(np.isfinite(cheapest_right), cheapest_right, cost.min(axis=1)).mean())


def verdict(
    cascade: FrontPoint | None,
    single: FrontPoint | None,
    reference: str,
    epsilon: float,
    delta: float,
    costs: CallCosts,
    floor_per_1k: float,
) -> str:
    """Whether a cascade pays against the cheapest single model that keeps the same promise."""
    promise = f"losing at most {epsilon:.2%} against {reference} (upper bound at {1 - delta:.0%})"
    source = f" Costs: {costs.source}." if costs.source else ""
    if cascade is None and single is None:
        return f"Nothing keeps the promise of {promise} on this split: it is too small or the loss allowed too low.{source}"
    if cascade is None:
        assert single is not None
        return f"One model is best: {single.cascade.name}; no cascade keeps the promise of {promise}.{source}"
    if single is None:
        return f"Only cascades keep the promise of {promise}; the cheapest is {cascade.cascade.name}.{source}"
    ratio = cascade.cost_per_1k / single.cost_per_1k if single.cost_per_1k else float("inf")
    floor = f"An oracle that always knew whom to ask would cost {amount(floor_per_1k, costs.unit)}."
    if ratio >= 1:
        return (
            f"One model is best: {single.cascade.name} at {amount(single.cost_per_1k, costs.unit)} per 1,000 queries; the "
            f"cheapest cascade, {cascade.cascade.name}, costs {ratio:.2f} times as much, {promise}, because "
            f"{_because(cascade, single)}. {floor}{source}"
        )
    return (
        f"The cascade {cascade.cascade.name} costs {amount(cascade.cost_per_1k, costs.unit)} per 1,000 queries, "
        f"{1 - ratio:.0%} less than the best single model, {single.cascade.name}, {promise}. {floor}{source}"
    )


def _because(cascade: FrontPoint, single: FrontPoint) -> str:
    """Why the break-even is missed: cost of the first tier + reach x cost of the rest < cost of the single model."""
    reach = cascade.stats.reach[1] if len(cascade.stats.reach) > 1 else 0.0
    return (
        f"its first tier passes on {reach:.0%} of the queries, and what it answers itself saves less than it costs: "
        f"a cascade pays only where the cost of its first tier stays below the share it keeps from {single.cascade.name}"
    )


def amount(value: float, unit: str) -> str:
    """A cost with its unit: $0.41, 12.3 s on an RTX 4090."""
    return f"${value:.4g}" if unit == "usd" else f"{value:.4g} {unit}"
