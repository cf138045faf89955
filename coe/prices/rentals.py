"""From the rows of a foreign price list to offers with names of their own.

A provider's instance type is rented in many regions, zones and markets at different prices; in our files every offer has one
name. So names get what tells the offers apart and nothing else: ``g4dn.xlarge``, ``g4dn.xlarge-spot``,
``g4dn.xlarge-us-east-1``. Rows that differ in their zone alone and cost the same are one offer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from pydantic import ValidationError

from coe.errors import InvalidInput, Problem
from coe.types import Noun, Offer

N = TypeVar("N", bound=Noun)

Market = Literal["on_demand", "spot", "reserved", "owned", "serverless"]


@dataclass(frozen=True)
class Rental:
    """One row of a price list, in our words. `accelerator` is a name of ours; CPU-only machines have count 0."""

    where: str
    """File and line, for messages."""
    provider: str
    instance: str
    accelerator: str
    count: int
    accelerator_memory_gib: float
    vcpus: float
    memory_gib: float
    usd_per_hour: float
    market: Market
    region: str
    zone: str
    date: str


@dataclass(frozen=True)
class Named:
    """Offers with unique names, and the rows that cannot be told apart although their prices differ."""

    offers: tuple[Offer, ...]
    conflicts: tuple[Problem, ...]
    merged: int
    """Rows that were the same offer as another one."""


QUALIFIERS: tuple[Callable[[Rental], str], ...] = (
    lambda r: "" if r.market == "on_demand" else r.market,
    lambda r: r.region,
    lambda r: r.zone,
    lambda r: r.provider,
    lambda r: f"{r.vcpus:g}cpu-{r.memory_gib:g}gib",
    lambda r: r.accelerator,
)
"""What may be added to an instance's name, in this order, where it tells two offers apart."""

MAX_NAME = 63
"""Ray labels nodes with the name, and a label has at most so many characters."""


def named_offers(rentals: Sequence[Rental], source: str, quota: int | None = None) -> Named:
    """Offers of all rentals, cheapest rows of equal price merged, in the order of the list."""
    kept, merged = _without_equal_zones(rentals)
    names = _names(kept)
    prices: dict[str, set[float]] = {}
    for rental, name in zip(kept, names, strict=True):
        prices.setdefault(name, set()).add(rental.usd_per_hour)
    taken = Counter(names)
    offers = [_offer(rental, name, source, quota) for rental, name in zip(kept, names, strict=True) if taken[name] == 1]
    conflicts = [
        Problem(
            next(r.where for r, n in zip(kept, names, strict=True) if n == name),
            f"'{name}' has {len(found)} prices and nothing tells them apart",
            ", ".join(f"${p:g}" for p in sorted(found)),
            "choose with --region or --instance, or keep one of them in the file",
        )
        for name, found in prices.items()
        if taken[name] > 1
    ]
    return Named(tuple(o for o in offers if o is not None), tuple(conflicts), merged)


def slug(text: str) -> str:
    """`text` as part of a name: letters, digits, dots, underscores and dashes."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-._")


def cpu_name(instance: str) -> str:
    """What a CPU-only machine counts as an accelerator of: its speed depends on its size, so its type is in the name."""
    return f"CPU-{slug(instance)}"


def checked(build: Callable[[], N], where: str, problems: list[Problem]) -> N | None:
    """What `build` makes; None where a field breaks a rule of ours, which is added to `problems`."""
    try:
        return build()
    except ValidationError as error:
        problems += [
            Problem(
                f"{where}: {'.'.join(map(str, e['loc']))}", e["msg"][:1].lower() + e["msg"][1:], repr(e["input"])[:80]
            )
            for e in error.errors()
        ]
        return None


def _without_equal_zones(rentals: Sequence[Rental]) -> tuple[list[Rental], int]:
    """Rentals without those that are equal but for their zone; a zone stays where it has a price of its own."""
    first: dict[Rental, Rental] = {}
    rows: Counter[Rental] = Counter()
    for rental in rentals:
        key = replace(rental, zone="", where="")
        first.setdefault(key, rental)
        rows[key] += 1
    prices = Counter(replace(key, usd_per_hour=0.0) for key in first)
    kept = [
        replace(rental, zone="") if prices[replace(key, usd_per_hour=0.0)] == 1 and rows[key] > 1 else rental
        for key, rental in first.items()
    ]
    return kept, len(rentals) - len(kept)


def _names(rentals: Sequence[Rental]) -> list[str]:
    """A name per rental, with as many qualifiers as it takes to tell it from the others."""
    names = [slug(r.instance) for r in rentals]
    for qualifier in QUALIFIERS:
        groups: dict[str, set[str]] = {}
        for rental, name in zip(rentals, names, strict=True):
            groups.setdefault(name, set()).add(qualifier(rental))
        names = [
            f"{name}-{slug(qualifier(rental))}".rstrip("-") if len(groups[name]) > 1 else name
            for rental, name in zip(rentals, names, strict=True)
        ]
    wrong = [(r, n) for r, n in zip(rentals, names, strict=True) if not 0 < len(n) <= MAX_NAME]
    if wrong:
        raise InvalidInput(
            Problem(r.where, f"its name must have 1 to {MAX_NAME} characters", f"'{n}'", "rename the instance")
            for r, n in wrong[:20]
        )
    return names


def _offer(rental: Rental, name: str, source: str, quota: int | None) -> Offer:
    return Offer(
        node_type=name,
        accelerator=rental.accelerator,
        accelerators_per_node=rental.count,
        accelerator_memory_gib=rental.accelerator_memory_gib,
        vcpus=rental.vcpus,
        memory_gib=rental.memory_gib,
        usd_per_hour=rental.usd_per_hour,
        market=rental.market,
        region=rental.region,
        quota=quota,
        provider=rental.provider or None,
        instance_type=rental.instance if rental.instance != name else None,
        source=source,
        date=rental.date,
    )
