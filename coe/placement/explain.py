"""Reasons: which promises conflict where no plan exists, and what a plan costs line by line and why."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

from coe.cost.model import total_usd
from coe.errors import Infeasible
from coe.placement.milp import feasible, least_latency_s, most_of_the_rate, solve
from coe.placement.problem import PlacementProblem, price
from coe.prices.catalog import provenance
from coe.types import CostLine, Plan, Profiles

PROMISES = ("latency", "quota", "replicas", "rate")


def conflicts(problem: PlacementProblem) -> Infeasible:
    """Why `problem` has no solution: the smallest set of promises that conflict, and single changes that would help.

    Smallest by number: no smaller set of promises conflicts by itself.
    """
    for size in range(len(PROMISES) + 1):
        for kept in itertools.combinations(PROMISES, size):
            if not feasible(_without(problem, [p for p in PROMISES if p not in kept])):
                if not kept:
                    return Infeasible(_no_hardware(problem))
                return Infeasible([_promise(problem, p) for p in kept], _relaxations(problem, kept))
    raise AssertionError("conflicts() was called for a problem that has a solution")


def _without(problem: PlacementProblem, promises: Sequence[str]) -> PlacementProblem:
    """The problem with some promises left out (a rate is never quite zero)."""
    if "latency" in promises:
        problem = replace(problem, latency_s=1e6)
    if "quota" in promises:
        problem = replace(problem, quota=dict.fromkeys(problem.quota))
    if "replicas" in promises:
        problem = replace(problem, min_replicas=1)
    if "rate" in promises:
        problem = replace(problem, demand_per_s=dict.fromkeys(problem.demand_per_s, 1e-6))
    return problem


def _promise(problem: PlacementProblem, promise: str) -> str:
    """A promise in words, with its value."""
    if promise == "latency":
        tiers = " + ".join(str(t + 1) for t in problem.path)
        return f"the latency promise of {problem.latency_s:g} s, for the sum of the bounds of tier {tiers}"
    if promise == "quota":
        router = problem.router_node_type
        quotas = (
            f"{t} {_quota(problem, t)}" + (" (one of them for the router)" if t == router else "")
            for t, q in problem.quota.items()
            if q is not None
        )
        return f"the quotas: {', '.join(quotas)}"
    if promise == "replicas":
        return f"at least {problem.min_replicas} replicas of every member"
    demand = ", ".join(f"{m} {d:.3g}/s" for m, d in problem.demand_per_s.items())
    return f"the rate that members must carry within the target utilisation: {demand}"


def _relaxations(problem: PlacementProblem, kept: Sequence[str]) -> list[str]:
    """For every promise in the conflict, how far it alone would have to give way; those that alone do not help are left out."""
    found = []
    if "latency" in kept and (least := least_latency_s(problem)) is not None:
        found.append(f"a latency promise of {_rounded_up(least)} s instead of {problem.latency_s:g} s")
    if "quota" in kept and (plan := solve(_without(problem, ["quota"]))) is not None:
        needs = ", ".join(
            f"{count + _router_nodes(problem, t)} {t} instead of {_quota(problem, t)}"
            for t, count in plan.nodes.items()
            if (quota := problem.quota[t]) is not None and count > quota
        )
        found.append(f"a quota of {needs}, at ${price(problem, plan):.2f} per hour in all")
    if "replicas" in kept:
        fewer = next(
            (n for n in range(problem.min_replicas - 1, 0, -1) if feasible(replace(problem, min_replicas=n))), None
        )
        if fewer is not None:
            found.append(f"at least {fewer} replicas instead of {problem.min_replicas}")
    if "rate" in kept and (per_cent := math.floor(100 * most_of_the_rate(problem) - 1e-6)) > 0:
        found.append(f"{per_cent}% of the rate")
    return found


def _router_nodes(problem: PlacementProblem, node_type: str) -> int:
    return 1 if node_type == problem.router_node_type else 0


def _quota(problem: PlacementProblem, node_type: str) -> int:
    """The quota as the price list states it, the router's node included."""
    left = problem.quota[node_type]
    assert left is not None
    return left + _router_nodes(problem, node_type)


def _rounded_up(seconds: float) -> str:
    """`seconds` rounded up to three digits, so that promising it is enough."""
    unit = 10.0 ** (math.floor(math.log10(seconds)) - 2)
    return f"{math.ceil(seconds / unit) * unit:.3g}"


def _no_hardware(problem: PlacementProblem) -> list[str]:
    """Members that nothing on offer can hold."""
    return [f"{m} needs more memory than any offered accelerator with a quota has" for m in problem.homeless]


# --- Explaining a plan ------------------------------------------------------------------------------------------------


def explain(plan: Plan, profiles: Profiles | None = None) -> str:
    """The bill line by line, the promises and their slack, the alternatives, and where figures come from."""
    sections = [
        _headline(plan),
        "Tiers\n" + "\n".join(_tier_lines(plan)),
        "Rented, per hour\n" + _bill(plan.allocation_lines),
        "Used, per hour\n" + _bill(plan.usage_lines) + "\n" + _idle(plan),
        "Promises\n" + "\n".join(_promise_lines(plan)),
        "Why this one\n" + "\n".join(f"  {line}" for line in _why(plan)),
        f"Prices: {provenance(plan.offers)}",
    ]
    if profiles is not None:
        origins = sorted({f"{p.origin} {p.date}" for p in profiles.profiles if p.member in plan.cascade.members})
        sections.append(f"Profiles: {', '.join(origins)}")
    return "\n\n".join(sections) + "\n"


def _headline(plan: Plan) -> str:
    cost = plan.cost
    return (
        f"{plan.cascade.name}: ${cost.usd_per_hour_allocation:.3f} per hour rented "
        f"(${cost.usd_per_1k_allocation:.4f} per 1,000 queries at {plan.workload.rate_per_s:g}/s), "
        f"of which used ${cost.usd_per_hour_usage:.3f} (${cost.usd_per_1k_usage:.4f} per 1,000)"
    )


def _tier_lines(plan: Plan) -> list[str]:
    lines = []
    for number, tier in enumerate(plan.cascade.tiers):
        gate = "always answers" if tier.always_answers else f"{tier.rule} >= {tier.bar:g}"
        lines.append(f"  {number + 1}. {'+'.join(tier.members)}  {gate}, reached by {plan.stats.reach[number]:.1%}")
        lines += [
            f"     {p.replicas} x {p.deployment} on {p.share:g} of a {plan.offer(p.node_type).accelerator}, "
            f"batch <= {p.batch_size} (expected {p.expected_batch:.1f}), capacity used {p.utilisation:.0%}"
            for p in plan.placements
            if p.member in tier.members
        ]
    return lines


def _bill(lines: Sequence[CostLine]) -> str:
    width = max(len(line.name) for line in lines)
    rows = [
        f"  {line.name:<{width}}  {line.quantity:>9.4f} {line.unit:<13} x ${line.unit_price_usd:.4f} = ${line.usd:.4f}"
        for line in lines
    ]
    return "\n".join([*rows, f"  {'total':<{width}}  {'':>9} {'':<13}   {'':>7}   ${total_usd(lines):.4f}"])


def _idle(plan: Plan) -> str:
    """What is rented and not used, so that both bases meet."""
    rented, used = plan.cost.usd_per_hour_allocation, plan.cost.usd_per_hour_usage
    router = plan.router.replicas * plan.offer(plan.router.node_type).usd_per_hour
    return f"  rented ${rented:.4f} = used ${used:.4f} + router ${router:.4f} + idle ${rented - used - router:.4f}"


def _promise_lines(plan: Plan) -> list[str]:
    """Every promise and limit with what is left of it; one with nothing left binds."""
    work, certificate = plan.workload, plan.cascade.certificate
    slack = work.latency_s - plan.latency_bound_s
    busiest = max(plan.placements, key=lambda p: p.utilisation)
    quotas = [(n.count, plan.offer(n.node_type).quota, n.node_type) for n in plan.nodes]
    lines = [
        f"  latency: {work.latency_quantile:.0%} within {work.latency_s:g} s; bound {plan.latency_bound_s:.3f} s, "
        f"{slack:.3f} s to spare",
        f"  load: {busiest.deployment} is the busiest at {busiest.utilisation:.0%} of its capacity, "
        f"allowed are {work.target_utilisation:.0%}",
        *(
            f"  quota: {count} of {quota} {node_type}" + (" (all)" if count == quota else "")
            for count, quota, node_type in quotas
            if quota is not None
        ),
    ]
    if certificate is None:
        return [*lines, "  accuracy: NOT CERTIFIED"]
    return [
        *lines,
        f"  accuracy: at most {work.max_accuracy_loss:.2%} below {work.reference}; certified {certificate.epsilon:.2%} at "
        f"{1 - certificate.delta:.0%} confidence ({certificate.losses} losses in {certificate.items} items, upper bound "
        f"{certificate.upper_bound:.2%})",
    ]


def _why(plan: Plan) -> list[str]:
    solver = plan.solver
    gap = "proved cheapest" if solver.status == "proved" else f"best found, at least ${solver.bound_usd_per_hour:.3f}"
    lines = [f"{gap} among {solver.candidates} candidate cascade(s). {solver.message}".strip()]
    if plan.baseline is None:
        return [*lines, "No single model keeps the promises on this hardware.", *plan.rejected]
    return [*lines, plan.baseline.note, *plan.rejected]
