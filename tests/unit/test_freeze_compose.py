"""Composition against enumeration of everything, on random lookups; and by hand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from coe.errors import InvalidInput
from coe.freeze.compose import Composition, Cost, Option, compose, walk

Problem = tuple[list[Cost], list[list[Option]], int, float]


def problem(seed: int, items: int = 40, blocks: int = 5, most_options: int = 3) -> Problem:
    """Random costs, and options whose hits grow with depth as those of real caches do, some of them correlated."""
    rng = np.random.default_rng(seed)
    ease = rng.random(items)
    options: list[list[Option]] = []
    for block in range(blocks - 1):
        here = []
        for i in range(int(rng.integers(0, most_options + 1))):
            hits = ease + 0.3 * rng.random(items) < rng.uniform(0.2, 0.5 + 0.8 * block / blocks)
            wrong = rng.random(items) < rng.uniform(0, 0.25)
            cost = Cost(float(rng.choice([0.05, 0.3, 1.5])), float(rng.choice([0, 0.02, 0.2])))
            here.append(Option(f"{block}.{i}", hits, wrong, cost, int(rng.choice([1, 10, 50]))))
        options.append(here)
    costs = [Cost(*both) for both in rng.uniform([0.2, 0], [3, 0.5], (blocks, 2)).tolist()]
    return costs, [*options, []], int(rng.integers(0, items // 4)), float(rng.choice([0, 11, 60, 1000]))


def kept(options: Sequence[Sequence[Option]], chosen: Sequence[int | None]) -> list[Option | None]:
    return [None if o is None else here[o] for here, o in zip(options, chosen, strict=True)]


def item_by_item(costs: Sequence[Cost], chosen: Sequence[Option | None], items: int) -> tuple[float, int]:
    """Cost per item and errors of sending one item after the other."""
    fixed = [cost.fixed for cost in costs] + [option.lookup_cost.fixed for option in chosen if option]
    total, errors = items * sum(fixed), 0
    for item in range(items):
        for cost, option in zip(costs, chosen, strict=True):
            total += cost.per_item + (option.lookup_cost.per_item if option else 0)
            if option and option.hits[item]:
                errors += bool(option.wrong[item])
                break
    return total / items, errors


def enumerated(costs: Sequence[Cost], options: Sequence[Sequence[Option]], errors: int, memory: float) -> float:
    """The least cost of all compositions within the budgets."""
    every = itertools.product(*[(None, *range(len(here))) for here in options])
    walks = [walk(costs, kept(options, chosen)) for chosen in every]
    return min(w.cost for w in walks if w.errors <= errors and w.memory_bytes <= memory)


@pytest.mark.parametrize("seed", range(40))
def test_the_composition_is_the_cheapest_of_all(seed: int) -> None:
    costs, options, errors, memory = problem(seed)
    found = compose(costs, options, errors, memory)
    assert found.proved
    assert found.walk.cost == pytest.approx(enumerated(costs, options, errors, memory))
    assert found.bound == found.walk.cost
    assert found.walk.errors <= errors
    assert found.walk.memory_bytes <= memory


@pytest.mark.parametrize("seed", range(20))
def test_a_walk_costs_what_its_items_cost(seed: int) -> None:
    costs, options, errors, memory = problem(seed)
    chosen = kept(options, compose(costs, options, errors, memory).chosen)
    found = walk(costs, chosen)
    if any(option is not None for option in chosen):
        cost, wrong = item_by_item(costs, chosen, items=40)
        assert (found.cost, found.errors) == (pytest.approx(cost), wrong)
        assert sum(found.left) == 40


@pytest.mark.parametrize("seed", range(20))
def test_every_cache_that_is_kept_pays_for_its_lookups(seed: int) -> None:
    costs, options, errors, memory = problem(seed)
    found = compose(costs, options, errors, memory)
    for block, choice in enumerate(found.chosen):
        if choice is not None:
            without = walk(costs, kept(options, (*found.chosen[:block], None, *found.chosen[block + 1 :])))
            # an error that a cache prevents further on may be what it is kept for
            assert without.cost > found.walk.cost or without.errors > errors


@pytest.mark.parametrize("seed", range(20))
def test_a_search_cut_short_says_how_much_better_the_optimum_can_be(seed: int) -> None:
    costs, options, errors, memory = problem(seed, blocks=6)
    best = enumerated(costs, options, errors, memory)
    found = compose(costs, options, errors, memory, max_states=1)
    assert found.bound <= best + 1e-9
    assert found.walk.cost >= best - 1e-9
    if found.proved:
        assert found.walk.cost == pytest.approx(best)


def test_by_hand() -> None:
    """Four items, three blocks of cost 10; a cache of cost 1 lets three go after the first.

    With it every item pays 10 + 1, and the fourth 20 more: (4 * 11 + 20) / 4 = 16. One of the three is wrong.
    """
    early = Option("early", np.array([True, True, True, False]), np.array([True, False, False, False]), Cost(1.0), 100)
    costs = [Cost(10.0)] * 3
    free = compose(costs, [[early], [], []], max_errors=1, max_memory_bytes=100)
    assert (free.chosen, free.walk.cost, free.walk.left) == ((0, None, None), 16.0, (3, 0, 1))
    for errors, memory in ((0, 100), (1, 99)):
        tight = compose(costs, [[early], [], []], max_errors=errors, max_memory_bytes=memory)
        assert (tight.chosen, tight.walk.cost) == ((None, None, None), 30.0)


def test_a_fixed_cost_is_paid_by_all_however_few_arrive() -> None:
    """Half leave after block 1 for a lookup of 1 + 3; blocks are 10 + 2: 2 * (10 + 2) + 4 - 5 = 23 against 24."""
    early = Option("early", np.array([True, False]), np.zeros(2, bool), Cost(1.0, 3.0), 0)
    found = compose([Cost(10.0, 2.0)] * 2, [[early], []], 0, 0)
    assert (found.chosen, found.walk.cost, found.walk.full_cost) == ((0, None), 23.0, 24.0)
    dearer = Option("early", early.hits, early.wrong, Cost(1.0, 5.0), 0)
    assert compose([Cost(10.0, 2.0)] * 2, [[dearer], []], 0, 0).chosen == (None, None)


def test_without_options_the_whole_model_runs() -> None:
    costs = [Cost(1.0), Cost(1.5, 0.5)]
    found = compose(costs, [[], []], 0, 0)
    assert found == Composition((None, None), walk(costs, [None, None]), 3.0, True)


def test_many_blocks_are_quick() -> None:
    costs, options, _, _ = problem(1, items=500, blocks=16, most_options=4)
    found = compose(costs, options, 10, 400)
    assert found.walk.cost < found.walk.full_cost
    assert found.bound <= found.walk.cost


@pytest.mark.parametrize(
    ("costs", "options", "errors", "memory", "said"),
    [
        pytest.param([Cost(1)], [[], []], 0, 0, "one entry of options per block", id="lengths"),
        pytest.param([Cost(1), Cost(0)], [[], []], 0, 0, "must be > 0 per item", id="free block"),
        pytest.param([Cost(1), Cost(1)], [[], []], -1, 0, "error budget must be >= 0", id="errors"),
        pytest.param([Cost(1), Cost(1)], [[], []], 0, float("nan"), "memory budget must be >= 0", id="memory"),
        pytest.param(
            [Cost(1), Cost(1)],
            [[], [Option("o", np.ones(2, bool), np.ones(2, bool), Cost(1), 1)]],
            0,
            0,
            "after the last block",
            id="last",
        ),
        pytest.param(
            [Cost(1), Cost(1)],
            [[Option("o", np.ones(2, bool), np.ones(3, bool), Cost(1), 1)], []],
            0,
            0,
            "the same items",
            id="items",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(
    costs: list[Cost], options: list[list[Option]], errors: int, memory: float, said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        compose(costs, options, errors, memory)
