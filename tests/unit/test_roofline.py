"""Estimates for devices that nobody measured: the truth recovered where it is known, bands that hold, refusals."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.cost.capacity import service_s
from coe.cost.roofline import IN_TURN, Measured, Peak, Work, estimate, fit, left_out_errors, peak_of
from coe.errors import InvalidInput
from coe.prices.accelerators import accelerator

DATA = Path(os.environ.get("COE_DATA", Path(__file__).parents[3] / "shared/data"))
PEAKS = (Peak("slow", 50e12, 300e9), Peak("fast", 300e12, 1500e9), Peak("lean", 100e12, 1500e9))


def world(
    compute: float,
    memory: float,
    overhead_s: float = 0.0,
    noise: float = 0.0,
    batches: tuple[int, ...] = (64,),
    models: int = 12,
) -> list[Measured]:
    """Models of many sizes and intensities, measured on three devices of one and the same efficiency."""
    rng = np.random.default_rng(5)
    found = []
    for i in range(models):
        work = Work(10 ** rng.uniform(9, 11), 10 ** rng.uniform(6, 8), 10 ** rng.uniform(7, 9))
        own = np.exp(noise * rng.normal())
        for peak in PEAKS:
            for b in batches:
                seconds = (
                    overhead_s
                    + b * work.flops_per_item / (peak.flops_per_s * compute)
                    + (work.weight_bytes + b * work.bytes_per_item) / (peak.bytes_per_s * memory)
                ) * own
                found.append(Measured(f"m{i}", work, peak, b, seconds))
    return found


@settings(max_examples=8, deadline=None)
@given(st.floats(0.2, 0.9), st.floats(0.05, 0.9))
def test_efficiencies_are_recovered(compute: float, memory: float) -> None:
    found = fit(world(compute, memory))
    assert found.compute_efficiency == pytest.approx(compute, rel=0.02)
    assert found.memory_efficiency == pytest.approx(memory, rel=0.02)
    assert found.overhead_s == 0.0
    assert found.error_factor < 1.02


def test_an_overhead_shows_where_batch_sizes_differ() -> None:
    found = fit(world(0.5, 0.3, overhead_s=0.002, batches=(1, 8, 64), models=6))
    assert found.overhead_s == pytest.approx(0.002, rel=0.1)
    assert found.error_factor < 1.1


def test_a_single_wild_measurement_does_not_bend_the_fit() -> None:
    measured = world(0.5, 0.3)
    odd = measured[0]
    measured[0] = Measured(odd.member, odd.work, odd.peak, odd.batch_size, odd.seconds * 50)
    assert fit(measured).compute_efficiency == pytest.approx(0.5, rel=0.05)


def test_anchoring_removes_what_is_special_about_a_model() -> None:
    """Each model is off by a factor of its own: unknown, it is the error; measured elsewhere, it is known."""
    measured = world(0.5, 0.3, noise=0.5, models=40)
    found = fit(measured)
    assert found.error_factor > 1.5
    assert found.anchored_error_factor < 1.25
    work, peak = measured[0].work, Peak("new", 200e12, 1000e9)
    ratio = found.seconds(work, peak, 64, "m0") / found.seconds(work, peak, 64)
    assert ratio == pytest.approx(found.member_factor["m0"])
    assert found.error_factor_of("m0") == found.anchored_error_factor
    assert found.error_factor_of("never seen") == found.error_factor


def test_the_band_holds_for_nine_of_ten() -> None:
    """By definition of the factor, counted here again from the published rows."""
    measured = world(0.5, 0.3, noise=0.4, models=40)
    rows = left_out_errors(measured, anchored=False)
    assert [r.device for r in rows] == ["slow", "fast", "lean", IN_TURN]
    assert rows[-1].predictions == sum(r.predictions for r in rows[:-1]) == 120
    assert rows[-1].factor == pytest.approx(fit(measured).error_factor)
    within = []
    for peak in PEAKS:
        rest = fit([m for m in measured if m.peak != peak])
        for m in measured:
            if m.peak == peak:
                ratio = rest.seconds(m.work, m.peak, m.batch_size) / m.seconds
                within.append(max(ratio, 1 / ratio) <= rows[-1].factor * (1 + 1e-9))
    assert np.mean(within) == pytest.approx(0.9, abs=0.01)


def test_time_rises_with_the_batch() -> None:
    found = fit(world(0.5, 0.3, overhead_s=0.001, batches=(1, 64), models=5))
    work = Work(4e9, 1e7, 1e8)
    times = [found.seconds(work, PEAKS[0], b) for b in (1, 2, 4, 8, 1000)]
    assert times == sorted(times)
    assert times[0] < times[-1]


def test_an_estimate_is_labelled_and_p99_is_the_end_of_its_band() -> None:
    found = fit(world(0.5, 0.3, noise=0.4))
    profile = estimate(found, "new", Work(8e9, 2e7, 5e7), accelerator("L4"), "fp16", (1, 8, 32), 0.5, "2026-11-01")
    assert profile.origin == "estimated"
    assert profile.error_factor == found.error_factor
    assert "roofline at fp16, from its work alone: 36 measurements on slow, fast, lean" in profile.source
    assert "nine in ten of 36 left-out figures within a factor of" in profile.source
    for timing in profile.timings:
        assert timing.latency_p99_s == pytest.approx(timing.latency_p50_s * found.error_factor)
    with pytest.raises(InvalidInput, match="ends at batch size 32"):
        service_s(profile, 64)
    assert service_s(profile, 20) <= service_s(profile, 32)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seconds": 0.0}, "seconds must be > 0, got 0"),
        ({"seconds": -1.0}, "seconds must be > 0, got -1"),
        ({"seconds": float("nan")}, "seconds must be > 0, got nan"),
        ({"batch_size": 0}, "batch size must be > 0"),
        ({"work": Work(0, 1, 1)}, "FLOPs per item must be > 0"),
    ],
)
def test_impossible_measurements_are_refused(change: dict, told: str) -> None:
    measured = world(0.5, 0.3)
    wrong = Measured(**{**measured[0].__dict__, **change})
    with pytest.raises(InvalidInput, match=re.escape(told)):
        fit([wrong, *measured[1:]])


def test_one_device_is_too_few() -> None:
    with pytest.raises(InvalidInput, match="at least two devices.*got slow"):
        fit([m for m in world(0.5, 0.3) if m.peak.device == "slow"])
    with pytest.raises(InvalidInput, match="K80.*no published fp16 rate"):
        peak_of(accelerator("K80"), "fp16")
    with pytest.raises(InvalidInput, match="batch_size: must be > 0"):
        fit(world(0.5, 0.3)).seconds(Work(1, 1, 1), PEAKS[0], 0)


@pytest.mark.skipif(not (DATA / "throughput_timm").exists(), reason="needs the throughput tables in COE_DATA")
def test_published_devices_are_predicted_from_each_other() -> None:
    """On one in twenty of the timm models: anchored estimates from one GPU are much closer than those from the work alone."""
    from benchmarks.roofline import mlperf, timm

    measured = list(timm(DATA / "throughput_timm/timm_infer.csv.gz", gpus=True, quick=True))
    anchored = left_out_errors(measured, anchored=True)[-1]
    cold = left_out_errors(measured, anchored=False)[-1]
    assert anchored.predictions > 100
    assert anchored.median_error < 0.15 < cold.factor
    assert anchored.factor < 1.5 < 2.5
    assert anchored.factor < cold.factor < 2.5
    lists = list(mlperf(DATA / "throughput_mlperf/mlperf_inference_closed.csv.gz"))
    assert len({m.peak.device for m in lists}) > 10
    assert left_out_errors(lists, anchored=True)[-1].median_error < 0.3
