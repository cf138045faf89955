"""A table of cloud machines with provider, region, GPU, on-demand and spot price and its own dates.

Columns: provider, region, instance_type, gpu, gpu_count, gpu_mem_gib (of one), vcpus, mem_gib, arch, usd_per_h (the whole
machine), spot_usd_per_h (empty where unknown), as_of. Rows whose as_of is no day take the day that the user states.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from coe.errors import Problem
from coe.prices import accelerators
from coe.prices.rentals import Market, Rental, cpu_name
from coe.prices.sources.asked import Asked, Reading
from coe.prices.sources.table import Line, rows

COLUMNS = (
    "provider", "region", "instance_type", "gpu", "gpu_count", "gpu_mem_gib", "vcpus", "mem_gib", "usd_per_h",
    "spot_usd_per_h", "as_of",
)  # fmt: skip


def read(path: Path, asked: Asked) -> Reading:
    """Offers, on demand and spot, of every provider in the table."""
    reading = Reading(asked.source_of("cloud price table", path))
    for line in rows(path, COLUMNS, reading.unusable, "a table of cloud machines"):
        if asked.keeps_row(line.text("provider"), line.text("region"), line.text("instance_type")):
            _add(reading, line, asked)
    return reading


def _add(reading: Reading, line: Line, asked: Asked) -> None:
    vcpus, memory = line.number("vcpus", above=True), line.number("mem_gib", above=True)
    count = line.number("gpu_count")
    prices: dict[Market, float | None] = {
        "on_demand": line.number("usd_per_h", above=True),
        "spot": line.optional("spot_usd_per_h", above=True),
    }
    each, gpu, instance = line.optional("gpu_mem_gib", above=True), line.text("gpu"), line.text("instance_type")
    if bool(gpu) != bool(count):
        line.complain("gpu", "must name a GPU exactly where gpu_count is not 0", f"'{gpu}' and {count:g}")
    if any(math.isnan(x) for x in (vcpus, memory, count, prices["on_demand"] or 0.0)) or bool(gpu) != bool(count):
        return
    day = line.text("as_of")
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", day):
        if asked.day is None:
            remedy = "give --date for rows without a day"
            reading.unusable.append(Problem(f"{line.where}: as_of", "must be a day, YYYY-MM-DD", f"'{day}'", remedy))
            return
        day = asked.date(line.path)
    name, memory_each = cpu_name(instance), 0.0
    if gpu:
        found = accelerators.find(gpu, each)
        if found is None:
            reading.unknown(accelerators.unknown(gpu, each, f"{line.where}: gpu"), gpu, asked)
            return
        if count != int(count):
            if not asked.accelerators or found.name in asked.accelerators:
                rule = "is a share of an accelerator, which no offer of ours can be"
                reading.unusable.append(Problem(f"{line.where}: gpu_count", rule, f"{count:g} {found.name}"))
            return
        name, memory_each = found.name, found.memory_gib
    for market, usd in prices.items():
        if usd is None:
            continue
        rental = Rental(
            line.where, line.text("provider"), instance, name, int(count), memory_each, vcpus, memory, usd, market,
            line.text("region"), "", day,
        )  # fmt: skip
        if asked.keeps(rental):
            reading.rentals.append(rental)
