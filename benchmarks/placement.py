"""The optimiser: exact, cheaper than simpler ways of placing, and how its time grows.

    python -m benchmarks.placement [--data ../shared/data] [--quick] [--json OUT] [--plot SVG]

exact    random small problems (spot floors, node loss and fees among them): the search against trying every placement.
melange  one model on real rental prices: against Mélange's formulation with PuLP/CBC, on the same columns.
ways     cascades of ImageNet models on real prices: greedy per member, and everything on the fastest accelerator.
scale    3 tiers, 9 members, 5 batch sizes, 4 shares; then more offers, more members, and 50 candidate cascades.

`--data` holds prices_cloud, throughput_mlperf and vision_imagenet; without it only `exact` runs. Ratios are dollars per hour
over those of `coe`, for problems that both solve; a plan that breaks a promise does not count as one.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import publish
from benchmarks.hardware import Hardware, hardware, imagenet_throughputs, profile
from benchmarks.melange import melange_usd_per_hour
from coe.cli.console import quiet_solver
from coe.placement import branch, exhaustive
from coe.placement.columns import Column
from coe.placement.conflicts import conflicts
from coe.placement.dominance import without_dominated_offers
from coe.placement.judge import check, price
from coe.placement.milp import nodes_of
from coe.placement.problem import PlacementProblem, Solution, build_problem
from coe.types import Cascade, CascadeStats, Prices, Profiles, Tier, TokenLengths, TokenRate, Workload
from tests.oracles.test_placement_oracles import random_problem, with_markets_and_sites

EXACT, MELANGE, WAYS, SCALE, CANDIDATES = 500, 200, 200, 10, 50


def exact(count: int) -> list[dict[str, Any]]:
    """Random small problems solved both ways."""
    rows = []
    for name, make in (("plain", random_problem), ("spot, node loss, fees", with_markets_and_sites)):
        equal = infeasible = 0
        seconds, tried_s = [], []
        for seed in range(count if make is random_problem else count // 5):
            problem = make(1_000 + seed)
            start = time.perf_counter()
            found = branch.solve(problem)
            middle = time.perf_counter()
            tried = exhaustive.solve(problem)
            tried_s.append(time.perf_counter() - middle)
            seconds.append(middle - start)
            infeasible += tried is None
            equal += (found is None and tried is None) or (
                found is not None and tried is not None and abs(price(problem, found) - price(problem, tried)) < 3e-6
            )
        rows.append(
            {
                "part": "exact",
                "problems": name,
                "count": len(seconds),
                "equal": equal,
                "infeasible": infeasible,
                "median s": float(np.median(seconds)),
                "trying all, median s": float(np.median(tried_s)),
            }
        )
    return rows


# --- Problems on real machines -----------------------------------------------------------------------------------------


def cascade_of(tiers: list[list[str]]) -> Cascade:
    """Score gates, the last tier always answers."""
    gates: list[dict[str, Any]] = [{"rule": "score", "threshold": 0.8}] * (len(tiers) - 1) + [{}]
    return Cascade(tiers=tuple(Tier(members=tuple(m), **g) for m, g in zip(tiers, gates, strict=True)))


def stats_of(cascade: Cascade, rng: np.random.Generator) -> CascadeStats:
    """Every tier passes on 10% to 60% of what it gets."""
    reach = [1.0]
    for _ in cascade.tiers[1:]:
        reach.append(reach[-1] * float(rng.uniform(0.1, 0.6)))
    accepted = [a - b for a, b in zip(reach, [*reach[1:], 0.0], strict=True)]
    return CascadeStats(
        items=10_000,
        accuracy=0.8,
        accuracy_low=0.79,
        accuracy_high=0.81,
        reach=tuple(reach),
        accepted=tuple(accepted),
        accuracy_accepted=(0.8,) * len(reach),
        calls={m: r for tier, r in zip(cascade.tiers, reach, strict=True) for m in tier.members},
    )


def real_problem(
    machines: Hardware,
    data: Path,
    sizes: tuple[int, ...],
    rng: np.random.Generator,
    quotas: bool = False,
    most_nodes: int = 32,
) -> PlacementProblem:
    """A cascade of ImageNet models, cheap ones first, at 10 to 10,000 queries per second within 60 ms to 1 s."""
    rate, memory = imagenet_throughputs(data)
    names = sorted(rng.choice(list(rate), sum(sizes), replace=False), key=lambda m: -rate[m])
    ends = np.cumsum(sizes)
    cascade = cascade_of([[str(n) for n in names[e - s : e]] for s, e in zip(sizes, ends, strict=True)])
    profiles = machines.profiles({m: rate[m] for m in cascade.members}, memory)
    work = Workload(
        rate_per_s=float(10 ** rng.uniform(1, 4)),
        latency_s=float(10 ** rng.uniform(-1.2, 0)),
        reference=cascade.members[-1],
        max_accuracy_loss=0.01,
    )
    offers = machines.prices.offers
    if quotas:
        offers = tuple(o.model_copy(update={"quota": int(rng.integers(1, most_nodes + 1))}) for o in offers)
    return build_problem(cascade, stats_of(cascade, rng), profiles, Prices(offers=offers), work)


# --- Opponents ---------------------------------------------------------------------------------------------------------


def against_melange(machines: Hardware, data: Path, count: int) -> list[dict[str, Any]]:
    """One model per problem. Images: one class of query; the opponent tries every batch size for all GPUs, as a tier of `coe` has
    one, and beside that may choose one per GPU. Language model: eight classes by length, no batch sizes."""
    rng = np.random.default_rng(1)
    images = [real_problem(machines, data, (1,), rng, quotas=n % 4 == 3, most_nodes=1) for n in range(count)]
    images = [p if _without_quotas(p) else replace(p, demand_per_s=_at(p, 200_000.0)) for p in images]
    texts = [language_problem(machines, rng) for _ in range(count // 4)]
    return [
        _melange_row("images, one batch size", images, _melange_one_batch),
        _melange_row("images, a batch size per GPU", images, _melange),
        _melange_row("language model, 8 lengths", texts, _melange),
    ]


def _melange_row(
    name: str, problems: list[PlacementProblem], opponent: Callable[[PlacementProblem], float | None]
) -> dict[str, Any]:
    """Dollars of the opponent over ours on problems without quotas, which it does not know; with quotas, whether we say why."""
    ratios, faster, dearer, explained = [], [], 0, 0
    for problem in problems:
        start = time.perf_counter()
        found = solved(problem)
        middle = time.perf_counter()
        theirs = opponent(problem)
        faster.append((time.perf_counter() - middle) / (middle - start))
        if found is None:
            explained += bool(conflicts(problem).conflict)
        elif theirs is not None and _without_quotas(problem):
            ours = price(problem, found) - problem.router_usd_per_hour
            ratios.append(theirs / ours)
            dearer += ours > theirs + 1e-5
    return {
        "part": "melange",
        "inputs": name,
        "problems": len(problems),
        "both solve": len(ratios),
        "coe dearer": dearer,
        "least ratio": float(np.min(ratios)),
        "mean ratio": float(np.mean(ratios)),
        "largest ratio": float(np.max(ratios)),
        "times faster, median": float(np.median(faster)),
        "infeasible, explained": explained,
    }


def language_problem(machines: Hardware, rng: np.random.Generator) -> PlacementProblem:
    """A language model whose GPUs differ in what they do well: large memory and bandwidth count for long requests."""
    lengths = [(p, c) for p in (250, 1000, 4000, 16000) for c in (50, 400)]
    shares = rng.dirichlet(np.ones(len(lengths)))
    profiles = []
    for accelerator, factor in machines.speed.items():
        flops, bandwidth = factor * rng.uniform(0.8, 1.25), factor ** rng.uniform(0.7, 1.0)
        rates = tuple(
            TokenRate(
                prompt_tokens=p,
                completion_tokens=c,
                requests_per_s=float(1 / (p / (20_000 * flops) + c / (2_000 * bandwidth))),
                latency_p99_s=float(p / (20_000 * flops) + c / (60 * bandwidth)),
            )
            for p, c in lengths
        )
        profiles.append(profile("llm", accelerator, 10.0 * factor, 14.0).model_copy(update={"token_rates": rates}))
    work = Workload(
        rate_per_s=float(10 ** rng.uniform(0, 2)),
        latency_s=float(rng.uniform(10, 60)),
        reference="llm",
        max_accuracy_loss=0.01,
        tokens=tuple(
            TokenLengths(prompt_tokens=p, completion_tokens=c, share=float(s))
            for (p, c), s in zip(lengths, shares, strict=True)
        ),
    )
    cascade = cascade_of([["llm"]])
    return build_problem(cascade, stats_of(cascade, rng), Profiles(profiles=tuple(profiles)), machines.prices, work)


def _melange_one_batch(problem: PlacementProblem) -> float | None:
    """The best over batch sizes, each the same for all GPUs."""
    found = [
        usd
        for size in sorted({c.batch_size for c in problem.columns})
        if (usd := _melange(replace(problem, columns=tuple(c for c in problem.columns if c.batch_size == size))))
        is not None
    ]
    return min(found, default=None)


def _melange(problem: PlacementProblem) -> float | None:
    """Nodes of several GPUs are bought whole: one "GPU" of the opponent is one node."""
    (member,) = problem.demand_per_s
    parts = problem.classes[member]
    per_node: dict[str, list[float]] = {}
    for c in problem.columns:
        if c.share == 1.0:
            best = per_node.setdefault(c.offer.node_type, [0.0] * len(parts))
            for k, (rate, latency) in enumerate(zip(c.full_per_s, c.latency_s, strict=True)):
                if latency <= problem.latency_s:
                    best[k] = max(best[k], problem.target_utilisation * rate * c.offer.devices_per_node)
    usd = {o.node_type: o.usd_per_hour for o in problem.offers if any(per_node.get(o.node_type, []))}
    if not usd:
        return None
    demand = [problem.demand_per_s[member] * part for part in parts]
    return melange_usd_per_hour(demand, {g: per_node[g] for g in usd}, usd)


def _without_quotas(problem: PlacementProblem) -> bool:
    """Only problems without quotas are the same problem for both."""
    return all(q is None for q in problem.quota.values())


def against_other_ways(machines: Hardware, data: Path, count: int) -> list[dict[str, Any]]:
    """Cascades of two or three tiers; "greedy" and "one big GPU" see the same columns."""
    rng = np.random.default_rng(2)
    one_gpu: list[float] = []
    by_greed: list[float] = []
    seconds = []
    feasible = 0
    for number in range(count):
        sizes = ((1, 1), (2, 1), (3, 1), (3, 1, 1))[number % 4]
        problem = real_problem(machines, data, sizes, rng)
        start = time.perf_counter()
        found = solved(problem)
        seconds.append(time.perf_counter() - start)
        if found is None:
            continue
        feasible += 1
        ours = price(problem, found)
        for solution, ratios in ((on_the_fastest(problem), one_gpu), (greedy(problem), by_greed)):
            if solution is not None:
                ratios.append(price(problem, solution) / ours)
    return [
        {
            "part": "ways",
            "opponent": name,
            "problems": count,
            "feasible": feasible,
            "opponent finds": len(ratios),
            "median ratio": float(np.median(ratios)),
            "mean ratio": float(np.mean(ratios)),
            "least ratio": float(np.min(ratios)),
            "coe median s": float(np.median(seconds)),
        }
        for name, ratios in (("everything on the biggest GPU", one_gpu), ("greedy per member", by_greed))
    ]


def solved(problem: PlacementProblem) -> Solution | None:
    """What `coe plan` does: offers that another dominates are left out first."""
    return branch.solve(without_dominated_offers(problem))


def alone_usd_per_hour(problem: PlacementProblem, column: Column) -> float:
    """What a member costs per hour when only this column serves it and shares are rented by the piece."""
    replicas = math.ceil(problem.demand_per_s[column.member] / problem.capacity_per_s(column))
    return replicas * column.share * column.offer.usd_per_hour / column.offer.devices_per_node


def greedy(problem: PlacementProblem) -> Solution | None:
    """Each member takes the column that is cheapest by itself and leaves every tier its part of the latency."""
    for batch in sorted({c.batch_size for c in problem.columns}, reverse=True):
        replicas = {}
        for member, demand in problem.demand_per_s.items():
            fits = [
                i
                for i in problem.columns_of[member]
                if (c := problem.columns[i]).batch_size == batch
                and c.latency_s[0] <= problem.latency_s / len(problem.path)
            ]
            if not fits:
                break
            best = min(fits, key=lambda i: alone_usd_per_hour(problem, problem.columns[i]))
            replicas[best] = max(
                problem.min_replicas, math.ceil(demand / problem.capacity_per_s(problem.columns[best]))
            )
        else:
            solution = packed(problem, replicas)
            if not check(problem, solution):
                return solution
    return None


def packed(problem: PlacementProblem, replicas: dict[int, int]) -> Solution:
    """As many nodes as the shares of these replicas need."""
    devices = {o.node_type: o.devices_per_node for o in problem.offers}
    flows = {i: (problem.demand_per_s[problem.columns[i].member],) for i in replicas}
    return Solution(replicas, flows, nodes_of(problem.columns, replicas, devices), 0.0, False)


def on_the_fastest(problem: PlacementProblem) -> Solution | None:
    """The cheapest plan on the fastest accelerator alone, in whatever node sizes it comes."""
    fastest = min(problem.columns, key=lambda c: c.latency_s).offer.accelerator
    return solved(replace(problem, columns=tuple(c for c in problem.columns if c.offer.accelerator == fastest)))


# --- Scale -------------------------------------------------------------------------------------------------------------


def scale(data: Path, count: int, candidates: int) -> list[dict[str, Any]]:
    """How long one problem takes as offers and members grow, and fifty candidate cascades at once."""
    everything = hardware(data)
    offers_there = len(everything.prices.offers) - 1
    rows = [
        _timed(hardware(data, offers), data, (3, 3, 3), count, quotas)
        for offers in (10, 20, offers_there)
        for quotas in (False, True)
    ]
    rows += [_timed(everything, data, sizes, count, False) for sizes in ((1, 1), (2, 1), (3, 2, 1))]
    return [*rows, _candidates(everything, data, candidates)]


def _timed(machines: Hardware, data: Path, sizes: tuple[int, ...], count: int, quotas: bool) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    seconds, proved, columns = [], 0, 0
    for _ in range(count):
        problem = real_problem(machines, data, sizes, rng, quotas)
        columns = len(problem.columns)
        start = time.perf_counter()
        found = solved(problem)
        seconds.append(time.perf_counter() - start)
        proved += found is None or found.proved
    return {
        "part": "scale",
        "offers": len(machines.prices.offers) - 1,
        "quotas": "1 to 32 nodes each" if quotas else "none",
        "members": "+".join(map(str, sizes)),
        "columns": columns,
        "problems": count,
        "proved": proved,
        "median s": float(np.median(seconds)),
        "max s": float(np.max(seconds)),
    }


def _candidates(machines: Hardware, data: Path, count: int) -> dict[str, Any]:
    """The outer search: each candidate is skipped where its linear relaxation costs more than the best so far."""
    rng = np.random.default_rng(4)
    problems = [real_problem(machines, data, ((1, 1), (2, 1), (3, 1), (2, 1, 1))[i % 4], rng) for i in range(count)]
    problems = [replace(p, latency_s=0.3, demand_per_s=_at(p, 500.0)) for p in problems]
    start = time.perf_counter()
    best, skipped = float("inf"), 0
    for problem in problems:
        reduced = without_dominated_offers(problem)
        bound = branch.lower_bound_usd_per_hour(reduced)
        if bound is None or bound > best:
            skipped += 1
            continue
        found = branch.solve(reduced, below_usd_per_hour=best)
        if found is not None:
            best = min(best, price(reduced, found))
    return {
        "part": "scale",
        "offers": len(machines.prices.offers) - 1,
        "quotas": "none",
        "members": f"{count} cascades",
        "columns": sum(len(p.columns) for p in problems),
        "problems": 1,
        "proved": 1,
        "median s": time.perf_counter() - start,
        "max s": time.perf_counter() - start,
        "skipped by bound": skipped,
    }


def _at(problem: PlacementProblem, rate_per_s: float) -> dict[str, float]:
    """Demands as they are at another load."""
    now = max(problem.demand_per_s.values())
    return {m: d / now * rate_per_s for m, d in problem.demand_per_s.items()}


def plotted(rows: list[dict[str, Any]], out: str) -> None:
    """Seconds over offers, with and without quotas."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3))
    for quotas in ("none", "1 to 32 nodes each"):
        mine = [r for r in rows if r["part"] == "scale" and r["members"] == "3+3+3" and r["quotas"] == quotas]
        axes.plot([r["offers"] for r in mine], [r["median s"] for r in mine], marker="o", label=f"quotas: {quotas}")
        axes.fill_between(
            [r["offers"] for r in mine], [r["median s"] for r in mine], [r["max s"] for r in mine], alpha=0.2
        )
    axes.set_xlabel("offers")
    axes.set_ylabel("seconds, median to worst")
    axes.set_yscale("log")
    axes.legend()
    figure.savefig(out, bbox_inches="tight")


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the problems, to see that it works")
    parser.add_argument("--json", metavar="OUT")
    parser.add_argument("--plot", metavar="SVG")
    args = parser.parse_args()
    part = 20 if args.quick else 1
    with quiet_solver():
        tables = [exact(max(20, EXACT // part))]
        if args.data is not None:
            machines = hardware(args.data)
            tables.append(against_melange(machines, args.data, MELANGE // part))
            tables.append(against_other_ways(machines, args.data, WAYS // part))
            tables.append(scale(args.data, max(2, SCALE // part), max(5, CANDIDATES // part)))
    if args.data is None:
        print("without --data only the part `exact` runs", file=sys.stderr)
    for rows in tables:
        publish(str(rows[0]["part"]), rows, None)
    everything = [row for rows in tables for row in rows]
    if args.json:
        Path(args.json).write_text(json.dumps({"benchmark": "placement", "rows": everything}, indent=1) + "\n")
    if args.plot and args.data is not None:
        plotted(everything, args.plot)


if __name__ == "__main__":
    main()
