"""What a frozen model does on held-out items: agreement with the model it wraps, who leaves where, and at what cost."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coe.cascade.certify import loss_upper_bound
from coe.errors import InvalidInput, Problem
from coe.freeze.costs import Unit, wait
from coe.freeze.exploration import as_tensor
from coe.freeze.parts import device_of
from coe.freeze.wrap import MIB, Frozen, FrozenReport
from coe.types import BoolArray, FloatArray, Fraction, IntArray, NotNegative, Noun, PositiveCount

Call = Callable[[Tensor], Any]


class Measured(Noun):
    """A frozen model against the model it wraps, on held-out items. Costs are per item, in `unit`."""

    items: PositiveCount
    agreement: Fraction
    """Share of items on which both say the same."""
    disagreement_upper_bound: Fraction
    """Exact one-sided 95% bound: what agreement promises for items like these."""
    left: tuple[Fraction, ...]
    """Share of items that leave right after each block; the last are those that run to the end."""
    hit_agreement: tuple[Fraction | None, ...]
    """Agreement among the items that leave after each block; None where none does."""
    unit: Unit
    expected_cost: NotNegative
    """From these shares and the costs of blocks and lookups that were measured when it was made."""
    full_cost: NotNegative
    batch_size: PositiveCount
    wall_s_per_item: NotNegative
    """The clock's own word on it, at this batch size, with all that re-forming batches costs."""
    whole_wall_s_per_item: NotNegative
    memory_mib: NotNegative
    accuracy: Fraction | None = None
    whole_accuracy: Fraction | None = None

    @property
    def left_before(self) -> tuple[float, ...]:
        """Share of items that have left before each block: the first entry is 0."""
        return tuple(float(v) for v in np.concatenate([[0.0], np.cumsum(self.left[:-1])]))


def measure(
    frozen: Frozen,
    items: Any,
    labels: IntArray | None = None,
    *,
    batch_size: int = 64,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """What the frozen model does on held-out items, and at what cost; with `labels` also how accurate both are."""
    report = frozen.report
    if report is None:
        raise InvalidInput(
            Problem("frozen model", "has no report: it was not made by `freeze`", remedy="load its weights")
        )
    batches = [part.to(device_of(frozen.blocks)) for part in as_tensor(items).split(batch_size)]
    traces = [frozen.trace(batch) for batch in batches]
    whole = [frozen.whole(batch) for batch in batches]
    wall_s, whole_wall_s = _timed((frozen.trace, frozen.whole), batches, clock)
    answer = torch.cat([t.label for t in traces]).cpu().numpy()
    left_after = torch.cat([t.left_after for t in traces]).cpu().numpy()
    reference = torch.cat([w.argmax(dim=1) for w in whole]).cpu().numpy()
    n = len(answer)
    same = answer == reference
    counts = np.bincount(left_after, minlength=len(frozen.blocks))
    agreed = np.bincount(left_after[same], minlength=len(frozen.blocks))
    return Measured(
        items=n,
        agreement=float(same.mean()),
        disagreement_upper_bound=loss_upper_bound(int((~same).sum()), n, 0.05),
        left=tuple(float(c) / n for c in counts),
        hit_agreement=tuple(float(a / c) if c else None for a, c in zip(agreed, counts, strict=True)),
        unit=report.unit,
        expected_cost=_expected_cost(report, counts / n),
        full_cost=report.full_cost,
        batch_size=batch_size,
        wall_s_per_item=wall_s / n,
        whole_wall_s_per_item=whole_wall_s / n,
        memory_mib=frozen.memory_bytes / MIB,
        accuracy=None if labels is None else float((answer == labels).mean()),
        whole_accuracy=None if labels is None else float((reference == labels).mean()),
    )


def _expected_cost(report: FrozenReport, left: FloatArray) -> float:
    """Sum over blocks and the lookups behind them: the share that reaches the block times what an item adds, and the rest."""
    reach = 1 - np.concatenate([[0.0], np.cumsum(left)[:-1]])
    paid = [(i, cost) for i, cost in enumerate(report.block_costs)]
    paid += [(cache.after_block, cache.lookup_cost) for cache in report.caches]
    return float(sum(reach[block] * cost.per_item + cost.fixed for block, cost in paid))


ROUNDS = 3
"""Both models are timed in turn this often, so that what else the machine does meets both; the medians count."""


def _timed(calls: Sequence[Call], batches: Sequence[Tensor], clock: Callable[[], float]) -> list[float]:
    """Median seconds of each call over all batches."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, taken in zip(calls, seconds, strict=True):
            wait()
            start = clock()
            for batch in batches:
                call(batch)
            wait()
            taken.append(clock() - start)
    return [statistics.median(taken) for taken in seconds]


def right_labels(frozen: Frozen, items: Any, batch_size: int = 256) -> BoolArray:
    """(blocks - 1, items) whether the label of the cache behind each block is the wrapped model's; False without a cache.

    Every cache is asked about every item, whatever the thresholds: what `curves.perfect` needs.
    """
    found = []
    with torch.no_grad():
        for part in as_tensor(items).split(batch_size):
            found.append(_right_labels(frozen, part.to(device_of(frozen.blocks))))
    return np.concatenate(found, axis=1)


def _right_labels(frozen: Frozen, batch: Tensor) -> BoolArray:
    labels = []
    for i, block in enumerate(frozen.blocks):
        batch = block(batch)
        nothing = torch.full((len(batch),), -1, device=batch.device)
        labels.append(frozen.caches[str(i)](batch).label if str(i) in frozen.caches else nothing)
    answer = batch.argmax(dim=1)
    right: BoolArray = torch.stack([label == answer for label in labels[:-1]]).cpu().numpy()
    return right
