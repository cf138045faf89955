"""Search with learned gates: every first and second member with a logistic gate of its own, before every last member.

A gate behind another sees the votes that it carries, so it knows whether the members agree. Gates are scored by
cross-fitting on the selection sample and swept at every threshold, as `coe.cascade.search` does with fixed rules; the gates
that the cascades on the front need are then trained on the whole sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from coe.cascade.beliefs import prepared
from coe.cascade.certify import reference_answers
from coe.cascade.evaluate import for_table
from coe.cascade.sweep import Best, Bits, Head, gates_between, sweep
from coe.cascade.temperature import tempered_table
from coe.cascade.unions import right_by_score
from coe.cost.calls import CallCosts
from coe.errors import InvalidInput, Problem
from coe.learned.gate_rule import Gate, hashes
from coe.learned.logistic import crossfitted, logistic_gate
from coe.table import PredictionTable
from coe.types import Cascade, FloatArray, Tier

GRID = 20
"""Gates of the first of three tiers that are tried, evenly spread over the items accepted."""
FOLDS = 2
MOST = 150
"""Cascades that are returned, evenly spread over the front: each needs up to two gates trained and kept."""


def learned_front(
    sample: PredictionTable,
    costs: CallCosts,
    reference: str,
    keep: Callable[[str, Gate], str],
    temperatures: Mapping[str, float] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Cascade, ...]:
    """Cascades of two and three single members with learned gates that nothing cheaper equals on `sample`.

    `keep(name, gate)` stores a gate and returns the rule that names it. `costs` must align with the sample. Raises
    `InvalidInput` where members only answer.
    """
    if sample.probs is None:
        rule = "need probabilities, and these members only answer"
        raise InvalidInput(Problem("learned gates", rule, remedy="search by vote"))
    work = _Work.of(sample, costs, reference, temperatures or {}, seed)
    best = Best.none(len(sample))
    for a in range(len(sample.members)):
        own = work.swept(a)
        best.merge(own)
        if progress:
            progress(a + 1, len(sample.members))
    front = best.front()
    at = np.unique(np.linspace(0, len(front) - 1, min(MOST, len(front))).round().astype(int))
    gates: dict[tuple[int, ...], str] = {}
    return tuple(work.cascade(int(best.head[c]), int(best.tail[c]), int(best.gate[c]), gates, keep) for c in front[at])


@dataclass(frozen=True)
class _Work:
    """A sample with its temperatures applied, and what is scored once."""

    sample: PredictionTable
    temperatures: Mapping[str, float]
    cost: FloatArray
    """(items, members)."""
    known: Bits
    fold: np.ndarray
    singles: Bits
    """(members, items): who is right."""

    @classmethod
    def of(
        cls, raw: PredictionTable, costs: CallCosts, reference: str, temperatures: Mapping[str, float], seed: int
    ) -> _Work:
        fold = np.random.default_rng(seed).permutation(len(raw)) % FOLDS
        known = (reference_answers(raw, reference) == raw.labels).astype(np.uint8)
        cost = np.ascontiguousarray(costs.of(raw.members, len(raw)))
        sample = tempered_table(raw, temperatures)
        singles = right_by_score(sample, [(m,) for m in range(len(raw.members))])
        return cls(sample, temperatures, cost, known, fold, singles)

    def head(self, voters: tuple[int, ...], right: Bits) -> Head:
        """A tier over all items by its cross-fitted gate; right: (items,) of its own answer."""
        outputs = self.sample.outputs([self.sample.members[v] for v in voters])
        score = crossfitted(outputs, right.astype(np.bool_), self.fold)
        score = np.where((outputs.answers >= 0).any(axis=1), score, -np.inf)
        order = np.argsort(-score, kind="stable")
        gates, bars = gates_between(score[order], False)
        cost = np.full(len(gates), float(self.cost[:, voters[0]].mean()))
        return Head(order, right[order], score[order], gates, bars, cost, len(order))

    def heads(self, a: int) -> Iterator[tuple[int, Head, np.ndarray, list[tuple[int, ...]]]]:
        """First member `a` alone, then before every second at a grid of its gates: number, head, tails, their voters.

        Number = (second + 1) * GRID + place in the grid, second -1 for none; tail = last * 3 + what it carries.
        """
        members = range(len(self.sample.members))
        if not 0 < self.singles[a].mean() < 1:
            return
        first = self.head((a,), self.singles[a])
        yield 0, first, *_tails([c for c in members if c != a], [(), (a,)])
        grid = grid_of(first)
        for b in members:
            if b == a:
                continue
            right = right_by_score(self.sample, [(b, a)])[0]
            if not 0 < right.mean() < 1:
                continue
            second = self.head((b, a), right)
            tails = _tails([c for c in members if c not in (a, b)], [(), (b,), (b, a)])
            for place, gate in enumerate(grid):
                behind = first.behind(gate, second, self.cost[:, b], self.known, False)
                yield (b + 1) * GRID + place, behind, *tails

    def swept(self, a: int) -> Best:
        """The cheapest per number of right answers with first member `a`; head numbers as in `cascade`."""
        best, lost = Best.none(len(self.sample)), Best.none(len(self.sample))
        cost = np.repeat(self.cost.T, 3, axis=0) if not self._constant else np.repeat(self.cost[0], 3)
        known: dict[tuple[int, ...], int] = {}
        rows: list[tuple[int, ...]] = []
        plans = list(self.heads(a))
        for _, _, _, voters in plans:
            for v in voters:
                if tuple(sorted(v)) not in known:
                    known[tuple(sorted(v))] = len(rows)
                    rows.append(v)
        right = right_by_score(self.sample, rows) if rows else np.zeros((0, len(self.sample)), dtype=np.uint8)
        size = (len(self.sample.members) + 1) * GRID
        for number, head, tails, voters in plans:
            at = np.array([known[tuple(sorted(v))] for v in voters], dtype=np.int64)
            sweep(a * size + number, head, tails, right, at, cost, self.known, best, lost)
        return best

    @property
    def _constant(self) -> bool:
        """True where every call of a member costs the same."""
        return bool((self.cost == self.cost[0]).all())

    def cascade(
        self,
        number: int,
        tail: int,
        gate: int,
        gates: dict[tuple[int, ...], str],
        keep: Callable[[str, Gate], str],
    ) -> Cascade:
        """The cascade of a cell, its gates trained on the whole sample and kept."""
        a, rest = divmod(number, (len(self.sample.members) + 1) * GRID)
        b, place = divmod(rest, GRID)
        b -= 1
        names, c = self.sample.members, tail // 3
        first = self.head((a,), self.singles[a])
        bar = float(first.bars[gate] if b < 0 else first.bars[grid_of(first)[place]])
        tiers = [Tier(members=(names[a],), rule=self._rule((a,), gates, keep), threshold=bar)]
        if b >= 0:
            second = self.head((b, a), right_by_score(self.sample, [(b, a)])[0])
            behind = first.behind(grid_of(first)[place], second, self.cost[:, b], self.known, False)
            bar = float(behind.bars[gate])
            tiers.append(Tier(members=(names[b],), rule=self._rule((b, a), gates, keep), threshold=bar, carry=1))
        tiers.append(Tier(members=(names[c],), rule="score", carry=tail % 3))
        used = {m for t in tiers for m in t.members}
        name = "learned-" + "-then-".join(t.members[0] for t in tiers)
        own = {m: t for m, t in self.temperatures.items() if m in used}
        return for_table(Cascade(name=name[:100], tiers=tuple(tiers), temperatures=own), self.sample)

    def _rule(
        self, voters: tuple[int, ...], gates: dict[tuple[int, ...], str], keep: Callable[[str, Gate], str]
    ) -> str:
        if voters not in gates:
            members = [self.sample.members[v] for v in voters]
            # the sample is tempered already, so the outputs are read as they stand
            outputs = prepared(self.sample.outputs(members), members, None, {})
            right = right_by_score(self.sample, [voters])[0].astype(np.bool_)
            name = "-after-".join(m.replace("/", ".") for m in members)
            gates[voters] = keep(name, logistic_gate(outputs, right, hashes(self.sample.items)))
        return gates[voters]


def grid_of(head: Head) -> list[int]:
    """Up to `GRID` gate numbers, evenly spread over the items accepted."""
    if not len(head.gates):
        return []
    wanted = np.linspace(head.gates[0], head.gates[-1], GRID)
    return [int(g) for g in np.unique(np.searchsorted(head.gates, wanted))]


def _tails(lasts: list[int], carried: list[tuple[int, ...]]) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """Numbers of the tails, and whose votes count in each."""
    pairs = [(3 * c + k, (c, *more)) for c in lasts for k, more in enumerate(carried)]
    return np.array([p[0] for p in pairs], dtype=np.int64), [p[1] for p in pairs]
