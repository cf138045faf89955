"""Which caches to keep: the cheapest composition under a budget for errors and one for memory.

A model has blocks 1..L. Block l costs b_l for each item that reaches it and f_l, shared out over all items, for running at
all: a batch that has shrunk does not take proportionally less time. After each block but the last at most one cache may be
kept, out of options o with lookup costs q_o and g_o likewise, memory m_o, and the validation items H_o that would hit, W_o
of which with a label other than the model's. With R_l the items that reach block l, and o_l the option after it, if any,

    R_1 = all items        R_{l+1} = R_l minus H_{o_l}

    minimise    sum_l |R_l| / n * (b_l + q_{o_l}) + f_l + g_{o_l}
    subject to  sum_l |R_l and W_{o_l}| <= most errors        sum_l m_{o_l} <= memory

Who hits where is measured jointly on the same items, not assumed independent, so what is left to decide after block l
depends on which items are left. `compose` is a dynamic programme over blocks whose states carry that set: of two states
at the same block, one that has a subset of the other's items left, at no more cost, errors and memory, is as good or
better whatever follows, and the other is dropped. States whose lower bound (each item left pays at least for the blocks
up to the first option that could let it go, and for the cheapest lookup there or later) is not below the best
composition known are dropped too. Where more than `max_states` remain, the most promising are kept and the answer is no
longer proved: `Composition.bound` then says how much cheaper the optimum could be.

Nothing here knows torch; hits and costs come as arrays and numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from coe.errors import InvalidInput, Problem
from coe.types import BoolArray

MAX_STATES = 300
_CLOSER = 1 - 1e-12
"""A bound must be below the best known cost by more than rounding to be worth following."""


class Cost(NamedTuple):
    """Of a block or a lookup, in any one unit."""

    per_item: float
    """For each item that arrives."""
    fixed: float = 0.0
    """For running at all, shared out over the items of a full batch, arrived or not."""

    @property
    def whole(self) -> float:
        """Per item when every item arrives."""
        return self.per_item + self.fixed


@dataclass(frozen=True, eq=False)
class Option:
    """One cache with one threshold, as it fared on the validation items."""

    name: str
    hits: BoolArray
    """(n,) items whose confidence is above the threshold."""
    wrong: BoolArray
    """(n,) items whose cached label is not the model's."""
    lookup_cost: Cost
    """In the unit of the block costs."""
    memory_bytes: int


@dataclass(frozen=True)
class Walk:
    """What a composition does on the validation items."""

    cost: float
    """Per item."""
    full_cost: float
    """Per item of the model without caches."""
    errors: int
    """Items that leave with a label other than the model's."""
    memory_bytes: int
    left: tuple[int, ...]
    """Items that leave right after each block; the last entry are those that run to the end."""


@dataclass(frozen=True)
class Composition:
    """Index of the option kept after each block (None for none), and how good it is."""

    chosen: tuple[int | None, ...]
    walk: Walk
    bound: float
    """No composition within the budgets is cheaper than this, per item."""
    proved: bool
    """True where this is the optimum."""


def walk(block_costs: Sequence[Cost], kept: Sequence[Option | None]) -> Walk:
    """Send the validation items through; `kept` has one entry per block, the last of them None.

    With no option at all there are no items to send, and the cost is that of the whole model.
    """
    some = next((option for option in kept if option is not None), None)
    full = float(sum(cost.whole for cost in block_costs))
    if some is None:
        return Walk(full, full, 0, 0, (0,) * len(block_costs))
    n = len(some.hits)
    here = np.ones(n, dtype=bool)
    cost, errors, memory, left = 0.0, 0, 0, []
    for block_cost, option in zip(block_costs, kept, strict=True):
        cost += here.sum() * block_cost.per_item + n * block_cost.fixed
        leaves = np.zeros(n, dtype=bool)
        if option is not None:
            cost += here.sum() * option.lookup_cost.per_item + n * option.lookup_cost.fixed
            memory += option.memory_bytes
            leaves = here & option.hits
            errors += int((leaves & option.wrong).sum())
        left.append(int(leaves.sum()))
        here = here & ~leaves
    left[-1] += int(here.sum())
    return Walk(float(cost) / n, full, errors, memory, tuple(left))


@dataclass(frozen=True, slots=True)
class _State:
    """A choice for the blocks so far; costs are totals over all items, sets of items are bits."""

    cost: float
    bound: float
    errors: int
    memory: int
    left: int
    chosen: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class _Bits:
    """An option with its item sets as bits."""

    hits: int
    wrong_hits: int
    cost: Cost
    memory: int


def compose(
    block_costs: Sequence[Cost],
    options: Sequence[Sequence[Option]],
    max_errors: int,
    max_memory_bytes: float,
    max_states: int = MAX_STATES,
) -> Composition:
    """The cheapest composition within the budgets; keeping no cache is always within them.

    `options` has one entry per block, and none after the last. Raises `InvalidInput` for budgets below 0, costs that are
    not positive, and options that were not measured on the same items.
    """
    n = _items(block_costs, options, max_errors, max_memory_bytes)
    bits = [[_bits(option) for option in here] for here in options]
    bounds = _Bounds(block_costs, bits, n)
    best = _greedy(block_costs, options, max_errors, max_memory_bytes)
    best_cost = _cost(block_costs, options, best) * n
    states = [_State(0.0, bounds.of(0, _all(n)), 0, 0, _all(n), ())]
    dropped = float("inf")
    for block, block_cost in enumerate(block_costs):
        grown = [s for state in states for s in _next(state, block, block_cost, bits[block], bounds, n)]
        grown = [s for s in grown if s.errors <= max_errors and s.memory <= max_memory_bytes]
        grown = [s for s in grown if s.bound < best_cost * _CLOSER]
        states, least = _kept(grown, max_states)
        dropped = min(dropped, least)
    if states:
        best_state = min(states, key=lambda s: (s.cost, s.errors, s.memory))
        best, best_cost = best_state.chosen, best_state.cost
    proved = dropped >= best_cost * _CLOSER
    found = walk(block_costs, [None if o is None else here[o] for here, o in zip(options, best, strict=True)])
    return Composition(best, found, found.cost if proved else dropped / n, proved)


def _items(
    block_costs: Sequence[Cost], options: Sequence[Sequence[Option]], max_errors: int, max_memory_bytes: float
) -> int:
    """How many items the options were measured on; 1 where there are no options."""
    sizes = {len(a) for here in options for option in here for a in (option.hits, option.wrong)}
    costs = [*block_costs, *(option.lookup_cost for here in options for option in here)]
    problems = [
        Problem("compose", rule, found)
        for rule, found, broken in (
            ("needs one entry of options per block", f"{len(options)}", len(options) != len(block_costs)),
            ("no option comes after the last block", "", bool(options and options[-1])),
            ("options must be measured on the same items", f"{sorted(sizes)}", len(sizes) > 1 or 0 in sizes),
            ("costs must be > 0 per item", f"{costs}", not all(c.per_item > 0 and c.fixed >= 0 for c in costs)),
            ("the error budget must be >= 0", f"{max_errors}", max_errors < 0),
            ("the memory budget must be >= 0", f"{max_memory_bytes}", not max_memory_bytes >= 0),
        )
        if broken
    ]
    if problems:
        raise InvalidInput(problems)
    return sizes.pop() if sizes else 1


def _all(n: int) -> int:
    return (1 << n) - 1


def _set(member: BoolArray) -> int:
    """A set of items as the bits of a number."""
    return int.from_bytes(np.packbits(member, bitorder="little").tobytes(), "little")


def _bits(option: Option) -> _Bits:
    return _Bits(_set(option.hits), _set(option.hits & option.wrong), option.lookup_cost, option.memory_bytes)


class _Bounds:
    """What the items left after a block must still pay, at the least."""

    def __init__(self, block_costs: Sequence[Cost], bits: Sequence[Sequence[_Bits]], n: int) -> None:
        self._groups: list[list[tuple[int, float]]] = []
        self._fixed: list[float] = []
        for done in range(len(block_costs) + 1):
            self._groups.append(_groups(block_costs, bits, done, _all(n)))
            self._fixed.append(n * sum(cost.fixed for cost in block_costs[done:]))

    def of(self, done: int, left: int) -> float:
        """For the items in `left` after `done` blocks, a total."""
        return self._fixed[done] + sum((left & group).bit_count() * cost for group, cost in self._groups[done])


def _groups(
    block_costs: Sequence[Cost], bits: Sequence[Sequence[_Bits]], done: int, everyone: int
) -> list[tuple[int, float]]:
    """Items by the first block at which some option could let them go, each with the least it still costs them.

    An item that does not leave there pays for more blocks, so the least is over leaving at that block or any later one,
    each with its cheapest lookup, and over running to the end without any.
    """
    last = len(block_costs)
    paths = []
    total = 0.0
    for block in range(done, last):
        total += block_costs[block].per_item
        lookup = min((option.cost.per_item for option in bits[block]), default=float("inf"))
        paths.append(total + lookup)
    found, rest = [], everyone
    for block in range(done, last):
        could = 0
        for option in bits[block]:
            could |= option.hits
        found.append((rest & could, min([total, *paths[block - done :]])))
        rest &= ~could
    return [*((group, cost) for group, cost in found if group), (rest, total)]


def _next(
    state: _State, block: int, block_cost: Cost, options: Sequence[_Bits], bounds: _Bounds, n: int
) -> list[_State]:
    """The state after one more block, without a cache and with each of the options."""
    here = state.left.bit_count()
    cost = state.cost + here * block_cost.per_item + n * block_cost.fixed
    grown = [
        _State(
            cost,
            cost + bounds.of(block + 1, state.left),
            state.errors,
            state.memory,
            state.left,
            (*state.chosen, None),
        )
    ]
    for i, option in enumerate(options):
        left = state.left & ~option.hits
        if left == state.left:
            continue  # nobody would leave: it could only cost
        paid = cost + here * option.cost.per_item + n * option.cost.fixed
        errors = state.errors + (state.left & option.wrong_hits).bit_count()
        bound = paid + bounds.of(block + 1, left)
        grown.append(_State(paid, bound, errors, state.memory + option.memory, left, (*state.chosen, i)))
    return grown


def _kept(states: list[_State], max_states: int) -> tuple[list[_State], float]:
    """The states that no other is as good as, at most `max_states` of them; and the least bound of those let go."""
    kept: list[_State] = []
    for state in sorted(states, key=lambda s: (s.bound, s.cost, s.errors, s.memory)):
        if not any(_as_good(other, state) for other in kept):
            kept.append(state)
            if len(kept) > max_states:
                return kept[:-1], state.bound
    return kept, float("inf")


def _as_good(one: _State, other: _State) -> bool:
    """True where whatever follows `other` is at least as good after `one`."""
    return (
        one.cost <= other.cost
        and one.errors <= other.errors
        and one.memory <= other.memory
        and not one.left & ~other.left
    )


def _cost(block_costs: Sequence[Cost], options: Sequence[Sequence[Option]], chosen: Sequence[int | None]) -> float:
    return walk(block_costs, [None if o is None else here[o] for here, o in zip(options, chosen, strict=True)]).cost


def _greedy(
    block_costs: Sequence[Cost], options: Sequence[Sequence[Option]], max_errors: int, max_memory_bytes: float
) -> tuple[int | None, ...]:
    """From no cache at all, the single change that saves most, until none does: what the search has to beat."""
    best: tuple[int | None, ...] = (None,) * len(block_costs)
    best_cost = float(sum(cost.whole for cost in block_costs))
    while True:
        changed = [
            (*best[:block], choice, *best[block + 1 :])
            for block, here in enumerate(options)
            for choice in (None, *range(len(here)))
            if choice != best[block]
        ]
        cheaper = best
        for chosen in changed:
            found = walk(block_costs, [None if o is None else here[o] for here, o in zip(options, chosen, strict=True)])
            within = found.errors <= max_errors and found.memory_bytes <= max_memory_bytes
            if within and found.cost < best_cost * _CLOSER:
                cheaper, best_cost = chosen, found.cost
        if cheaper == best:
            return best
        best = cheaper
