"""Exhaustive search for the cheapest cascade that should keep the accuracy promise.

All two-tier cascades: one to three members first, one member last, rules `vote` and `score`, every quorum and every distinct
threshold; and every single model. The outputs of a first tier are scored once; then all thresholds and all last
tiers are one sort and one cumulative sum. The order of members within a tier only matters for ties, so each set is tried
in one order: the most accurate first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from coe.cascade.calibrate import with_bar
from coe.cascade.certify import loss_upper_bound, reference_answers
from coe.cascade.evaluate import always_accepts, evaluate, losses, route
from coe.cascade.rules import rule
from coe.errors import InvalidInput, Problem
from coe.table import PredictionTable
from coe.types import BoolArray, Cascade, FloatArray, Front, FrontPoint, IntArray, Tier

SPLIT = "calibration"


def search(
    table: PredictionTable,
    unit_cost_usd: Mapping[str, float],
    reference: str,
    epsilon: float,
    delta: float,
    cost_source: str,
    max_tier_members: int = 3,
    progress: Callable[[int, int], None] | None = None,
) -> Front:
    """The accuracy/cost front on the calibration split, and the cheapest cascade whose loss bound is within epsilon.

    `unit_cost_usd` maps a member to dollars per call; members without one are an `InvalidInput`. `progress` is called
    with (first tiers done, first tiers in all).
    """
    selection = table.split(SPLIT)
    _check_costs(selection, unit_cost_usd)
    known = reference_answers(selection, reference) == selection.labels
    right = selection.answers == selection.labels[:, None]
    ranked = sorted(selection.members, key=lambda m: -right[:, selection.members.index(m)].mean())
    tiers = list(_first_tiers(ranked, max_tier_members, selection.probs is not None))
    most_losses = _most_losses(len(selection), epsilon, delta)
    sweeps: list[_Sweep] = []
    evaluated = 0
    for done, tier in enumerate(tiers):
        if progress:
            progress(done, len(tiers))
        sweep = _sweep(tier, selection, unit_cost_usd, right, known)
        evaluated += len(sweep.right)
        sweeps.append(sweep.worth_keeping(most_losses))

    def point(cascade: Cascade) -> FrontPoint:
        return _point(cascade, selection, unit_cost_usd, reference, delta)

    singles = tuple(sorted((point(_single(m)) for m in selection.members), key=_by_cost))
    best = _cheapest_cascade(sweeps, most_losses)
    cascade = None if best is None else point(best)
    chosen = min(
        (p for p in (cascade, *singles) if p is not None and p.loss_upper_bound <= epsilon), key=_by_cost, default=None
    )
    return Front(
        reference=reference,
        epsilon=epsilon,
        delta=delta,
        split=SPLIT,
        items=len(selection),
        method=f"exhaustive: every two-tier cascade of up to {max_tier_members} members before one last member",
        evaluated=len(singles) + evaluated,
        unit_cost_usd={m: float(unit_cost_usd[m]) for m in selection.members},
        cost_source=cost_source,
        points=_pareto([*singles, *(point(c) for c in _candidates(sweeps))]),
        singles=singles,
        chosen=chosen,
        verdict=f"{_verdict(cascade, singles, reference, epsilon, delta)} Prices: {cost_source}.",
    )


@dataclass(frozen=True)
class _Sweep:
    """Gates of one first tier before last members: one cascade per cell; arrays have shape (cells,)."""

    first: Tier
    last: tuple[str, ...]
    gate: FloatArray
    """The quorum or threshold."""
    last_of: IntArray
    """Index into `last`."""
    usd_per_1k: FloatArray
    right: IntArray
    lost: IntArray

    def cascade(self, cell: int) -> Cascade:
        """The cascade of one cell."""
        first, last = with_bar(self.first, float(self.gate[cell])), self.last[self.last_of[cell]]
        name = f"{'+'.join(first.members)}-then-{last}"
        return Cascade(name=name[:100], tiers=(first, Tier(members=(last,))))

    def cheapest(self, most_losses: int) -> int | None:
        """The cheapest cell with at most `most_losses` losses; at equal cost the most accurate, then the first."""
        allowed = np.flatnonzero(self.lost <= most_losses)
        if not len(allowed):
            return None
        return int(allowed[np.lexsort((-self.right[allowed], self.usd_per_1k[allowed]))[0]])

    def worth_keeping(self, most_losses: int) -> _Sweep:
        """Only the cells on this sweep's own front and the cheapest allowed one: no other can win later."""
        keep = set(_undominated(self.usd_per_1k, self.right).tolist())
        cheapest = self.cheapest(most_losses)
        if cheapest is not None:
            keep.add(cheapest)
        cells = np.array(sorted(keep), dtype=np.int64)
        return replace(
            self,
            gate=self.gate[cells],
            last_of=self.last_of[cells],
            usd_per_1k=self.usd_per_1k[cells],
            right=self.right[cells],
            lost=self.lost[cells],
        )


def _first_tiers(ranked: Sequence[str], most: int, has_probs: bool) -> Iterator[Tier]:
    """Every first tier worth gating: sets of members with `vote` (from two up) and, with probabilities, `score`."""
    for size in range(1, min(most, len(ranked) - 1) + 1):
        for members in itertools.combinations(ranked, size):
            if size > 1:
                yield Tier(members=members, rule="vote", quorum=size)
            if has_probs:
                yield Tier(members=members, rule="score", threshold=1.0)


def _sweep(
    tier: Tier, table: PredictionTable, unit_cost_usd: Mapping[str, float], right: BoolArray, known: BoolArray
) -> _Sweep:
    """Every gate of `tier` before every member outside it, gates strictest first, then last members in table order.

    right: (items, members), where a member is right. known: (items,), where the reference is right.
    """
    scored = rule(tier.rule)(table.outputs(tier.members))
    # no gate accepts where a missing vote could change the answer
    score = np.where(scored.certain, scored.score, -np.inf)
    order = np.argsort(-score, kind="stable")
    falling = score[order]
    cuts = np.flatnonzero(falling[1:] != falling[:-1]) + 1  # how many items each gate accepts; never none, never all
    bars = _bars(tier.rule, falling[cuts - 1], falling[cuts])
    keep = np.array([_is_gate(tier, float(bar), len(table.classes)) for bar in bars], dtype=np.bool_)
    cuts, bars = cuts[keep], bars[keep]
    last = tuple(m for m in table.members if m not in tier.members)
    last_right = right[:, table.columns(last)]
    own_right = scored.answer == table.labels
    deferred = 1 - cuts / len(table)
    first_usd = sum(unit_cost_usd[m] for m in tier.members)
    last_usd = np.array([unit_cost_usd[m] for m in last])
    return _Sweep(
        first=tier,
        last=last,
        gate=np.repeat(bars, len(last)),
        last_of=np.tile(np.arange(len(last)), len(cuts)),
        usd_per_1k=(1000 * (first_usd + deferred[:, None] * last_usd[None, :])).ravel(),
        right=_counts(own_right[order], last_right[order], cuts).ravel(),
        lost=_counts((~own_right & known)[order], (~last_right & known[:, None])[order], cuts).ravel(),
    )


def _bars(rule_name: str, lowest_accepted: FloatArray, highest_deferred: FloatArray) -> FloatArray:
    """The quorum or threshold between two neighbouring scores; all of shape (cuts,).

    A threshold lies halfway, so that rounding changes no decision; below it may be only items that are never accepted.
    """
    if rule_name == "vote":
        return lowest_accepted
    between: FloatArray = (lowest_accepted + highest_deferred) / 2
    return np.where(np.isfinite(highest_deferred), between, lowest_accepted)


def _is_gate(tier: Tier, bar: float, classes: int) -> bool:
    """True where the gate can defer: no quorum of one vote, nothing that always accepts."""
    if tier.rule == "vote" and bar < 2:
        return False
    return not always_accepts(with_bar(tier, bar), classes)


def _counts(first: BoolArray, last: BoolArray, cuts: IntArray) -> IntArray:
    """How often True, when the first `cut` items take the first tier's value and the others the last member's.

    first: (items,) and last: (items, last members), both by falling score -> (cuts, last members).
    """
    accepted = np.cumsum(first)[cuts - 1]
    deferred = last.sum(axis=0)[None, :] - np.cumsum(last, axis=0)[cuts - 1]
    counts: IntArray = accepted[:, None] + deferred
    return counts


def _cheapest_cascade(sweeps: Sequence[_Sweep], most_losses: int) -> Cascade | None:
    """The cheapest cascade with at most `most_losses` losses; at equal cost the most accurate, then the first found."""
    best: tuple[float, int] | None = None
    cascade = None
    for sweep in sweeps:
        cell = sweep.cheapest(most_losses)
        if cell is None:
            continue
        key = (float(sweep.usd_per_1k[cell]), -int(sweep.right[cell]))
        if best is None or key < best:
            best, cascade = key, sweep.cascade(cell)
    return cascade


def _candidates(sweeps: Sequence[_Sweep]) -> Iterator[Cascade]:
    """The cascades that no other beats in both cost and number right, cheapest first."""
    cells = [(sweep, cell) for sweep in sweeps for cell in range(len(sweep.right))]
    if not cells:
        return
    cost = np.concatenate([s.usd_per_1k for s in sweeps])
    right = np.concatenate([s.right for s in sweeps])
    for at in _undominated(cost, right):
        sweep, cell = cells[at]
        yield sweep.cascade(cell)


def _undominated(usd: FloatArray, right: IntArray) -> IntArray:
    """Indices that no cheaper (or equally dear) cell equals in number right, cheapest first."""
    order = np.lexsort((-right, usd))
    most_before = np.concatenate([[-1], np.maximum.accumulate(right[order])[:-1]])[: len(order)]
    front: IntArray = order[right[order] > most_before]
    return front


def _pareto(points: Sequence[FrontPoint]) -> tuple[FrontPoint, ...]:
    """The points that no cheaper one equals in accuracy, cheapest first."""
    front: list[FrontPoint] = []
    for point in sorted(points, key=_by_cost):
        if not front or point.stats.accuracy > front[-1].stats.accuracy:
            front.append(point)
    return tuple(front)


def _by_cost(point: FrontPoint) -> tuple[float, float, int]:
    """Cheapest first, then most accurate, then fewest tiers."""
    return point.usd_per_1k, -point.stats.accuracy, len(point.cascade.tiers)


def _single(member: str) -> Cascade:
    return Cascade(name=member, tiers=(Tier(members=(member,)),))


def _point(
    cascade: Cascade, table: PredictionTable, unit_cost_usd: Mapping[str, float], reference: str, delta: float
) -> FrontPoint:
    """Cost, statistics and loss bound of one cascade, through the same `evaluate` as everything else."""
    stats = evaluate(cascade, table)
    lost = losses(route(cascade, table).answer, reference_answers(table, reference), table.labels)
    return FrontPoint(
        cascade=cascade,
        stats=stats,
        usd_per_1k=1000 * sum(stats.calls[m] * unit_cost_usd[m] for m in cascade.members),
        loss_upper_bound=loss_upper_bound(int(lost.sum()), len(table), delta),
    )


def _most_losses(items: int, epsilon: float, delta: float) -> int:
    """The most losses whose upper bound is still within epsilon; -1 where not even none would do."""
    allowed = -1
    while allowed + 1 <= items and loss_upper_bound(allowed + 1, items, delta) <= epsilon:
        allowed += 1
    return allowed


def _verdict(
    cascade: FrontPoint | None, singles: Sequence[FrontPoint], reference: str, epsilon: float, delta: float
) -> str:
    """In words: whether a cascade pays, against the cheapest single model that keeps the same promise."""
    promise = f"losing at most {epsilon:.2%} against {reference} (upper bound at {1 - delta:.0%})"
    single = next((s for s in singles if s.loss_upper_bound <= epsilon), None)
    if cascade is None and single is None:
        return f"Nothing keeps the promise of {promise} on this split: it is too small or the loss allowed too low."
    if cascade is None:
        assert single is not None
        return f"One model is best: {single.cascade.name}; no cascade keeps the promise of {promise}."
    if single is None:
        return f"Only cascades keep the promise of {promise}; the cheapest is {cascade.cascade.name}."
    ratio = cascade.usd_per_1k / single.usd_per_1k if single.usd_per_1k else float("inf")
    if ratio >= 1:
        return (
            f"One model is best: {single.cascade.name} at ${single.usd_per_1k:.4g} per 1,000 queries; "
            f"the cheapest cascade, {cascade.cascade.name}, costs {ratio:.2f} times as much, {promise}."
        )
    return (
        f"The cascade {cascade.cascade.name} costs ${cascade.usd_per_1k:.4g} per 1,000 queries, {1 - ratio:.0%} less "
        f"than the best single model, {single.cascade.name}, {promise}."
    )


def _check_costs(table: PredictionTable, unit_cost_usd: Mapping[str, float]) -> None:
    """Every member needs a cost: an unknown one must not count as free."""
    lacking = [m for m in table.members if m not in unit_cost_usd]
    if lacking:
        remedy = "profile them on an accelerator that has a price"
        raise InvalidInput(Problem("unit costs", f"no cost is known for {', '.join(lacking)}", remedy=remedy))
