"""MLPerf Inference results as a table: one row per submission, benchmark and scenario.

Columns: accelerator, n_accel, benchmark, scenario, samples_per_s_per_accel, p50_ms, p99_ms, and others that --where can choose by
(round, submitter, system, ...). Offline gives throughput at a batch size that is not published, so the user states it;
a batch of that size then takes batch / throughput. Singlestream gives the latency of one item. Server and multistream
mix queueing into their figures and are left out.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from coe.errors import Problem
from coe.prices.sources.table import Line, finite, rows
from coe.profiler.sources.asked import Asked, Reading, Timed, member_name

COLUMNS = ("accelerator", "n_accel", "benchmark", "scenario", "samples_per_s_per_accel", "p50_ms", "p99_ms")


def read(path: Path, asked: Asked) -> Reading:
    """Timings per benchmark and accelerator."""
    reading = Reading(asked.source_of("MLPerf Inference results", path), asked.date(path))
    batch = asked.batch_sizes[0] if asked.batch_sizes else None
    left: Counter[str] = Counter()
    for line in rows(path, COLUMNS, reading.unusable, "a table of MLPerf results"):
        if not asked.keeps_line(line) or not asked.keeps_member(line.text("benchmark")):
            continue
        scenario = line.text("scenario").lower()
        if scenario not in ("offline", "singlestream") or (scenario == "offline" and batch is None):
            why = " (give --batch-size)" if scenario == "offline" else ""
            left[f"{scenario}{why}"] += 1
            continue
        _add(reading, line, scenario, batch, asked)
    if left:
        reading.notes.append("rows left out: " + "; ".join(f"{n} {why}" for why, n in left.most_common()))
    return reading


def _add(reading: Reading, line: Line, scenario: str, batch: int | None, asked: Asked) -> None:
    device = asked.device(line.text("accelerator"), f"{line.where}: accelerator")
    if device is None:
        return
    if isinstance(device, Problem):
        reading.unusable.append(device)
        return
    member, said = member_name(line.text("benchmark")), f"{line.text('submitter')} {line.text('system')}".strip()
    if scenario == "offline":
        rate = line.number("samples_per_s_per_accel", above=True)
        if finite(rate):
            size = batch or 1
            reading.timed.append(Timed(line.where, member, device.name, size, size / rate, said=said))
        return
    p50, p99 = line.number("p50_ms", above=True), line.number("p99_ms", above=True)
    if finite(p50, p99):
        if line.number("n_accel") > 1:
            rule = "is the latency of one item on several accelerators at once"
            reading.unusable.append(Problem(f"{line.where}: n_accel", rule, line.text("n_accel")))
            return
        reading.timed.append(Timed(line.where, member, device.name, 1, p50 / 1e3, p99 / 1e3, said=said))
