"""Making a frozen model: explore, compose, assemble.

`freeze` does all in one call; `explore` and `assemble` (or `every_block`, the paper's own setting) do it in two, so that
one exploration serves several budgets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from coe.errors import InvalidInput, Problem
from coe.freeze.blocks import Blocks
from coe.freeze.caches import Cache
from coe.freeze.compose import Composition, Cost, Option, Walk, compose, walk
from coe.freeze.costs import Unit
from coe.freeze.exploration import Exploration, Progress, Settings, Variant, explore
from coe.freeze.parts import memory_bytes as bytes_of
from coe.freeze.wrap import MIB, BatchCost, CacheReport, Frozen, FrozenReport
from coe.types import BoolArray


def freeze(
    model: nn.Module,
    blocks: Blocks = None,
    *,
    cache_items: Any,
    validation_items: Any,
    kinds: Sequence[str] = ("kmeans", "learned-fc"),
    error_budget: float = 0.0,
    memory_mib: float | None = None,
    unit: Unit = "seconds",
    settings: Settings | None = None,
    only_after: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Frozen:
    """The model with the caches that lower its expected cost most, within the budgets.

    `error_budget` is the share of validation items that may leave with a label other than the model's; with 0 every
    threshold is pessimistic. `memory_mib` bounds all caches together. The other arguments are those of `explore`. Where
    no cache pays for its lookups the frozen model has none. Raises `InvalidInput` as `explore` does.
    """
    explored = explore(
        model,
        blocks,
        cache_items=cache_items,
        validation_items=validation_items,
        kinds=kinds,
        unit=unit,
        settings=settings,
        only_after=only_after,
        progress=progress,
    )
    return assemble(explored, error_budget=error_budget, memory_mib=memory_mib)


BUDGET_PARTS = (1.0, 0.5, 0.25, 0.125)
"""Parts of the error budget that one cache may be tuned to; each cache may also stay pessimistic."""


def assemble(
    explored: Exploration,
    *,
    error_budget: float = 0.0,
    memory_mib: float | None = None,
    kinds: Sequence[str] | None = None,
) -> Frozen:
    """The cheapest composition of what was explored (of `kinds`, where given), within the budgets."""
    if not 0 <= error_budget < 1 or (memory_mib is not None and not memory_mib >= 0):
        found = f"error_budget {error_budget}, memory_mib {memory_mib}"
        raise InvalidInput(Problem("budgets", "must be in [0, 1) for errors and at least 0 for memory", found))
    budgets = (0.0, *(part * error_budget for part in BUDGET_PARTS if error_budget > 0))
    offered = [
        [
            (variant, threshold)
            for variant in here
            if kinds is None or variant.kind in kinds
            for threshold in sorted({explored.threshold(variant, budget) for budget in budgets})
        ]
        for here in explored.variants
    ]
    options = [[explored.option(*pair) for pair in here] for here in offered]
    max_errors = math.floor(error_budget * len(explored.model_label) + 1e-9)
    max_memory = math.inf if memory_mib is None else memory_mib * MIB
    composed = compose(explored.block_costs, options, max_errors, max_memory)
    kept = [None if o is None else here[o] for here, o in zip(offered, composed.chosen, strict=True)]
    return _frozen(explored, kept, composed)


def every_block(explored: Exploration, kind: str, error_budget: float = 0.0) -> Frozen:
    """A cache of one kind behind every block that has one, as the paper has it, whether it pays or not.

    Each threshold is tuned on its own to an equal part of the budget, so that all together stay within it.
    """
    variants = [next((v for v in here if v.kind == kind), None) for here in explored.variants]
    parts = max(1, sum(v is not None for v in variants))
    kept = [None if v is None else (v, explored.threshold(v, error_budget / parts)) for v in variants]
    return _frozen(explored, kept, None)


def _frozen(explored: Exploration, kept: Sequence[tuple[Variant, float] | None], found: Composition | None) -> Frozen:
    options = [None if pair is None else explored.option(*pair) for pair in kept]
    caches, reports = {}, []
    here = np.ones(len(explored.model_label), dtype=bool)
    for block, (pair, option) in enumerate(zip(kept, options, strict=True)):
        if pair is None or option is None:
            continue
        first = here & option.hits
        here &= ~option.hits
        caches[block] = explored.cache(*pair, first)
        reports.append(_cache_report(block, caches[block], option, first))
    sent = walk(explored.block_costs, options)
    memory = sum(bytes_of(cache) for cache in caches.values())
    return Frozen(explored.blocks, caches, _report(explored, reports, sent, found, memory), explored.classes)


def _cache_report(block: int, cache: Cache, option: Option, first: BoolArray) -> CacheReport:
    return CacheReport(
        after_block=block,
        kind=cache.kind,
        threshold=float(cache.threshold),
        probability=float(cache.probability),
        lookup_cost=_batch_cost(option.lookup_cost),
        memory_bytes=bytes_of(cache),
        left=int(first.sum()),
        wrong=int((first & option.wrong).sum()),
    )


def _batch_cost(cost: Cost) -> BatchCost:
    return BatchCost(per_item=cost.per_item, fixed=cost.fixed)


def _report(
    explored: Exploration, reports: Sequence[CacheReport], sent: Walk, found: Composition | None, memory: int
) -> FrozenReport:
    return FrozenReport(
        unit=explored.unit,
        block_costs=tuple(_batch_cost(cost) for cost in explored.block_costs),
        caches=tuple(reports),
        validation_items=len(explored.model_label),
        validation_errors=sent.errors,
        expected_cost=sent.cost,
        full_cost=sent.full_cost,
        bound=found.bound if found else 0.0,
        proved=found.proved if found else False,
        memory_bytes=memory,
    )
