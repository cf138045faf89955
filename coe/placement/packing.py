"""Which replica sits on which device of which node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from coe.errors import InvalidInput, Problem
from coe.types import Offer, Placement, Plan

_ROUNDING = 1e-9


@dataclass
class PackedNode:
    """One node of a plan: what is left of each device, and its replicas with the device that each is on."""

    offer: Offer
    is_router: bool
    devices: list[float]
    replicas: list[tuple[Placement, int]] = field(default_factory=list)


def packed(plan: Plan) -> list[PackedNode]:
    """The plan's nodes with its replicas on them: the largest shares first, each on the first device with room.

    Shares are powers of two, so that whatever fits by sum fits so. Hosted models need no node. Raises `InvalidInput` for a plan
    whose replicas do not fit on its nodes.
    """
    nodes: list[PackedNode] = []
    for planned in plan.nodes:
        offer = plan.offer(planned.node_type)
        routers = plan.router.replicas if planned.node_type == plan.router.node_type else 0
        for number in range(planned.count):
            is_router = number < routers
            nodes.append(PackedNode(offer, is_router, [0.0 if is_router else 1.0] * offer.devices_per_node))
    for placement in sorted((p for p in plan.placements if not p.api), key=lambda p: -p.share):
        for _ in range(placement.replicas):
            _place(nodes, placement)
    return nodes


def _place(nodes: Sequence[PackedNode], placement: Placement) -> None:
    for node in nodes:
        if node.offer.node_type != placement.node_type:
            continue
        for device, room in enumerate(node.devices):
            if room >= placement.share - _ROUNDING:
                node.devices[device] -= placement.share
                node.replicas.append((placement, device))
                return
    rule = f"has no room for all {placement.replicas} replicas of {placement.deployment}"
    raise InvalidInput(Problem(f"plan: nodes: {placement.node_type}", rule, remedy="plan again"))
