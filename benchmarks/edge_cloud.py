"""A first tier at the edge, the last in the cloud: bytes sent and latency, against sending everything to the cloud.

    python -m benchmarks.edge_cloud --data ../shared/data [--json OUT] [--plot SVG]

The cascades of one search over ImageNet models (accuracy at most the allowed loss below the reference) run their first tier on
machines where queries arrive and their last tier in the cloud. Bytes are those of the pictures that go up; latency is the mean
over queries: the first tier's time, and for those that are passed on also the link's and the last tier's.
Link delays from 1 microsecond to 1 second, 100 Mbit/s. Accuracies and reach are those of items that nothing was searched on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.cascades import loaded
from benchmarks.figures import publish
from benchmarks.hardware import LAUNCH_S, imagenet_throughputs, speeds
from benchmarks.heterogeneous import accurate, searched
from coe.cascade.evaluate import evaluate
from coe.placement.columns import crossing_s
from coe.types import Cascade, CascadeStats, Link, Sites

DELAYS_S = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
PICTURE_BYTES = 110_000
"""A JPEG of ImageNet is about so large."""
EDGE_TIMES_FASTER = 3
"""Models of the first tier must be so many times as fast as the reference: an edge machine is small."""
EDGE, CLOUD = "T4", "H100-80GB"
BITS_PER_S = 1e8


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="holds vision_imagenet and throughput_mlperf")
    parser.add_argument("--reference", default="keras/nasnetlarge")
    parser.add_argument("--loss", type=float, default=0.005, help="allowed accuracy loss (0.005)")
    parser.add_argument("--json", metavar="OUT")
    parser.add_argument("--plot", metavar="SVG")
    args = parser.parse_args()
    data = loaded(args.data / "vision_imagenet", "top5", (), "", 0)
    front = searched(data)
    rest = data.table.rows(data.table.splits != "calibration")
    rate, _ = imagenet_throughputs(args.data)
    speed = speeds(args.data)
    rows: list[dict[str, Any]] = []
    for loss in sorted({args.loss, 0.01, 0.02}):
        # of the front the one that sends least; the bytes are what the edge is about
        fits = [
            p
            for p in accurate(front, args.reference, loss)
            if all(rate[m] >= EDGE_TIMES_FASTER * rate[args.reference] for m in p.cascade.tiers[0].members)
        ]
        cascade = min(fits, key=lambda p: sent_share(p.cascade, p.stats)).cascade
        found = evaluate(cascade, rest)
        first = max(LAUNCH_S + 1 / (rate[m] * speed[EDGE]) for m in cascade.tiers[0].members)
        last = max(LAUNCH_S + 1 / (rate[m] * speed[CLOUD]) for m in cascade.tiers[1].members)
        whole = LAUNCH_S + 1 / (rate[args.reference] * speed[CLOUD])
        sent = sent_share(cascade, found)
        for delay in DELAYS_S:
            link = Link(to_site="cloud", round_trip_s=delay, bits_per_s=BITS_PER_S)
            sites = Sites(ingress="edge", links=(link,), bytes_per_item=PICTURE_BYTES)
            crossing = crossing_s(sites, link, 1)
            ours, theirs = first + found.reach[1] * (crossing + last), crossing + whole
            rows.append(
                {
                    "allowed_loss_pt": 100 * loss,
                    "delay_s": delay,
                    "cascade": " > ".join("+".join(t.members) for t in cascade.tiers),
                    "accuracy": found.accuracy,
                    "sent_share": sent,
                    "times_fewer_bytes": 1 / sent,
                    "mean_latency_s": ours,
                    "cloud_only_latency_s": theirs,
                    "times_faster": theirs / ours,
                }
            )
    publish("edge_cloud", rows, args.json)
    if args.plot:
        plotted(rows, args.plot)


def sent_share(cascade: Cascade, stats: CascadeStats) -> float:
    """Pictures sent up per query: each member of the last tier gets its own."""
    return stats.reach[1] * len(cascade.tiers[1].members)


def plotted(rows: list[dict[str, Any]], out: str) -> None:
    """Mean latency over the link's delay."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.2))
    delays = [r["delay_s"] for r in rows if r["allowed_loss_pt"] == rows[0]["allowed_loss_pt"]]
    axes.plot(delays, [r["cloud_only_latency_s"] for r in rows[: len(delays)]], "k--", label="cloud only")
    for loss in dict.fromkeys(r["allowed_loss_pt"] for r in rows):
        mine = [r for r in rows if r["allowed_loss_pt"] == loss]
        label = f"loss <= {loss:g} pt: {mine[0]['times_fewer_bytes']:.1f} times fewer bytes"
        axes.plot(delays, [r["mean_latency_s"] for r in mine], marker="o", label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("round trip to the cloud, s")
    axes.set_ylabel("mean latency, s")
    axes.legend(fontsize=7)
    figure.savefig(out, bbox_inches="tight")


if __name__ == "__main__":
    main()
