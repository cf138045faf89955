"""A plan as arrays that an engine can run: tiers, their members' placements, service times by batch size, and the queries."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from coe.cascade.evaluate import Routing, route
from coe.cost.capacity import at_work, in_flight, service_s
from coe.errors import InvalidInput, Problem
from coe.placement.columns import HOSTED, crossing_s
from coe.simulator.arrivals import stream
from coe.table import PredictionTable
from coe.types import BoolArray, FloatArray, IntArray, Placement, Plan, Profile, Profiles

HOP_PART = 0.5
"""A call's way there and back takes this part of the profile's p99 of it; its distribution is not recorded."""
_Z99 = 2.326


@dataclass(frozen=True)
class Network:
    """Tiers in a row; placements of all members one after the other.

    batch_size, in_flight, at_work: (tiers,); batches under way are at most `in_flight`, and one that is not half full is sent
    only while fewer than `at_work` are.  wait_s: how long a batch waits to fill.  staged: (tiers,).
    member_tier: (members,), rising.
    first_placement: (members + 1,), where each member's placements begin.  replicas, traffic, hop_s, sigma: (placements,).
    service_s: (placements, largest batch + 1), seconds of a replica for a batch of so many.
    """

    batch_size: IntArray
    in_flight: IntArray
    at_work: IntArray
    wait_s: float
    staged: BoolArray
    member_tier: IntArray
    first_placement: IntArray
    replicas: IntArray
    traffic: FloatArray
    hop_s: FloatArray
    sigma: FloatArray
    service_s: FloatArray

    def __post_init__(self) -> None:
        for array in (self.batch_size, self.in_flight, self.at_work, self.replicas):
            if len(array) == 0 or array.min() < 1:
                raise ValueError("every tier and placement needs a batch size, a slot and a replica of at least 1")
        for array in vars(self).values():
            if isinstance(array, np.ndarray):
                array.flags.writeable = False

    @property
    def tiers(self) -> int:
        """Number of tiers."""
        return len(self.batch_size)


@dataclass(frozen=True)
class Load:
    """Queries: arrival_s (queries,), rising; item (queries,), the row of `routing` that each replays."""

    arrival_s: FloatArray
    item: IntArray
    routing: Routing

    def __post_init__(self) -> None:
        if len(self.arrival_s) != len(self.item):
            raise ValueError("every arrival needs an item")
        if np.any(np.diff(self.arrival_s) < 0):
            raise InvalidInput(Problem("arrivals", "go back in time"))


def network_of(plan: Plan, profiles: Profiles) -> Network:
    """The plan's placements with the service times of its profiles, slowed down by the shares that replicas own, and what a
    link to another site adds to a call of the expected batch.

    Raises `InvalidInput` for a placement without a profile.
    """
    members = plan.cascade.members
    by_member = [[p for p in plan.placements if p.member == m] for m in members]
    placements = [p for own in by_member for p in own]
    batch_size = [min(p.batch_size for p in plan.placements if p.member in tier.members) for tier in plan.cascade.tiers]
    placed = [[[p for p in plan.placements if p.member == m] for m in tier.members] for tier in plan.cascade.tiers]
    far = plan.away_s
    slots = [
        min(sum(in_flight(p, p.replicas, far.get(p.deployment, 0.0)) for p in own) for own in tier) for tier in placed
    ]
    busy = [min(sum(at_work(p, p.replicas, far.get(p.deployment)) for p in own) for own in tier) for tier in placed]
    largest = max(batch_size)
    tables, hops = [], []
    for p in placements:
        needed = batch_size[next(t for t, tier in enumerate(plan.cascade.tiers) if p.member in tier.members)]
        profile = profile_of(plan, p, profiles)
        times = service_times(p, profile, needed, largest)
        tables.append(times + [math.inf] * (largest + 1 - len(times)))
        link = plan.link(p)
        away_s = crossing_s(plan.workload.sites, link, max(1, round(p.expected_batch)))
        hops.append(HOP_PART * profile.hop_p99_s + away_s)
    starts = np.cumsum([0, *(len(own) for own in by_member)])
    return Network(
        batch_size=np.array(batch_size, dtype=np.int64),
        in_flight=np.array(slots, dtype=np.int64),
        at_work=np.array(busy, dtype=np.int64),
        wait_s=plan.workload.batch_wait_s,
        staged=np.array([t.dispatch == "staged" and len(t.members) > 1 for t in plan.cascade.tiers]),
        member_tier=np.array([t for t, tier in enumerate(plan.cascade.tiers) for _ in tier.members], dtype=np.int64),
        first_placement=starts.astype(np.int64),
        replicas=np.array([p.replicas for p in placements], dtype=np.int64),
        traffic=np.array([p.traffic for p in placements]),
        hop_s=np.array(hops),
        sigma=np.array([jitter_sigma(profile_of(plan, p, profiles), p) for p in placements]),
        service_s=np.array(tables),
    )


def profile_of(plan: Plan, placement: Placement, profiles: Profiles) -> Profile:
    """What a placement runs by: the profile on its node's accelerator, or of the hosted model. `InvalidInput` without one."""
    accelerator = HOSTED if placement.api else plan.offer(placement.node_type).accelerator
    profile = profiles.find(placement.member, accelerator)
    if profile is None:
        rule, remedy = f"has no profile on {accelerator}", "give the profiles that the plan was made from"
        raise InvalidInput(Problem(f"profiles: {placement.member}", rule, remedy=remedy))
    return profile


def service_times(placement: Placement, profile: Profile, needed: int, largest: int) -> list[float]:
    """Seconds of a replica for batches of 0 (as of 1), 1, ... items, up to `largest` or as far as the profile goes.

    Raises `InvalidInput` where it ends below the `needed` size.
    """
    known = profile.timings[-1].batch_size
    if needed > known:
        where, found = f"profile of {placement.member} on {profile.accelerator}", f"batches of at most {known}"
        rule = f"must hold the plan's batches of {needed}"
        raise InvalidInput(Problem(where, rule, found, "give the profiles that the plan was made from"))
    return [service_s(profile, max(1, n)) / placement.share for n in range(min(largest, known) + 1)]


def jitter_sigma(profile: Profile, placement: Placement) -> float:
    """Of the lognormal factor that takes the median service time to its p99."""
    timing = min(profile.timings, key=lambda t: abs(t.batch_size - placement.expected_batch))
    return math.log(timing.latency_p99_s / timing.latency_p50_s) / _Z99


def items_of(table: PredictionTable, queries: int, item: IntArray | None, seed: int) -> IntArray:
    """(queries,): the rows of `table` that queries replay: those given, else drawn at random."""
    if item is not None:
        return item
    return stream(seed, "items").integers(0, len(table), queries)


def load_of(plan: Plan, table: PredictionTable, arrival_s: FloatArray, item: IntArray) -> Load:
    """Queries that replay the rows `item` of `table`; routing is that of evaluation.

    Raises `InvalidInput` where a member of the plan has no predictions.
    """
    table.columns(list(plan.cascade.members))
    return Load(arrival_s, item, route(plan.cascade, table))
