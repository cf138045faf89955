"""How long a batch takes: warm up, time until the figures stand still, then say the median and the 99th percentile.

Knows neither models nor clusters: it is given a function, batches and a clock.

Rounds. A machine drifts: clock frequency, caches, other work. So the batch sizes take turns, a few runs each, and a
slow second falls on all of them instead of making one look slower than the next larger.

Stopping rule. After `min_runs` per size, and whenever their number has grown by a half since the last look, each
size's newer half of runs is compared with its older half; once all medians differ by at most `tolerance`, the figures
stand still. A size that has used up `max_s` seconds is not run again, but none gets fewer than `LEAST_RUNS` runs. The
idea of measuring until consecutive windows agree is that of NVIDIA's perf_analyzer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.errors import InvalidInput, Problem
from coe.types import BatchTiming

LEAST_RUNS = 3
ROUND_RUNS = 10
CACHE_BYTES = 32 * 2**20
SHORTEST_S = 1e-9
"""Stands for a time that the clock is too coarse to see."""


def measure(
    predict: Callable[[NDArray[Any]], object],
    make_batch: Callable[[int], NDArray[Any]],
    batch_sizes: Sequence[int],
    *,
    clock: Callable[[], float],
    min_runs: int = 100,
    max_runs: int = 2000,
    max_s: float = 2.0,
    tolerance: float = 0.05,
    warm_up_runs: int = 3,
    between: Callable[[], object] | None = None,
) -> tuple[BatchTiming, ...]:
    """Timings of `predict` on batches of each size, in rising order. `clock` gives seconds; `max_s` is per size.

    The 99th percentile is the smallest observed time that at least 99% of the runs did not exceed: under 100 runs that
    is the longest, which errs on the safe side. `between` is called before every run, outside the time taken: what a
    machine does between two batches (see `forget_caches`) is part of what a batch costs in service.

    Raises `InvalidInput` for batch sizes that are empty, repeated or below 1.
    """
    sizes = sorted(batch_sizes)
    if not sizes or sizes[0] < 1 or len(set(sizes)) < len(sizes):
        raise InvalidInput(Problem("batch sizes", "must be different whole numbers from 1", str(list(batch_sizes))))
    series = [_Series(size, make_batch(size)) for size in sizes]
    for one in series:
        for _ in range(warm_up_runs):
            predict(one.batch)
    goal = min(max_runs, min_runs)
    while True:
        _run_until(goal, series, predict, clock, max_s, between)
        settled = all(one.is_out_of_time(max_s) or stands_still(one.runs_s, tolerance) for one in series)
        if settled or goal >= max_runs:
            return tuple(one.timing() for one in series)
        goal = min(max_runs, math.ceil(1.5 * goal))


@dataclass
class _Series:
    """The runs of one batch size."""

    batch_size: int
    batch: NDArray[Any]
    runs_s: list[float] = field(default_factory=list)
    total_s: float = 0.0

    def is_out_of_time(self, max_s: float) -> bool:
        return len(self.runs_s) >= LEAST_RUNS and self.total_s >= max_s

    def add(self, run_s: float) -> None:
        self.runs_s.append(run_s)
        self.total_s += run_s

    def timing(self) -> BatchTiming:
        p50 = max(SHORTEST_S, float(np.quantile(self.runs_s, 0.50)))
        p99 = max(p50, float(np.quantile(self.runs_s, 0.99, method="higher")))
        return BatchTiming(batch_size=self.batch_size, latency_p50_s=p50, latency_p99_s=p99, runs=len(self.runs_s))


def _run_until(
    goal: int,
    series: Sequence[_Series],
    predict: Callable[[NDArray[Any]], object],
    clock: Callable[[], float],
    max_s: float,
    between: Callable[[], object] | None,
) -> None:
    """Rounds of up to `ROUND_RUNS` runs per size, until each has `goal` runs or is out of time."""
    while unfinished := [one for one in series if len(one.runs_s) < goal and not one.is_out_of_time(max_s)]:
        for one in unfinished:
            for _ in range(min(ROUND_RUNS, goal - len(one.runs_s))):
                if between is not None:
                    between()
                started = clock()
                predict(one.batch)
                one.add(clock() - started)
                if one.is_out_of_time(max_s):
                    break


def forget_caches() -> Callable[[], None]:
    """A function that reads and writes more memory than a CPU caches, for `measure(between=...)`.

    A model on a CPU that is asked now and then finds its weights, and the code that runs it, out of the caches, since
    the machine did other things meanwhile. Timed in a tight loop, small models look several times faster than that.
    """
    memory = np.zeros(CACHE_BYTES // 8)

    def forget() -> None:
        np.add(memory, 1.0, out=memory)

    return forget


def stands_still(runs_s: Sequence[float], tolerance: float) -> bool:
    """Whether the median of the newer half of the runs is within `tolerance` (relative) of the older half's."""
    half = len(runs_s) // 2
    if half == 0:
        return False
    older, newer = float(np.median(runs_s[:half])), float(np.median(runs_s[-half:]))
    return abs(newer - older) <= tolerance * older
