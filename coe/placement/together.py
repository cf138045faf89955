"""One deployment for all gears: what `coe build` deploys of them, and every gear's plan as it is served there.

A router changes gears without a restart, so whatever any gear needs must stand all the while: the deployments of all gears, each
with replicas enough for every gear, on nodes that hold them all at once. The machines are rented whatever the gear is;
so every gear's plan as served names those machines, and its bill is theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from coe.cost.model import node_lines
from coe.errors import InvalidInput, Problem
from coe.placement.packing import packed
from coe.router.changing import changeable
from coe.types import ApiPrice, CostLine, Gears, Member, Offer, Placement, Plan, PlannedNodes, Pool, PredictedCost

T = TypeVar("T")
_ROUNDING = 1e-9
APART = "build a serve.yaml for each gear, and change between them with `serve deploy`"


@dataclass(frozen=True)
class Deployment:
    """plan: what is deployed, with the first gear's cascade.   gears: the same gears, each plan as it is served there."""

    plan: Plan
    gears: Gears


def together(gears: Gears, where: str = "gears") -> Deployment:
    """The deployment that can serve every gear. Raises `InvalidInput` with everything that keeps them apart, named `where`.

    What a gear promises stays as it was: its cascade, certificate, latency and load. Its replicas, nodes and rented dollars are
    those of the deployment. All cascades take the first one's name, by which clients ask for the model.
    """
    plans = [g.plan for g in gears.gears]
    problems = list(_apart(plans, where))
    if problems:
        raise InvalidInput(problems)
    placements = _placements(plans)
    offers = _firsts((o for p in plans for o in p.offers), key=lambda o: o.node_type)
    first = plans[0]
    router = first.router.model_copy(update={"replicas": max(p.router.replicas for p in plans)})
    whole = first.model_copy(
        update={
            "pool": _pool(plans),
            "placements": placements,
            "router": router,
            "offers": tuple(offers),
            "apis": tuple(_firsts((a for p in plans for a in p.apis), key=lambda a: a.model)),
        }
    )
    whole = whole.model_copy(update={"nodes": _nodes(plans, whole, where)})
    whole = whole.model_copy(update={"allocation_lines": _rent(whole, first)})
    served = [
        gear.model_copy(update={"name": name, "plan": as_served(gear.plan, whole, name)})
        for gear, name in zip(gears.gears, gears.names, strict=True)
    ]
    found = gears.model_copy(update={"gears": tuple(served)})
    _check_changeable(found, whole, where)
    return Deployment(as_served(first, whole, first.name, placements), found)


def as_served(plan: Plan, deployed: Plan, name: str, placements: Sequence[Placement] | None = None) -> Plan:
    """A plan as the deployment serves it: with its replicas, nodes and rent, under its model's name."""
    there = {p.deployment: p for p in deployed.placements}
    own = [
        _on(p, there[p.deployment].share, there[p.deployment].replicas) if p.deployment in there else p
        for p in plan.placements
    ]
    usd = sum(n.count * n.usd_per_hour for n in deployed.nodes)
    fees = plan.cost.usd_per_hour_allocation - sum(n.count * n.usd_per_hour for n in plan.nodes)
    rate, accuracy = plan.workload.rate_per_s, plan.stats.accuracy
    return plan.model_copy(
        update={
            "name": name,
            "cascade": plan.cascade.model_copy(update={"name": deployed.cascade.name}),
            "placements": tuple(own if placements is None else placements),
            "pool": deployed.pool if placements is not None else plan.pool,
            "router": deployed.router,
            "nodes": deployed.nodes,
            "offers": deployed.offers,
            "apis": deployed.apis,
            "cost": PredictedCost.of(plan.cost.usd_per_hour_usage, usd + max(0.0, fees), rate, accuracy),
            "allocation_lines": _rent(deployed, plan),
        }
    )


def _rent(deployed: Plan, plan: Plan) -> tuple[CostLine, ...]:
    """The nodes that stand, and what the plan pays by the call."""
    fees = [line for line in plan.usage_lines if line.unit == "1,000 calls"]
    return (*node_lines(deployed.nodes, deployed.router), *fees)


def _on(placement: Placement, share: float, replicas: int) -> Placement:
    """The same load on other replicas. A replica with twice the share takes half the time: shares are hard partitions."""
    slower = placement.share / share
    return placement.model_copy(
        update={
            "share": share,
            "replicas": replicas,
            "expected_busy_s": placement.expected_busy_s * slower,
            "full_batch_s": None if placement.full_batch_s is None else placement.full_batch_s * slower,
            "utilisation": min(1.0, placement.utilisation * slower * placement.replicas / replicas),
        }
    )


def _placements(plans: Sequence[Plan]) -> tuple[Placement, ...]:
    """Every deployment of any gear once: with the largest share that a gear gives it, and so many replicas that every gear has
    the accelerator time and the least replicas that it was planned with."""
    found = {}
    for deployment in dict.fromkeys(p.deployment for plan in plans for p in plan.placements):
        own = [(plan, p) for plan in plans for p in plan.placements if p.deployment == deployment]
        share = max(p.share for _, p in own)
        replicas = max(
            max(math.ceil(p.replicas * p.share / share - _ROUNDING), min(p.replicas, plan.workload.min_replicas))
            for plan, p in own
        )
        calls = max((p.calls_at_once or 0 for _, p in own), default=0) or None
        found[deployment] = _on(own[0][1], share, replicas).model_copy(update={"calls_at_once": calls})
    return tuple(found.values())


def _pool(plans: Sequence[Plan]) -> Pool:
    members = _firsts((m for p in plans for m in p.pool.members), key=lambda m: m.name)
    return plans[0].pool.model_copy(update={"members": tuple(members)})


def _firsts(things: Iterable[T], key: Callable[[T], str]) -> list[T]:
    """Each thing once, by its key."""
    found: dict[str, T] = {}
    for thing in things:
        found.setdefault(key(thing), thing)
    return list(found.values())


# --- Nodes ------------------------------------------------------------------------------------------------------------


def _nodes(plans: Sequence[Plan], whole: Plan, where: str) -> tuple[PlannedNodes, ...]:
    """At least those of every gear, and so many that all replicas have room at once. `InvalidInput` beyond an offer's quota."""
    counts: dict[str, int] = {}
    node_of: dict[str, PlannedNodes] = {}
    for plan in plans:
        for node in plan.nodes:
            routers = plan.router.replicas if node.node_type == plan.router.node_type else 0
            more = whole.router.replicas - routers if routers else 0
            counts[node.node_type] = max(counts.get(node.node_type, 0), node.count + more)
            node_of.setdefault(node.node_type, node)
    problems = []
    for node_type in counts:
        own = tuple(p for p in whole.placements if p.node_type == node_type and not p.api)
        asked = counts[node_type]
        while not _fits(whole, node_of[node_type], asked, own):
            asked += 1
        counts[node_type] = asked
        quota = whole.offer(node_type).quota
        if quota is not None and asked > quota:
            rule = f"all gears together need {asked} nodes of it, since each keeps its replicas while another is in service"
            remedy = f"plan gears with fewer members or replicas there, or {APART}"
            problems.append(Problem(f"{where}: {node_type}", rule, f"quota {quota}", remedy))
    if problems:
        raise InvalidInput(problems)
    return tuple(node_of[t].model_copy(update={"count": count}) for t, count in counts.items())


def _fits(whole: Plan, node: PlannedNodes, count: int, placements: tuple[Placement, ...]) -> bool:
    """Whether so many nodes of a type hold these replicas beside the routers."""
    try:
        packed(
            whole.model_copy(update={"nodes": (node.model_copy(update={"count": count}),), "placements": placements})
        )
    except InvalidInput:
        return False
    return True


# --- What keeps gears apart --------------------------------------------------------------------------------------------


def _apart(plans: Sequence[Plan], where: str) -> Iterator[Problem]:
    """Why these plans cannot be gears of one service."""
    first = plans[0]
    for number, plan in enumerate(plans[1:], 1):
        at = f"{where}: gears[{number}].plan"
        if plan.pool.model_dump(exclude={"members"}) != first.pool.model_dump(exclude={"members"}):
            rule = "must have the classes and inputs of gears[0]: clients see one service"
            yield Problem(f"{at}.pool", rule, remedy="plan all gears from one pool")
        if plan.python_path != first.python_path:
            rule = f"must be that of gears[0], {first.python_path!r}"
            yield Problem(f"{at}.python_path", rule, repr(plan.python_path), APART)
        if plan.router.node_type != first.router.node_type:
            rule = f"must be that of gears[0], {first.router.node_type}: the router cannot move while it serves"
            remedy = "set router_node_type in the workloads of all gears"
            yield Problem(f"{at}.router.node_type", rule, plan.router.node_type, remedy)
    named = [(f"{where}: gears[{number}].plan", plan) for number, plan in enumerate(plans)]
    yield from _conflicts((f"{at}.pool: member '{m.name}'", m.name, m) for at, p in named for m in p.pool.members)
    yield from _conflicts((f"{at}.offers: {o.node_type}", o.node_type, o) for at, p in named for o in p.offers)
    yield from _conflicts((f"{at}.apis: {a.model}", a.model, a) for at, p in named for a in p.apis)
    yield from _redeployed(plans, where)


def _conflicts(named: Iterable[tuple[str, str, Member | Offer | ApiPrice]]) -> Iterator[Problem]:
    """Things of one name that are not the same in all gears."""
    seen: dict[str, object] = {}
    for place, name, thing in named:
        if seen.setdefault(name, thing) != thing:
            rule = "must be the same in every gear that has it"
            yield Problem(place, rule, remedy="plan all gears from the same pool and price list")


def _redeployed(plans: Sequence[Plan], where: str) -> Iterator[Problem]:
    """A deployment calls one hosted model, and where the loss of a node must be survived its share cannot be widened."""
    seen: dict[str, tuple[float, str | None]] = {}
    survives = any(plan.workload.survive_node_loss for plan in plans)
    for number, plan in enumerate(plans):
        for i, p in enumerate(plan.placements):
            at = f"{where}: gears[{number}].plan.placements[{i}]"
            share, api = seen.setdefault(p.deployment, (p.share, p.api))
            if api != p.api:
                yield Problem(f"{at}.api", f"must be {api} as in the gears before", str(p.api), APART)
            if share != p.share and survives:
                rule = f"must be {share:g} as in the gears before, since {p.deployment} must survive the loss of a node"
                yield Problem(f"{at}.share", rule, f"{p.share:g}", APART)


def _check_changeable(gears: Gears, whole: Plan, where: str) -> None:
    """Every gear's plan must be one that the deployed router can go over to, from the deployment and from every other gear."""
    problems = [
        Problem(f"{where}: {name}", f"cannot be changed to live: {'; '.join(reasons)}", remedy=APART)
        for gear, name in zip(gears.gears, gears.names, strict=True)
        if (reasons := changeable(gear.plan, whole))
    ]
    if problems:
        raise InvalidInput(problems)
