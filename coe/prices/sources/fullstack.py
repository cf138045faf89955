"""The Full Stack's tables of cloud and serverless GPUs (github.com/the-full-stack/the-full-stack-website, docs/cloud-gpus).

``cloud-gpus.csv``: Cloud, GPU Type (``A100 (80 GB)``), GPU Arch, GPUs, GPU RAM, vCPUs, RAM, On-demand, Per-GPU, Spot, Name.
``serverless-gpus.csv``: Vendor in the place of Cloud and Per-Hour in that of On-demand; billed by the second.
Prices are dollars per hour of the whole machine. The day of the prices does not stand in the file.
"""

from __future__ import annotations

import math
from pathlib import Path

from coe.errors import Problem
from coe.prices import accelerators
from coe.prices.rentals import Market, Rental, slug
from coe.prices.sources.asked import Asked, Reading
from coe.prices.sources.table import Line, rows

SHARED = ("GPU Type", "GPUs", "GPU RAM", "vCPUs", "RAM", "Per-GPU")
_ROUNDING_USD = 0.0051
"""Both prices are rounded to cents."""


def read(path: Path, asked: Asked) -> Reading:
    """Offers, on demand and spot, of every cloud in the table."""
    return _read(path, asked, ("Cloud", "On-demand", "Spot", "Name"), {"on_demand": "On-demand", "spot": "Spot"})


def read_serverless(path: Path, asked: Asked) -> Reading:
    """Offers of every vendor of the serverless table, billed by the second."""
    return _read(path, asked, ("Vendor", "Per-Hour"), {"serverless": "Per-Hour"})


def _read(path: Path, asked: Asked, own: tuple[str, ...], markets: dict[Market, str]) -> Reading:
    reading = Reading(asked.source_of("The Full Stack cloud GPUs", path))
    day = asked.date(path)
    uneven: list[str] = []
    for line in rows(path, (*own, *SHARED), reading.unusable, "a Full Stack GPU table"):
        if asked.keeps_row(line.text(own[0]), "", line.text("Name") or line.text("GPU Type")):
            _add(reading, line, own[0], markets, day, asked, uneven)
    if uneven:
        reading.notes.append(
            f"{len(uneven)} rows whose price per GPU times GPUs is not the machine's price, which counts; the first: {uneven[0]}"
        )
    return reading


def _add(
    reading: Reading, line: Line, who: str, markets: dict[Market, str], day: str, asked: Asked, uneven: list[str]
) -> None:
    count = line.whole("GPUs", least=1)
    vcpus, memory = line.optional("vCPUs", above=True), line.optional("RAM", above=True)
    prices = {market: line.optional(column, above=True) for market, column in markets.items()}
    per_gpu, all_gpus = line.optional("Per-GPU", above=True), line.optional("GPU RAM", above=True)
    if math.isnan(count):
        return
    called = line.text("GPU Type")
    # the name has the memory of one; the column GPU RAM is that of all in some rows and of one in others
    found = accelerators.find(called) or accelerators.find(called, None if all_gpus is None else all_gpus / count)
    main = next(iter(markets))
    usd = prices[main]
    if found is None:
        problem = accelerators.unknown(called, all_gpus and all_gpus / count, f"{line.where}: GPU Type")
        reading.unknown(problem, called, asked)
        return
    if asked.accelerators and found.name.upper() not in {a.upper() for a in asked.accelerators}:
        return
    if vcpus is None or memory is None:
        rule = "does not say how many vCPUs and how much memory the machine has"
        reading.unusable.append(Problem(line.where, rule))
        return
    if all(p is None for p in prices.values()):
        reading.unusable.append(Problem(f"{line.where}: {markets[main]}", "has no price for the machine"))
        return
    if usd is not None and per_gpu is not None and abs(usd - per_gpu * count) > _ROUNDING_USD * (count + 1):
        uneven.append(f"{line.where}: {count:g} x ${per_gpu:g} against ${usd:g}")
    provider = line.text(who)
    instance = line.text("Name") or f"{slug(provider).lower()}-{count:g}x{found.name}"
    for market, price in prices.items():
        if price is None:
            continue
        rental = Rental(
            line.where,
            provider,
            instance,
            found.name,
            int(count),
            found.memory_gib,
            vcpus,
            memory,
            price,
            market,
            "",
            "",
            day,
        )
        if asked.keeps(rental):
            reading.rentals.append(rental)
