"""Gears: one plan per band of loads, and when a service changes from one to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from coe.errors import InvalidInput, Problem
from coe.placement.diff import diff
from coe.types import Gear, Gears, Plan

BACK = 0.8
"""A gear is left downwards below this part of the limit of the gear before."""


def gears_of(rates_per_s: Sequence[float], plan_at: Callable[[float], Plan]) -> Gears:
    """The plan for every load, rising; bands whose plans place alike are one gear.

    Raises `InvalidInput` for loads that are not positive or repeat.
    """
    if any(rate <= 0 for rate in rates_per_s) or len(set(rates_per_s)) < len(rates_per_s) or not rates_per_s:
        found = ", ".join(f"{r:g}" for r in rates_per_s) or "none"
        raise InvalidInput(Problem("--rates", "must be different loads above 0, in queries per second", found))
    gears: list[Gear] = []
    for rate in sorted(rates_per_s):
        plan = plan_at(rate)
        if gears and _alike(gears[-1].plan, plan):
            gears[-1] = gears[-1].model_copy(update={"up_to_per_s": rate, "plan": plan})
            continue
        back = BACK * gears[-1].up_to_per_s if gears else 0.0
        gears.append(Gear(up_to_per_s=rate, back_below_per_s=back, plan=plan))
    return Gears(gears=tuple(gears))


def _alike(one: Plan, other: Plan) -> bool:
    """True where both rent the same nodes for the same cascade, in the same way."""
    return (
        one.cascade.tiers == other.cascade.tiers
        and {(n.node_type, n.count) for n in one.nodes} == {(n.node_type, n.count) for n in other.nodes}
        and {(p.deployment, p.replicas, p.share, p.batch_size) for p in one.placements}
        == {(p.deployment, p.replicas, p.share, p.batch_size) for p in other.placements}
    )


def table(gears: Gears) -> str:
    """Load bands, what they cost, and what changes on the way up."""
    lines = ["  up to/s  back below/s   $ per hour  $ per 1,000  cascade and nodes"]
    for gear in gears.gears:
        plan = gear.plan
        nodes = ", ".join(f"{n.count} {n.node_type}" for n in plan.nodes)
        members = " > ".join("+".join(t.members) for t in plan.cascade.tiers)
        lines.append(
            f"{gear.up_to_per_s:>9g}  {gear.back_below_per_s:>12g}  {plan.cost.usd_per_hour_allocation:>11.3f}  "
            f"{plan.cost.usd_per_1k_allocation:>11.4f}  {members} on {nodes}"
        )
    for low, high in zip(gears.gears, gears.gears[1:], strict=False):
        lines += [
            "",
            f"Above {low.up_to_per_s:g}/s (first start what is new, then move traffic, then stop what is old):",
        ]
        changes = diff(low.plan, high.plan).placements
        lines += [f"  {c.what}: {c.before} -> {c.after}" for c in changes] or ["  thresholds or nodes only"]
    return "\n".join(lines) + "\n"
