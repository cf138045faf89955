"""Triton's `perf_analyzer -f` report: one CSV per model and batch size.

Columns: Concurrency (or Request Rate), Inferences/Second, parts of the latency and ``p50 latency`` … ``p99 latency`` in
microseconds. The row at concurrency 1 counts: there a request waits for no other one. Its latency includes the way to the server
and back, so a profile made of it is a little too slow rather than too fast, and has no hop beside it. Model, batch size
and device do not stand in the file.
"""

from __future__ import annotations

from pathlib import Path

from coe.errors import InvalidInput, Problem
from coe.prices.sources.table import finite, rows
from coe.profiler.sources.asked import Asked, Reading, Timed, member_name

COLUMNS = ("Inferences/Second", "p50 latency", "p99 latency")


def read(path: Path, asked: Asked, batch_size: int | None = None) -> Reading:
    """One timing: that of the batch size the user states."""
    reading = Reading(asked.source_of("perf_analyzer", path), asked.date(path))
    for what, given, option in (
        ("which model it measured", asked.member, "--member"),
        ("at which batch size it was measured", batch_size, "--batch-size, once per file"),
    ):
        if given is None:
            raise InvalidInput(Problem(str(path), f"does not say {what}", remedy=f"give {option}"))
    device = asked.device(None, str(path))
    if isinstance(device, Problem):
        raise InvalidInput(device)
    seen = []
    for line in rows(path, COLUMNS, reading.unusable, "a perf_analyzer report"):
        if "Concurrency" not in line.cells:
            remedy = "measure with --concurrency-range 1"
            raise InvalidInput(Problem(str(path), "was measured at request rates, so queues are in it", remedy=remedy))
        seen.append(line.text("Concurrency"))
        if line.text("Concurrency") != "1":
            continue
        rate = line.number("Inferences/Second", above=True)
        p50, p99 = line.number("p50 latency", above=True), line.number("p99 latency", above=True)
        if finite(rate, p50, p99) and device is not None:
            member = member_name(asked.member or "")
            reading.timed.append(Timed(line.where, member, device.name, batch_size or 1, p50 / 1e6, p99 / 1e6))
    if "1" not in seen:
        remedy = "measure with --concurrency-range 1, so that no queue is in it"
        raise InvalidInput(Problem(str(path), "has no row at concurrency 1", ", ".join(seen) or "no rows", remedy))
    return reading
