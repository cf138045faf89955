"""How long a batch takes, how large batches become under load, and how much a replica can carry.

A replica owns a share of an accelerator and runs that many times as fast as the whole of it (hard partitions, as with MIG).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np

from coe.errors import InvalidInput, Problem
from coe.types import Offer, Placement, Profile, Profiles

Quantile = Literal["p50", "p99"]
IN_FLIGHT_PER_REPLICA = 2
"""Batches under way per replica of a tier's scarcest member: one computes, the next one waits there already."""

MOST_ON_THE_WAY = 30
"""Batches per replica on a link besides: each costs the router time, whatever the link takes."""

HALVINGS = 30


def in_flight(placement: Placement, replicas: int, away_s: float = 0.0) -> int:
    """Calls of a placement that may be under way with so many replicas, which are so far away (round trip). The router's rule,
    and the simulator's. While one call is on its way there and back, a replica answers others.
    """
    on_the_way = math.ceil(away_s / placement.full_s) if away_s and placement.full_s else 0
    return (placement.calls_at_once or IN_FLIGHT_PER_REPLICA + min(on_the_way, MOST_ON_THE_WAY)) * max(1, replicas)


def at_work(placement: Placement, replicas: int, away_s: float | None = None) -> int:
    """Calls of a placement with which none of so many replicas is idle. A batch that is not half full waits in the router's
    queue, where it grows, rather than behind such calls. Across a link (`away_s`, its round trip) that holds nobody up: a call is
    mostly on its way.
    """
    if away_s is not None:
        return in_flight(placement, replicas, away_s)
    return (placement.calls_at_once or 1) * max(1, replicas)


def half(batch_size: int) -> int:
    """Queries with which a batch need not wait for an idle replica."""
    return (batch_size + 1) // 2


def service_s(profile: Profile, batch: float, quantile: Quantile = "p50") -> float:
    """Seconds that a batch of `batch` items takes on one whole accelerator.

    Linear between profiled batch sizes; where a larger batch was measured faster than a smaller one, the slower figure
    holds for both, so that noise never makes a prediction cheaper than what was measured. Below the smallest profiled
    batch its time is taken. Raises `InvalidInput` above the largest: nothing is extrapolated.
    """
    sizes = [t.batch_size for t in profile.timings]
    if batch > sizes[-1]:
        where = f"profile of {profile.member} on {profile.accelerator}"
        remedy = "profile larger batches"
        raise InvalidInput(Problem(where, f"ends at batch size {sizes[-1]}", f"a batch of {batch:g}", remedy))
    times = [t.latency_p50_s if quantile == "p50" else t.latency_p99_s for t in profile.timings]
    return float(np.interp(batch, sizes, np.maximum.accumulate(times)))


def irregularities(profiles: Profiles) -> list[str]:
    """Larger batches that were timed faster than smaller ones, in words, the most striking first; predictions take the slower
    figure for both."""
    found = [
        (after.latency_p50_s / before.latency_p50_s, p, before, after)
        for p in profiles.profiles
        for before, after in zip(p.timings, p.timings[1:], strict=False)
        if after.latency_p50_s < before.latency_p50_s
    ]
    return [
        f"{p.member} on {p.accelerator}: a batch of {after.batch_size} was timed faster ({after.latency_p50_s:.4g} s) than one "
        f"of {before.batch_size} ({before.latency_p50_s:.4g} s); the slower figure counts for both"
        for _, p, before, after in sorted(found, key=lambda f: f[0])
    ]


def fits(profile: Profile, offer: Offer, share: float = 1.0) -> bool:
    """True where the offer can be had at all and `share` of its memory holds the member."""
    return offer.quota != 0 and profile.memory_gib <= share * offer.device_memory_gib


def replica_throughput_per_s(profile: Profile, batch_size: int, share: float) -> float:
    """Items per second of one busy replica that owns `share` of an accelerator, in full batches."""
    return batch_size * share / service_s(profile, batch_size)


def expected_batch(profile: Profile, rate_per_s: float, wait_s: float, batch_size: int, speed: float) -> float:
    """Mean batch size at `rate_per_s` items per second, at most `batch_size`.

    Where a replica is idle, a batch is the item that opened it and those that arrive while it waits. Where none is, it takes all
    that arrive until one has ended: x(n) = rate * service_s(n) / speed, with Poisson arrivals none at all in e^-x of the times.
    So batches grow until n >= x(n) + e^-x(n) * (1 + rate * wait_s), or are full. `speed` is the sum of the accelerator shares
    that serve these items.
    """
    least = min(float(batch_size), 1 + rate_per_s * wait_s)

    def excess(n: float) -> float:
        arriving = rate_per_s * service_s(profile, n) / speed
        return n - arriving - math.exp(-arriving) * least

    low = least
    for high in np.linspace(least, batch_size, 65).tolist():
        if excess(high) >= 0:
            return _smallest(lambda n: excess(n) >= 0, low, high)
        low = high
    return float(batch_size)


def _smallest(is_enough: Callable[[float], bool], low: float, high: float) -> float:
    """The least number that is enough, between one that is not (or is the least allowed) and one that is."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def tier_latency_s(profile: Profile, batch_size: int, share: float, wait_s: float) -> float:
    """Upper bound of the time in a tier at moderate load.

    The wait for a batch to fill, the batch in progress, the own batch (both full and at their p99), and the hop.
    """
    return wait_s + 2 * service_s(profile, batch_size, "p99") / share + profile.hop_p99_s
