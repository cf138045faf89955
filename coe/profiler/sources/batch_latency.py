"""Batch latency tables as Proteus (ASPLOS 2024) publishes them: model, device label, batch size, quantiles in milliseconds.

Columns: Model, Accel, Trials, batchsize, 50th_pct, 90th_pct, and others that are not read. Device labels
(``onnxruntime_cpu``) are none of ours; --rename says what they stand for. There is no p99: it is the factor that the user
states, or the 90th percentile where there is one and it is longer.
"""

from __future__ import annotations

from pathlib import Path

from coe.errors import Problem
from coe.prices.sources.table import finite, rows
from coe.profiler.sources.asked import Asked, Reading, Timed, member_name

COLUMNS = ("Model", "Accel", "Trials", "batchsize", "50th_pct", "90th_pct")


def read(path: Path, asked: Asked) -> Reading:
    """Timings per model, device and batch size."""
    reading = Reading(asked.source_of("batch latency table", path), asked.date(path))
    for line in rows(path, COLUMNS, reading.unusable, "a batch latency table"):
        if not asked.keeps_line(line) or not asked.keeps_member(line.text("Model")):
            continue
        device = asked.device(line.text("Accel"), f"{line.where}: Accel")
        if device is None:
            continue
        if isinstance(device, Problem):
            reading.unusable.append(device)
            continue
        p50, p90 = line.number("50th_pct", above=True), line.optional("90th_pct", above=True) or 0.0
        batch, runs = line.whole("batchsize", least=1), line.optional("Trials") or 0.0
        if finite(p50, batch):
            member = member_name(line.text("Model"))
            said = f"line {line.at}"
            reading.timed.append(
                Timed(line.where, member, device.name, int(batch), p50 / 1e3, None, p90 / 1e3, int(runs), said)
            )
    return reading
