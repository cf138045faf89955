"""Every placement there is, one after the other: the oracle for the MILP on small problems.

Shares nothing with `milp` but the problem: it enumerates a batch size per tier, then for every member and node type at most one
share with a number of replicas, and judges each combination with `check` and `price`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from coe.placement.problem import PlacementProblem, Solution, check, price


def solve(problem: PlacementProblem) -> Solution | None:
    """The cheapest placement by enumeration, or None; the effort grows exponentially with members and offers."""
    best: Solution | None = None
    for batch_sizes in itertools.product(*(_batch_sizes(problem, t) for t in range(problem.tiers))):
        options = [list(_member_options(problem, m, batch_sizes)) for m in problem.demand_per_s]
        for choice in itertools.product(*options):
            solution = _solution(problem, {c: n for part in choice for c, n in part.items()})
            if not check(problem, solution) and (best is None or price(problem, solution) < price(problem, best)):
                best = solution
    return best


def _batch_sizes(problem: PlacementProblem, tier: int) -> list[int]:
    return sorted({c.batch_size for c in problem.columns if c.tier == tier})


def _member_options(problem: PlacementProblem, member: str, batch_sizes: tuple[int, ...]) -> Iterator[dict[int, int]]:
    """Replicas by column for one member: per node type none, or one share with 1, 2, … replicas."""
    per_type: list[list[dict[int, int]]] = []
    for offer in problem.offers:
        columns = [
            (i, c)
            for i, c in enumerate(problem.columns)
            if c.member == member and c.offer.node_type == offer.node_type and c.batch_size == batch_sizes[c.tier]
        ]
        counts = [{i: n} for i, c in columns for n in range(1, problem.most_replicas(c) + 1)]
        per_type.append([{}, *counts])
    for parts in itertools.product(*per_type):
        option = {c: n for part in parts for c, n in part.items()}
        if option:
            yield option


def _solution(problem: PlacementProblem, replicas: dict[int, int]) -> Solution:
    """Traffic in proportion to capacity, and as many nodes as the shares need."""
    traffic: dict[int, float] = {}
    shares: dict[str, float] = {}
    for member, demand in problem.demand_per_s.items():
        own = {
            c: n * problem.columns[c].capacity_per_s for c, n in replicas.items() if problem.columns[c].member == member
        }
        total = sum(own.values())
        traffic |= {c: demand * capacity / total for c, capacity in own.items()}
    for c, n in replicas.items():
        node_type = problem.columns[c].offer.node_type
        shares[node_type] = shares.get(node_type, 0.0) + n * problem.columns[c].share
    devices = {o.node_type: o.devices_per_node for o in problem.offers}
    nodes = {t: math.ceil(s / devices[t] - 1e-9) for t, s in shares.items()}
    solution = Solution(replicas, traffic, nodes, 0.0, True)
    return Solution(replicas, traffic, nodes, price(problem, solution), True)
