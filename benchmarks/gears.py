"""What gears do in a rush: a load ten times as high for a minute.

    python -m benchmarks.gears [--data ../shared/data] [--json OUT] [--quick]
    python -m benchmarks.gears --quick --json gears.json

ImageNet models on rented GPUs, simulated with the router's own code and its gearbox (`coe simulate --gears --deployed`): 60
queries per second, then 600 for a minute, then 60, all within 0.2 s. The lower gear is the cheapest of a few cascades that lose
at most one point against the reference, planned for 90 per second; the upper one may lose seven and is planned for 720. Each
has a certificate of its own, and both stand together all the while. Beside them: the lower gear alone, its replicas following
the load on nodes that start in 90 s, and the same accuracy planned for 720 per second.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cascades import loaded
from benchmarks.figures import publish
from benchmarks.hardware import hardware
from benchmarks.heterogeneous import searched, world
from coe.cascade.certify import certify_path
from coe.cli.console import quiet_solver
from coe.errors import CannotCertify
from coe.placement.optimize import plan
from coe.placement.standing import joined
from coe.report.quality import claim_in_words
from coe.simulator.arrivals import poisson, stream
from coe.simulator.served import Served, serve
from coe.table import PredictionTable
from coe.types import Cascade, FloatArray, Front, Gears, Plan, Scaling, Scenario, Workload

RATE_PER_S, TIMES = 60.0, 10.0
CALM_PLANNED, RUSH_PLANNED = 1.5, 12.0
"""What the gears are planned for, in multiples of the calm load."""
RUSH_S, CALM_S, DURATION_S = 60.0, 120.0, 240.0
"""When the rush begins, when it ends, and the end."""
LATENCY_S, LOSS, RUSH_LOSS, DELTA = 0.2, 0.01, 0.07, 0.05
SEARCHED = {LOSS: 0.003, RUSH_LOSS: 0.05}
"""What is certified for a loss must lose no more than this where it was searched."""
REFERENCE = "keras/nasnetlarge"
NODE_START_S = 90.0
CANDIDATES = 6


def main() -> None:
    """Simulate and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("COE_DATA", "../shared/data"))
    parser.add_argument("--data", type=Path, default=default, help=f"vision_imagenet, prices_cloud, ... ({default})")
    parser.add_argument("--quick", action="store_true", help="a quarter of the load, to see that it works")
    parser.add_argument("--json", metavar="OUT")
    args = parser.parse_args()
    publish("gears", _rows(args.data, RATE_PER_S / (4 if args.quick else 1)), args.json)


def _rows(data: Path, rate: float) -> list[dict[str, Any]]:
    images = loaded(data / "vision_imagenet", "top5", (), "", 0)
    asked = argparse.Namespace(reference=REFERENCE, loss=LOSS, latency=LATENCY_S, data=data)
    there = world(images, hardware(data), asked, rate)
    certification, test = (images.table.split(name) for name in ("certification", "test"))
    front = searched(images)

    def planned(loss: float, times: float) -> Plan:
        work: Workload = there.workload.model_copy(update={"rate_per_s": times * rate, "max_accuracy_loss": loss})
        with quiet_solver():
            return plan(
                there.pool, _certified(front, loss, certification), images.table, there.profiles, there.prices, work,
                inputs={}, reasons=False,
            )  # fmt: skip

    low, high, peak = planned(LOSS, CALM_PLANNED), planned(RUSH_LOSS, RUSH_PLANNED), planned(LOSS, RUSH_PLANNED)
    gears = joined([low, high], ["calm", "rush"])
    for name, gear in zip(gears.names, gears.gears, strict=True):
        asks = " > ".join("+".join(t.members) for t in gear.plan.cascade.tiers)
        print(f"{name}: up to {gear.up_to_per_s:.0f}/s, {asks}; {claim_in_words(gear.plan)}")
    came = _arrivals(rate)
    following = Scaling(policy="reach", upscale_delay_s=5.0, look_back_s=10.0, downscale_delay_s=60.0)
    runs: list[tuple[str, Plan, Scenario | None, Gears | None]] = [
        ("the lower gear alone", low, None, None),
        ("gears", low, None, gears),
        (
            f"its replicas follow, nodes start in {NODE_START_S:g} s",
            low,
            Scenario(scaling=following, node_start_s=NODE_START_S),
            None,
        ),
        ("planned for the rush", peak, None, None),
    ]
    rows = []
    for how, of, scenario, followed in runs:
        run = serve(of, there.profiles, test, came, scenario, gears=followed, deployed=followed is not None)
        rows.append(_row(how, run))
        print(rows[-1], flush=True)
        for at, what in run.told if followed is not None else ():
            print(f"  {at:7.1f} s  {what}")
    return rows


def _certified(front: Front, loss: float, certification: PredictionTable) -> list[Cascade]:
    """The cheapest cascades that can be certified for a loss, of those that look good enough where they were searched."""
    accuracy = next(p.stats.accuracy for p in front.singles if p.cascade.members[0] == REFERENCE)
    good = [p for p in front.points if len(p.cascade.tiers) > 1 and p.stats.accuracy >= accuracy - SEARCHED[loss]]
    found = []
    for point in sorted(good, key=lambda p: p.cost_per_1k)[:CANDIDATES]:
        try:
            found.append(certify_path([point.cascade], certification, REFERENCE, loss, DELTA / CANDIDATES, "excess"))
        except CannotCertify:
            continue
    return found


def _arrivals(rate: float) -> FloatArray:
    """Calm, rush, calm."""
    return np.concatenate(
        [
            poisson(stream(0, "arrivals"), rate, RUSH_S),
            RUSH_S + poisson(stream(1, "arrivals"), TIMES * rate, CALM_S - RUSH_S),
            CALM_S + poisson(stream(2, "arrivals"), rate, DURATION_S - CALM_S),
        ]
    )


def _row(how: str, run: Served) -> dict[str, Any]:
    figures = run.figures
    usd_per_hour = figures.usd_per_1k_allocation * (1 - figures.unanswered) * figures.queries / figures.duration_s * 3.6
    # in time: of all queries, answered within the promise.   right: of those answered.   of all: right answers to all queries
    in_rush = (run.arrival_s >= RUSH_S) & (run.arrival_s < CALM_S)
    return {
        "how": how,
        "asked": figures.queries,
        "in time %": 100 * figures.goodput,
        "in the rush %": 100 * float((run.latency_s[in_rush] <= LATENCY_S).mean()),
        "refused %": 100 * figures.refused,
        "p99 s": figures.latency_p99_s,
        "right %": 100 * figures.accuracy,
        "of all %": 100 * figures.accuracy * (1 - figures.unanswered),
        "$ per h": usd_per_hour,
        "$ per 1,000 right": 1000 * usd_per_hour / 3600 * figures.duration_s
        / max(1.0, figures.accuracy * (1 - figures.unanswered) * figures.queries),
    }  # fmt: skip


if __name__ == "__main__":
    main()
