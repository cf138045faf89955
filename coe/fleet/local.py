"""`local.yaml`: the plan's nodes as a fleet that one machine plays, for `coe cluster up`."""

from __future__ import annotations

from coe.fleet import names
from coe.fleet.groups import Group, cluster_name, node_groups
from coe.types import Fleet, FleetNode, Offer, Plan

FASTEST_SHARE = 0.3
"""Share of a CPU core that plays the fastest accelerator of the plan; the others' follow from the makers' figures."""
UNKNOWN_SHARE = 0.1
"""Every accelerator's share where the figures of one are not known."""
LEAST_SHARE = 0.01

HEAD = "local-head"


def local_fleet(plan: Plan) -> Fleet:
    """Every node of the plan as a raylet. The router's node is the head where it is one CPU-only node; else the fleet gets
    a head of its own, which is not part of the plan.

    Relative speeds are the makers' peak fp16 rates (`coe.prices.accelerators`): close enough to see a plan work, and no
    measurement. Raises `InvalidInput` for what cluster files cannot express.
    """
    groups = node_groups(plan)
    shares = _shares(groups)
    nodes = tuple(
        FleetNode(offer=g.offer, count=g.count, cpu_share=shares[g.offer.node_type] if _accelerated(g) else 1.0)
        for g in groups
    )
    if _accelerated(groups[0]) or groups[0].count != 1:
        nodes = (FleetNode(offer=_extra_head(groups[0].offer), count=1, cpu_share=1.0), *nodes)
    return Fleet(name=cluster_name(plan), nodes=nodes)


def has_own_head(plan: Plan) -> bool:
    """True where the local fleet has a head beside the plan's nodes."""
    return local_fleet(plan).nodes[0].offer.node_type == HEAD


def _accelerated(group: Group) -> bool:
    return group.offer.accelerators_per_node > 0


def _shares(groups: tuple[Group, ...]) -> dict[str, float]:
    """Node type -> share of a core, for nodes with accelerators."""
    kinds = {g.offer.node_type: names.known_accelerator(g.offer) for g in groups if _accelerated(g)}
    rates = {n: None if kind is None else kind.fp16_tflops for n, kind in kinds.items()}
    known = [rate for rate in rates.values() if rate is not None]
    if len(known) < len(rates):
        return dict.fromkeys(rates, UNKNOWN_SHARE)
    return {n: max(LEAST_SHARE, round(FASTEST_SHARE * (r or 0) / max(known), 3)) for n, r in rates.items()}


def _extra_head(router: Offer) -> Offer:
    return Offer(
        node_type=HEAD,
        accelerator="CPU-local",
        accelerators_per_node=0,
        vcpus=1.0,
        memory_gib=1.0,
        usd_per_hour=0.0,
        market="owned",
        source="not part of the plan: the head of the local fleet",
        date=router.date,
    )
