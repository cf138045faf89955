"""Reasons: which promises conflict where no plan exists, and what a plan costs line by line and why."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from coe.cost.model import total_usd
from coe.errors import Infeasible
from coe.placement.milp import feasible, least_latency_s, most_of_the_rate, solve
from coe.placement.problem import PlacementProblem, price
from coe.prices.catalog import provenance
from coe.types import CostLine, Plan, Profiles

PROMISES = ("latency", "quota", "replicas", "rate")


def conflicts(problem: PlacementProblem) -> Infeasible:
    """Why `problem` has no solution: the smallest set of promises that conflict, and the nearest changes that would help.

    Smallest by number: no smaller set of promises conflicts by itself. Where several sets conflict, no single change helps,
    and the changes are given in groups of as few as possible.
    """
    for size in range(len(PROMISES) + 1):
        for kept in itertools.combinations(PROMISES, size):
            if not feasible(_without(problem, [p for p in PROMISES if p not in kept])):
                if not kept:
                    return Infeasible(_no_hardware(problem))
                return Infeasible([_promise(problem, p) for p in kept], _relaxations(problem))
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


def _relaxations(problem: PlacementProblem) -> list[str]:
    """Changes, each of which makes a plan possible: of one promise where that is enough, else of as few as possible."""
    for size in range(1, len(PROMISES) + 1):
        found = [
            words
            for promises in itertools.combinations(PROMISES, size)
            if (words := _give_way(problem, promises)) is not None
        ]
        if found:
            return found
    return []


def _give_way(problem: PlacementProblem, promises: Sequence[str]) -> str | None:
    """How far these promises have to give way together, one after the other; None where they do not help."""
    if not feasible(_without(problem, promises)):
        return None
    changes = []
    for number, promise in enumerate(promises):
        step = _STEPS[promise](problem, _without(problem, promises[number + 1 :]))
        if step is None:
            return None
        words, problem = step
        changes.append(words)
    return ", together with ".join(changes)


_Step = tuple[str, PlacementProblem]
"""A change in words, and the problem after it."""


def _more_time(problem: PlacementProblem, rest: PlacementProblem) -> _Step | None:
    """The least latency promise that can be kept; `rest` is the problem without the promises still to give way."""
    least = least_latency_s(rest)
    if least is None:
        return None
    enough = _rounded_up(least)
    words = f"a latency promise of {enough} s instead of {problem.latency_s:g} s"
    return words, replace(problem, latency_s=float(enough))


def _more_nodes(problem: PlacementProblem, rest: PlacementProblem) -> _Step | None:
    """The quotas of the cheapest plan that has no quotas."""
    plan = solve(_without(rest, ["quota"]))
    if plan is None:
        return None
    raised = {t: n for t, n in plan.nodes.items() if (quota := problem.quota[t]) is not None and n > quota}
    needs = ", ".join(f"{n + _router_nodes(problem, t)} {t} instead of {_quota(problem, t)}" for t, n in raised.items())
    words = f"a quota of {needs}, at ${price(problem, plan):.2f} per hour in all"
    return words, replace(problem, quota={**problem.quota, **raised})


def _fewer_replicas(problem: PlacementProblem, rest: PlacementProblem) -> _Step | None:
    """As many replicas as can be had."""
    for fewer in range(problem.min_replicas - 1, 0, -1):
        if feasible(replace(rest, min_replicas=fewer)):
            return f"at least {fewer} replicas instead of {problem.min_replicas}", replace(problem, min_replicas=fewer)
    return None


def _less_load(problem: PlacementProblem, rest: PlacementProblem) -> _Step | None:
    """As many whole per cents of the rate as can be carried."""
    per_cent = math.floor(100 * most_of_the_rate(rest) - 1e-6)
    if per_cent < 1:
        return None
    less = {m: d * per_cent / 100 for m, d in problem.demand_per_s.items()}
    return f"{per_cent}% of the rate", replace(problem, demand_per_s=less)


_STEPS: dict[str, Callable[[PlacementProblem, PlacementProblem], _Step | None]] = {
    "latency": _more_time,
    "quota": _more_nodes,
    "replicas": _fewer_replicas,
    "rate": _less_load,
}


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
    gains = f", {certificate.gains} gains" if certificate.claim == "excess" else ""
    return [
        *lines,
        f"  accuracy: at most {work.max_accuracy_loss:.2%} below {work.reference}; certified {certificate.epsilon:.2%} at "
        f"{1 - certificate.delta:.0%} confidence ({certificate.losses} losses{gains} in {certificate.items} items, upper bound "
        f"{certificate.upper_bound:.2%})",
    ]


def _why(plan: Plan) -> list[str]:
    solver = plan.solver
    gap = "proved cheapest" if solver.status == "proved" else f"best found, at least ${solver.bound_usd_per_hour:.3f}"
    lines = [f"{gap} among {solver.candidates} candidate cascade(s). {solver.message}".strip()]
    if plan.baseline is None:
        return [*lines, "No single model keeps the promises on this hardware.", *plan.rejected]
    return [*lines, plan.baseline.note, *plan.rejected]
