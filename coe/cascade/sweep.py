"""All gates of a first tier before all last tiers: one sort, then one running count per last tier.

A *head* is a first tier with its items sorted by falling score; a *tail* is what happens to an item that the head defers: whether
the answer is right, and what it costs. Accepting the first c items of the sorted head and deferring the rest is one
configuration. The kernel visits every one and keeps, for every number of right answers (and, separately, of losses
against a reference), the cheapest found; so the front that comes out is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from coe.types import FloatArray, IntArray

Bits = NDArray[np.uint8]


@dataclass(frozen=True)
class Head:
    """One or two gated tiers over the items that reach the last of them, sorted by falling score.

    order: item numbers, (arriving,).    right: 1 where that tier's own answer is right, in that order.
    falling: the scores in that order; -inf where no gate accepts.
    gates: increasing numbers c of accepted items between which the score falls, (gates,).
    bars: the quorum or threshold that accepts so many, (gates,).
    cost: mean cost per item of the sample, of everything but the tail, at each gate, (gates,).
    items: size of the sample.    settled_right, settled_lost: what tiers before have already answered.
    """

    order: IntArray
    right: Bits
    falling: FloatArray
    gates: IntArray
    bars: FloatArray
    cost: FloatArray
    items: int
    settled_right: int = 0
    settled_lost: int = 0

    def behind(self, gate: int, later: Head, later_cost: FloatArray, known: Bits, is_vote: bool) -> Head:
        """`later`, a head over all items, behind this one at gate number `gate`.

        later_cost: (items,) what the later tier costs on each item.    known: (items,) 1 where the reference is right.
        """
        accepted = self.gates[gate]
        here, gone = self.order[accepted:], self.order[:accepted]
        arrives = np.zeros(self.items, dtype=np.bool_)
        arrives[here] = True
        at = arrives[later.order]
        falling = later.falling[at]
        gates, bars = gates_between(falling, is_vote)
        return Head(
            order=later.order[at],
            right=later.right[at],
            falling=falling,
            gates=gates,
            bars=bars,
            cost=np.full(len(gates), self.cost[gate] + float(later_cost[here].sum()) / self.items),
            items=self.items,
            settled_right=self.settled_right + int(self.right[:accepted].sum()),
            settled_lost=self.settled_lost + int((known[gone] & (1 - self.right[:accepted])).sum()),
        )


@dataclass(frozen=True)
class Best:
    """The cheapest configuration for every count 0..items; cost is infinite where none was found.

    cost: mean cost per item.    head, tail, gate: numbers of the head, the tail and the gate of that head.
    """

    cost: FloatArray
    head: IntArray
    tail: IntArray
    gate: IntArray

    @classmethod
    def none(cls, items: int) -> Best:
        """Nothing found yet."""
        nobody = [np.full(items + 1, -1, dtype=np.int64) for _ in range(3)]
        return cls(np.full(items + 1, np.inf), *nobody)

    def merge(self, other: Best) -> None:
        """Take over what `other` has cheaper, or equally cheap from an earlier head or tail."""
        tie = (other.cost == self.cost) & (
            (other.head < self.head) | ((other.head == self.head) & (other.tail < self.tail))
        )
        better = (other.cost < self.cost) | (tie & np.isfinite(other.cost))
        for mine, theirs in zip(
            (self.cost, self.head, self.tail, self.gate), (other.cost, other.head, other.tail, other.gate), strict=True
        ):
            mine[better] = theirs[better]

    def front(self, fewest: bool = False) -> IntArray:
        """Counts that nothing cheaper or equally dear betters, cheapest first; better is more, or fewer."""
        found = np.flatnonzero(np.isfinite(self.cost))
        rank = -found if fewest else found
        order = np.lexsort((-rank, self.cost[found]))
        if not len(order):
            return found
        before = np.concatenate([[rank.min() - 1], np.maximum.accumulate(rank[order])[:-1]])
        result: IntArray = found[order[rank[order] > before]]
        return result


def sweep(
    number: int,
    head: Head,
    tails: IntArray,
    right: Bits,
    rows: IntArray,
    cost: FloatArray,
    known: Bits,
    by_right: Best,
    by_lost: Best,
) -> int:
    """Visit every gate of head `number` before every tail, keep the cheapest in `by_right` and `by_lost`, and count them.

    tails: numbers of the tails to try.    right[rows[t]]: (items,) whether the t-th of them is right.
    cost: (all tails,) or (all tails, items), what each tail costs per deferred item.
    known: (items,) 1 where the reference is right.
    """
    if not len(tails) or not len(head.gates):
        return 0
    constant = cost.ndim == 1
    _sweep(
        number, head.order, head.right, head.gates, head.cost, head.items, head.settled_right, head.settled_lost,
        tails, right, rows,
        cost if constant else np.zeros(0), np.zeros((0, 0)) if constant else cost, known,
        by_right.cost, by_right.head, by_right.tail, by_right.gate,
        by_lost.cost, by_lost.head, by_lost.tail, by_lost.gate,
    )  # fmt: skip
    return len(tails) * len(head.gates)


@numba.njit(nogil=True, cache=True)
def _sweep(  # type: ignore[no-untyped-def]  # pragma: no cover
    number, order, own, gates, head_cost, items, settled_right, settled_lost,
    tails, right, rows, flat, per_item, known,
    r_cost, r_head, r_tail, r_gate, l_cost, l_head, l_tail, l_gate,
):  # fmt: skip
    n = order.shape[0]
    known_sorted = np.empty(n, dtype=np.uint8)
    own_lost = np.empty(n, dtype=np.int64)
    for i in range(n):
        known_sorted[i] = known[order[i]]
        own_lost[i] = known_sorted[i] & (1 - own[i])
    constant = flat.shape[0] > 0
    for t in range(tails.shape[0]):
        row = right[rows[t]]
        total_right, total_lost, total_cost = np.int64(settled_right), np.int64(settled_lost), 0.0
        for i in range(n):
            r = row[order[i]]
            total_right += r
            total_lost += known_sorted[i] & (1 - r)
        if not constant:
            for i in range(n):
                total_cost += per_item[tails[t], order[i]]
        done = 0
        for g in range(gates.shape[0]):
            accepted = gates[g]
            while done < accepted:
                item = order[done]
                r = row[item]
                total_right += np.int64(own[done]) - np.int64(r)
                total_lost += own_lost[done] - (known_sorted[done] & (1 - r))
                if not constant:
                    total_cost -= per_item[tails[t], item]
                done += 1
            tail_cost = flat[tails[t]] * (n - accepted) if constant else max(total_cost, 0.0)
            cost = head_cost[g] + tail_cost / items
            if cost < r_cost[total_right]:
                r_cost[total_right] = cost
                r_head[total_right] = number
                r_tail[total_right] = tails[t]
                r_gate[total_right] = g
            if cost < l_cost[total_lost]:
                l_cost[total_lost] = cost
                l_head[total_lost] = number
                l_tail[total_lost] = tails[t]
                l_gate[total_lost] = g


def gates_between(falling: FloatArray, is_vote: bool) -> tuple[IntArray, FloatArray]:
    """The gates that accept some and not all of the items whose scores are `falling`, and their bars.

    falling: -inf for items that no gate accepts. A quorum is the lowest accepted score; a threshold lies halfway to
    the next, so that rounding changes no decision.
    """
    gates = np.flatnonzero(falling[1:] != falling[:-1]) + 1
    lowest, below = falling[gates - 1], falling[gates]
    bars = lowest if is_vote else np.where(np.isfinite(below), (lowest + below) / 2, lowest)
    real = bars >= 2 if is_vote else bars > 0
    return gates[real], bars[real]


def staged_cost(
    first: FloatArray, later: FloatArray, opens: FloatArray, closes: FloatArray, bars: FloatArray
) -> FloatArray:
    """(gates,): mean cost per item of a tier whose members are asked one by one, at each bar.

    first: (items,) cost of the first member.    later, opens, closes: (items, members - 1): cost of the next member, and the
    bounds between which the bar must lie for it to be asked: opens < bar <= closes.
    """
    n = len(first)
    total = np.full(len(bars), first.sum() / n)
    for column in range(later.shape[1]):
        cost, low, high = later[:, column], opens[:, column], closes[:, column]
        total += (_at_least(high, cost, bars) - _at_least(np.minimum(low, high), cost, bars)) / n
    return total


def _at_least(values: FloatArray, weights: FloatArray, bars: FloatArray) -> FloatArray:
    """(bars,): the sum of `weights` where `values` reach each bar."""
    order = np.argsort(values)
    below = np.concatenate([[0.0], np.cumsum(weights[order])])
    result: FloatArray = below[-1] - below[np.searchsorted(values[order], bars, side="left")]
    return result
