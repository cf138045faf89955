"""How long a batch takes: warm up, time until the figures stand still, then say the median and the 99th percentile.

Knows neither models nor clusters: it is given a function, batches and a clock.

Stopping rule. Runs are timed one after the other. After `min_runs`, and whenever the number of runs has grown by a half
since the last look, the median of the newer half is compared with the median of the older half; once they differ by at
most `tolerance`, the figures stand still. Whatever happens, `max_s` per batch size ends it, but never before
`LEAST_RUNS` runs. The same idea, with windows of fixed length, is how NVIDIA's perf_analyzer decides that a measurement
is stable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.errors import InvalidInput, Problem
from coe.types import BatchTiming

LEAST_RUNS = 3


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
    warm_up_runs: int = 2,
) -> tuple[BatchTiming, ...]:
    """Timings of `predict` on batches of each size, in rising order. `clock` gives seconds; `max_s` is per size.

    The 99th percentile is the smallest observed time that at least 99% of the runs did not exceed: under 100 runs that
    is the longest, which errs on the safe side.

    Raises `InvalidInput` for batch sizes that are empty, repeated or below 1.
    """
    sizes = sorted(batch_sizes)
    if not sizes or sizes[0] < 1 or len(set(sizes)) < len(sizes):
        raise InvalidInput(Problem("batch sizes", "must be different whole numbers from 1", str(list(batch_sizes))))
    timings = []
    for size in sizes:
        batch = make_batch(size)
        for _ in range(warm_up_runs):
            predict(batch)
        runs_s = _timed(predict, batch, clock, min_runs, max_runs, max_s, tolerance)
        timings.append(_timing(size, runs_s))
    return tuple(timings)


def _timed(
    predict: Callable[[NDArray[Any]], object],
    batch: NDArray[Any],
    clock: Callable[[], float],
    min_runs: int,
    max_runs: int,
    max_s: float,
    tolerance: float,
) -> list[float]:
    """Seconds of each run, until they stand still or time is up."""
    runs_s: list[float] = []
    look_at = max(min_runs, 2 * LEAST_RUNS)
    began = clock()
    while len(runs_s) < max_runs:
        started = clock()
        predict(batch)
        now = clock()
        runs_s.append(now - started)
        if len(runs_s) >= LEAST_RUNS and now - began >= max_s:
            break
        if len(runs_s) >= look_at:
            if stands_still(runs_s, tolerance):
                break
            look_at = math.ceil(1.5 * len(runs_s))
    return runs_s


def stands_still(runs_s: Sequence[float], tolerance: float) -> bool:
    """Whether the median of the newer half of the runs is within `tolerance` (relative) of the older half's."""
    half = len(runs_s) // 2
    older, newer = float(np.median(runs_s[:half])), float(np.median(runs_s[-half:]))
    return abs(newer - older) <= tolerance * older


def _timing(size: int, runs_s: Sequence[float]) -> BatchTiming:
    """Median and 99th percentile of all timed runs."""
    kept = np.asarray(runs_s)
    p50 = float(np.quantile(kept, 0.50))
    p99 = float(np.quantile(kept, 0.99, method="higher"))
    smallest = 1e-9  # a clock too coarse to see the run
    return BatchTiming(
        batch_size=size, latency_p50_s=max(p50, smallest), latency_p99_s=max(p99, p50, smallest), runs=len(kept)
    )
