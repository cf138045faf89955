"""The simulator beside a live service: the same plan, items and arrivals at 30%, 60% and 80% of the plan's capacity.

    make serve
    python -m benchmarks.simulator_fidelity --work .coe/digits [--url http://127.0.0.1:8700] [--json OUT]

Answers and tiers are compared item by item; latencies of the client (from the moment a query was due) with those simulated. The
capacity is the load at which the busiest deployment works all the time in full batches.
"""

from __future__ import annotations

import argparse
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
from coe.simulator.network import Load
from coe.simulator.run import simulate_load
from coe.table import PredictionTable
from coe.types import Plan, Profiles

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
        seen = run_bench(args.url, items, data_name(args.work / "data.npz", SPLIT), rate, number)
        rows.append(_row(part, plan, profiles, table, seen))
        time.sleep(2)
    publish("simulator_fidelity", rows, args.json)


def _row(part: float, plan: Plan, profiles: Profiles, table: PredictionTable, seen: Bench) -> dict[str, Any]:
    """One load: what the client saw beside the mean of several simulations, which differ in service times alone."""
    row_of = {str(item): row for row, item in enumerate(table.items)}
    rows = np.array([row_of[a.item] for a in seen.answers])
    due = np.array([a.due_s for a in seen.answers])
    order = np.argsort(due)
    routing = route(plan.cascade, table)
    load = Load(due[order] - due.min(), rows[order], routing)
    runs = [simulate_load(plan, profiles, table, load, seed=seed).figures for seed in range(SEEDS)]
    latency = np.array([a.latency_s for a in seen.answers])
    same = sum(
        a.answer == routing.answer[r] and a.tier == routing.tier[r] for a, r in zip(seen.answers, rows, strict=True)
    )
    result: dict[str, Any] = {
        "of capacity": part,
        "queries per s": seen.rate_per_s,
        "queries": len(rows),
        "same answer and tier": int(same),
    }
    for name, observed, simulated in (
        ("p50", float(np.quantile(latency, 0.5)), float(np.mean([f.latency_p50_s for f in runs]))),
        ("p99", float(np.quantile(latency, 0.99)), float(np.mean([f.latency_p99_s for f in runs]))),
    ):
        result |= {
            f"{name} seen s": observed,
            f"{name} simulated s": simulated,
            f"{name} off %": 100 * (simulated / observed - 1),
        }
    return result


if __name__ == "__main__":
    main()
