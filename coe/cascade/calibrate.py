"""From the shape of a cascade (members and rules) to gates that are as loose as can be certified.

The path of gates is chosen on the calibration split alone; `certify` then walks it on the certification split.
"""

from __future__ import annotations

import numpy as np

from coe.cascade.certify import certify_path
from coe.cascade.evaluate import always_accepts, check_against, for_table, tier_outputs
from coe.cascade.rules import rule_of
from coe.errors import InvalidInput, Problem
from coe.table import PredictionTable
from coe.types import Cascade, Claim, Front, Tier

LONGEST_PATH = 400
"""More thresholds than this are thinned to evenly spaced quantiles."""


def calibrate(
    cascade: Cascade,
    table: PredictionTable,
    reference: str,
    epsilon: float,
    delta: float,
    claim: Claim = "excess",
) -> Cascade:
    """The cascade with its gates as loose as the certification split allows, and the certificate.

    The given quorums and thresholds do not matter, only members and rules do. A cascade of one tier has no gate and is
    certified as it is. Raises `CannotCertify`, and `InvalidInput` for empty, overlapping or single-class splits.
    """
    selection, certification = table.split("calibration"), table.split("certification")
    refuse_overlap(selection, certification)
    if len(np.unique(selection.labels)) < 2:
        only = table.classes[int(selection.labels[0])]
        raise InvalidInput(
            Problem("predictions", "the calibration split must hold at least two classes", f"only '{only}'")
        )
    return certify_path(path(cascade, selection), certification, reference, epsilon, delta, claim)


def path(cascade: Cascade, selection: PredictionTable) -> tuple[Cascade, ...]:
    """Cascades with the same members and rules, from the strictest gates to the loosest that still defer.

    Every step accepts at least what the step before it accepted. With several gated tiers all gates loosen together,
    each from its strictest to its loosest.
    """
    cascade = for_table(cascade, selection)
    check_against(cascade, selection)
    gates = [gates_of(cascade, number, selection) for number in range(len(cascade.tiers) - 1)]
    steps = max((len(g) for g in gates), default=1)
    result = []
    for step in range(steps):
        at = [g[round(step * (len(g) - 1) / max(1, steps - 1))] for g in gates]
        result.append(cascade.model_copy(update={"tiers": (*at, cascade.tiers[-1]), "certificate": None}))
    return tuple(result)


def gates_of(cascade: Cascade, number: int, selection: PredictionTable) -> tuple[Tier, ...]:
    """Every gate of tier `number` that accepts differently on `selection`, strictest first.

    Raises `InvalidInput` where no setting both accepts and defers something.
    """
    tier, voters = cascade.tiers[number], len(cascade.voters(number))
    if tier.rule == "vote":
        bars: list[float] = [float(q) for q in range(voters, 1, -1)]
    else:
        bars = thresholds(rule_of(tier)(tier_outputs(cascade, number, selection)).score)
    gates = [with_bar(tier, bar) for bar in bars]
    useful = tuple(gate for gate in gates if not always_accepts(gate, len(selection.classes), voters))
    if not useful:
        who = "+".join(tier.members)
        remedy = "ask more members, or use rule 'score'"
        raise InvalidInput(Problem(f"tier {who}", "has no gate that both accepts and defers", remedy=remedy))
    return useful


def with_bar(tier: Tier, bar: float) -> Tier:
    """The tier with its gate set to `bar`: the quorum of `vote`, the threshold of every other rule."""
    gate = {"quorum": int(bar)} if tier.rule == "vote" else {"threshold": bar}
    return Tier.model_validate(tier.model_dump() | gate)


def thresholds(scores: np.ndarray) -> list[float]:
    """Thresholds that split the distinct scores, highest first; each lies halfway between two neighbours.

    Halfway, so that rounding in the last digit, which differs between batch sizes, changes no decision.
    """
    distinct = np.unique(scores)[::-1]
    between = (distinct[:-1] + distinct[1:]) / 2
    if len(between) > LONGEST_PATH:
        between = between[np.linspace(0, len(between) - 1, LONGEST_PATH).round().astype(int)]
    return [float(b) for b in between]


def refuse_overlap(first: PredictionTable, second: PredictionTable) -> None:
    """Raise `InvalidInput` where two splits share an item, by id or by content: a certificate must rest on unseen data."""
    shared = np.intersect1d(first.items, second.items)
    if len(shared):
        found = f"'{shared[0]}' and {len(shared) - 1} more" if len(shared) > 1 else f"'{shared[0]}'"
        raise InvalidInput(Problem("predictions", "calibration and certification must not share items", found))
    if first.content is not None and second.content is not None:
        copies = np.isin(second.content, first.content)
        if copies.any():
            twin = first.items[np.flatnonzero(first.content == second.content[copies][0])[0]]
            found = f"'{second.items[copies][0]}' is the same as '{twin}', and {int(copies.sum()) - 1} more"
            remedy = "put copies of one item into one split, or keep one of them"
            raise InvalidInput(
                Problem("predictions", "calibration and certification share items by content", found, remedy)
            )


def calibrate_front(
    front: Front,
    table: PredictionTable,
    reference: str,
    epsilon: float,
    delta: float,
    claim: Claim = "excess",
) -> Cascade:
    """The cheapest cascade that can be certified when the front is walked from its most accurate cascade to the cheapest.

    The order was fixed on the split that the search saw, and the certification split is another, so the walk needs no
    correction (fixed-sequence testing). Raises `CannotCertify`, and `InvalidInput` for splits that overlap.
    """
    selection, certification = table.split(front.split), table.split("certification")
    refuse_overlap(selection, certification)
    return certify_path(front_path(front), certification, reference, epsilon, delta, claim)


def front_path(front: Front, most: int = LONGEST_PATH) -> tuple[Cascade, ...]:
    """The cascades of a front, dearest and most accurate first, thinned evenly to at most `most`."""
    points = sorted(front.points, key=lambda p: -p.cost_per_1k)
    at = np.unique(np.linspace(0, len(points) - 1, min(most, len(points))).round().astype(int))
    return tuple(points[i].cascade for i in at)
