"""The placement problem as named arrays, and checks that know nothing of any solver.

A column is one way to run one member: on one offer, in batches of one size, on one share of an accelerator. A solution says
how many replicas each column gets, how much of the member's traffic goes there, and how many nodes are rented.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from coe.cost.capacity import expected_batch, fits, replica_throughput_per_s, service_s, tier_latency_s
from coe.cost.model import usd_per_busy_s, usd_per_item, without_profile
from coe.errors import InvalidInput, Problem
from coe.types import Cascade, CascadeStats, Offer, Prices, Profile, Profiles, Workload

SHARES = (1.0, 0.5, 0.25, 0.125)
"""Powers of two pack exactly: whatever fits by sum fits on the devices."""
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Column:
    """One way to run one member. `capacity_per_s` is at the target utilisation; `latency_s` bounds its tier's time;
    `usd_per_item` is the usage cost in the small batches of a light load, which solvers use to break ties.
    """

    member: str
    tier: int
    offer: Offer
    batch_size: int
    share: float
    capacity_per_s: float
    latency_s: float
    usd_per_item: float
    profile: Profile


@dataclass(frozen=True)
class PlacementProblem:
    """Everything a solver may know.

    demand_per_s: member -> items per second.    quota: node type -> most nodes, None without limit (the router's node
    is already taken off).    path: tiers whose latency bounds add up to the promise.
    """

    columns: tuple[Column, ...]
    offers: tuple[Offer, ...]
    demand_per_s: Mapping[str, float]
    tier_of: Mapping[str, int]
    path: tuple[int, ...]
    latency_s: float
    min_replicas: int
    quota: Mapping[str, int | None]
    router_node_type: str
    router_usd_per_hour: float
    batch_wait_s: float

    @property
    def tiers(self) -> int:
        """Number of tiers."""
        return 1 + max(self.tier_of.values())

    @property
    def homeless(self) -> tuple[str, ...]:
        """Members that fit on no offer: without a column nothing can run them."""
        placeable = {c.member for c in self.columns}
        return tuple(m for m in self.demand_per_s if m not in placeable)

    def most_replicas(self, column: Column) -> int:
        """More replicas than this in one column never help: they carry the member's whole demand, or fill the quota."""
        enough = max(self.min_replicas, math.ceil(self.demand_per_s[column.member] / column.capacity_per_s))
        limit = self.quota[column.offer.node_type]
        if limit is None:
            return enough
        return min(enough, int(limit * column.offer.devices_per_node / column.share))


@dataclass(frozen=True)
class Solution:
    """Replicas and items per second by column number, nodes by node type, and how much the solver knows."""

    replicas: Mapping[int, int]
    traffic_per_s: Mapping[int, float]
    nodes: Mapping[str, int]
    bound_usd_per_hour: float
    proved: bool


def build_problem(
    cascade: Cascade, stats: CascadeStats, profiles: Profiles, prices: Prices, workload: Workload
) -> PlacementProblem:
    """The problem of placing a cascade with the reach and the calls in `stats`.

    Raises `InvalidInput` where a member has no profile on any offered accelerator, or the router nowhere to run. Columns
    whose memory exceeds their share stay out; a member may be left without any (see `explain`).
    """
    router = router_offer(prices, workload)
    tier_of = {m: t for t, tier in enumerate(cascade.tiers) for m in tier.members}
    demand = {m: workload.rate_per_s * max(stats.calls[m], 1 / (2 * stats.items)) for m in tier_of}
    lacking = [m for m in tier_of if not any(profiles.find(m, o.accelerator) for o in prices.offers)]
    if lacking:
        raise InvalidInput(without_profile(lacking, prices))
    path = tuple(t for t, reach in enumerate(stats.reach) if t == 0 or reach > 1 - workload.latency_quantile)
    return PlacementProblem(
        columns=_columns(cascade, demand, profiles, prices, workload),
        offers=prices.offers,
        demand_per_s=demand,
        tier_of=tier_of,
        path=path,
        latency_s=workload.latency_s,
        min_replicas=workload.min_replicas,
        quota={o.node_type: _left(o, router) for o in prices.offers},
        router_node_type=router.node_type,
        router_usd_per_hour=router.usd_per_hour,
        batch_wait_s=workload.batch_wait_s,
    )


def router_offer(prices: Prices, workload: Workload) -> Offer:
    """The offer whose node the router owns: the one the workload names, else the cheapest CPU-only one."""
    if workload.router_node_type is not None:
        named = prices.offer(workload.router_node_type)
        if named.quota == 0:
            remedy = "raise it, or name another with router_node_type in the workload"
            raise InvalidInput(
                Problem(f"prices: {named.node_type}", "the router needs a node, so a quota of at least 1", "0", remedy)
            )
        return named
    cpu_only = [o for o in prices.offers if o.accelerators_per_node == 0 and o.quota != 0]
    if not cpu_only:
        remedy = "add one, or name another with router_node_type in the workload"
        raise InvalidInput(
            Problem("prices: offers", "the router needs a CPU-only offer and there is none", remedy=remedy)
        )
    return min(cpu_only, key=lambda o: (o.usd_per_hour, o.node_type))


def _left(offer: Offer, router: Offer) -> int | None:
    if offer.quota is None:
        return None
    return offer.quota - (1 if offer.node_type == router.node_type else 0)


def _columns(
    cascade: Cascade, demand: Mapping[str, float], profiles: Profiles, prices: Prices, workload: Workload
) -> tuple[Column, ...]:
    """Every usable way to run every member, in a fixed order."""
    columns = []
    for tier_number, tier in enumerate(cascade.tiers):
        # members of a staged tier are asked one after the other: so many times the slowest is the most it can take
        turns = len(tier.members) if tier.dispatch == "staged" else 1
        for member in tier.members:
            for offer in prices.offers:
                profile = profiles.find(member, offer.accelerator)
                if profile is None:
                    continue
                for batch_size in (t.batch_size for t in profile.timings):
                    n = expected_batch(profile, demand[member], workload.batch_wait_s, batch_size, math.inf)
                    columns += [
                        Column(
                            member,
                            tier_number,
                            offer,
                            batch_size,
                            share,
                            replica_throughput_per_s(profile, batch_size, share) * workload.target_utilisation,
                            turns * tier_latency_s(profile, batch_size, share, workload.batch_wait_s),
                            usd_per_item(profile, offer, n),
                            profile,
                        )
                        for share in SHARES
                        if fits(profile, offer, share)
                    ]
    return tuple(columns)


# --- Judging a solution without any solver ----------------------------------------------------------------------------


def price(problem: PlacementProblem, solution: Solution) -> float:
    """Dollars per hour of everything rented, the router's node included."""
    by_type = {o.node_type: o.usd_per_hour for o in problem.offers}
    return problem.router_usd_per_hour + sum(by_type[t] * count for t, count in solution.nodes.items())


def expected_batches(problem: PlacementProblem, solution: Solution) -> dict[int, float]:
    """Mean batch size by column number, at the load and with the replicas of the solution."""
    result = {}
    for c in solution.replicas:
        column = problem.columns[c]
        peers = {i: n for i, n in solution.replicas.items() if problem.columns[i].member == column.member}
        result[c] = expected_batch(
            column.profile,
            problem.demand_per_s[column.member],
            problem.batch_wait_s,
            column.batch_size,
            sum(n * problem.columns[i].share for i, n in peers.items()),
        )
    return result


def busy_device_s_per_s(problem: PlacementProblem, solution: Solution) -> dict[int, float]:
    """Seconds of a whole accelerator that each column is busy per second, by column number."""
    batches = expected_batches(problem, solution)
    return {c: solution.traffic_per_s[c] * service_s(problem.columns[c].profile, n) / n for c, n in batches.items()}


def usage_usd_per_hour(problem: PlacementProblem, solution: Solution) -> float:
    """Dollars per hour of busy time, at the batch sizes that the load leads to."""
    busy = busy_device_s_per_s(problem, solution)
    return sum(3600 * usd_per_busy_s(problem.columns[c].offer, 1.0) * seconds for c, seconds in busy.items())


def tier_latencies_s(problem: PlacementProblem, solution: Solution) -> tuple[float, ...]:
    """Latency bound of every tier: its slowest replica."""
    return tuple(
        max((problem.columns[c].latency_s for c in solution.replicas if problem.columns[c].tier == t), default=0.0)
        for t in range(problem.tiers)
    )


def check(problem: PlacementProblem, solution: Solution) -> list[str]:
    """Every promise that a solution breaks, in words; an empty list where it keeps all."""
    broken = []
    used = [(problem.columns[c], n, solution.traffic_per_s.get(c, 0.0)) for c, n in solution.replicas.items() if n]
    for member, demand in problem.demand_per_s.items():
        own = [(c, n, rate) for c, n, rate in used if c.member == member]
        if sum(rate for _, _, rate in own) < demand * (1 - TOLERANCE):
            broken.append(f"{member} gets less traffic than its {demand:.3g}/s")
        broken += [
            f"{member} is overloaded on {c.offer.node_type}"
            for c, n, rate in own
            if rate > n * c.capacity_per_s * (1 + TOLERANCE)
        ]
        if sum(n for _, n, _ in own) < problem.min_replicas:
            broken.append(f"{member} has fewer than {problem.min_replicas} replicas")
        types = [c.offer.node_type for c, _, _ in own]
        if len(types) != len(set(types)):
            broken.append(f"{member} is deployed twice on one node type")
    for tier in range(problem.tiers):
        if len({c.batch_size for c, _, _ in used if c.tier == tier}) > 1:
            broken.append(f"tier {tier + 1} has more than one batch size")
    for offer in problem.offers:
        shares = sum(c.share * n for c, n, _ in used if c.offer.node_type == offer.node_type)
        nodes = solution.nodes.get(offer.node_type, 0)
        if shares > nodes * offer.devices_per_node + TOLERANCE:
            broken.append(f"{offer.node_type} is packed beyond its {nodes} nodes")
        quota = problem.quota[offer.node_type]
        if quota is not None and nodes > quota:
            broken.append(f"{offer.node_type} exceeds its quota of {quota}")
    total = sum(tier_latencies_s(problem, solution)[t] for t in problem.path)
    if total > problem.latency_s + TOLERANCE:
        broken.append(f"the latency bound is {total:.3g} s, promised are {problem.latency_s:.3g} s")
    return broken
