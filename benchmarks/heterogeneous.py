"""Does a cascade on mixed rented GPUs save money? ImageNet models, real rental prices, loads from 1 to 10,000 per second.

    python -m benchmarks.heterogeneous --data ../shared/data [--json OUT] [--plot SVG]

For every load: dollars per 1,000 correct answers of (1) the best single model on its best hardware, (2) on the biggest GPU,
(3) the best of a few cascades on one kind of GPU, (4) on mixed hardware. All keep the same promises: 99% within the latency,
and accuracy at most the allowed loss below the reference. Cascades are searched on one part of the images and all accuracies
are those of the rest. Machines are rented whole, the router's included. See benchmarks/hardware.py for how speeds are estimated.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.cascades import Data, loaded
from benchmarks.figures import publish
from benchmarks.hardware import Hardware, hardware, imagenet_throughputs
from coe.cascade.search import search
from coe.cascade.space import Space
from coe.cli.console import quiet_solver
from coe.placement.baseline import best_single
from coe.placement.candidates import Placed, World, candidate, place
from coe.types import Cascade, Front, FrontPoint, Member, Pool, Prices, Workload

LOADS_PER_S = (1, 10, 100, 1_000, 10_000)
CANDIDATES = 5
MARGIN = 0.002
"""By how much a candidate must be better on the part it was searched on than it has to be."""


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="holds vision_imagenet, prices_cloud, throughput_mlperf"
    )
    parser.add_argument("--reference", default="keras/nasnetlarge")
    parser.add_argument("--loss", type=float, default=0.005, help="allowed accuracy loss (0.005)")
    parser.add_argument("--latency", type=float, default=0.1, help="promise in seconds (0.1)")
    parser.add_argument("--json", metavar="OUT")
    parser.add_argument("--plot", metavar="SVG")
    args = parser.parse_args()
    data = loaded(args.data / "vision_imagenet", "top5", (), "", 0)
    machines = hardware(args.data)
    candidates = candidates_of(searched(data), args.reference, args.loss)
    with quiet_solver():
        rows = [
            row
            for load in LOADS_PER_S
            for row in at_load(world(data, machines, args, load), candidates, load, args.data)
        ]
    publish("heterogeneous", rows, args.json)
    if args.plot:
        plotted(rows, args.plot)


def searched(data: Data) -> Front:
    """The front of two-tier cascades on the selection part."""
    return search(data.table, data.costs, data.table.members[0], 0.01, 0.05, Space(), threads=2)


def candidates_of(front: Front, reference: str, loss: float) -> list[Cascade]:
    """The cheapest cascades of the front that are accurate enough, and the cheapest of each number of first members."""
    ranked = sorted(accurate(front, reference, loss), key=lambda p: p.cost_per_1k)
    kept = ranked[:CANDIDATES]
    for members in (1, 2, 3):
        kept += [p for p in ranked if len(p.cascade.tiers[0].members) == members][:1]
    return list({p.cascade.tiers_fingerprint(): p.cascade for p in kept}.values())


def accurate(front: Front, reference: str, loss: float) -> list[FrontPoint]:
    """Cascades of the front that lose no more than allowed, with a margin, on the part they were searched on."""
    accuracy = {p.cascade.members[0]: p.stats.accuracy for p in front.singles}
    return [
        p for p in front.points if len(p.cascade.tiers) > 1 and p.stats.accuracy >= accuracy[reference] - loss + MARGIN
    ]


def world(data: Data, machines: Hardware, args: argparse.Namespace, load: float) -> World:
    """Everything that placing needs, on the items that nothing was searched on."""
    table = data.table.rows(data.table.splits != "calibration")
    rate, memory = imagenet_throughputs(args.data)
    members = tuple(Member(name=m, runner="table") for m in table.members)
    return World(
        Pool(classes=table.classes, input_shape=(1,), members=members),
        table,
        machines.profiles({m: rate[m] for m in table.members if m in rate}, memory),
        machines.prices,
        Workload(
            rate_per_s=load,
            latency_s=args.latency,
            reference=args.reference,
            max_accuracy_loss=args.loss,
            batch_wait_s=0.01,
        ),
    )


def at_load(there: World, candidates: Sequence[Cascade], load: float, data: Path) -> list[dict[str, Any]]:
    """One row per way of serving."""
    kinds = sorted({o.accelerator for o in there.prices.offers if o.accelerators_per_node})
    speeds = hardware(data).speed
    biggest = max(kinds, key=lambda k: speeds[k])
    one_kind = [best_cascade(only(there, kind), candidates) for kind in kinds]
    found = {
        "best single model, best hardware": best_single(there),
        f"best single model, {biggest} only": best_single(only(there, biggest)),
        "cascade, one kind of GPU": min((p for p in one_kind if p is not None), key=lambda p: p.rank, default=None),
        "cascade, mixed hardware": best_cascade(there, candidates),
    }
    mixed = found["cascade, mixed hardware"]
    return [_row(way, placed, mixed, load) for way, placed in found.items()]


def only(there: World, kind: str) -> World:
    """The same with one kind of accelerator, and CPU-only nodes for the router."""
    offers = tuple(o for o in there.prices.offers if o.accelerator == kind or not o.accelerators_per_node)
    return replace(there, prices=Prices(offers=offers))


def best_cascade(there: World, candidates: Sequence[Cascade]) -> Placed | None:
    """The cheapest placement over the candidates."""
    best: Placed | None = None
    for cascade in candidates:
        placed = place(candidate(cascade, there), float("inf") if best is None else best.usd_per_hour)
        if isinstance(placed, Placed) and (best is None or placed.rank < best.rank):
            best = placed
    return best


def _row(way: str, placed: Placed | None, mixed: Placed | None, load: float) -> dict[str, Any]:
    if placed is None:
        return {"load_per_s": load, "way": way, "usd_per_1k_correct": None, "times_mixed": None}
    cost = placed.cost
    nodes = ", ".join(f"{n} {t}" for t, n in placed.solution.nodes.items())
    return {
        "load_per_s": load,
        "way": way,
        "usd_per_1k_correct": cost.usd_per_1k_correct_allocation,
        "usd_per_1k_correct_used": cost.usd_per_1k_correct_usage,
        "times_mixed": None
        if mixed is None
        else cost.usd_per_1k_correct_allocation / mixed.cost.usd_per_1k_correct_allocation,
        "accuracy": placed.stats.accuracy,
        "cascade": " > ".join("+".join(t.members) for t in placed.cascade.tiers),
        "nodes": nodes,
    }


def plotted(rows: list[dict[str, Any]], out: str) -> None:
    """Dollars per 1,000 correct over the load, both axes logarithmic."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.5))
    for way in dict.fromkeys(r["way"] for r in rows):
        mine = [r for r in rows if r["way"] == way and r["usd_per_1k_correct"]]
        axes.plot([r["load_per_s"] for r in mine], [r["usd_per_1k_correct"] for r in mine], marker="o", label=way)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("queries per second")
    axes.set_ylabel("$ per 1,000 correct, rented")
    axes.legend(fontsize=7)
    figure.savefig(out, bbox_inches="tight")


if __name__ == "__main__":
    main()
