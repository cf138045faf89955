"""How long the placement MILP takes, and what it saves against simpler ways of placing the same cascade.

    python -m benchmarks.placement [--problems 15] [--json OUT]

Random problems over up to ten offers. Opponents see the same columns: "one big GPU" puts every member on the fastest
accelerator alone, "greedy" gives every member, one after the other, the column that is cheapest by itself. Ratios are dollars
per hour over those of the MILP, for problems that both solve; a plan that breaks a promise does not count as one.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace

import numpy as np

from benchmarks.figures import publish
from coe.cascade.evaluate import evaluate
from coe.placement import milp
from coe.placement.problem import Column, PlacementProblem, Solution, build_problem, check, price
from coe.types import Prices
from tests import factories


def random_problem(rng: np.random.Generator, offers: int) -> PlacementProblem:
    """A three-member tier and a large model on `offers` accelerators whose price follows their speed, roughly."""
    speeds = {f"ACC{i}": float(s) for i, s in enumerate(np.geomspace(1, 12, offers))}
    kinds = [
        factories.offer(
            f"node-{i}",
            name,
            0.5 * speed ** rng.uniform(0.7, 1.2),
            accelerators_per_node=int(rng.choice([1, 1, 4])),
            quota=int(rng.integers(2, 12)),
        )
        for i, (name, speed) in enumerate(speeds.items())
    ]
    cpu = factories.offer("cpu-node", "CPU-node", 0.1, accelerators_per_node=0)
    cost = {name: s * rng.uniform(0.5, 2.0) for name, s in factories.SERVICE_S.items()}
    cascade = factories.cascade(threshold=float(rng.uniform(0.6, 0.9)))
    work = factories.workload(rate_per_s=float(rng.uniform(20, 400)), latency_s=float(rng.uniform(0.2, 1.0)))
    stats = evaluate(cascade, factories.table(n=400, seed=int(rng.integers(100))))
    return build_problem(cascade, stats, factories.profiles(cost, speeds), Prices(offers=(*kinds, cpu)), work)


def alone_usd_per_hour(problem: PlacementProblem, column: Column) -> float:
    """What a member costs per hour when only this column serves it and shares are rented by the piece."""
    replicas = math.ceil(problem.demand_per_s[column.member] / column.capacity_per_s)
    return replicas * column.share * column.offer.usd_per_hour / column.offer.devices_per_node


def greedy(problem: PlacementProblem) -> Solution | None:
    """Each member takes the column that is cheapest by itself and leaves every tier its part of the latency."""
    replicas: dict[int, int] = {}
    for batch in sorted({c.batch_size for c in problem.columns}, reverse=True):
        replicas = {}
        for member, demand in problem.demand_per_s.items():
            fits = [
                i
                for i, c in enumerate(problem.columns)
                if c.member == member and c.batch_size == batch and c.latency_s <= problem.latency_s / len(problem.path)
            ]
            if not fits:
                break
            best = min(fits, key=lambda i: alone_usd_per_hour(problem, problem.columns[i]))
            replicas[best] = max(problem.min_replicas, math.ceil(demand / problem.columns[best].capacity_per_s))
        else:
            solution = packed(problem, replicas)
            if not check(problem, solution):
                return solution
    return None


def packed(problem: PlacementProblem, replicas: dict[int, int]) -> Solution:
    """As many nodes as the shares of these replicas need."""
    nodes: dict[str, float] = {}
    for i, count in replicas.items():
        c = problem.columns[i]
        nodes[c.offer.node_type] = nodes.get(c.offer.node_type, 0) + count * c.share / c.offer.devices_per_node
    traffic = {i: problem.demand_per_s[problem.columns[i].member] for i in replicas}
    return Solution(replicas, traffic, {t: math.ceil(n - 1e-9) for t, n in nodes.items()}, 0.0, False)


def on_the_fastest(problem: PlacementProblem) -> Solution | None:
    """The cheapest plan on the fastest accelerator alone."""
    fastest = min(problem.columns, key=lambda c: c.latency_s).offer.node_type
    columns = tuple(c for c in problem.columns if c.offer.node_type == fastest)
    return milp.solve(replace(problem, columns=columns))


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--problems", type=int, default=15)
    parser.add_argument("--json", metavar="OUT")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = []
    for offers in (2, 4, 8):
        seconds, one_gpu, by_greed, solved = [], [], [], 0
        for _ in range(args.problems):
            problem = random_problem(rng, offers)
            start = time.perf_counter()
            best = milp.solve(problem)
            seconds.append(time.perf_counter() - start)
            if best is None:
                continue
            solved += 1
            for solution, ratios in ((on_the_fastest(problem), one_gpu), (greedy(problem), by_greed)):
                if solution is not None:
                    ratios.append(price(problem, solution) / price(problem, best))
        rows.append(
            {
                "offers": offers,
                "problems": args.problems,
                "feasible": solved,
                "median s": float(np.median(seconds)),
                "max s": float(np.max(seconds)),
                "one big GPU": float(np.mean(one_gpu)),
                "greedy": float(np.mean(by_greed)) if by_greed else float("nan"),
                "greedy finds": f"{len(by_greed)}/{solved}",
            }
        )
    publish("placement", rows, args.json)


if __name__ == "__main__":
    main()
