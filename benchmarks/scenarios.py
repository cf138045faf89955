"""What failures, load steps and tides of load do to a plan: ImageNet models on rented GPUs, simulated with the router's own code.

    python -m benchmarks.scenarios --data ../shared/data [--json OUT] [--quick]

One cascade (the cheapest of a few, one point of accuracy given up), planned for 400 queries per second within 0.2 s. Nodes need
90 s to start. "recovers" is how long after the blow 95% of the queries of every ten seconds are again answered within the
promise.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cascades import loaded
from benchmarks.figures import publish
from benchmarks.hardware import hardware
from benchmarks.heterogeneous import candidates_of, searched, world
from coe.cli.console import quiet_solver
from coe.placement.candidates import World
from coe.placement.gears import gears_of
from coe.placement.optimize import plan
from coe.simulator.arrivals import poisson, stream, varying
from coe.simulator.served import Served, serve
from coe.types import Cascade, Failures, FloatArray, Gears, Loss, Plan, Prices, Scaling, Scenario

RATE_PER_S = 400.0
LATENCY_S = 0.2
LOSS = 0.01
REFERENCE = "keras/nasnetlarge"
NODE_START_S = 90.0
BLOW_S = 120.0
DURATION_S = 480.0
WINDOW_S = 10.0
RECOVERED = 0.95
TIDE_S = 600.0


@dataclass(frozen=True)
class Case:
    """One row: a plan (or gears) under a load in a world."""

    what: str
    how: str
    plan: Plan
    came: FloatArray
    scenario: Scenario
    blow_s: float | None = None
    gears: Gears | None = None


def main() -> None:
    """Simulate and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="holds vision_imagenet, prices_cloud, throughput_mlperf"
    )
    parser.add_argument("--quick", action="store_true", help="a quarter of the load, to see that it works")
    parser.add_argument("--json", metavar="OUT")
    args = parser.parse_args()
    rate = RATE_PER_S / (4 if args.quick else 1)
    there, cascades = _there(args.data, rate)

    def planned(rate_per_s: float = rate, prices: Prices | None = None, **work: Any) -> Plan:
        changed = there.workload.model_copy(update={"rate_per_s": rate_per_s, **work})
        with quiet_solver():
            return plan(
                there.pool, cascades, there.sample, there.profiles, prices or there.prices, changed,
                inputs={}, uncertified=True, reasons=False,
            )  # fmt: skip

    cases = [*blows(planned, rate), *steps(planned, rate), *tides(planned, rate)]
    rows = []
    for case in cases:
        run = serve(case.plan, there.profiles, there.sample, case.came, case.scenario, gears=case.gears)
        rows.append(_row(case, run))
        print(rows[-1], flush=True)
    publish("scenarios", rows, args.json)


def _there(data: Path, rate: float) -> tuple[World, list[Cascade]]:
    """Models, hardware and the cheapest cascades that are accurate enough."""
    images = loaded(data / "vision_imagenet", "top5", (), "", 0)
    asked = argparse.Namespace(reference=REFERENCE, loss=LOSS, latency=LATENCY_S, data=data)
    there = world(images, hardware(data), asked, rate)
    return there, candidates_of(searched(images), REFERENCE, LOSS)


def blows(planned: Callable[..., Plan], rate: float) -> list[Case]:
    """Nodes that go."""
    bare, sure = planned(), planned(survive_node_loss=True, router_replicas=2)
    came = poisson(stream(0, "arrivals"), rate, DURATION_S)

    def lost(of: Plan, notice_s: float = 0.0) -> Scenario:
        node_type = next(p.node_type for p in of.placements if p.member in of.cascade.tiers[-1].members)
        loss = Loss(at_s=BLOW_S, node_type=node_type, notice_s=notice_s)
        return Scenario(node_start_s=NODE_START_S, failures=Failures(losses=(loss,)))

    return [
        Case("nothing happens", "as planned", bare, came, Scenario()),
        Case("a node is lost", "as planned", bare, came, lost(bare), BLOW_S),
        Case("a node is lost", "warned 90 s before", bare, came, lost(bare, 90.0), BLOW_S),
        Case("a node is lost", "survive_node_loss", sure, came, lost(sure), BLOW_S),
    ]


def steps(planned: Callable[..., Plan], rate: float) -> list[Case]:
    """The load becomes five times as high and stays so."""
    start = planned(rate / 5)
    came = np.concatenate(
        [
            poisson(stream(0, "arrivals"), rate / 5, BLOW_S),
            BLOW_S + poisson(stream(1, "arrivals"), rate, DURATION_S - BLOW_S),
        ]
    )
    scenarios = {
        "fixed replicas": None,
        "Serve's default policy": Scaling(policy="ongoing"),
        "reach policy, Serve's delays": Scaling(policy="reach"),
        "reach policy, 5 s": Scaling(policy="reach", upscale_delay_s=5.0, look_back_s=10.0),
        "Serve's default policy, 5 s": Scaling(policy="ongoing", upscale_delay_s=5.0, look_back_s=10.0),
    }
    return [
        Case("five times the load", how, start, came, Scenario(node_start_s=NODE_START_S, scaling=scaling), BLOW_S)
        for how, scaling in scenarios.items()
    ]


def tides(planned: Callable[..., Plan], rate: float) -> list[Case]:
    """A load that swings tenfold, in ten minutes instead of a day."""
    low, high = rate / 5, 2 * rate
    middle, swing = (low + high) / 2, (high - low) / 2
    came = varying(stream(0, "arrivals"), lambda t: middle - swing * np.cos(2 * np.pi * t / TIDE_S), high, TIDE_S)
    peak = planned(high)
    with quiet_solver():
        gears = gears_of([rate / 2, rate, 2 * rate], lambda r: planned(r))
    quick = Scenario(node_start_s=30.0)
    scaling = Scaling(policy="reach", upscale_delay_s=5.0, downscale_delay_s=60.0, look_back_s=20.0, node_idle_s=60.0)
    return [
        Case("a tide", "planned for its peak", peak, came, quick),
        Case("a tide", "gears", peak, came, quick, gears=gears),
        Case("a tide", "reach policy", peak, came, quick.model_copy(update={"scaling": scaling})),
    ]


def _row(case: Case, run: Served) -> dict[str, Any]:
    return {
        "what": case.what,
        "how": case.how,
        "queries": run.figures.queries,
        "within the promise %": 100 * run.figures.goodput,
        "refused %": 100 * run.figures.refused,
        "lost %": 100 * (run.figures.unanswered - run.figures.refused),
        "degraded %": 100 * run.figures.degraded,
        "p99 s": run.figures.latency_p99_s,
        "recovers s": "" if case.blow_s is None else _recovery_s(case, run),
        "usd per hour": run.figures.usd_per_1k_allocation * (1 - run.figures.unanswered) * run.figures.queries
        / run.figures.duration_s * 3.6,
    }  # fmt: skip


def _recovery_s(case: Case, run: Served) -> float | str:
    """How long after the blow the last bad window ends; "never" where it is bad at the end of the run."""
    assert case.blow_s is not None
    good = run.latency_s <= case.plan.workload.latency_s  # NaN is not
    window = (run.arrival_s / WINDOW_S).astype(int)
    shares = np.bincount(window, good) / np.bincount(window)
    bad = np.flatnonzero((shares < RECOVERED) & (np.arange(len(shares)) >= case.blow_s / WINDOW_S))
    if not len(bad):
        return 0.0
    return "never" if bad[-1] >= len(shares) - 2 else float((bad[-1] + 1) * WINDOW_S - case.blow_s)


if __name__ == "__main__":
    main()
