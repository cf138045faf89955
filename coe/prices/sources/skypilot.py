"""SkyPilot's catalogue, ``vms.csv`` of one cloud (github.com/skypilot-org/skypilot-catalog, schema v5 to v8).

Columns: InstanceType, vCPUs, MemoryGiB, AcceleratorName, AcceleratorCount, GpuInfo (a Python literal with the memory of one
GPU in MiB, or a bare name), Region, AvailabilityZone, Price, SpotPrice, and since v8 Arch. Neither the cloud nor the day
stands in the file.

Google's machines and their accelerators are rows of their own there: a machine's price excludes its GPUs, and an
accelerator's row has no InstanceType. For machine types that are sold with fixed accelerators the two are added up; the
machine alone would look like a cheap CPU node. An accelerator that is attached to a machine of one's choice (T4, V100, P100
on n1) is reported as unusable.
"""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path

from coe.errors import Problem
from coe.prices import accelerators
from coe.prices.rentals import Market, Rental, cpu_name
from coe.prices.sources.asked import Asked, Reading
from coe.prices.sources.table import Line, rows

COLUMNS = ("InstanceType", "AcceleratorName", "AcceleratorCount", "vCPUs", "MemoryGiB", "Price", "Region", "SpotPrice")

OWN_NAMES = {"A100": "A100-40GB", "V100": "V100-16GB", "GH200": "GH200-96GB"}
"""Where the catalogue says nothing of the memory, its short name is the smaller one (the larger is ``A100-80GB``)."""

HOSTS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"a2-highgpu-(\d+)g"), "A100"),
    (re.compile(r"a2-megagpu-(\d+)g"), "A100"),
    (re.compile(r"a2-ultragpu-(\d+)g"), "A100-80GB"),
    (re.compile(r"a3-highgpu-(\d+)g"), "H100"),
    (re.compile(r"a3-megagpu-(\d+)g"), "H100-MEGA"),
    (re.compile(r"a3-ultragpu-(\d+)g"), "H200"),
    (re.compile(r"a4-highgpu-(\d+)g"), "B200"),
)
"""Google's machine types with accelerators built in: how many stands in the name."""

G2 = {4: 1, 8: 1, 12: 1, 16: 1, 24: 2, 32: 1, 48: 4, 96: 8}
"""vCPUs of a g2-standard machine -> its L4s."""

_SURELY_BUILT_IN = re.compile(r"a\d+-\w+gpu-|g2-standard-")
_BUILT_IN = re.compile(r"(a\d|g\d|ct\d\w*)-")
"""Google's names; the second only in a file that has accelerators apart, since others have such names, too."""


def read(path: Path, asked: Asked) -> Reading:
    """Offers, on demand and spot, of one cloud."""
    reading = Reading(asked.source_of("SkyPilot catalogue", path))
    provider, day = asked.provider(path), asked.date(path)
    lines = [
        line
        for line in rows(path, COLUMNS, reading.unusable, "a SkyPilot vms.csv")
        if asked.keeps_row(provider, line.text("Region"), line.text("InstanceType") or line.text("AcceleratorName"))
        or not line.text("InstanceType")
    ]
    apart = {_place(line): line for line in lines if not line.text("InstanceType")}
    used: set[tuple[str, ...]] = set()
    for line in lines:
        if not line.text("InstanceType"):
            continue
        instance = line.text("InstanceType")
        bare = not line.text("AcceleratorName")
        built_in = _built_in(instance) if bare else None
        if bare and built_in is None and (_SURELY_BUILT_IN.match(instance) or (apart and _BUILT_IN.match(instance))):
            reading.unusable.append(_no_accelerator(line))
            continue
        beside = None
        if built_in is not None:
            place = (built_in[0], str(built_in[1]), line.text("Region"), line.text("AvailabilityZone"))
            beside = apart.get(place)
            if beside is None:
                reading.unusable.append(_no_accelerator(line))
                continue
            used.add(place)
        _add(reading, line, beside, provider, day, asked)
    left = {p[0] for p in apart if p not in used and (not asked.regions or _wanted(p, asked, provider))}
    if left and not asked.accelerators:
        rule = "prices accelerators without a machine"
        remedy = "add the price of the machine that they are attached to, in a price list of your own"
        reading.unusable.append(Problem(str(path), rule, ", ".join(sorted(left)[:12]), remedy))
    return reading


def _wanted(place: tuple[str, ...], asked: Asked, provider: str) -> bool:
    return asked.keeps_row(provider, place[2], place[0])


def _place(line: Line) -> tuple[str, ...]:
    count = line.text("AcceleratorCount")
    whole = str(int(float(count))) if re.fullmatch(r"\d+(\.0*)?", count) else count
    return line.text("AcceleratorName"), whole, line.text("Region"), line.text("AvailabilityZone")


def _built_in(instance: str) -> tuple[str, int] | None:
    """(SkyPilot's accelerator name, how many) of a Google machine type that is sold with them."""
    for pattern, name in HOSTS:
        if found := pattern.fullmatch(instance):
            return name, int(found[1])
    found = re.fullmatch(r"g2-standard-(\d+)", instance)
    return ("L4", G2[int(found[1])]) if found and int(found[1]) in G2 else None


def _no_accelerator(line: Line) -> Problem:
    rule = "is a machine with accelerators built in, whose price the file does not have"
    return Problem(line.where, rule, line.text("InstanceType"), "leave it out with --skip-unusable")


def _add(reading: Reading, line: Line, beside: Line | None, provider: str, day: str, asked: Asked) -> None:
    """One rental per market that the row has a price for; `beside` is the row of the accelerators, if apart."""
    told = beside or line
    vcpus, memory = line.number("vCPUs", above=True), line.number("MemoryGiB", above=True)
    name = told.text("AcceleratorName")
    count = told.number("AcceleratorCount", above=True) if name else 0.0
    sums: dict[Market, float | None] = {
        "on_demand": _sum(line, beside, "Price"),
        "spot": _sum(line, beside, "SpotPrice"),
    }
    if any(math.isnan(x) for x in (vcpus, memory, count)):
        return
    instance = line.text("InstanceType")
    resolved = _accelerator(reading, told, name, count, instance, asked) if name else (cpu_name(instance), 0.0)
    if resolved is None:
        return
    for market, usd in sums.items():
        if usd is not None:
            rental = Rental(
                line.where, provider, instance, resolved[0], int(count), resolved[1], vcpus, memory, usd, market,
                line.text("Region"), line.text("AvailabilityZone"), day,
            )  # fmt: skip
            if asked.keeps(rental):
                reading.rentals.append(rental)


def _sum(line: Line, beside: Line | None, column: str) -> float | None:
    own = line.optional(column, above=True)
    if beside is None or own is None:
        return own
    other = beside.optional(column, above=True)
    return None if other is None else own + other


def _accelerator(
    reading: Reading, line: Line, name: str, count: float, instance: str, asked: Asked
) -> tuple[str, float] | None:
    """(our name, GiB of one); None where the row cannot be used, which is reported."""
    memory = _memory_gib(line.text("GpuInfo") or line.text("GPUInfo"))
    called = "H100-PCIe" if name == "H100" and "pcie" in instance.lower() else name
    if memory is None:
        called = OWN_NAMES.get(called, called)
    found = accelerators.find(called, memory)
    if found is None:
        reading.unknown(accelerators.unknown(called, memory, f"{line.where}: AcceleratorName"), called, asked)
        return None
    if count != int(count):
        reading.unusable.append(Problem(f"{line.where}: AcceleratorCount", "must be a whole number", f"{count:g}"))
        return None
    return found.name, found.memory_gib


def _memory_gib(info: str) -> float | None:
    """GiB of one GPU from the GpuInfo literal; None where it is a bare name."""
    try:
        gpus = ast.literal_eval(info)["Gpus"]
        return float(gpus[0]["MemoryInfo"]["SizeInMiB"]) / 1024
    except (ValueError, SyntaxError, TypeError, KeyError, IndexError):
        return None
