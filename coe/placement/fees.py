"""What the calls of a placed member cost beside machines, as its plan counts with: tokens of a hosted model, bytes on a link."""

from __future__ import annotations

from coe.placement.columns import egress_usd
from coe.types import Placement, Plan


def call_fee_usd(plan: Plan, placement: Placement) -> float:
    """Dollars of one item of a call: the mean price that the plan counts with for a hosted model, or the bytes on a link."""
    if placement.api is not None:
        return _hosted_usd(plan, placement)
    link = plan.link(placement)
    return 0.0 if link is None or plan.workload.sites is None else egress_usd(plan.workload.sites, link)


def _hosted_usd(plan: Plan, placement: Placement) -> float:
    """From the plan's line of fees. Members that share a model have a line each, in the order of their placements."""
    prices = [line.unit_price_usd / 1000 for line in plan.usage_lines if line.name == f"API: {placement.api}"]
    sharing = [p.member for p in plan.placements if p.api == placement.api]
    if not prices:
        return 0.0
    return prices[sharing.index(placement.member)] if len(prices) == len(sharing) else sum(prices) / len(prices)
