"""The placement problem as named arrays, and what counts as a solution. No solver is known here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from coe.cost.model import without_profile
from coe.errors import InvalidInput, Problem
from coe.placement.columns import HOSTED, Column, Hosted, classes_of, hosted_columns, link_items_per_s, node_columns
from coe.types import SURVIVING_UTILISATION, Cascade, CascadeStats, Offer, Prices, Profiles, Workload


@dataclass(frozen=True)
class PlacementProblem:
    """Everything a solver may know.

    demand_per_s: member -> items per second.    classes: member -> shares of its classes of query, (1.0,) where all cost the
    same.    quota: node type -> most nodes, None without limit (the router's nodes are already taken off).
    path: tiers whose latency bounds add up to the promise.    link_items_per_s: site -> calls per second on its link.
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
    target_utilisation: float
    classes: Mapping[str, tuple[float, ...]]
    router_replicas: int = 1
    on_demand_floor: float = 1.0
    survive_node_loss: bool = False
    link_items_per_s: Mapping[str, float] = field(default_factory=dict)

    @property
    def tiers(self) -> int:
        """Number of tiers."""
        return 1 + max(self.tier_of.values())

    @property
    def homeless(self) -> tuple[str, ...]:
        """Members that fit on no offer: without a column nothing can run them."""
        placeable = {c.member for c in self.columns}
        return tuple(m for m in self.demand_per_s if m not in placeable)

    @cached_property
    def columns_of(self) -> Mapping[str, tuple[int, ...]]:
        """Member -> numbers of its columns."""
        return {m: tuple(i for i, c in enumerate(self.columns) if c.member == m) for m in self.demand_per_s}

    def capacity_per_s(self, column: Column) -> float:
        """Items per second of a replica at the target utilisation, in the mix of the member's classes."""
        return self.target_utilisation * column.mixed_per_s(self.classes[column.member])

    def enough_replicas(self, column: Column) -> int:
        """More replicas than this in one column never help: they carry the member's whole load however it is mixed, also
        after a node is lost."""
        slowest = self.target_utilisation * min(column.full_per_s)
        enough = max(self.min_replicas, math.ceil(self.demand_per_s[column.member] / slowest - 1e-9))
        if self.survive_node_loss and column.share:
            left = self.demand_per_s[column.member] / (SURVIVING_UTILISATION * min(column.full_per_s))
            enough = max(enough, math.ceil(left - 1e-9) + column.replicas_per_node)
        return enough

    def most_replicas(self, column: Column) -> int:
        """The most replicas of a column that help and that its quota holds."""
        limit = self.quota[column.offer.node_type]
        enough = self.enough_replicas(column)
        if limit is None or not column.share:
            return enough
        return min(enough, int(limit * column.offer.devices_per_node / column.share))


@dataclass(frozen=True)
class Solution:
    """Replicas by column number, items per second by column number and class of query, nodes by node type, and how much the
    solver knows."""

    replicas: Mapping[int, int]
    flows_per_s: Mapping[int, tuple[float, ...]]
    nodes: Mapping[str, int]
    bound_usd_per_hour: float
    proved: bool

    @property
    def traffic_per_s(self) -> dict[int, float]:
        """Items per second by column number."""
        return {c: sum(flows) for c, flows in self.flows_per_s.items()}


def build_problem(
    cascade: Cascade,
    stats: CascadeStats,
    profiles: Profiles,
    prices: Prices,
    workload: Workload,
    hosted: Mapping[str, Hosted] | None = None,
) -> PlacementProblem:
    """The problem of placing a cascade with the reach and the calls in `stats`; `hosted` says which members an API serves.

    Raises `InvalidInput` where a member has no profile on any offered accelerator and is not hosted, where a site cannot be
    reached, or where the router has nowhere to run. Columns whose memory exceeds their share stay out; a member may be left
    without any (see `conflicts`). Serverless offers stay out: they cannot join a Ray cluster.
    """
    hosted = hosted or {}
    offers = tuple(o for o in prices.offers if o.market != "serverless")
    router = router_offer(offers, workload)
    tier_of = {m: t for t, tier in enumerate(cascade.tiers) for m in tier.members}
    demand = {m: workload.rate_per_s * max(stats.calls[m], 1 / (2 * stats.items)) for m in tier_of}
    placeable = {m for m in tier_of if m in hosted or any(profiles.find(m, o.accelerator) for o in offers)}
    if lacking := [m for m in tier_of if m not in placeable]:
        raise InvalidInput(without_profile(lacking, Prices(offers=offers), profiles))
    return PlacementProblem(
        columns=tuple(_columns(cascade, demand, profiles, offers, workload, router, hosted)),
        offers=offers,
        demand_per_s=demand,
        tier_of=tier_of,
        path=tuple(t for t, reach in enumerate(stats.reach) if t == 0 or reach > 1 - workload.latency_quantile),
        latency_s=workload.latency_s,
        min_replicas=workload.min_replicas,
        quota={o.node_type: _left(o, router, workload.router_replicas) for o in offers},
        router_node_type=router.node_type,
        router_usd_per_hour=router.usd_per_hour * workload.router_replicas,
        batch_wait_s=workload.batch_wait_s,
        target_utilisation=workload.target_utilisation,
        classes={m: _classes(m, profiles, offers, workload) for m in tier_of},
        router_replicas=workload.router_replicas,
        on_demand_floor=workload.on_demand_floor,
        survive_node_loss=workload.survive_node_loss,
        link_items_per_s=link_items_per_s(workload.sites, workload.target_utilisation),
    )


def router_offer(offers: Iterable[Offer], workload: Workload) -> Offer:
    """The offer whose nodes the router owns: the one the workload names, else the cheapest CPU-only one that is not spot, at
    the site where the queries arrive."""
    offers = tuple(offers)
    if workload.router_node_type is not None:
        named = Prices(offers=offers).offer(workload.router_node_type)
        if named.quota is not None and named.quota < workload.router_replicas:
            rule = f"the router needs a node, so a quota of at least {workload.router_replicas}"
            remedy = "raise it, or name another with router_node_type in the workload"
            raise InvalidInput(Problem(f"prices: {named.node_type}", rule, str(named.quota), remedy))
        return named
    here = ("",) if workload.sites is None else ("", workload.sites.ingress)
    cpu_only = [
        o
        for o in offers
        if o.accelerators_per_node == 0
        and (o.quota is None or o.quota >= workload.router_replicas)
        and o.market != "spot"
        and (workload.sites is None or o.site in here)
    ]
    if not cpu_only:
        at = "" if workload.sites is None else f" at {workload.sites.ingress}, where the queries arrive,"
        remedy = "add one, or name another with router_node_type in the workload"
        raise InvalidInput(
            Problem("prices: offers", f"the router needs a CPU-only offer{at} and there is none", remedy=remedy)
        )
    return min(cpu_only, key=lambda o: (o.usd_per_hour, o.node_type))


def _left(offer: Offer, router: Offer, router_replicas: int) -> int | None:
    if offer.quota is None:
        return None
    return offer.quota - (router_replicas if offer.node_type == router.node_type else 0)


def _classes(member: str, profiles: Profiles, offers: Iterable[Offer], workload: Workload) -> tuple[float, ...]:
    """Shares of the member's classes of query; `InvalidInput` where some of its profiles go by tokens and others do not."""
    known = [p for o in offers if (p := profiles.find(member, o.accelerator)) is not None]
    by_tokens = [p for p in known if p.token_rates]
    if by_tokens and len(by_tokens) < len(known):
        other = next(p for p in known if not p.token_rates)
        where = f"profile of {member} on {other.accelerator}"
        remedy = "measure it by tokens too, or leave this accelerator out"
        raise InvalidInput(Problem(where, "has no token_rates, and others of this member have", remedy=remedy))
    if not by_tokens:
        return (1.0,)
    return tuple(part.share for part in classes_of(by_tokens[0], workload))


def _columns(
    cascade: Cascade,
    demand: Mapping[str, float],
    profiles: Profiles,
    offers: tuple[Offer, ...],
    workload: Workload,
    router: Offer,
    hosted: Mapping[str, Hosted],
) -> Iterable[Column]:
    """Every usable way to run every member, in a fixed order."""
    for number, tier in enumerate(cascade.tiers):
        # members of a staged tier are asked one after the other: so many times the slowest is the most it can take
        turns = len(tier.members) if tier.dispatch == "staged" else 1
        for member in tier.members:
            for offer in offers:
                profile = profiles.find(member, offer.accelerator)
                if profile is not None and offer.accelerator != HOSTED:
                    yield from node_columns(member, number, turns, offer, profile, demand[member], workload)
            if member in hosted:
                classes = len(_classes(member, profiles, offers, workload))
                yield from hosted_columns(member, number, turns, hosted[member], router, classes, workload)
