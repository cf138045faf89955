"""Why no plan exists: the smallest set of promises that conflict, and the nearest changes that would help."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from coe.errors import Infeasible
from coe.placement.branch import feasible, solve
from coe.placement.judge import price
from coe.placement.problem import PlacementProblem

PROMISES = ("latency", "quota", "replicas", "floor", "survival", "rate")


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
    if "floor" in promises:
        problem = replace(problem, on_demand_floor=0.0)
    if "survival" in promises:
        problem = replace(problem, survive_node_loss=False)
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
            f"{t} {_quota(problem, t)}" + (_for_the_router(problem) if t == router else "")
            for t, q in problem.quota.items()
            if q is not None
        )
        return f"the quotas: {', '.join(quotas)}"
    if promise == "replicas":
        return f"at least {problem.min_replicas} replicas of every member"
    if promise == "floor":
        return f"the on-demand floor: every member carries {problem.on_demand_floor:.0%} of its load without spot nodes"
    if promise == "survival":
        return "survival: after the loss of any one node every member still carries its load"
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
    enough = _least_latency(problem.latency_s, rest)
    if enough is None:
        return None
    words = f"a latency promise of {enough} s instead of {problem.latency_s:g} s"
    return words, replace(problem, latency_s=float(enough))


def _least_latency(promise_s: float, rest: PlacementProblem) -> str | None:
    """The least promise of three digits with which a plan exists; None where no promise is long enough."""
    if not feasible(replace(rest, latency_s=1e6)):
        return None
    low, high = promise_s, promise_s
    while not feasible(replace(rest, latency_s=high)):
        low, high = high, 2 * high
    while _rounded_up(low) != _rounded_up(high):
        middle = float(_rounded_up((low + high) / 2))
        if middle >= high:
            middle = math.nextafter(high, 0) - 10.0 ** (math.floor(math.log10(high)) - 2)
            if middle <= low:
                break
        if feasible(replace(rest, latency_s=middle)):
            high = middle
        else:
            low = middle
    return _rounded_up(high)


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
    low, high = 0, 100
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if feasible(_with_part(rest, problem, middle)) else (low, middle)
    if low < 1:
        return None
    return f"{low}% of the rate", _with_part(problem, problem, low)


def _with_part(problem: PlacementProblem, full: PlacementProblem, per_cent: int) -> PlacementProblem:
    """The problem at so many per cent of the full rate."""
    return replace(problem, demand_per_s={m: d * per_cent / 100 for m, d in full.demand_per_s.items()})


def _no_floor(problem: PlacementProblem, rest: PlacementProblem) -> _Step | None:
    """As high a floor as can be had, in steps of five per cent."""
    for per_cent in range(100, -1, -5):
        lower = per_cent / 100
        if lower < problem.on_demand_floor and feasible(replace(rest, on_demand_floor=lower)):
            words = f"an on-demand floor of {lower:.0%} instead of {problem.on_demand_floor:.0%}"
            return words, replace(problem, on_demand_floor=lower)
    return None


def _no_survival(problem: PlacementProblem, rest: PlacementProblem) -> _Step | None:
    """Not having to survive the loss of a node."""
    if not problem.survive_node_loss or not feasible(replace(rest, survive_node_loss=False)):
        return None
    return "not having to survive the loss of a node", replace(problem, survive_node_loss=False)


_STEPS: dict[str, Callable[[PlacementProblem, PlacementProblem], _Step | None]] = {
    "latency": _more_time,
    "quota": _more_nodes,
    "replicas": _fewer_replicas,
    "floor": _no_floor,
    "survival": _no_survival,
    "rate": _less_load,
}


def _router_nodes(problem: PlacementProblem, node_type: str) -> int:
    return problem.router_replicas if node_type == problem.router_node_type else 0


def _for_the_router(problem: PlacementProblem) -> str:
    count = problem.router_replicas
    return " (one of them for the router)" if count == 1 else f" ({count} of them for the router)"


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
