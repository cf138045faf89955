"""Which plans a running router can go over to without a new deployment."""

from __future__ import annotations

from coe.types import Plan


def changeable(plan: Plan, served: Plan) -> list[str]:
    """Why a router that serves `served` cannot go over to `plan` without new deployments; empty where it can.

    Thresholds, quorums, rules, tiers and promises may change; members, placements, batch sizes and nodes may not: they need a
    deployment (`serve deploy` of a file that `coe build` wrote anew).
    """
    reasons = []
    if plan.pool.model_dump(exclude={"members"}) != served.pool.model_dump(exclude={"members"}):
        reasons.append("classes or inputs differ")
    there = {p.deployment: (p.replicas, p.share) for p in served.placements}
    for p in plan.placements:
        if p.deployment not in there:
            reasons.append(f"{p.deployment} is not deployed")
        elif there[p.deployment] != (p.replicas, p.share):
            reasons.append(f"{p.deployment} has other replicas or shares")
    known = {m.name: m for m in served.pool.members}
    reasons += [f"member {m.name} is another one" for m in plan.pool.members if known.get(m.name, m) != m]
    if {(n.node_type, n.count) for n in plan.nodes} != {(n.node_type, n.count) for n in served.nodes}:
        reasons.append("it rents other nodes")
    return reasons
