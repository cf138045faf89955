"""Learned gates on recorded ImageNet outputs, or classifiers and stop policy trained together on CIFAR-10 pictures.

    python -m benchmarks.learned --predictions DATA/vision_imagenet [--json OUT] [--quick]
    python -m benchmarks.learned --data DATA/images_cifar10 [--json OUT] [--plot SVG] [--pictures N] [--quick]

With --predictions: the matrix of IDK cascades (Wang et al. 2018). Gates are trained on one third of the items; threshold or
lambda is chosen on the second by the paper's constrained form (cheapest with accuracy >= (1 - epsilon) of the last
model's); figures are those of the last third. Costs are multiply-adds.

With --data: three small convolutional networks and a stop policy trained jointly by REINFORCE (Guan et al. 2018), at
several alphas. Beside every point two threshold cascades that may cost no more, on the selection half of the test
pictures: on the joint's own classifiers, and on classifiers trained as long without a policy. Figures are those of the
other half; costs are counted floating point operations.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import publish
from coe.cascade.rules import Rule, rule
from coe.cli.console import progress
from coe.learned.gate_rule import HARD
from coe.learned.stages import Judge, Stages, TradeOff, cheapest_within, deployed, stages_of
from coe.table import PredictionTable
from coe.types import Cascade, Tier

CHAINS = (
    ("pytorch/resnet50", "keras/nasnetlarge"),
    ("keras/mobilenetV2", "keras/nasnetlarge"),
    ("keras/mobilenetV2", "pytorch/resnet152"),
    ("keras/mobilenetV2", "pytorch/resnet50", "keras/nasnetlarge"),
)
SLACKS = (0.0, 0.01)
LAMBDAS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.18, 0.27, 0.4)
ALPHAS = (0.0, 0.1, 0.3, 0.8)


# --- Recorded outputs -------------------------------------------------------------------------------------------------


def imagenet(folder: Path, members: Sequence[str], quick: bool) -> tuple[PredictionTable, dict[str, float]]:
    """The top five classes that `members` gave, in three random parts, and their multiply-adds."""
    stored, labels = np.load(folder / "top5.npz"), np.load(folder / "labels.npz")["label"].astype(np.int64)
    columns = [stored["models"].tolist().index(m) for m in members]
    order = np.random.default_rng(0).permutation(len(labels))[: 4500 if quick else len(labels)]
    top = stored["cls"][:, columns][order].astype(np.int32)
    table = PredictionTable(
        members=tuple(members),
        classes=tuple(str(c) for c in range(1000)),
        items=np.array([f"image-{i}" for i in order]),
        labels=labels[order],
        splits=np.array(["train", "calibration", "test"])[np.arange(len(order)) * 3 // len(order)],
        answers=top[:, :, 0].astype(np.int64),
        probs=stored["prob"][:, columns][order].astype(np.float32),
        top=top,
    )
    with (folder / "models.csv").open() as file:
        gmacs = {row["model"]: float(row["gmacs"]) for row in csv.DictReader(file) if row["gmacs"]}
    return table, {m: gmacs[m] for m in members}


def chain_of(members: Sequence[str]) -> Cascade:
    """One model per tier."""
    gated = [Tier(members=(m,), rule="score", threshold=0.5) for m in members[:-1]]
    return Cascade(tiers=(*gated, Tier(members=(members[-1],), rule="score")))


def quantile_bars(judge: Judge, count: int) -> Iterator[tuple[float, ...]]:
    """A grid over the bars of all gates, at quantiles of their scores; the ends accept everything and nothing."""
    share = np.linspace(0, 1, count)
    axes = [[-1e9, *np.quantile(s.score, share).tolist(), 1e9] for s in judge.scored]
    yield from product(*axes)


def idk_matrix(folder: Path, quick: bool) -> list[dict[str, Any]]:
    """Every chain, gate and slack: what the setting chosen on the second part does on the third."""
    from coe.learned import gates
    from coe.learned.methods import one_thread
    from coe.learned.stopping import Settings

    lambdas = LAMBDAS[::3] if quick else LAMBDAS
    settings = Settings(steps=150 if quick else 600)
    rows: list[dict[str, Any]] = []
    with progress("IDK matrix") as advance, one_thread():
        steps, done = len(CHAINS) * (len(lambdas) + 3), 0
        for chain in CHAINS:
            table, costs = imagenet(folder, chain, quick)
            train, select, report = (
                stages_of(chain_of(chain), table.split(s), costs) for s in ("train", "calibration", "test")
            )
            count = 400 if len(chain) == 2 else 40
            blind = gates.train(train, 0.0, objective="cross_entropy", settings=settings).gates
            fixed: dict[str, Sequence[Rule]] = {
                "max probability": [rule("score")] * (len(chain) - 1),
                "entropy": [rule("entropy")] * (len(chain) - 1),
                "neural, cross-entropy": blind,
            }
            for name, rules in fixed.items():
                judges = Judge(rules, select), Judge(rules, report)
                bars = list(quantile_bars(judges[0], count))
                found = [judges[0].at(b) for b in bars]
                for slack in SLACKS:
                    number = cheapest_within(found, float(select.accuracy[-1]), slack)
                    chosen = None if number is None else judges[1].at(bars[number])
                    rows.append(_row(chain, name, slack, chosen, report))
                done += 1
                advance(done, steps)
            swept = []
            for trade in lambdas:
                swept.append(gates.train(train, trade, settings=settings))
                done += 1
                advance(done, steps)
            hard = tuple([HARD] * (len(chain) - 1))
            settings_tried = {"": [(n, hard) for n in range(len(swept))]}
            judged = [(Judge(g.gates, select), Judge(g.gates, report)) for g in swept]
            settings_tried[", own bars"] = [
                (n, bars) for n in range(0, len(swept), 3) for bars in quantile_bars(judged[n][0], count // 2)
            ]
            for extra, tried in settings_tried.items():
                found = [judged[n][0].at(bars) for n, bars in tried]
                for slack in SLACKS:
                    number = cheapest_within(found, float(select.accuracy[-1]), slack)
                    at = None if number is None else tried[number]
                    chosen = None if at is None else judged[at[0]][1].at(at[1])
                    note = "" if at is None else f", lambda {lambdas[at[0]]:g}"
                    rows.append(_row(chain, f"neural, cost-aware{extra}{note}", slack, chosen, report))
    return rows


def _row(chain: Sequence[str], gate: str, slack: float, found: TradeOff | None, report: Stages) -> dict[str, Any]:
    last = float(report.accuracy[-1])
    return {
        "chain": " > ".join(name.split("/")[1] for name in chain),
        "gate": gate,
        "epsilon": slack,
        "accuracy": "none feasible" if found is None else f"{found.accuracy:.2%}",
        "last model": f"{last:.2%}",
        "IDK rate": "" if found is None else ", ".join(f"{r:.1%}" for r in found.idk_rate),
        "cost of last": "" if found is None else f"{found.relative_cost:.1%}",
    }


# --- Pictures ---------------------------------------------------------------------------------------------------------


def pictures(folder: Path, names: Sequence[str], most: int) -> tuple[np.ndarray, np.ndarray]:
    """(items, 3, 32, 32) standardised pictures and (items,) labels."""
    from PIL import Image

    x, y = [], []
    for name in names:
        stored = np.load(folder / name)
        jpeg, offset = stored["jpeg"], stored["offset"]
        for i in range(min(len(offset) - 1, most - len(x))):
            raw = io.BytesIO(jpeg[offset[i] : offset[i + 1]].tobytes())
            x.append(np.asarray(Image.open(raw).convert("RGB")))
        y.append(stored["label"][: len(x) - sum(map(len, y))])
    scaled = np.stack(x).astype(np.float32).transpose(0, 3, 1, 2) / 255
    return (scaled - 0.47) / 0.25, np.concatenate(y).astype(np.int64)


def make_networks() -> list[Any]:
    """Three convolutional networks of rising width and depth."""
    from torch import nn

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    def network(*shapes: tuple[int, int]) -> nn.Module:
        layers: list[nn.Module] = []
        width = 3
        for outputs, stride in shapes:
            layers += block(width, outputs, stride)
            width = outputs
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))

    return [
        network((8, 2), (16, 2), (32, 2)),
        network((16, 2), (24, 1), (32, 2)),
        network((24, 2), (32, 1), (64, 2), (64, 1)),
    ]


def joint_frontier(folder: Path, quick: bool, most: int) -> list[dict[str, Any]]:
    """Singles, and at every alpha the joint cascade beside threshold cascades that may cost as much."""
    import torch

    from coe.learned import joint

    torch.set_num_threads(2)
    torch.manual_seed(0)
    items, epochs = (1500, 4) if quick else (most, 10)
    alphas = ALPHAS[1:4:2] if quick else ALPHAS
    x, y = pictures(folder, ["train_0.npz"], items)
    test_x, test_y = pictures(folder, ["test.npz"], 1000 if quick else 5000)
    half = np.arange(len(test_y)) % 2 == 0
    start, rest = epochs // 2, epochs - epochs // 2
    total = start + rest * (1 + len(alphas))
    with progress("joint training") as advance:

        def from_epoch(before: int) -> Any:
            return lambda done, _of: advance(before + done, total)

        warm = joint.Settings(epochs=start, warmup_epochs=start)
        begun = joint.train(make_networks(), x, y, 0.0, settings=warm, progress=from_epoch(0))
        longer = joint.Settings(epochs=rest, warmup_epochs=rest)
        alike = joint.train(begun.networks, x, y, 0.0, settings=longer, progress=from_epoch(start))
        settings = joint.Settings(epochs=rest, warmup_epochs=0)
        points = [
            joint.train(begun.networks, x, y, a, settings=settings, progress=from_epoch(start + rest * (n + 1)))
            for n, a in enumerate(alphas)
        ]
    recorded = joint.record(alike, test_x, test_y)
    rows = _single_rows(recorded.rows(~half))
    for alpha, point in zip(alphas, points, strict=True):
        own = joint.record(point, test_x, test_y)
        told, seen = deployed(point.policies, own.rows(~half)), deployed(point.policies, own.rows(half))
        rows.append(_frontier_row(f"joint, alpha {alpha:g}", told))
        for name, stages in (("thresholds on these classifiers", own), ("thresholds, trained alike", recorded)):
            rows.append(_frontier_row(name, _thresholds(stages.rows(half), stages.rows(~half), seen.cost)))
    return rows


def _thresholds(select: Stages, report: Stages, most: float) -> TradeOff:
    """The most accurate threshold cascade on `select` that costs at most `most` there, on `report`."""
    judges = [Judge([rule("score")] * (len(s.outputs) - 1), s) for s in (select, report)]
    found = [(t, bars) for bars in quantile_bars(judges[0], 30) if (t := judges[0].at(bars)).cost <= most + 1e-6]
    best = max(found, key=lambda pair: (pair[0].accuracy, -pair[0].cost))
    return judges[1].at(best[1])


def _single_rows(stages: Stages) -> list[dict[str, Any]]:
    return [
        {
            "what": f"classifier {k + 1} alone",
            "accuracy": float(stages.accuracy[k]),
            "mflops": float(stages.costs[k]) / 1e6,
            "of last": float(stages.costs[k] / stages.costs[-1]),
            "reach": "",
        }
        for k in range(len(stages.outputs))
    ]


def _frontier_row(what: str, found: TradeOff) -> dict[str, Any]:
    return {
        "what": what,
        "accuracy": found.accuracy,
        "mflops": found.cost / 1e6,
        "of last": found.relative_cost,
        "reach": ", ".join(f"{r:.0%}" for r in found.reach),
    }


def draw(rows: Sequence[dict[str, Any]], path: str) -> None:
    """Accuracy against operations as an SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    kinds = (
        ("classifier", "s", "single classifiers"),
        ("joint", "o", "joint policy"),
        ("thresholds on", "x", "thresholds on its classifiers"),
        ("thresholds, trained", "^", "thresholds, trained alike"),
    )
    for prefix, marker, label in kinds:
        chosen = sorted((r["mflops"], r["accuracy"]) for r in rows if r["what"].startswith(prefix))
        axes.plot(*zip(*chosen, strict=True), marker=marker, label=label, linestyle="-" if marker == "o" else ":")
    axes.set_xlabel("million floating point operations per picture")
    axes.set_ylabel("accuracy")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--predictions", type=Path, metavar="DIR", help="folder with top5.npz, labels.npz, models.csv")
    which.add_argument("--data", type=Path, metavar="DIR", help="folder with train_0.npz … and test.npz")
    parser.add_argument("--json", metavar="OUT")
    parser.add_argument("--plot", metavar="SVG", help="with --data")
    parser.add_argument("--pictures", type=int, default=3000, help="with --data: to train on, at most 10,000 (3000)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    args = parser.parse_args()
    if args.predictions is not None:
        publish("idk matrix", idk_matrix(args.predictions, args.quick), args.json)
        return
    rows = joint_frontier(args.data, args.quick, args.pictures)
    publish("joint frontier", rows, args.json)
    if args.plot:
        draw(rows, args.plot)


if __name__ == "__main__":
    main()
