"""Small plans with every number by hand, on nodes of the price snapshot: what the examples in cluster_configs are built from."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from coe import files
from coe.fleet.setup import Setup
from coe.types import (
    CascadeStats,
    CostLine,
    Member,
    Offer,
    Placement,
    Plan,
    PlannedNodes,
    Pool,
    PredictedCost,
    Prices,
    RouterPlacement,
    SolverReport,
)
from tests import factories

ROOT = Path(__file__).parent.parent
SNAPSHOT = ROOT / "cluster_configs/prices-2026-11-20.yaml"
SETUP = Setup(ray_version="2.60.0", python="py311", source="/path/to/coe")
MEMBERS = ("middle", "other", "small", "large")


@lru_cache
def prices() -> Prices:
    """The price snapshot."""
    return files.read_prices(SNAPSHOT)


def snapshot(name: str) -> Offer:
    """An offer of the price snapshot."""
    return prices().offer(name)


def small_plan(router: Offer, first: Offer, last: Offer, **changes: Any) -> Plan:
    """A router node, one node of `first` that three members share, two nodes of `last` for the large member."""
    counts = {router.node_type: 1, first.node_type: 1, last.node_type: 2}
    offers = {o.node_type: o for o in (router, first, last)}
    usd = sum(counts[n] * o.usd_per_hour for n, o in offers.items())
    placed = [(m, first, 1, 0.25) for m in MEMBERS[:3]] + [(MEMBERS[3], last, 2, 1.0)]
    fields: dict[str, Any] = {
        "name": "example",
        "cascade": factories.cascade(),
        "workload": factories.workload(),
        "stats": CascadeStats(
            items=200,
            accuracy=0.95,
            accuracy_low=0.91,
            accuracy_high=0.975,
            reach=(1.0, 0.25),
            accepted=(0.75, 0.25),
            accuracy_accepted=(0.96, 0.92),
            calls={"middle": 1.0, "other": 1.0, "small": 1.0, "large": 0.25},
        ),
        "pool": factories.pool(MEMBERS),
        "placements": tuple(
            Placement(
                member=member,
                node_type=offer.node_type,
                replicas=replicas,
                share=share,
                batch_size=8,
                traffic=1.0,
                expected_batch=2.0,
                expected_busy_s=0.002,
                utilisation=0.5,
            )
            for member, offer, replicas, share in placed
        ),
        "router": RouterPlacement(node_type=router.node_type),
        "nodes": tuple(
            PlannedNodes(
                node_type=n, count=counts[n], usd_per_hour=o.usd_per_hour, market=o.market, source=o.source, date=o.date
            )
            for n, o in offers.items()
        ),
        "offers": tuple(offers.values()),
        "latency_bound_s": 0.25,
        "tier_latency_s": (0.1, 0.15),
        "cost": PredictedCost.of(usd / 2, usd, 100.0, 0.95),
        "usage_lines": (CostLine(name="members", quantity=1.0, unit="h", unit_price_usd=usd / 2, usd=usd / 2),),
        "allocation_lines": (CostLine(name="nodes", quantity=1.0, unit="h", unit_price_usd=usd, usd=usd),),
        "solver": SolverReport(status="proved", usd_per_hour=usd, bound_usd_per_hour=usd, candidates=1),
        "inputs": {},
    }
    return Plan(**{**fields, **changes})


def aws_plan(**changes: Any) -> Plan:
    """A CPU node, a T4 and two A10G of AWS."""
    return small_plan(snapshot("m7i.xlarge"), snapshot("g4dn.xlarge"), snapshot("g5.xlarge"), **changes)


def gcp_plan(**changes: Any) -> Plan:
    """A CPU node, a spot L4 and two A100 of Google Cloud."""
    offers = (snapshot("e2-standard-4"), snapshot("g2-standard-4-spot"), snapshot("a2-highgpu-1g"))
    return small_plan(*offers, **changes)


def torch_pool() -> Pool:
    """A pool whose members run in torch."""
    members = tuple(Member(name=m, runner="torch", model="models:make") for m in MEMBERS)
    return factories.pool(MEMBERS).model_copy(update={"members": members})
