"""The profiler's stopping rule, on a clock that only moves when the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from coe.errors import InvalidInput
from coe.profiler.measure import CACHE_BYTES, LEAST_RUNS, forget_caches, measure, stands_still


class Model:
    """Takes as many seconds of a fake clock as `durations` says, run after run."""

    def __init__(self, durations: Callable[[int], Iterator[float]]) -> None:
        self.now_s = 0.0
        self.calls: list[int] = []
        self._durations = durations
        self._by_size: dict[int, Iterator[float]] = {}

    def clock(self) -> float:
        return self.now_s

    def __call__(self, batch: np.ndarray) -> None:
        size = len(batch)
        self.calls.append(size)
        self.now_s += next(self._by_size.setdefault(size, self._durations(size)))


def batch(size: int) -> np.ndarray:
    return np.zeros((size, 3), dtype=np.float32)


def constant(seconds: float) -> Callable[[int], Iterator[float]]:
    def durations(size: int) -> Iterator[float]:
        while True:
            yield seconds * size

    return durations


def test_a_steady_model_stops_at_min_runs_with_exact_figures() -> None:
    model = Model(constant(0.001))
    timings = measure(model, batch, [4, 1], clock=model.clock, min_runs=10, warm_up_runs=2)
    assert [(t.batch_size, t.runs) for t in timings] == [(1, 10), (4, 10)], "rising sizes, whatever the order given"
    assert timings[0].latency_p50_s == pytest.approx(0.001)
    assert timings[1].latency_p99_s == pytest.approx(0.004)
    assert model.calls == [1, 1, 4, 4] + [1] * 10 + [4] * 10


def test_sizes_take_turns_so_that_drift_falls_on_all_of_them() -> None:
    def slower_in_the_middle(_: int) -> Iterator[float]:
        while True:
            yield 0.010 + 0.005 * (1.0 <= model.now_s < 2.0)

    model = Model(slower_in_the_middle)
    timings = measure(model, batch, [1, 2], clock=model.clock, min_runs=100, max_s=100, tolerance=1.0, warm_up_runs=0)
    assert timings[0].latency_p50_s == pytest.approx(timings[1].latency_p50_s, rel=0.01)
    assert model.calls[:40] == [1] * 10 + [2] * 10 + [1] * 10 + [2] * 10


def test_warm_up_runs_are_not_timed() -> None:
    def durations(_: int) -> Iterator[float]:
        yield 5.0
        yield 5.0
        while True:
            yield 0.01

    model = Model(durations)
    (timing,) = measure(model, batch, [1], clock=model.clock, warm_up_runs=2)
    assert timing.latency_p99_s == pytest.approx(0.01)


def test_a_model_that_still_gets_faster_is_timed_longer() -> None:
    def durations(_: int) -> Iterator[float]:
        seconds = 0.010
        while True:
            yield seconds
            seconds = max(0.001, seconds * 0.97)

    model = Model(durations)
    (timing,) = measure(model, batch, [1], clock=model.clock, min_runs=20, max_s=100)
    assert timing.runs > 100
    assert timing.latency_p50_s == pytest.approx(0.001)


def test_a_model_that_never_settles_is_stopped_by_time() -> None:
    def durations(_: int) -> Iterator[float]:
        seconds = 0.01
        while True:
            yield seconds
            seconds *= 1.1

    model = Model(durations)
    (timing,) = measure(model, batch, [1], clock=model.clock, min_runs=20, max_s=3.0, warm_up_runs=0)
    assert 20 < timing.runs < 60
    assert 3.0 <= model.now_s < 3.5


def test_a_slow_model_gets_few_runs_but_never_fewer_than_the_least() -> None:
    model = Model(constant(10.0))
    (timing,) = measure(model, batch, [1], clock=model.clock, max_s=1.0, warm_up_runs=0)
    assert timing.runs == LEAST_RUNS


def test_max_runs_is_the_end() -> None:
    model = Model(lambda _: iter(np.tile([0.001, 0.002], 100)))
    (timing,) = measure(model, batch, [1], clock=model.clock, max_runs=30, tolerance=0.0, warm_up_runs=0)
    assert timing.runs <= 30


def test_p99_is_an_observed_time_and_not_below_the_99th_percentile() -> None:
    times = np.random.default_rng(1).permutation(np.arange(1, 201) / 1000)
    model = Model(lambda _: iter(times))
    (timing,) = measure(model, batch, [1], clock=model.clock, min_runs=200, max_runs=200, max_s=1e9, warm_up_runs=0)
    assert timing.runs == 200
    assert timing.latency_p99_s == pytest.approx(0.199)
    assert np.mean(times <= timing.latency_p99_s + 1e-12) >= 0.99
    assert timing.latency_p50_s == pytest.approx(0.1005)


def test_a_clock_too_coarse_gives_positive_times() -> None:
    (timing,) = measure(lambda _: None, batch, [1], clock=lambda: 7.0)
    assert 0 < timing.latency_p50_s <= timing.latency_p99_s


@pytest.mark.parametrize("sizes", [[], [0, 1], [2, 2]], ids=["none", "zero", "repeated"])
def test_bad_batch_sizes_are_refused(sizes: list[int]) -> None:
    with pytest.raises(InvalidInput, match="batch sizes"):
        measure(lambda _: None, batch, sizes, clock=lambda: 0.0)


def test_stands_still_compares_halves() -> None:
    assert stands_still([1.0] * 10 + [1.04] * 10, tolerance=0.05)
    assert not stands_still([1.0] * 10 + [1.06] * 10, tolerance=0.05)
    assert not stands_still([1.0] * 10 + [0.90] * 10, tolerance=0.05)
    assert not stands_still([1.0], tolerance=0.05)


def test_what_happens_between_runs_is_not_timed() -> None:
    now = [0.0]
    calls: list[str] = []

    def between() -> None:
        calls.append("between")
        now[0] += 100.0

    def predict(_batch: object) -> None:
        calls.append("run")
        now[0] += 0.5

    (timing,) = measure(
        predict, np.zeros, [1], clock=lambda: now[0], min_runs=4, max_runs=4, warm_up_runs=0, between=between
    )
    assert timing.latency_p50_s == timing.latency_p99_s == 0.5
    assert calls == ["between", "run"] * 4


def test_forgetting_touches_more_than_a_cache_holds() -> None:
    forget = forget_caches()
    forget()
    assert CACHE_BYTES >= 32 * 2**20
