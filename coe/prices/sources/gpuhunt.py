"""gpuhunt's catalogue, one CSV per provider (github.com/dstackai/gpuhunt, catalogues v1 and v2).

Columns: instance_name, location, price, cpu, memory, gpu_count, gpu_name, gpu_memory, spot, disk_size, and in later ones
gpu_vendor, flags, cpu_arch, provider_data. Prices are dollars per hour of the whole instance, memory of one GPU in GB. Neither
the provider (the file's name) nor the day stands in the file. gpuhunt skips malformed rows; here they are errors.
"""

from __future__ import annotations

import math
from pathlib import Path

from coe.errors import Problem
from coe.prices import accelerators
from coe.prices.rentals import Rental, cpu_name
from coe.prices.sources.asked import Asked, Reading
from coe.prices.sources.table import Line, rows

COLUMNS = ("instance_name", "location", "price", "cpu", "memory", "gpu_count", "gpu_name", "gpu_memory", "spot")


def read(path: Path, asked: Asked) -> Reading:
    """Offers, on demand and spot, of one provider."""
    reading = Reading(asked.source_of("gpuhunt catalogue", path))
    provider, day = asked.provider(path), asked.date(path)
    for line in rows(path, COLUMNS, reading.unusable, "a gpuhunt catalogue"):
        if asked.keeps_row(provider, line.text("location"), line.text("instance_name")):
            _add(reading, line, provider, day, asked)
    return reading


def _add(reading: Reading, line: Line, provider: str, day: str, asked: Asked) -> None:
    usd = line.number("price", above=True)
    vcpus, memory = line.number("cpu", above=True), line.number("memory", above=True)
    count = line.number("gpu_count")
    spot, instance = line.text("spot"), line.text("instance_name")
    if not instance:
        line.complain("instance_name", "is missing")
    if spot not in ("True", "False"):
        line.complain("spot", "must be True or False", f"'{spot}'")
    gpu_memory = line.optional("gpu_memory", above=True)
    if not instance or any(math.isnan(x) for x in (usd, vcpus, memory, count)):
        return
    name, each = cpu_name(instance), 0.0
    if count:
        found = accelerators.find(line.text("gpu_name"), gpu_memory)
        if found is None:
            called = line.text("gpu_name")
            reading.unknown(accelerators.unknown(called, gpu_memory, f"{line.where}: gpu_name"), called, asked)
            return
        if count != int(count):
            reading.unusable.append(Problem(f"{line.where}: gpu_count", "must be a whole number", f"{count:g}"))
            return
        name, each = found.name, found.memory_gib
    rental = Rental(
        line.where, provider, instance, name, int(count), each, vcpus, memory, usd,
        "spot" if spot == "True" else "on_demand", line.text("location"), "", day,
    )  # fmt: skip
    if asked.keeps(rental):
        reading.rentals.append(rental)
