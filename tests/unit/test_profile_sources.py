"""Published measurements: samples of every format, what is wrong with them, and what must not be smoothed over."""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coe import files
from coe.cli.main import run
from coe.cost.capacity import service_s
from coe.errors import InvalidInput
from coe.profiler.sources import import_profiles
from coe.profiler.sources.asked import Asked
from coe.types import BatchTiming, Profile, Profiles
from tests import factories

SAMPLES = Path(__file__).parents[1] / "data"
DATA = Path(os.environ.get("COE_DATA", Path(__file__).parents[3] / "shared/data"))
needs_data = pytest.mark.skipif(
    not (DATA / "throughput_timm").exists(), reason="needs the throughput tables in COE_DATA"
)

TIMM = {"day": "2024-08-21", "accelerator": "RTX-3090", "precision": "fp16", "p99_factor": 1.2}
TABLE = {"day": "2024-01-01", "rename": {"some_gpu": "T4"}, "p99_factor": 1.2, "memory_gib": 1.0}
TRITON = {"day": "2026-11-01", "member": "inception", "accelerator": "T4", "memory_gib": 2.0, "batch_sizes": (4,)}
MLPERF = {"day": "2023-04-05", "p99_factor": 1.1, "memory_gib": 1.0, "batch_sizes": (256,)}
VLLM = {"accelerator": "H100-80GB", "memory_gib": 70.0}


def read(kind: str, *names: str | Path, **asked) -> tuple[dict[tuple[str, str], Profile], str]:
    """(profiles by member and accelerator, the notes) of sample files."""
    profiles, notes = import_profiles(kind, [SAMPLES / n for n in names], Asked(**asked))
    return {(p.member, p.accelerator): p for p in profiles.profiles}, "\n".join(notes)


# --- Formats ----------------------------------------------------------------------------------------------------------


def test_timm_as_published() -> None:
    found, _ = read("timm", "timm_rtx3090.csv", **TIMM)
    assert {m for m, _ in found} == {"resnet50-160px", "resnet50-176px", "efficientnet_b0", "mobilenetv3_large_150d"}
    resnet = found["resnet50-160px", "RTX-3090"]
    (timing,) = resnet.timings
    assert timing.batch_size == 1024
    assert timing.latency_p50_s == pytest.approx(1024 / 6033.87)
    assert timing.latency_p50_s == pytest.approx(0.169699, rel=1e-3)  # infer_step_time says the same
    assert timing.latency_p99_s == pytest.approx(1.2 * timing.latency_p50_s)
    assert resnet.memory_gib == pytest.approx(25.56e6 * 2 / 2**30)
    assert resnet.origin == "imported"
    for said in ("timm benchmark, timm_rtx3090.csv", "p99 taken as 1.2 x p50", "weights alone"):
        assert said in resnet.source
    one_size, _ = read("timm", "timm_rtx3090.csv", **TIMM, where={"infer_img_size": "160"})
    assert set(one_size) == {("resnet50", "RTX-3090")}


def test_mlperf() -> None:
    asked = MLPERF | {"where": {"submitter": "NVIDIA"}}
    found, _ = read("mlperf", "mlperf.csv", **asked)
    (timing,) = found["resnet50", "A100-80GB"].timings
    assert timing.latency_p50_s == pytest.approx(256 / 42379.3)
    assert ("resnet50", "L4") in found
    _, notes = read("mlperf", "mlperf.csv", **MLPERF, pick="median")
    assert notes == ""


def test_mlperf_singlestream(tmp_path: Path) -> None:
    rows = (SAMPLES / "mlperf.csv").read_text().splitlines()
    single = rows[1].replace(",offline,", ",singlestream,").rsplit(",", 4)[0] + ",0.35,0.36,0.40,0.36"
    (tmp_path / "m.csv").write_text("\n".join([rows[0], single, rows[1]]) + "\n")
    found, notes = read("mlperf", tmp_path / "m.csv", **(MLPERF | {"batch_sizes": (), "p99_factor": None}))
    (timing,) = found["resnet50", "A100-80GB"].timings
    assert (timing.batch_size, timing.latency_p50_s, timing.latency_p99_s) == (1, 0.00035, 0.0004)
    assert "1 offline (give --batch-size)" in notes


LOG = {"day": "2023-04-05", "member": "resnet50", "accelerator": "A2", "memory_gib": 1.0, "p99_factor": 1.1}


def test_mlperf_logs(tmp_path: Path) -> None:
    offline = LOG | {"batch_sizes": (128,), "devices": 2}
    found, _ = read("mlperf-log", "mlperf_log_summary.txt", **offline)
    (timing,) = found["resnet50", "A2"].timings
    assert (timing.batch_size, timing.latency_p50_s) == (128, pytest.approx(128 * 2 / 5202.88))
    text = (SAMPLES / "mlperf_log_summary.txt").read_text()
    (tmp_path / "s.txt").write_text(text.replace("Offline", "SingleStream").replace("329191959919", "500000"))
    found, _ = read("mlperf-log", tmp_path / "s.txt", **LOG)
    assert found["resnet50", "A2"].timings[0].latency_p50_s == 0.0005
    for old, new, told in (
        ("VALID", "INVALID", "must be a run that LoadGen calls VALID, got 'INVALID'"),
        ("Offline", "Server", "must be Offline or SingleStream"),
        ("5202.88", "0", "Samples per second: must be > 0, got 0"),
        ("MLPerf Results", "Some Results", "is not a summary of MLPerf LoadGen"),
    ):
        (tmp_path / "bad.txt").write_text(text.replace(old, new, 1))
        with pytest.raises(InvalidInput, match=re.escape(told)):
            read("mlperf-log", tmp_path / "bad.txt", **offline)


def test_batch_latency_tables_keep_what_is_not_monotone_and_say_so() -> None:
    found, notes = read("batch-latency", "batch_latency.csv", **TABLE)
    profile = found["tiny", "T4"]
    assert [t.latency_p50_s for t in profile.timings] == [0.002, 0.0025, 0.0024]
    assert profile.timings[0].runs == 1000
    assert profile.timings[2].latency_p99_s == pytest.approx(0.0029)  # the 90th percentile is above 1.2 x p50
    assert "tiny on T4: latency_p50_s falls from 0.0025 at batch 2 to 0.0024 at batch 4" in notes
    assert service_s(profile, 4) == 0.0025  # plans count the slower figure


def test_perf_analyzer() -> None:
    found, _ = read("perf-analyzer", "perf_analyzer.csv", **TRITON)
    (timing,) = found["inception", "T4"].timings
    assert (timing.batch_size, timing.latency_p50_s, timing.latency_p99_s) == (4, 0.013891, 0.021018)


def test_perf_analyzer_files_of_several_batch_sizes_are_one_profile(tmp_path: Path) -> None:
    (tmp_path / "b8.csv").write_text((SAMPLES / "perf_analyzer.csv").read_text().replace("13891", "20000"))
    found, _ = read("perf-analyzer", "perf_analyzer.csv", tmp_path / "b8.csv", **(TRITON | {"batch_sizes": (4, 8)}))
    assert [(t.batch_size, t.latency_p50_s) for t in found["inception", "T4"].timings] == [(4, 0.013891), (8, 0.02)]


def vllm_run(path: Path, **changes) -> Path:
    """A result file with the keys of `vllm bench serve`, of a saturated run."""
    sample = json.loads((SAMPLES / "vllm_open_loop.json").read_text())
    closed = {"max_concurrency": 16, "request_rate": "inf", "median_e2el_ms": 1900.0, "p99_e2el_ms": 2500.0}
    path.write_text(json.dumps({**sample, **closed, **changes}))
    return path


def test_vllm(tmp_path: Path) -> None:
    first = vllm_run(tmp_path / "c16.json")
    second = vllm_run(tmp_path / "c32.json", max_concurrency=32, median_e2el_ms=3000.0, p99_e2el_ms=4000.0)
    found, notes = read("vllm", first, second, **VLLM)
    profile = found["meta-llama/Llama-3.2-3B-Instruct", "H100-80GB"]
    assert [(t.batch_size, t.latency_p50_s, t.latency_p99_s) for t in profile.timings] == [(16, 1.9, 2.5), (32, 3, 4)]
    assert profile.timings[0].runs == 300
    assert profile.date == "2025-05-30"
    assert notes == ""
    _, notes = read("vllm", vllm_run(tmp_path / "idle.json", max_concurrency=64), **VLLM)
    assert "only 15.8 of 64 requests were in flight" in notes


def test_our_own_profiles_are_merged(tmp_path: Path) -> None:
    files.write(tmp_path / "a.yaml", Profiles(profiles=(factories.profile("small", "T4", 0.001),)))
    files.write(tmp_path / "b.yaml", Profiles(profiles=(factories.profile("large", "T4", 0.02),)))
    found, _ = read("yaml", tmp_path / "a.yaml", tmp_path / "b.yaml")
    assert set(found) == {("small", "T4"), ("large", "T4")}
    assert found["small", "T4"].origin == "measured"


@given(st.lists(st.floats(1e-4, 1.0), min_size=2, max_size=6), st.data())
def test_between_batch_sizes_time_never_falls_and_beyond_them_nothing_is_said(times: list[float], data) -> None:
    """Whatever was measured, monotone or not; and no plan counts on less than what was measured."""
    sizes = sorted(data.draw(st.sets(st.integers(1, 200), min_size=len(times), max_size=len(times))))
    timings = tuple(
        BatchTiming(batch_size=b, latency_p50_s=t, latency_p99_s=2 * t) for b, t in zip(sizes, times, strict=True)
    )
    profile = factories.profile("m", "T4", 0.001).model_copy(update={"timings": timings})
    grid = np.linspace(sizes[0], sizes[-1], 50)
    predicted = [service_s(profile, float(b)) for b in grid]
    assert np.all(np.diff(predicted) >= -1e-12)
    assert all(service_s(profile, t.batch_size) >= t.latency_p50_s for t in timings)
    with pytest.raises(InvalidInput, match="ends at batch size"):
        service_s(profile, sizes[-1] + 1)


# --- What is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "asked", "told"),
    [
        ("timm", "timm_rtx3090.csv", TIMM | {"accelerator": None}, "give --accelerator"),
        ("timm", "timm_rtx3090.csv", TIMM | {"accelerator": "RTX 3091"}, "did you mean RTX-3090"),
        ("timm", "timm_rtx3090.csv", TIMM | {"precision": None}, "give --precision"),
        ("timm", "timm_rtx3090.csv", TIMM | {"p99_factor": None}, "has no p99; give --p99-factor"),
        ("timm", "timm_rtx3090.csv", TIMM | {"day": None}, "give --date"),
        ("timm", "timm_rtx3090.csv", TIMM | {"where": {"torch": "pt240"}}, "--where torch: is no column"),
        ("timm", "timm_rtx3090.csv", TIMM | {"members": ("vit*",)}, "no usable measurement"),
        ("timm", "perf_analyzer.csv", TIMM, "is not a timm benchmark"),
        ("mlperf", "mlperf.csv", MLPERF, "give --pick median"),
        ("mlperf", "mlperf.csv", MLPERF | {"memory_gib": None, "pick": "median"}, "give --memory-gib"),
        ("batch-latency", "batch_latency.csv", TABLE | {"rename": {}}, "--rename 'some_gpu'=NAME"),
        ("perf-analyzer", "perf_analyzer.csv", TRITON | {"batch_sizes": ()}, "give --batch-size, once per file"),
        ("perf-analyzer", "perf_analyzer.csv", TRITON | {"member": None}, "give --member"),
        (
            "mlperf-log",
            "mlperf_log_summary.txt",
            {**LOG, "batch_sizes": (8,)},
            "on how many devices it ran; give --devices",
        ),
        ("mlperf-log", "mlperf_log_summary.txt", LOG, "give --batch-size, once per file"),
        ("vllm", "vllm_open_loop.json", VLLM, "max_concurrency: is null: queues are in the latency"),
        ("vllm", "litellm.json", VLLM, "is not a result of vllm bench serve"),
        ("nosuch", "mlperf.csv", {}, "known: batch-latency, mlperf, mlperf-log"),
    ],
)
def test_what_is_missing_is_asked_for(kind: str, name: str, asked: dict, told: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(told)):
        read(kind, name, **asked)


@pytest.mark.parametrize(
    ("kind", "name", "asked", "old", "new", "told"),
    [
        ("timm", "timm_rtx3090.csv", TIMM, "6033.87", "0", "infer_samples_per_sec: must be > 0, got 0"),
        ("timm", "timm_rtx3090.csv", TIMM, "6033.87", "-6033.87", "infer_samples_per_sec: must be > 0, got -6033.87"),
        ("mlperf", "mlperf.csv", MLPERF, ",42379.3,334", ",0,334", "samples_per_s_per_accel: must be > 0, got 0"),
        ("mlperf", "mlperf.csv", MLPERF, "NVIDIA A100-SXM-80GB,1", "NVIDIA A100-SXM-80C,1", "'NVIDIA A100-SXM-80C'"),
        ("batch-latency", "batch_latency.csv", TABLE, "1,2.0", "1,0", "50th_pct: must be > 0, got 0"),
        ("batch-latency", "batch_latency.csv", TABLE, "0,2,2.5", "0,1,2.5", "times tiny on T4 at batch 1 2 times"),
        ("perf-analyzer", "perf_analyzer.csv", TRITON, "1,69.2", "1,0", "Inferences/Second: must be > 0"),
        ("perf-analyzer", "perf_analyzer.csv", TRITON, "1,69.2", "5,69.2", "has no row at concurrency 1"),
        ("perf-analyzer", "perf_analyzer.csv", TRITON, "Concurrency", "Request Rate", "measured at request rates"),
    ],
)
def test_impossible_figures_are_named(
    kind: str, name: str, asked: dict, old: str, new: str, told: str, tmp_path: Path
) -> None:
    text = (SAMPLES / name).read_text()
    assert old in text
    (tmp_path / name).write_text(text.replace(old, new, 1))
    with pytest.raises(InvalidInput, match=re.escape(told)):
        read(kind, tmp_path / name, **asked)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"median_e2el_ms": None}, "median_e2el_ms: is missing; record it"),
        ({"request_throughput": 0}, "request_throughput: must be > 0, got 0"),
        ({"p99_e2el_ms": "fast"}, 'p99_e2el_ms: must be > 0, got "fast"'),
        ({"model_id": ""}, "model_id: is missing"),
    ],
)
def test_vllm_runs_that_say_too_little(changes: dict, told: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=re.escape(told)):
        read("vllm", vllm_run(tmp_path / "run.json", **changes), **VLLM)


SAMPLE_OF = {
    "timm": ("timm_rtx3090.csv", TIMM),
    "mlperf": ("mlperf.csv", MLPERF | {"pick": "median"}),
    "mlperf-log": ("mlperf_log_summary.txt", LOG | {"batch_sizes": (8,), "devices": 1}),
    "batch-latency": ("batch_latency.csv", TABLE),
    "perf-analyzer": ("perf_analyzer.csv", TRITON),
    "vllm": ("vllm_open_loop.json", VLLM),
}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(SAMPLE_OF)), st.integers(0, 10_000), st.sampled_from(list('0-,"\n{}[]é:eE. ')), st.booleans()
)
def test_a_damaged_file_is_read_or_refused_and_never_breaks_us(
    tmp_path: Path, kind: str, at: int, sign: str, skip: bool
) -> None:
    name, asked = SAMPLE_OF[kind]
    text = (SAMPLES / name).read_text()
    at %= len(text)
    path = tmp_path / "damaged"
    path.write_text(text[:at] + sign + text[at + 1 :], encoding="utf-8")
    with contextlib.suppress(InvalidInput):
        import_profiles(kind, [path], Asked(**(asked | {"skip_unusable": skip})))


# --- Estimates --------------------------------------------------------------------------------------------------------


def two_devices(tmp_path: Path) -> list[Path]:
    """Our own profiles of three members on a T4 and an L4."""
    both = [
        factories.profile(m, a, s / v)
        for m, s in (("a", 1e-3), ("b", 2e-3), ("c", 8e-3))
        for a, v in (("T4", 1), ("L4", 1.8))
    ]
    files.write(tmp_path / "p.yaml", Profiles(profiles=tuple(both)))
    work = "member,flops_per_item,bytes_per_item,weight_bytes\na,4e9,1e7,1e8\nb,8e9,2e7,2e8\nc,3e10,8e7,9e8\n"
    (tmp_path / "work.csv").write_text(work)
    return [tmp_path / "p.yaml", tmp_path / "work.csv"]


def test_devices_that_nobody_measured_are_estimated_and_labelled(tmp_path: Path) -> None:
    profiles, work = two_devices(tmp_path)
    found, _ = import_profiles("yaml", [profiles], Asked(precision="fp16"), ("A100-80GB", "L4"), work)
    estimated = [p for p in found.profiles if p.origin == "estimated"]
    assert {(p.member, p.accelerator) for p in estimated} == {(m, "A100-80GB") for m in "abc"}
    for p in estimated:
        assert p.error_factor is not None
        assert "anchored" in p.source
        measured = found.find(p.member, "T4")
        assert measured is not None
        assert [t.batch_size for t in p.timings] == [t.batch_size for t in measured.timings]
        assert all(e.latency_p50_s < t.latency_p50_s for e, t in zip(p.timings, measured.timings, strict=True))
    files.write(tmp_path / "out.yaml", found)
    assert files.read(tmp_path / "out.yaml", Profiles) == found


def test_estimates_need_work_and_two_devices(tmp_path: Path) -> None:
    profiles, work = two_devices(tmp_path)
    with pytest.raises(InvalidInput, match="give --work"):
        import_profiles("yaml", [profiles], Asked(), ("A100-80GB",))
    with pytest.raises(InvalidInput, match="at least two devices"):
        import_profiles("yaml", [profiles], Asked(accelerators=("T4",)), ("A100-80GB",), work)
    work.write_text(work.read_text().replace("4e9", "-4e9"))
    with pytest.raises(InvalidInput, match="flops_per_item: must be > 0"):
        import_profiles("yaml", [profiles], Asked(), ("A100-80GB",), work)


# --- The published data itself ----------------------------------------------------------------------------------------


@needs_data
def test_the_timm_collection() -> None:
    asked = Asked(
        day="2026-08-08",
        p99_factor=1.2,
        where={"torch": "pt240", "layout": "nchw", "compile": "0", "img_size": "224"},
        members=("resnet*", "efficientnet_b*"),
    )
    found, _ = import_profiles("timm", [DATA / "throughput_timm/timm_infer.csv.gz"], asked, ("L4", "A100-80GB"), None)
    resnet = found.find("resnet50", "RTX-3090")
    assert resnet is not None
    rate = resnet.timings[0].batch_size / resnet.timings[0].latency_p50_s
    assert 2500 < rate < 4000  # about 3,200 images/s, as published
    on_l4, on_a100 = found.find("resnet50", "L4"), found.find("resnet50", "A100-80GB")
    assert on_l4 is not None
    assert on_a100 is not None
    assert on_a100.timings[0].latency_p50_s < resnet.timings[0].latency_p50_s < on_l4.timings[0].latency_p50_s
    assert on_l4.error_factor is not None
    assert 1.1 < on_l4.error_factor < 1.5
    only = Asked(**{**asked.__dict__, "members": ("resnet50",)})
    alone, _ = import_profiles("timm", [DATA / "throughput_timm/timm_infer.csv.gz"], only, ("L4",))
    assert [p.member for p in alone.profiles] == ["resnet50"] * 3
    assert alone.profiles[-1].timings == on_l4.timings  # fitted on the whole table, whoever is asked for


@needs_data
def test_the_batch_latency_table_reports_every_fall() -> None:
    rename = {"onnxruntime_gpu_pascal": "GTX-1080-Ti", "onnxruntime_gpu_ampere": "V100-16GB"}
    asked = Asked(
        day="2024-04-27",
        rename=rename,
        accelerators=tuple(rename.values()),
        p99_factor=1.2,
        memory_gib=4,
        pick="median",
    )
    found, notes = import_profiles("batch-latency", [DATA / "throughput_proteus/aggregate_profiled.csv"], asked)
    assert len(found.profiles) > 80
    falls = [p for p in found.profiles if np.any(np.diff([t.latency_p50_s for t in p.timings]) < 0)]
    told = "\n".join(notes)
    assert falls
    for p in falls:
        assert f"{p.member} on {p.accelerator}: latency_p50_s falls" in told


@needs_data
def test_mlperf_as_collected() -> None:
    asked = Asked(day="2024-08-28", p99_factor=1.1, memory_gib=1, batch_sizes=(64,), pick="median", skip_unusable=True,
                  members=("resnet50", "bert-99"))  # fmt: skip
    found, _ = import_profiles("mlperf", [DATA / "throughput_mlperf/mlperf_inference_closed.csv.gz"], asked)
    t4, h100 = found.find("resnet50", "T4"), found.find("resnet50", "H100-80GB")
    assert t4 is not None
    assert h100 is not None
    assert {t.batch_size for t in h100.timings} <= {1, 64}
    assert h100.timings[-1].latency_p50_s < t4.timings[-1].latency_p50_s / 5


# --- The command line -------------------------------------------------------------------------------------------------


def test_import_profiles_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "profiles.yaml"
    sample = str(SAMPLES / "timm_rtx3090.csv")
    asked = ["--accelerator", "RTX-3090", "--precision", "fp16", "--date", "2024-08-21", "--member", "resnet*"]
    assert run(["import", "profiles", "timm", sample, *asked, "-o", str(out)]) == 2
    assert "give --p99-factor" in capsys.readouterr().err
    assert run(["import", "profiles", "timm", sample, *asked, "--p99-factor", "1.2", "-o", str(out)]) == 0
    assert "2 profiles" in capsys.readouterr().err
    assert len(files.read(out, Profiles).profiles) == 2
    assert run(["import", "profiles", "timm", sample, "--rename", "x"]) == 2
    assert "must be KEY=VALUE" in capsys.readouterr().err
    table = str(SAMPLES / "batch_latency.csv")
    asked = ["--rename", "some_gpu=T4", "--date", "2024-01-01", "--p99-factor", "1.2", "--memory-gib", "1"]
    assert run(["import", "profiles", "batch-latency", table, *asked, "-o", str(out)]) == 0
    assert "note: tiny on T4: latency_p50_s falls" in capsys.readouterr().err
    report = str(SAMPLES / "perf_analyzer.csv")
    asked = ["--member", "m", "--accelerator", "T4", "--date", "2026-11-01", "--memory-gib", "1", "--batch-size", "2"]
    assert run(["import", "profiles", "perf-analyzer", report, *asked, "-o", str(out)]) == 0


def test_estimates_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profiles, work = two_devices(tmp_path)
    out = str(tmp_path / "out.yaml")
    asked = ["--work", str(work), "--estimate", "H200", "--precision", "fp16", "-o", out]
    assert run(["import", "profiles", "yaml", str(profiles), *asked]) == 0
    assert "9 profiles, 3 of them estimated within a factor of" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["prices", "profiles"])
def test_help_shows_an_example(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["import", what, "--help"]) == 0
    assert f"coe import {what}" in capsys.readouterr().out
