"""Real machines for placement benchmarks: rental prices, MLPerf speeds, and the ImageNet pool's throughputs.

A member's time per batch on an accelerator is taken from three published figures: its throughput on an RTX 4090 (timm, large
batches, mixed precision), the accelerator's ResNet-50 throughput relative to the RTX 4090's (MLPerf Inference, offline), and a
launch time per batch. What is scaled so is an estimate and not a measurement; it serves to compare ways of placing on the same
figures.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from coe.prices.accelerators import find
from coe.prices.sources import import_prices
from coe.prices.sources.asked import Asked
from coe.types import BatchTiming, Offer, Prices, Profile, Profiles

LAUNCH_S = 0.003
"""Time of a batch beside its items: kernel launches and copies; assumed."""
BATCH_SIZES = (1, 4, 16, 64, 128)
YARDSTICK = "NVIDIA GeForce RTX 4090 (Ada Lovelace)"
DAY = "2026-08-08"
P99 = 1.15
"""The p99 of a batch's time over its median; assumed."""
REGIONS = ("us-east-1", "us-central1", "all")


@dataclass(frozen=True)
class Hardware:
    """Offers whose accelerators have a known speed, relative to an RTX 4090."""

    prices: Prices
    speed: dict[str, float]

    def profiles(self, items_per_s: dict[str, float], memory_gib: dict[str, float]) -> Profiles:
        """Every member on every accelerator, from its throughput on an RTX 4090."""
        return Profiles(
            profiles=tuple(
                profile(member, accelerator, rate * factor, memory_gib.get(member, 1.0))
                for member, rate in items_per_s.items()
                for accelerator, factor in self.speed.items()
            )
        )


def profile(member: str, accelerator: str, items_per_s: float, memory_gib: float) -> Profile:
    """A launch time per batch, and a time per item."""
    times = [(b, LAUNCH_S + b / items_per_s) for b in BATCH_SIZES]
    return Profile(
        member=member,
        accelerator=accelerator,
        timings=tuple(BatchTiming(batch_size=b, latency_p50_s=t, latency_p99_s=P99 * t) for b, t in times),
        memory_gib=memory_gib,
        hop_p99_s=0.003,
        origin="estimated",
        source="timm throughput on an RTX 4090 x MLPerf ResNet-50 relative to an RTX 4090",
        date=DAY,
    )


def hardware(data: Path, most_offers: int | None = None, spot: bool = False) -> Hardware:
    """The offers of `prices_cloud` (AWS us-east-1, GCP us-central1, Lambda) with a speed in `throughput_mlperf`.

    CPU-only offers: the cheapest with four cores or more, for the router. Offers are sorted by price; `most_offers` keeps the
    cheapest of each accelerator in turn.
    """
    asked = Asked(day="2026-07-20", skip_unusable=True, markets=("on_demand", "spot") if spot else ("on_demand",))
    prices, _ = import_prices("cloud-vm", [data / "prices_cloud" / "cloud_vm_prices.csv.gz"], asked)
    speed = speeds(data)
    known = [o for o in prices.offers if o.accelerators_per_node and o.region in REGIONS and _name(o) in speed]
    cpu = min(
        (o for o in prices.offers if not o.accelerators_per_node and o.vcpus >= 4 and o.region == "us-east-1"),
        key=lambda o: o.usd_per_hour,
    )
    offers = [o.model_copy(update={"accelerator": _name(o)}) for o in sorted(known, key=lambda o: o.usd_per_hour)]
    kept = offers if most_offers is None else _in_turn(offers, most_offers)
    return Hardware(
        Prices(offers=(*kept, cpu)), {a: s for a, s in speed.items() if any(o.accelerator == a for o in kept)}
    )


def _name(offer: Offer) -> str:
    found = find(offer.accelerator)
    return offer.accelerator if found is None else found.name


def _in_turn(offers: Sequence[Offer], most: int) -> list[Offer]:
    """The cheapest of every accelerator, then the second cheapest of each, until there are enough."""
    rank: dict[str, int] = {}
    ranked = []
    for number, offer in enumerate(offers):
        rank[offer.accelerator] = rank.get(offer.accelerator, 0) + 1
        ranked.append((rank[offer.accelerator], number, offer))
    return [offer for _, _, offer in sorted(ranked, key=lambda r: r[:2])[:most]]


def speeds(data: Path) -> dict[str, float]:
    """Accelerator -> ResNet-50 throughput relative to an RTX 4090 (MLPerf offline, median per accelerator)."""
    with open(data / "throughput_mlperf" / "summary_offline_per_accel.csv", newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["benchmark"] == "resnet50" and r["smp_per_accel"]]
    yardstick = next(float(r["smp_per_accel"]) for r in rows if r["accelerator"] == YARDSTICK)
    found: dict[str, float] = {}
    for row in rows:
        kind = find(row["accelerator"])
        if kind is not None and "MIG" not in row["accelerator"]:
            found[kind.name] = max(found.get(kind.name, 0.0), float(row["smp_per_accel"]) / yardstick)
    return found


def imagenet_throughputs(data: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Member -> images per second on an RTX 4090, and GiB of memory (weights and a batch, from the parameters)."""
    with open(data / "vision_imagenet" / "models.csv", newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["img_per_s_rtx4090_amp"]]
    rate = {r["model"]: float(r["img_per_s_rtx4090_amp"]) for r in rows}
    memory = {r["model"]: 1.0 + 2 * float(r["params_m"]) * 1e6 * 2 / 2**30 for r in rows}
    return rate, memory


def gunzipped_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a gzipped CSV."""
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.DictReader(file))
