"""Every placement there is, one after the other: the oracle for the MILP on small problems.

Shares nothing with `milp` but the problem: it enumerates a batch size per tier, then for every member and node type at most
one share with a number of replicas, and judges each combination with `check` and `price`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

from coe.placement.judge import TOLERANCE, check, price
from coe.placement.problem import PlacementProblem, Solution


def solve(problem: PlacementProblem) -> Solution | None:
    """The cheapest placement by enumeration, or None; the effort grows exponentially with members and offers."""
    best: Solution | None = None
    for batch_sizes in itertools.product(*(_batch_sizes(problem, t) for t in range(problem.tiers))):
        options = [list(_member_options(problem, m, batch_sizes)) for m in problem.demand_per_s]
        for choice in itertools.product(*options):
            solution = _solution(problem, {c: n for part in choice for c, n in part.items()})
            cheaper = best is None or solution.bound_usd_per_hour < best.bound_usd_per_hour
            if cheaper and not check(problem, solution):
                best = solution
    return best


def _batch_sizes(problem: PlacementProblem, tier: int) -> list[int]:
    return sorted({c.batch_size for c in problem.columns if c.tier == tier})


def _member_options(problem: PlacementProblem, member: str, batch_sizes: tuple[int, ...]) -> Iterator[dict[int, int]]:
    """Replicas by column for one member, where they carry its load: per node type none, or one share with 1, 2, …"""
    per_type: list[list[dict[int, int]]] = []
    for offer in problem.offers:
        columns = [
            i
            for i, c in enumerate(problem.columns)
            if c.member == member and c.offer.node_type == offer.node_type and c.batch_size == batch_sizes[c.tier]
        ]
        per_type.append([{}, *({i: n} for i in columns for n in range(1, _most(problem, i) + 1))])
    for parts in itertools.product(*per_type):
        option = {c: n for part in parts for c, n in part.items()}
        if _capacity_per_s(problem, option) >= problem.demand_per_s[member] * (1 - TOLERANCE):
            yield option


def _most(problem: PlacementProblem, column: int) -> int:
    """Replicas up to the first number that carries the member's load alone, also after the loss of a node."""
    c = problem.columns[column]
    n = max(1, problem.min_replicas)
    while _capacity_per_s(problem, {column: n}) < problem.demand_per_s[c.member]:
        n += 1
    return n + (c.replicas_per_node if problem.survive_node_loss else 0)


def _capacity_per_s(problem: PlacementProblem, replicas: Mapping[int, int]) -> float:
    return sum(n * problem.capacity_per_s(problem.columns[c]) for c, n in replicas.items())


def _solution(problem: PlacementProblem, replicas: dict[int, int]) -> Solution:
    """Traffic where calls cost least, and as many nodes as the shares need."""
    flows: dict[int, tuple[float, ...]] = {}
    shares: dict[str, float] = {}
    for member, demand in problem.demand_per_s.items():
        own = {c: n for c, n in replicas.items() if problem.columns[c].member == member}
        flows |= _flows(problem, own, demand)
    for c, n in replicas.items():
        node_type = problem.columns[c].offer.node_type
        shares[node_type] = shares.get(node_type, 0.0) + n * problem.columns[c].share
    devices = {o.node_type: o.devices_per_node for o in problem.offers}
    nodes = {t: math.ceil(s / devices[t] - 1e-9) for t, s in shares.items()}
    usd_per_hour = price(problem, Solution(replicas, flows, nodes, 0.0, True))
    return Solution(replicas, flows, nodes, usd_per_hour, True)


def _flows(problem: PlacementProblem, own: Mapping[int, int], demand: float) -> dict[int, tuple[float, ...]]:
    """Traffic by column: the columns whose calls cost least are filled first; among equals in proportion to capacity."""
    flows: dict[int, tuple[float, ...]] = {}
    left = demand
    for fee in sorted({problem.columns[c].fee_usd_per_item for c in own}):
        equals = {c: n for c, n in own.items() if problem.columns[c].fee_usd_per_item == fee}
        total = _capacity_per_s(problem, equals)
        served = min(left, total)
        left -= served
        flows |= {c: (served * _capacity_per_s(problem, {c: n}) / total,) for c, n in equals.items()}
    return flows
