"""Exhaustive search for the cheapest cascade at every accuracy.

Every first tier of a `Space` with every distinct gate, before every last tier, carried or not; and every single model. The
outputs of a first tier are scored once by its rule; then `sweep` visits all gates and last tiers. What comes out is
evaluated again through `route`, as everything else is. Three tiers are every first tier at a grid of its gates, before every
middle tier with every gate, before every last tier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from coe.cascade.calibrate import with_bar
from coe.cascade.certify import Observed, reference_answers
from coe.cascade.evaluate import always_accepts, for_table, route, stats_of
from coe.cascade.rules import rule_of
from coe.cascade.space import Space, last_rule
from coe.cascade.sweep import Best, Bits, Head, gates_between, staged_cost, sweep
from coe.cascade.temperature import tempered_table
from coe.cascade.unions import right_by_score, right_by_vote
from coe.cascade.verdict import oracle_cost, verdict
from coe.cost.calls import CallCosts
from coe.errors import InvalidInput, Problem
from coe.table import PredictionTable
from coe.types import BoolArray, Cascade, Claim, FloatArray, Front, FrontPoint, IntArray, Tier

SPLIT = "calibration"
_MOST_UNION_BYTES = 600_000_000
_GRID = 20
"""Gates of the first of three tiers that are tried, evenly spread over the items accepted."""
_CHUNK = 64
"""First tiers whose unions with last tiers are held at a time, where holding all would take too much memory."""


def search(
    table: PredictionTable,
    costs: CallCosts,
    reference: str,
    epsilon: float,
    delta: float,
    space: Space | None = None,
    *,
    temperatures: Mapping[str, float] | None = None,
    claim: Claim = "excess",
    split: str = SPLIT,
    extra: Sequence[Cascade] = (),
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Front:
    """The accuracy/cost front on one split, and the cheapest cascade whose loss bound is within epsilon.

    `costs` is per call and must align with the items of `split`, or with all of `table`. `extra` cascades, such as those
    with learned gates, compete too. `progress` is called with (first tiers done, first tiers in all). Raises
    `InvalidInput` for members without a cost and a reference that is not there.
    """
    mask = table.splits == split
    sample = table.split(split)
    if costs.by_item and len(costs.per_call) == len(table):
        costs = costs.rows(mask)
    work = _Work.of(sample, costs, reference, space or Space(), temperatures or {})
    found = work.explored(claim, threads, progress)
    if extra:
        with_extra = f"{found.method}; and {len(extra)} cascades of other origin"
        found = replace(
            found, by_right=(*found.by_right, *extra), evaluated=found.evaluated + len(extra), method=with_extra
        )
    return _front(work, found, epsilon, delta, claim, split)


@dataclass(frozen=True)
class _Found:
    """What the sweeps found: cascades on the front by accuracy, the cheapest per number of losses, and how many were tried."""

    by_right: tuple[Cascade, ...]
    by_lost: tuple[Cascade, ...]
    evaluated: int
    method: str


@dataclass(frozen=True)
class _Chunk:
    """Heads to sweep before tails whose right answers and costs are held in memory together.

    heads: number -> (number to remember, head, numbers of its tails, their rows of `right`), for each of `numbers`.
    """

    numbers: range
    heads: Callable[[int], Iterator[tuple[int, Head, IntArray, IntArray]]]
    right: Bits
    cost: FloatArray


class _Progress:
    """Counts steps and tells somebody."""

    def __init__(self, total: int, tell: Callable[[int, int], None] | None) -> None:
        self.done, self.total, self.tell = 0, total, tell

    def step(self) -> None:
        """One more is done."""
        self.done += 1
        if self.tell:
            self.tell(min(self.done, self.total), self.total)


@dataclass(frozen=True)
class _Work:
    """A sample prepared for sweeping."""

    raw: PredictionTable
    sample: PredictionTable
    """With the temperatures applied, as every tier reads it."""
    temperatures: Mapping[str, float]
    costs: CallCosts
    reference: str
    space: Space
    dropped: str
    ranked: tuple[str, ...]
    cost: FloatArray
    """(items, members in table order)."""
    known: Bits

    @classmethod
    def of(
        cls,
        raw: PredictionTable,
        costs: CallCosts,
        reference: str,
        space: Space,
        temperatures: Mapping[str, float],
    ) -> _Work:
        sample = tempered_table(raw, temperatures)
        if sample.probs is None and any(r not in ("vote", "vote_entropy", "similarity") for r in space.rules or ()):
            raise InvalidInput(Problem("rules", "these predictions hold no probabilities", remedy="use rule 'vote'"))
        known = reference_answers(sample, reference) == sample.labels
        right = (sample.answers == sample.labels[:, None]).mean(axis=0)
        ranked = tuple(sorted(sample.members, key=lambda m: -right[sample.members.index(m)]))
        rules = len(space.rules_for(sample))
        narrow, dropped = space.narrowed(len(ranked), len(sample), rules)
        cost = np.ascontiguousarray(costs.of(sample.members, len(sample)))
        return cls(raw, sample, temperatures, costs, reference, narrow, dropped, ranked, cost, known.astype(np.uint8))

    # --- Sweeping ---

    def explored(self, claim: Claim, threads: int, progress: Callable[[int, int], None] | None) -> _Found:
        """Two tiers, and three where the space has them."""
        firsts = [t for t in self.space.first_tiers(self.ranked, self.sample) if self._affordable(t)]
        lasts = self.space.last_sets(self.ranked, self.sample.probs is not None)
        count = _Progress(len(firsts) * (2 if self.space.tiers > 2 else 1), progress)
        best, evaluated = self._swept(self._two_tiers(firsts, lasts), threads, count)
        heads: dict[int, Head] = {}
        found = self._both(claim, best, lambda at: self._two_tier(firsts, lasts, heads, *at))
        method = f"exhaustive: every first tier of up to {self.space.first_members} and last tier of up to "
        method += f"{self.space.last_members} members, every gate"
        if self.dropped:
            method = f"beam: without {self.dropped}, to stay within {self.space.most_cells:.0e} configurations"
        if self.space.tiers > 2:
            deep = _Deep.of(self, firsts)
            best, more = self._swept(deep.chunks(), threads, count)
            found = [(*two, *three) for two, three in zip(found, self._both(claim, best, deep.tiers), strict=True)]
            evaluated += more
            method += f"; three tiers: {deep.method}"
        return _Found(found[0], found[1], evaluated, method)

    def _affordable(self, tier: Tier) -> bool:
        """A tier that costs more than allowed before any query is deferred is out."""
        columns = self.sample.columns(tier.members)
        first = columns[:1] if tier.dispatch == "staged" else columns
        return float(self.cost[:, first].sum(axis=1).mean()) <= self.space.most_cost

    def _swept(self, chunks: Iterator[_Chunk], threads: int, count: _Progress) -> tuple[tuple[Best, Best], int]:
        """Sweep every chunk, on several threads: the kernel does not hold the interpreter."""
        n = len(self.sample)
        best, evaluated = (Best.none(n), Best.none(n)), 0
        with ThreadPoolExecutor(threads) as pool:
            for chunk in chunks:

                def visit(number: int, chunk: _Chunk = chunk) -> tuple[Best, Best, int]:
                    own = (Best.none(n), Best.none(n))
                    seen = 0
                    for at, head, tails, rows in chunk.heads(number):
                        seen += sweep(at, head, tails, chunk.right, rows, chunk.cost, self.known, *own)
                    return *own, seen

                for by_right, by_lost, seen in pool.map(visit, chunk.numbers):
                    best[0].merge(by_right)
                    best[1].merge(by_lost)
                    evaluated += seen
                    count.step()
        return best, evaluated

    def head(self, tier: Tier) -> Head:
        """The first tier scored on the sample, with its gates."""
        outputs = self.sample.outputs(tier.members)
        scored = rule_of(tier)(outputs)
        # no gate accepts where a missing vote could change the answer, or where nobody voted
        score = np.where(scored.certain & (scored.answer >= 0), scored.score, -np.inf)
        order = np.argsort(-score, kind="stable")
        falling = score[order]
        gates, bars = gates_between(falling, tier.rule == "vote")
        keep = _are_gates(tier, bars, len(self.sample.classes))
        gates, bars = gates[keep], bars[keep]
        own = (scored.answer == self.sample.labels).astype(np.uint8)[order]
        return Head(order, own, falling, gates, bars, self._head_cost(tier, bars), len(order))

    def _head_cost(self, tier: Tier, bars: FloatArray) -> FloatArray:
        """(gates,): mean cost per item of the tier itself at each bar."""
        cost = self.cost[:, self.sample.columns(tier.members)]
        if tier.dispatch == "parallel":
            return np.full(len(bars), cost.sum(axis=1).mean())
        outputs = self.sample.outputs(tier.members)
        size = len(tier.members)
        opens, closes = np.empty((len(cost), size - 1)), np.empty((len(cost), size - 1))
        for heard in range(1, size):
            partly = rule_of(tier)(outputs.without(np.arange(size) >= heard))
            opens[:, heard - 1] = np.where(partly.certain & (partly.answer >= 0), partly.score, -np.inf)
            closes[:, heard - 1] = np.inf if partly.highest is None else partly.highest
        return staged_cost(cost[:, 0], cost[:, 1:], opens, closes, bars)

    def tail_costs(self, sets: Sequence[tuple[int, ...]]) -> FloatArray:
        """(sets,) or (sets, items): what a set of columns costs per item."""
        cost = np.stack([self.cost[:, s].sum(axis=1) for s in sets])
        return cost if self.costs.by_item else cost[:, 0]

    def rights(self, voters: Sequence[tuple[int, ...]]) -> Bits:
        """(sets, items): where each sequence of voters is right, by the rule of a last tier."""
        return (right_by_vote if self.sample.probs is None else right_by_score)(self.sample, voters)

    def key(self, voters: tuple[int, ...]) -> tuple[int, ...]:
        """What the answer of `voters` depends on: their order only where ties of votes are broken by it."""
        return voters if self.sample.probs is None else tuple(sorted(voters))

    def _two_tiers(self, firsts: Sequence[Tier], lasts: Sequence[tuple[str, ...]]) -> Iterator[_Chunk]:
        """Chunks of first tiers before last tiers. Tail number = 2 x last set + carried."""
        index = {m: i for i, m in enumerate(self.sample.members)}
        sets = [tuple(index[m] for m in last) for last in lasts]
        cost = np.repeat(self.tail_costs(sets), 2, axis=0)
        heads = [tuple(index[m] for m in t.members) for t in firsts]
        unions = len({self.key((*s, *h)) for h in set(heads) for s in sets}) if True in self.space.carry else 0
        step = len(firsts) if unions * len(self.sample) <= _MOST_UNION_BYTES else _CHUNK
        for start in range(0, len(firsts), max(step, 1)):
            numbers = range(start, min(start + step, len(firsts)))
            rows: dict[tuple[int, ...], int] = {}
            plans: dict[int, tuple[IntArray, IntArray]] = {}
            for number in numbers:
                tails, at = [], []
                for tail, own in enumerate(sets):
                    if set(own) & set(heads[number]):
                        continue
                    for carried in self.space.carry:
                        if carried and firsts[number].dispatch == "staged":
                            continue  # who was asked depends on the gate, so the union does too
                        tails.append(2 * tail + carried)
                        at.append(rows.setdefault(self.key((*own, *heads[number]) if carried else own), len(rows)))
                plans[number] = np.array(tails, dtype=np.int64), np.array(at, dtype=np.int64)

            def heads_of(
                number: int, plans: dict[int, tuple[IntArray, IntArray]] = plans
            ) -> Iterator[tuple[int, Head, IntArray, IntArray]]:
                yield number, self.head(firsts[number]), *plans[number]

            yield _Chunk(numbers, heads_of, self.rights(list(rows)), cost)

    def _two_tier(
        self,
        firsts: Sequence[Tier],
        lasts: Sequence[tuple[str, ...]],
        heads: dict[int, Head],
        number: int,
        tail: int,
        gate: int,
    ) -> tuple[Tier, ...]:
        if number not in heads:
            heads[number] = self.head(firsts[number])
        first = with_bar(firsts[number], float(heads[number].bars[gate]))
        return first, self.last_tier(lasts[tail // 2], tail % 2)

    def last_tier(self, members: tuple[str, ...], carry: int) -> Tier:
        """A last tier; where one vote is all that counts the rule does not matter."""
        rule = "vote" if len(members) == 1 and not carry else last_rule(self.sample)
        return Tier(members=members, rule=rule, carry=carry)

    def _cost_of(self, cascade: Cascade, asked: np.ndarray) -> FloatArray:
        """(items,): what a cascade costs on each item. asked: (items, members of the cascade)."""
        cost: FloatArray = (self.cost[:, self.sample.columns(cascade.members)] * asked).sum(axis=1)
        return cost

    # --- From cells to cascades ---

    def _both(
        self,
        claim: Claim,
        best: tuple[Best, Best],
        tiers_of: Callable[[tuple[int, int, int]], tuple[Tier, ...]],
    ) -> list[tuple[Cascade, ...]]:
        """The cascades on the front by right answers, and on that by losses, which the claim of excess has no use for."""
        by_right, by_lost = best
        wanted = [(by_right, by_right.front())]
        wanted.append((by_lost, by_lost.front(fewest=True) if claim != "excess" else by_lost.front()[:0]))
        return [
            tuple(self._named(tiers_of((int(b.head[c]), int(b.tail[c]), int(b.gate[c])))) for c in counts)
            for b, counts in wanted
        ]

    def _named(self, tiers: tuple[Tier, ...]) -> Cascade:
        name = "-then-".join("+".join(t.members) for t in tiers).replace(" ", "-")
        members = {m for t in tiers for m in t.members}
        own = {m: t for m, t in self.temperatures.items() if m in members}
        return for_table(Cascade(name=name[:100], tiers=tiers, temperatures=own), self.sample)

    def judged(self, cascade: Cascade, claim: Claim) -> _Judged:
        """Cost and statistics of one cascade, and what the claim is judged by, through the `route` that all else takes."""
        routing = route(cascade, self.raw)
        point = FrontPoint(
            cascade=cascade,
            stats=stats_of(cascade, routing, self.sample.labels),
            cost_per_1k=1000 * float(self._cost_of(cascade, routing.asked).mean()),
        )
        return _Judged(point, Observed.of(routing.answer, self.raw, self.reference, claim))


@dataclass(frozen=True)
class _Judged:
    """A point of the front, and what its loss is judged by."""

    point: FrontPoint
    observed: Observed

    def bounded(self, delta: float) -> FrontPoint:
        """The point with its loss bound."""
        return self.point.model_copy(update={"loss_upper_bound": self.observed.upper_bound(delta)})


def _cheapest_allowed(found: Sequence[_Judged], epsilon: float, delta: float) -> FrontPoint | None:
    """The cheapest whose loss bound is within epsilon, with that bound."""
    for judged in sorted(found, key=lambda j: _by_cost(j.point)):
        # a rate above epsilon never passes, which spares the dear test
        if judged.observed.rate <= epsilon and judged.observed.p_value(epsilon) <= delta:
            return judged.bounded(delta)
    return None


@dataclass(frozen=True)
class _Deep:
    """Three tiers: first tiers at some of their gates, before middle tiers, before last tiers."""

    work: _Work
    firsts: tuple[Tier, ...]
    middles: tuple[Tier, ...]
    heads: tuple[Head, ...]
    """Of the middle tiers, over all items."""
    lasts: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, work: _Work, firsts: Sequence[Tier]) -> _Deep:
        space = replace(work.space, first_members=work.space.middle_members, dispatch=("parallel",))
        rule = last_rule(work.sample)
        middles = tuple(t for t in space.first_tiers(work.ranked, work.sample) if t.rule == rule)
        lasts = tuple((m,) for m in work.ranked)
        most = min(work.space.first_members, 2)
        near = tuple(t for t in firsts if t.rule == rule and len(t.members) <= most)
        return cls(work, near, middles, tuple(work.head(m) for m in middles), lasts)

    @property
    def method(self) -> str:
        """What was tried, in words."""
        most = max((len(t.members) for t in self.firsts), default=0)
        return (
            f"first tiers of up to {most} by {last_rule(self.work.sample)} at {_GRID} gates each, middle tiers of up to "
            f"{self.work.space.middle_members} at every gate, one last member, alone or with the middle tier's votes"
        )

    def chunks(self) -> Iterator[_Chunk]:
        """One chunk with all first tiers. Tail number = 2 x last member + carried."""
        index = {m: i for i, m in enumerate(self.work.sample.members)}
        last = [index[m] for (m,) in self.lasts]
        rows: dict[tuple[int, ...], int] = {}
        plans: list[tuple[list[int], list[int]]] = []
        for middle in self.middles:
            own = tuple(index[m] for m in middle.members)
            tails, at = [], []
            for tail, column in enumerate(last):
                if column in own:
                    continue
                for carried in self.work.space.carry:
                    tails.append(2 * tail + carried)
                    at.append(rows.setdefault(self.work.key((column, *own) if carried else (column,)), len(rows)))
            plans.append((tails, at))
        costs = [self.work.cost[:, self.work.sample.columns(m.members)].sum(axis=1) for m in self.middles]

        def heads_of(number: int) -> Iterator[tuple[int, Head, IntArray, IntArray]]:
            first = self.firsts[number]
            taken = {index[m] for m in first.members}
            head = self.work.head(first)
            for g, gate in enumerate(self._grid(head)):
                for k, middle in enumerate(self.middles):
                    if taken & {index[m] for m in middle.members}:
                        continue
                    behind = head.behind(gate, self.heads[k], costs[k], self.work.known, middle.rule == "vote")
                    free = [i for i, t in enumerate(plans[k][0]) if last[t // 2] not in taken]
                    tails, at = (np.array([plan[i] for i in free], dtype=np.int64) for plan in plans[k])
                    yield (number * _GRID + g) * len(self.middles) + k, behind, tails, at

        if self.firsts and self.middles:
            cost = np.repeat(self.work.tail_costs([(c,) for c in last]), 2, axis=0)
            yield _Chunk(range(len(self.firsts)), heads_of, self.work.rights(list(rows)), cost)

    @staticmethod
    def _grid(head: Head) -> list[int]:
        """Up to `_GRID` gate numbers, evenly spread over the items accepted."""
        if not len(head.gates):
            return []
        wanted = np.linspace(head.gates[0], head.gates[-1], _GRID)
        return [int(g) for g in np.unique(np.searchsorted(head.gates, wanted))]

    def tiers(self, at: tuple[int, int, int]) -> tuple[Tier, ...]:
        """The tiers of a head, tail and gate."""
        number, tail, gate = at
        rest, k = divmod(number, len(self.middles))
        first, middle = self.firsts[rest // _GRID], self.middles[k]
        head = self.work.head(first)
        outer = self._grid(head)[rest % _GRID]
        own_cost = np.zeros(len(self.work.sample))
        behind = head.behind(outer, self.heads[k], own_cost, self.work.known, middle.rule == "vote")
        return (
            with_bar(first, float(head.bars[outer])),
            with_bar(middle, float(behind.bars[gate])),
            self.work.last_tier(self.lasts[tail // 2], tail % 2),
        )


def _front(work: _Work, found: _Found, epsilon: float, delta: float, claim: Claim, split: str) -> Front:
    """The noun, from what was found."""
    alone = [work.judged(for_table(_single(m), work.sample), claim) for m in work.sample.members]
    singles = tuple(sorted((j.bounded(delta) for j in alone), key=_by_cost))
    by_right = [work.judged(c, claim) for c in found.by_right]
    by_lost = [work.judged(c, claim) for c in found.by_lost]
    cascade = _cheapest_allowed([*by_right, *by_lost], epsilon, delta)
    single = next((p for p in singles if p.loss_upper_bound is not None and p.loss_upper_bound <= epsilon), None)
    floor = oracle_cost(work.sample, work.cost)
    return Front(
        reference=work.reference,
        epsilon=epsilon,
        delta=delta,
        claim=claim,
        split=split,
        items=len(work.sample),
        method=found.method,
        evaluated=len(singles) + found.evaluated,
        cost_unit=work.costs.unit,
        unit_cost=dict(zip(work.sample.members, work.cost.mean(axis=0).tolist(), strict=True)),
        cost_source=work.costs.source,
        oracle_cost_per_1k=1000 * floor,
        points=_pareto([*singles, *(j.point for j in by_right)]),
        singles=singles,
        chosen=min((p for p in (cascade, single) if p is not None), key=_by_cost, default=None),
        verdict=verdict(cascade, single, work.reference, epsilon, delta, work.costs, 1000 * floor),
    )


def _are_gates(tier: Tier, bars: FloatArray, classes: int) -> BoolArray:
    """(bars,): True for those that can defer: no quorum of one vote, nothing that always accepts."""
    if tier.rule == "vote":
        return np.array(
            [bar >= 2 and not always_accepts(with_bar(tier, float(bar)), classes) for bar in bars], dtype=np.bool_
        )
    lowest = 1 / (classes * len(tier.members)) if tier.rule == "score" else 0.0
    result: BoolArray = bars > lowest
    return result


def _single(member: str) -> Cascade:
    return Cascade(name=member, tiers=(Tier(members=(member,)),))


def _pareto(points: Sequence[FrontPoint]) -> tuple[FrontPoint, ...]:
    """The points that no cheaper one equals in accuracy, cheapest first."""
    front: list[FrontPoint] = []
    for point in sorted(points, key=_by_cost):
        if not front or point.stats.accuracy > front[-1].stats.accuracy:
            front.append(point)
    return tuple(front)


def _by_cost(point: FrontPoint) -> tuple[float, float, int]:
    """Cheapest first, then most accurate, then fewest tiers."""
    return point.cost_per_1k, -point.stats.accuracy, len(point.cascade.tiers)
