"""Offers that no plan needs, because another one can take their place node by node and costs no more."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from coe.placement.columns import Column
from coe.placement.problem import PlacementProblem
from coe.types import Offer

_Way = tuple[str, int, float]
"""Member, batch size and share."""


def without_dominated_offers(problem: PlacementProblem) -> PlacementProblem:
    """The problem without the columns of offers that another offer dominates; its cheapest plan costs the same.

    A dominates B where A's quota is more than all members together could use, as many nodes of A as hold the devices of one
    B cost no more, and every column of B has a counterpart on A: as fast, as fruitful, of no higher fee, and no more easily
    lost.
    """
    ways = _ways(problem)
    gone: set[str] = set()
    for b in problem.offers:
        rivals = (a for a in problem.offers if a.node_type not in gone and a.node_type != b.node_type)
        if b.node_type in ways and any(_dominates(problem, a, b, ways) for a in rivals):
            gone.add(b.node_type)
    if not gone:
        return problem
    kept = tuple(c for c in problem.columns if c.api is not None or c.offer.node_type not in gone)
    return replace(problem, columns=kept)


def _ways(problem: PlacementProblem) -> Mapping[str, Mapping[_Way, Column]]:
    """Node type -> its columns by member, batch size and share."""
    ways: dict[str, dict[_Way, Column]] = defaultdict(dict)
    for c in problem.columns:
        if c.api is None:
            ways[c.offer.node_type][c.member, c.batch_size, c.share] = c
    return ways


def _dominates(problem: PlacementProblem, a: Offer, b: Offer, ways: Mapping[str, Mapping[_Way, Column]]) -> bool:
    """Whether plans lose nothing when A replaces B."""
    if a.node_type not in ways or not _is_plenty(problem, a, ways[a.node_type]):
        return False
    if a.market == "spot" and b.market != "spot":
        return False
    if problem.survive_node_loss and a.devices_per_node > b.devices_per_node:
        return False
    nodes = math.ceil(b.devices_per_node / a.devices_per_node)
    if nodes * a.usd_per_hour > b.usd_per_hour * (1 + 1e-12):
        return False
    mine = ways[a.node_type]
    return all((way in mine) and _as_good(mine[way], c) for way, c in ways[b.node_type].items())


def _is_plenty(problem: PlacementProblem, offer: Offer, ways: Mapping[_Way, Column]) -> bool:
    """Whether the quota holds every member at once, each in whichever way takes most room."""
    quota = problem.quota[offer.node_type]
    if quota is None:
        return True
    devices: dict[str, float] = defaultdict(float)
    for (member, _, share), c in ways.items():
        devices[member] = max(devices[member], share * problem.enough_replicas(c))
    return sum(devices.values()) <= quota * offer.devices_per_node


def _as_good(a: Column, b: Column) -> bool:
    """Whether column A is as fast, as fruitful and as cheap to call as B, and leads over no other link."""
    return (
        all(x >= y * (1 - 1e-12) for x, y in zip(a.full_per_s, b.full_per_s, strict=True))
        and all(x <= y * (1 + 1e-12) for x, y in zip(a.latency_s, b.latency_s, strict=True))
        and a.fee_usd_per_item <= b.fee_usd_per_item
        and a.site in ("", b.site)
    )
