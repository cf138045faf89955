"""Fewer and larger replicas at the same price, as far as the nodes that are rented anyway have room.

The search counts in the smallest shares that are fast enough, which is exact for dollars, makes many small processes and
leaves paid capacity idle. A larger share is faster, so no promise suffers; whatever would break one is not done.
"""

from __future__ import annotations

import math
from dataclasses import replace

from coe.placement.judge import check, column_latency_s
from coe.placement.problem import PlacementProblem, Solution


def coarsened(problem: PlacementProblem, solution: Solution) -> Solution:
    """The solution with shares doubled as often as possible, always that of the slowest replica that can be."""
    while True:
        slowest = sorted(
            solution.replicas,
            key=lambda c: (-column_latency_s(problem.columns[c], solution.flows_per_s[c]), c),
        )
        wider = next((w for c in slowest if (w := _doubled(problem, solution, c)) is not None), None)
        if wider is None:
            return solution
        solution = wider


def _doubled(problem: PlacementProblem, solution: Solution, column: int) -> Solution | None:
    """The solution with half as many replicas of twice the share; None where there is no such column, or a promise would
    break."""
    count, now = solution.replicas[column], problem.columns[column]
    if not now.share:
        return None
    fewer = max(math.ceil(count / 2), min(count, problem.min_replicas))
    for i in problem.columns_of[now.member]:
        c = problem.columns[i]
        same = (c.offer.node_type, c.batch_size, c.api) == (now.offer.node_type, now.batch_size, now.api)
        if same and c.share == 2 * now.share:
            replicas = {**{k: n for k, n in solution.replicas.items() if k != column}, i: fewer}
            flows = {**{k: f for k, f in solution.flows_per_s.items() if k != column}, i: solution.flows_per_s[column]}
            wider = replace(solution, replicas=replicas, flows_per_s=flows)
            return None if check(problem, wider) else wider
    return None
