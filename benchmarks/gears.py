"""What gears do in a rush: a load three times as high for a minute, on the machines that were rented for the load before.

    python -m benchmarks.gears [--data ../shared/data] [--json OUT] [--quick]
    python -m benchmarks.gears --quick --json gears.json

ImageNet models on rented GPUs, simulated with the router's own code and its gearbox (`coe simulate --gears --deployed`). The
lowest gear is the cheapest of a few cascades that lose at most one point against the reference, planned for 200 queries per
second within 0.2 s. Above it, on the same machines: the same cascade with a lower bar, and its first tier alone; each has a
certificate of its own. Beside gears: no gears, replicas that follow the load on nodes that start in 90 s, and machines for the
rush all day.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cascades import loaded
from benchmarks.figures import publish
from benchmarks.hardware import hardware
from benchmarks.heterogeneous import candidates_of, searched, world
from coe.cascade.certify import certify_path
from coe.cli.console import quiet_solver
from coe.errors import CannotCertify
from coe.placement.optimize import plan
from coe.placement.standing import gears_on
from coe.simulator.arrivals import poisson, stream
from coe.simulator.served import Served, serve
from coe.table import PredictionTable
from coe.types import Cascade, FloatArray, Gears, Plan, Scaling, Scenario, Workload

RATE_PER_S, TIMES = 200.0, 3.0
RUSH_S, CALM_S, DURATION_S = 60.0, 120.0, 240.0
"""The rush begins and ends."""
LATENCY_S, LOSS, DELTA = 0.2, 0.01, 0.05
REFERENCE = "keras/nasnetlarge"
NODE_START_S = 90.0
LOSSES = (0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2)
"""What a gear may promise to lose at most: the least that it can be certified for."""


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
    candidates = [c for c in candidates_of(searched(images), REFERENCE, LOSS / 2) if _certified(c, certification)]

    def planned(rate_per_s: float) -> Plan:
        work: Workload = there.workload.model_copy(update={"rate_per_s": rate_per_s})
        with quiet_solver():
            return plan(
                there.pool, [_least(c, certification) for c in candidates], images.table, there.profiles, there.prices, work,
                inputs={}, uncertified=True, reasons=False,
            )  # fmt: skip

    low, peak = planned(rate), planned(TIMES * rate)
    gears = gears_on(low, [_least(c, certification) for c in _lesser(low.cascade)], certification)
    for gear in gears.gears:
        claim = gear.plan.cascade.certificate
        promised = "no certificate" if claim is None else f"at most {100 * claim.epsilon:g} points below the reference"
        print(
            f"{gear.plan.cascade.name}: up to {gear.up_to_per_s:.0f}/s, {promised}, {gear.plan.stats.accuracy:.1%} right"
        )
    came = _arrivals(rate)
    quick = Scaling(policy="reach", upscale_delay_s=5.0, look_back_s=10.0, downscale_delay_s=60.0)
    runs: list[tuple[str, Plan, Scenario | None, Gears | None]] = [
        ("no gears", low, None, None),
        ("gears on the same machines", low, None, gears),
        (
            f"replicas follow, nodes start in {NODE_START_S:g} s",
            low,
            Scenario(scaling=quick, node_start_s=NODE_START_S),
            None,
        ),
        ("machines for the rush", peak, None, None),
    ]
    rows = []
    for how, of, scenario, followed in runs:
        run = serve(of, there.profiles, test, came, scenario, gears=followed, deployed=followed is not None)
        rows.append(_row(how, run))
        print(rows[-1], flush=True)
        for at, what in run.told if followed is not None else ():
            print(f"  {at:7.1f} s  {what}")
    return rows


def _arrivals(rate: float) -> FloatArray:
    """Calm, rush, calm."""
    return np.concatenate(
        [
            poisson(stream(0, "arrivals"), rate, RUSH_S),
            RUSH_S + poisson(stream(1, "arrivals"), TIMES * rate, CALM_S - RUSH_S),
            CALM_S + poisson(stream(2, "arrivals"), rate, DURATION_S - CALM_S),
        ]
    )


def _lesser(cascade: Cascade) -> Sequence[Cascade]:
    """The same cascade with a lower bar, and its first tier alone."""
    first, *rest = cascade.tiers
    bar = (
        {"threshold": 0.6 * first.threshold}
        if first.threshold is not None
        else {"quorum": max(2, (first.quorum or 3) - 1)}
    )
    lower = Cascade(name="lower-bar", tiers=(first.model_copy(update=bar), *rest), top_k=cascade.top_k)
    alone = Cascade(
        name="first-tier", tiers=(first.model_copy(update={"threshold": None, "quorum": None}),), top_k=cascade.top_k
    )
    return [c.model_copy(update={"temperatures": _of(cascade, c)}) for c in (lower, alone)]


def _of(cascade: Cascade, part: Cascade) -> dict[str, float]:
    return {m: t for m, t in cascade.temperatures.items() if m in part.members}


def _certified(cascade: Cascade, certification: PredictionTable) -> bool:
    """Whether a cascade can be certified for the loss that the lowest gear may have."""
    try:
        certify_path([cascade], certification, REFERENCE, LOSS, DELTA, "excess")
    except CannotCertify:
        return False
    return True


def _least(cascade: Cascade, certification: PredictionTable) -> Cascade:
    """With a certificate of the least loss that can be certified."""
    for epsilon in LOSSES[:-1]:
        try:
            return certify_path([cascade], certification, REFERENCE, epsilon, DELTA, "excess")
        except CannotCertify:
            continue
    return certify_path([cascade], certification, REFERENCE, LOSSES[-1], DELTA, "excess")


def _row(how: str, run: Served) -> dict[str, Any]:
    figures = run.figures
    usd_per_hour = figures.usd_per_1k_allocation * (1 - figures.unanswered) * figures.queries / figures.duration_s * 3.6
    in_rush = (run.arrival_s >= RUSH_S) & (run.arrival_s < CALM_S)
    return {
        "how": how,
        "queries": figures.queries,
        "within the promise %": 100 * figures.goodput,
        "of them in the rush %": 100 * float((run.latency_s[in_rush] <= LATENCY_S).mean()),
        "refused %": 100 * figures.refused,
        "p99 s": figures.latency_p99_s,
        "right of answered %": 100 * figures.accuracy,
        "right of all %": 100 * figures.accuracy * (1 - figures.unanswered),
        "usd per hour": usd_per_hour,
        "usd per 1,000 right": 1000 * usd_per_hour / 3600 * figures.duration_s
        / max(1.0, figures.accuracy * (1 - figures.unanswered) * figures.queries),
    }  # fmt: skip


if __name__ == "__main__":
    main()
