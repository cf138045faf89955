"""What blocks and lookups cost per item: seconds measured on this machine, or multiplications counted.

Seconds are the honest unit for the machine and the batch size that they were measured with. They come in two parts, from a
full batch and an eighth of one: what each item adds, and what running at all costs, which a batch that has shrunk still
pays. On a GPU the latter is nearly all of it until batches are large. Multiplications are the same everywhere, and leave
out all that is not a matrix product or a convolution.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from coe.freeze.compose import Cost

Unit = Literal["seconds", "macs"]
ROUNDS = 15
MIN_S = 0.02
"""A timing repeats its call until it lasts this long, so that the clock's grain does not show."""
LEAST_SHARE = 0.01
"""An item adds at least this share of its part of a full batch, whatever noise makes of the difference of two timings."""
LEAST_MACS = 1.0
"""A block of additions and comparisons alone counts as one multiplication: nothing is free."""


Call = Callable[[Tensor], Tensor]


def cost(call: Call, items: Tensor, unit: Unit, clock: Callable[[], float] = time.perf_counter) -> Cost:
    """Of a call that handles a batch; `items` is a full one."""
    n = len(items)
    few = max(1, n // 8)
    with torch.no_grad():
        if unit == "macs":
            return Cost(_macs(partial(call, items)) / n)
        full_s = _seconds(partial(call, items), clock)
        if n == few:
            return Cost(full_s / n)
        few_s = _seconds(partial(call, items[:few]), clock)
    per_item_s = max((full_s - few_s) / (n - few), LEAST_SHARE * full_s / n)
    return Cost(per_item_s, max(full_s / n - per_item_s, 0.0))


def block_costs(blocks: Sequence[nn.Module], items: Tensor, unit: Unit) -> list[Cost]:
    """Of each block, on a full batch that goes through all of them."""
    found = []
    with torch.no_grad():
        for block in blocks:
            found.append(cost(block, items, unit))
            items = block(items)
    return found


def _macs(call: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return max(LEAST_MACS, float(counter.get_total_flops()) / 2)


def _seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """Median of several timings after one to warm up and one to see how often to repeat."""
    _timed(call, 1, clock)
    repeats = max(1, round(MIN_S / ROUNDS / max(_timed(call, 1, clock), 1e-7)))
    return max(statistics.median(_timed(call, repeats, clock) for _ in range(ROUNDS)), 1e-9)


def _timed(call: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    wait()
    start = clock()
    for _ in range(repeats):
        call()
    wait()
    return (clock() - start) / repeats


def wait() -> None:
    """A GPU works on after the call returns."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
