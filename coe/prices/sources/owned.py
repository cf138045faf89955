"""Machines that one owns, as a table; their hourly price is amortised purchase, upkeep and power (`coe.prices.owned`).

Columns: node_type, accelerator (empty for a CPU-only machine), accelerators_per_node, vcpus, memory_gib, count, purchase_usd,
years; and where they are not zero: power_kw, usd_per_kwh, upkeep_usd_per_year, residual_usd, and available (the share of all
hours that it can be used, 1 where empty). The number of machines is the quota.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from coe.errors import InvalidInput, Problem
from coe.prices import accelerators
from coe.prices.owned import owned_usd_per_hour
from coe.prices.rentals import checked, cpu_name
from coe.prices.sources.asked import Asked, Reading
from coe.prices.sources.plain import rental
from coe.prices.sources.table import Line, finite, rows
from coe.types import Offer

COLUMNS = (
    "node_type", "accelerator", "accelerators_per_node", "vcpus", "memory_gib", "count", "purchase_usd", "years"
)  # fmt: skip


def read(path: Path, asked: Asked) -> Reading:
    """One offer per kind of machine; its market is ``owned``."""
    reading = Reading(asked.source_of("own machines, amortised", path))
    day = asked.date(path)
    for line in rows(path, COLUMNS, reading.unusable, "a table of own machines"):
        offer = _offer(reading, line, day)
        if offer is not None and asked.keeps_row("", "", offer.node_type) and asked.keeps(rental(offer)):
            reading.offers.append(offer)
    return reading


def _offer(reading: Reading, line: Line, day: str) -> Offer | None:
    called = line.text("accelerator")
    found = accelerators.find(called) if called else None
    if called and found is None:
        reading.unusable.append(accelerators.unknown(called, None, f"{line.where}: accelerator"))
        return None
    devices, count = line.whole("accelerators_per_node"), line.whole("count", least=1)
    vcpus, memory = line.number("vcpus", above=True), line.number("memory_gib", above=True)
    bought, years = line.number("purchase_usd"), line.number("years", above=True)
    if bool(called) != bool(devices):
        line.complain("accelerator", "must be named exactly where accelerators_per_node is not 0", f"'{called}'")
        return None
    if not finite(devices, count, vcpus, memory, bought, years):
        return None
    extra = {
        name: line.optional(name) or 0.0 for name in ("power_kw", "usd_per_kwh", "upkeep_usd_per_year", "residual_usd")
    }
    available = line.optional("available", above=True)
    try:
        usd = owned_usd_per_hour(bought, years, **extra, available=1.0 if available is None else available)
    except InvalidInput as error:
        reading.unusable += [Problem(f"{line.where}: {p.where}", p.rule, p.found, p.remedy) for p in error.problems]
        return None
    build = partial(
        Offer,
        node_type=line.text("node_type"),
        accelerator=found.name if found else cpu_name(line.text("node_type")),
        accelerators_per_node=int(devices),
        accelerator_memory_gib=found.memory_gib if found else 0.0,
        vcpus=vcpus,
        memory_gib=memory,
        usd_per_hour=usd,
        market="owned",
        quota=int(count),
        source=reading.source,
        date=day,
    )
    return checked(build, line.where, reading.unusable)
