"""Dollars: from busy time and rented nodes to lines that add up.

Money enters as node time x price. Usage bills the busy time of a replica at the price of the accelerator share it owns;
allocation bills whole nodes. Overlapping members shortens latency and never reduces dollars.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from coe.cost.capacity import fits, service_s
from coe.errors import InvalidInput, Problem
from coe.types import CostLine, Offer, PlannedNodes, Prices, Profile, Profiles, RouterPlacement

SECONDS_PER_HOUR = 3600


def usd_per_busy_s(offer: Offer, share: float) -> float:
    """Dollars per busy second of a replica that owns `share` of one accelerator of the node."""
    return offer.usd_per_hour / offer.devices_per_node * share / SECONDS_PER_HOUR


def usd_per_item(profile: Profile, offer: Offer, batch: float) -> float:
    """Usage dollars per item in batches of `batch`; the same for every share, since a half runs twice as long."""
    return usd_per_busy_s(offer, 1.0) * service_s(profile, batch) / batch


def unit_costs(
    members: Iterable[str], profiles: Profiles, prices: Prices, batch: float | None = None
) -> dict[str, float]:
    """Member -> usage dollars per call on the cheapest accelerator that holds it.

    `batch` is the batch that the load fills, where it is larger than any profiled one that one counts; by default each
    member counts with the batch at which it is cheapest. Raises `InvalidInput` naming every member that has no profile
    on any offered accelerator, or fits on none.
    """
    costs: dict[str, float] = {}
    problems: list[Problem] = []
    for member in members:
        profiled = [(p, o) for o in prices.offers if (p := profiles.find(member, o.accelerator)) is not None]
        options = [
            usd_per_item(profile, offer, n)
            for profile, offer in profiled
            if fits(profile, offer)
            for n in _batches(profile, batch)
        ]
        if options:
            costs[member] = min(options)
        elif profiled:
            need = max(profile.memory_gib for profile, _ in profiled)
            rule = "fits on no offered accelerator that has a quota"
            problems.append(
                Problem(f"profiles: {member}", rule, f"{need:g} GiB", "leave it out, or offer a larger one")
            )
        else:
            problems += without_profile([member], prices, profiles)
    if problems:
        raise InvalidInput(problems)
    return costs


def _batches(profile: Profile, batch: float | None) -> list[float]:
    sizes = [float(t.batch_size) for t in profile.timings]
    return sizes if batch is None else [min(batch, sizes[-1])]


def without_profile(members: Iterable[str], prices: Prices, profiles: Profiles) -> list[Problem]:
    """One problem per member that no offered accelerator has a profile of, with the names that may have been meant."""
    offered = sorted({o.accelerator for o in prices.offers})
    problems = []
    for member in members:
        known = sorted({p.accelerator for p in profiles.profiles if p.member == member})
        near = [f"{k} for {hit[0]}" for k in known if (hit := difflib.get_close_matches(k, offered, 1, 0.6))]
        remedy = (
            f"is {near[0]} another name of the same? Else run `coe profile` on one of: {', '.join(offered)}"
            if near
            else f"run `coe profile` for it on one of: {', '.join(offered)}"
        )
        found = f"profiles on {', '.join(known)} alone" if known else ""
        problems.append(Problem(f"profiles: {member}", "has no profile on any offered accelerator", found, remedy))
    return problems


def usage_line(tier: int, member: str, offer: Offer, device_hours: float) -> CostLine:
    """Busy accelerator-hours of one member on one node type."""
    price = offer.usd_per_hour / offer.devices_per_node
    name = f"tier {tier + 1}: {member} on {offer.node_type}"
    return CostLine(
        name=name, quantity=device_hours, unit="busy device-h", unit_price_usd=price, usd=device_hours * price
    )


def node_lines(nodes: Sequence[PlannedNodes], router: RouterPlacement, hours: float = 1.0) -> tuple[CostLine, ...]:
    """What is rented, the router's nodes as a line of their own; the lines add up to the bill."""
    lines = []
    for node in nodes:
        for name, count in _split_router(node, router).items():
            hours_rented = count * hours
            lines.append(
                CostLine(
                    name=name,
                    quantity=hours_rented,
                    unit="node-h",
                    unit_price_usd=node.usd_per_hour,
                    usd=hours_rented * node.usd_per_hour,
                )
            )
    return tuple(lines)


def _split_router(node: PlannedNodes, router: RouterPlacement) -> Mapping[str, int]:
    """Name of a line -> nodes, with the router's nodes taken out of those of its type."""
    if node.node_type != router.node_type:
        return {f"nodes: {node.node_type}": node.count}
    rest = node.count - router.replicas
    router_line = {f"router: {node.node_type}": router.replicas}
    return {**router_line, f"nodes: {node.node_type}": rest} if rest else router_line


def total_usd(lines: Iterable[CostLine]) -> float:
    """Sum of the lines."""
    return sum(line.usd for line in lines)
