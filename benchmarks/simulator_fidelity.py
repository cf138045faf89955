"""The simulator beside a live service: the same plan, items and arrivals at 30%, 60% and 80% of the plan's capacity.

    make serve
    python -m benchmarks.simulator_fidelity --work .coe/digits [--url http://127.0.0.1:8700] [--json OUT]

Answers and tiers are compared item by item; latencies of the client (from the moment a query was due) with those simulated: by
the compiled engine, and by the router's own code with the processor time that the live router took per query. The capacity is
the load at which the busiest deployment works all the time in full batches.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import publish
from coe import files
from coe.bench import data_name, run_bench
from coe.cascade.evaluate import route
from coe.profiler.predict import load_data
from coe.records import Bench
from coe.simulator.figures import Simulated
from coe.simulator.network import Load
from coe.simulator.run import simulate_load
from coe.simulator.served import serve
from coe.table import PredictionTable
from coe.types import Plan, Profiles, Scenario

PARTS = (0.3, 0.6, 0.8)
SEEDS = 5
SPLIT = "test"


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, required=True, help="folder of the plan, its profiles, predictions and data"
    )
    parser.add_argument("--url", default="http://127.0.0.1:8700")
    parser.add_argument("--parts", default=",".join(map(str, PARTS)), help="of the plan's capacity")
    parser.add_argument("--json", metavar="OUT")
    args = parser.parse_args()
    plan, profiles = files.read(args.work / "plan.yaml", Plan), files.read(args.work / "profiles.yaml", Profiles)
    table = files.read_predictions(args.work / "predictions.npz").split(SPLIT)
    capacity = plan.workload.rate_per_s / max(p.utilisation for p in plan.placements)
    rows = []
    for number, part in enumerate(float(p) for p in args.parts.split(",")):
        rate = part * capacity
        items = load_data(args.work / "data.npz").split(SPLIT)
        run_bench(args.url, items, "warm-up", rate, 99)
        before_s = _router_cpu_s()
        seen = run_bench(args.url, items, data_name(args.work / "data.npz", SPLIT), rate, number)
        router_s = (_router_cpu_s() - before_s) / len(seen.answers)
        rows.append(_row(part, plan, profiles, table, seen, router_s))
        time.sleep(2)
    publish("simulator_fidelity", rows, args.json)


def _router_cpu_s() -> float:
    """Processor seconds that routers have taken so far on this machine."""
    ticks = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"ServeReplica:coe:router" in (process / "cmdline").read_bytes():
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        except OSError:
            continue  # it has ended meanwhile
    return ticks / os.sysconf("SC_CLK_TCK")


def _row(
    part: float, plan: Plan, profiles: Profiles, table: PredictionTable, seen: Bench, router_s: float
) -> dict[str, Any]:
    """One load: what the client saw beside the mean of several simulations, which differ in service times alone."""
    row_of = {str(item): row for row, item in enumerate(table.items)}
    rows = np.array([row_of[a.item] for a in seen.answers])
    due = np.array([a.due_s for a in seen.answers])
    order = np.argsort(due)
    routing = route(plan.cascade, table)
    load = Load(due[order] - due.min(), rows[order], routing)
    compiled = [simulate_load(plan, profiles, table, load, seed=seed).figures for seed in range(SEEDS)]
    scenario = Scenario(router_s_per_query=router_s)
    routed = [
        serve(plan, profiles, table, load.arrival_s, scenario, item=load.item, seed=seed).figures
        for seed in range(SEEDS)
    ]
    latency = np.array([a.latency_s for a in seen.answers])
    same = sum(
        a.answer == routing.answer[r] and a.tier == routing.tier[r] for a, r in zip(seen.answers, rows, strict=True)
    )
    result: dict[str, Any] = {
        "of capacity": part,
        "queries per s": seen.rate_per_s,
        "queries": len(rows),
        "same answer and tier": int(same),
        "router ms per query": 1000 * router_s,
    }
    return result | _compared("p50", 0.5, latency, compiled, routed) | _compared("p99", 0.99, latency, compiled, routed)


def _compared(
    name: str, quantile: float, latency: np.ndarray, compiled: list[Simulated], routed: list[Simulated]
) -> dict[str, float]:
    """One quantile as the client saw it and as both engines say."""
    seen = float(np.quantile(latency, quantile))
    result = {f"{name} seen s": seen}
    for engine, runs in (("compiled", compiled), ("router", routed)):
        simulated = float(np.mean([getattr(f, f"latency_{name}_s") for f in runs]))
        result[f"{name} {engine} off %"] = 100 * (simulated / seen - 1)
    return result


if __name__ == "__main__":
    main()
