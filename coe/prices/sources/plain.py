"""Price lists in our own YAML, as one writes them by hand: checked, and their accelerators given our names.

The file is a ``kind: prices`` file; several may be merged into one. A file in another currency is refused.
"""

from __future__ import annotations

from pathlib import Path

from coe import files
from coe.prices import accelerators
from coe.prices.rentals import Rental
from coe.prices.sources.asked import Asked, Reading
from coe.types import Offer


def read(path: Path, asked: Asked) -> Reading:
    """The offers and API prices of one of our files."""
    prices = files.read_prices(path)
    reading = Reading(asked.source or path.name)
    for offer in prices.offers:
        instance = offer.instance_type or offer.node_type
        if not asked.keeps_row(offer.provider or "", offer.region, instance):
            continue
        named = _named(reading, offer, f"{path}: offers: {offer.node_type}.accelerator")
        if named is not None and asked.keeps(rental(named)):
            reading.offers.append(named)
    reading.apis += [a for a in prices.apis if asked.keeps_row(a.provider, "", a.model)]
    return reading


def _named(reading: Reading, offer: Offer, where: str) -> Offer | None:
    if offer.accelerators_per_node == 0:
        return offer
    memory_gib = offer.accelerator_memory_gib or None  # what is left for models, where the writer says less than sold
    found = accelerators.find(offer.accelerator) or accelerators.find(offer.accelerator, memory_gib)
    if found is None:
        reading.unusable.append(accelerators.unknown(offer.accelerator, memory_gib, where))
        return None
    memory = offer.accelerator_memory_gib or found.memory_gib
    return offer.model_copy(update={"accelerator": found.name, "accelerator_memory_gib": memory})


def rental(offer: Offer) -> Rental:
    """The offer as a row of a price list, which is what options choose from."""
    return Rental(
        "", offer.provider or "", offer.instance_type or offer.node_type, offer.accelerator, offer.accelerators_per_node,
        offer.accelerator_memory_gib, offer.vcpus, offer.memory_gib, offer.usd_per_hour, offer.market, offer.region, "",
        offer.date,
    )  # fmt: skip
