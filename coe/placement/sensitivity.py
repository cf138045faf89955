"""What promises cost: the same cascade planned again with one promise a little looser, and at other loads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from coe.errors import CoeError, Unavailable
from coe.placement.baseline import best_single
from coe.placement.branch import SAME_USD, Remaining, solve
from coe.placement.candidates import Placed, World, candidate, place
from coe.placement.judge import price
from coe.placement.problem import PlacementProblem
from coe.placement.writing import load_of
from coe.types import LoadPoint, Sensitivity

LIMIT_S = 10.0
"""Of each question; what is not answered by then is left out."""
FACTORS = (1 / 100, 1 / 32, 1 / 10, 1 / 3.2, 1.0, 3.2, 10.0)
"""Loads, relative to the planned one, at which the cascade is compared with a single model."""


def sensitivities_of(best: Placed, remaining: Remaining | None = None) -> tuple[Sensitivity, ...]:
    """Every promise that costs money at the margin, the dearest first."""
    found = []
    for promise, change, looser in _looser(best):
        cheaper = _usd_per_hour(looser, best.usd_per_hour, remaining)
        if cheaper is not None and cheaper < best.usd_per_hour - SAME_USD:
            found.append(Sensitivity(promise=promise, change=change, usd_per_hour=cheaper))
    return tuple(sorted(found, key=lambda s: s.usd_per_hour))


def _usd_per_hour(problem: PlacementProblem, below: float, remaining: Remaining | None) -> float | None:
    """Cost of the cheapest plan below a limit; None where there is none, or it was not found in time."""
    left = LIMIT_S if remaining is None else min(LIMIT_S, remaining())
    if left <= 0:
        return None
    try:
        solution = solve(problem, left, below_usd_per_hour=below)
    except Unavailable:
        return None
    return None if solution is None else price(problem, solution)


def _looser(best: Placed) -> Iterator[tuple[str, str, PlacementProblem]]:
    """Promise, change in words, and the problem after it."""
    problem = best.problem
    for more in sorted({_rounded(0.1 * problem.latency_s), _rounded(0.5 * problem.latency_s)}):
        yield "latency", f"{1000 * more:g} ms more", replace(problem, latency_s=problem.latency_s + more)
    for node_type, used in best.solution.nodes.items():
        quota = problem.quota[node_type]
        if quota is not None and used >= quota:
            raised = {**problem.quota, node_type: quota + 1}
            yield "quota", f"one more {node_type}", replace(problem, quota=raised)
    if problem.target_utilisation < 0.8:
        busier = min(0.95, problem.target_utilisation + 0.1)
        words = f"a target utilisation of {busier:.0%} instead of {problem.target_utilisation:.0%}"
        yield "utilisation", words, replace(problem, target_utilisation=busier)
    if problem.on_demand_floor > 0 and any(c.is_spot for c in problem.columns):
        floor = max(0.0, problem.on_demand_floor - 0.5)
        words = f"an on-demand floor of {floor:.0%} instead of {problem.on_demand_floor:.0%}"
        yield "on-demand floor", words, replace(problem, on_demand_floor=floor)
    if problem.survive_node_loss:
        yield "survival", "not having to survive the loss of a node", replace(problem, survive_node_loss=False)
    if problem.min_replicas > 1:
        words = f"at least {problem.min_replicas - 1} replicas instead of {problem.min_replicas}"
        yield "replicas", words, replace(problem, min_replicas=problem.min_replicas - 1)
    less = {m: 0.9 * d for m, d in problem.demand_per_s.items()}
    yield "load", "10% less load", replace(problem, demand_per_s=less)


def _rounded(seconds: float) -> float:
    """One significant digit."""
    unit = 10.0 ** math.floor(math.log10(seconds))
    return round(seconds / unit) * unit


def loads_of(best: Placed, world: World, remaining: Remaining | None = None) -> tuple[LoadPoint, ...]:
    """The chosen cascade and the best single model at other loads, as far as time allows."""
    points = []
    for factor in FACTORS:
        if remaining is not None and remaining() <= 0:
            break
        there = replace(world, workload=load_of(world.workload, world.workload.rate_per_s * factor))
        limit = _limited(remaining)
        try:
            placed = place(candidate(best.cascade, there), remaining=limit)
            single = best_single(there, limit)
        except CoeError:  # a router or solver that cannot follow there
            continue
        points.append(
            LoadPoint(
                rate_per_s=there.workload.rate_per_s,
                cascade_usd_per_hour=placed.usd_per_hour if isinstance(placed, Placed) else None,
                single_usd_per_hour=None if single is None else single.usd_per_hour,
            )
        )
    return tuple(points)


def _limited(remaining: Remaining | None) -> Remaining:
    return lambda: LIMIT_S if remaining is None else min(LIMIT_S, remaining())
