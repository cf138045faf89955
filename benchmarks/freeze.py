"""The curves of Freeze Inference on CIFAR-10: who leaves before each block, with which cache, and how often it is right.

    python -m benchmarks.freeze --data FOLDER [--quick] [--device cuda] [--json OUT] [--plot OUT.svg]

FOLDER holds CIFAR-10 pictures as `train_*.npz` and `test.npz`: JPEG bytes of all pictures in `jpeg`, where each begins
in `offset`, and `label`. A small ResNet of eight residual blocks is trained on the first training pictures, which are also
what the caches remember; thresholds come from training pictures that the net has not seen, and every figure from test
pictures. Beside real thresholds, pessimistic and tuned to one item in a hundred, stands the perfect-threshold bound, which
nothing achieves. Minutes on two cores.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks.figures import publish
from coe.freeze import (
    Exploration,
    Frozen,
    Measured,
    Settings,
    assemble,
    every_block,
    explore,
    measure,
    right_labels,
)
from coe.freeze.curves import Curve, half_saved, perfect, plot_svg

KINDS = ("knn", "kmeans", "learned-fc")
TUNED_TO = 0.01


class Pictures(NamedTuple):
    """x (n, 3, 32, 32) float32 around 0, y (n,)."""

    x: torch.Tensor
    y: torch.Tensor


def pictures(files: Sequence[Path], count: int) -> Pictures:
    """The first `count` pictures of some archives."""
    images: list[np.ndarray] = []
    labels: list[int] = []
    for file in files:
        with np.load(file) as archive:
            jpeg, offset, label = archive["jpeg"], archive["offset"], archive["label"]
        take = min(count - len(images), len(label))
        for i in range(take):
            picture = Image.open(io.BytesIO(jpeg[offset[i] : offset[i + 1]].tobytes())).convert("RGB")
            images.append(np.asarray(picture))
        labels += label[:take].tolist()
    x = torch.tensor(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return Pictures((x - 0.47) / 0.25, torch.tensor(labels))


class Residual(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + x), the first convolution and the shortcut with `stride`."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        same = stride == 1 and inside == outside
        straight = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
        self.shortcut = nn.Identity() if same else straight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet(width: int, stem_stride: int) -> nn.Sequential:
    """ResNet-18's plan at another width: eight residual blocks, the stem with the first, and the output layer."""
    stem = nn.Sequential(nn.Conv2d(3, width, 3, stem_stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    blocks: list[nn.Module] = []
    inside = width
    for stage in range(4):
        for stride in (1 if stage == 0 else 2, 1):
            blocks.append(Residual(inside, width * 2**stage, stride))
            inside = width * 2**stage
    blocks[0] = nn.Sequential(stem, blocks[0])
    return nn.Sequential(*blocks, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 10)))


def train(net: nn.Module, data: Pictures, epochs: int, device: str) -> None:
    """Momentum and one cycle, with flips and shifts."""
    net.to(device).train()
    x, y = data.x.to(device), data.y.to(device)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    batches = -(-len(x) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.2, total_steps=epochs * batches)
    for epoch in range(epochs):
        start, right = time.perf_counter(), 0
        for rows in torch.randperm(len(x), device=device).split(128):
            outputs = net(shaken(x[rows]))
            loss = nn.functional.cross_entropy(outputs, y[rows], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            right += int((outputs.argmax(dim=1) == y[rows]).sum())
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1} of {epochs}: {100 * right / len(x):.1f}% right, {seconds:.0f} s", file=sys.stderr)
    net.eval()


def shaken(batch: torch.Tensor) -> torch.Tensor:
    """A batch shifted as a whole by up to four pixels, half of its pictures mirrored."""
    down, right = torch.randint(0, 9, (2,)).tolist()
    moved = nn.functional.pad(batch, (4, 4, 4, 4))[:, :, down : down + 32, right : right + 32]
    mirrored = torch.rand(len(batch), device=batch.device) < 0.5
    return torch.where(mirrored[:, None, None, None], moved.flip(3), moved)


def row(name: str, frozen: Frozen, measured: Measured) -> dict[str, object]:
    """One line of figures, measured on test pictures; `kept` says behind which blocks which caches are, counted from 1."""
    curve = curve_of(name, measured)
    caches = frozen.report.caches if frozen.report else ()
    return {
        "cache": name,
        "half_saved": half_saved(curve),
        "before_output": float(curve.left_before[-1]),
        "agreement": measured.agreement,
        "disagree_at_most": measured.disagreement_upper_bound,
        "memory_mib": measured.memory_mib,
        "cost_share": measured.expected_cost / measured.full_cost,
        "wall_share": measured.wall_s_per_item / measured.whole_wall_s_per_item,
        "accuracy": measured.accuracy,
        "whole_accuracy": measured.whole_accuracy,
        "left_before": [round(float(share), 4) for share in curve.left_before],
        "kept": [f"{cache.kind}@{cache.after_block + 1}" for cache in caches],
    }


def bound_row(curve: Curve) -> dict[str, object]:
    """The perfect-threshold bound, which has no cost: nothing achieves it."""
    return {
        "cache": curve.name,
        "half_saved": half_saved(curve),
        "before_output": float(curve.left_before[-1]),
        "left_before": [round(float(share), 4) for share in curve.left_before],
    }


def shown(rows: Sequence[dict[str, object]]) -> None:
    """Two tables that fit a terminal: what caches achieve, and the share in per cent that leaves before each block."""
    keys = {"half_saved": "half", "before_output": "left", "agreement": "agree", "memory_mib": "MiB"}
    keys |= {"cost_share": "cost", "wall_share": "wall", "accuracy": "acc"}
    achieved = [
        {"cache": r["cache"], **{short: r[key] for key, short in keys.items()}} for r in rows if "agreement" in r
    ]
    publish("freeze: shares, agreement, memory", achieved, None)
    curves = []
    for r in rows:
        before = r["left_before"]
        assert isinstance(before, list)
        curves.append({"cache": r["cache"], **{str(i + 1): f"{100 * v:.0f}" for i, v in enumerate(before)}})
    publish("freeze: % that left before each block", curves, None)


def written(rows: Sequence[dict[str, object]], out: str) -> None:
    """As JSON, with the machine that the figures are from."""
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    text = json.dumps({"benchmark": "freeze", "machine": machine, "rows": list(rows)}, indent=1)
    Path(out).write_text(text + "\n")


def curve_of(name: str, measured: Measured) -> Curve:
    """The curve of a frozen model."""
    return Curve(name, np.array(measured.left_before), measured.agreement, measured.memory_mib)


def figures(explored: Exploration, test: Pictures, device: str) -> tuple[list[dict[str, object]], list[Curve]]:
    """All rows and curves, measured on test pictures."""
    rows, curves = [], []
    frozen = {f"{kind} pessimistic": every_block(explored, kind) for kind in KINDS}
    frozen |= {f"{kind} tuned": every_block(explored, kind, TUNED_TO) for kind in KINDS}
    frozen["composed pessimistic"] = assemble(explored)
    frozen["composed tuned"] = assemble(explored, error_budget=TUNED_TO)
    frozen["composed tuned, 1 MiB"] = assemble(explored, error_budget=TUNED_TO, memory_mib=1)
    for name, model in frozen.items():
        measured = measure(model.to(device), test.x, test.y.numpy())
        rows.append(row(name, model, measured))
        if name.endswith(("pessimistic", "tuned")):
            curves.append(curve_of(name, measured))
    for kind in KINDS:
        bound = perfect(f"{kind} perfect bound", right_labels(frozen[f"{kind} pessimistic"], test.x))
        rows.append(bound_row(bound))
        curves.append(bound)
    return rows, curves


def main() -> None:
    """Train, explore, measure, publish."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="a tiny run that shows that it works")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--items", type=int, default=20_000, help="training pictures, which are also what is cached")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage; ResNet-18 has 64")
    parser.add_argument("--stem-stride", type=int, default=2, help="1 works on the full resolution")
    parser.add_argument("--reduced", type=int, default=256, help="width of the reduction network; the paper has 1024")
    parser.add_argument("--validation", type=int, default=5_000)
    parser.add_argument("--json", metavar="OUT")
    parser.add_argument("--plot", metavar="OUT.svg", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.items, args.epochs, args.width, args.validation, args.reduced = 1500, 1, 8, 500, 64
    torch.manual_seed(0)
    everything = pictures(sorted(args.data.glob("train_*.npz")), args.items + args.validation)
    cached = Pictures(everything.x[: args.items], everything.y[: args.items])
    validation = everything.x[args.items :]
    test = pictures([args.data / "test.npz"], 500 if args.quick else 5_000)
    net = resnet(args.width, args.stem_stride)
    train(net, cached, args.epochs, args.device)
    start = time.perf_counter()
    explored = explore(
        net,
        cache_items=cached.x,
        validation_items=validation,
        kinds=KINDS,
        settings=Settings(width=args.reduced),
        progress=lambda what, done, total: print(f"{done}/{total} {what}", file=sys.stderr),
    )
    print(f"caches trained and asked in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    rows, curves = figures(explored, test, args.device)
    if args.plot:
        args.plot.write_text(plot_svg(curves, "Items that leave early, CIFAR-10 test pictures"))
    shown(rows)
    if args.json:
        written(rows, args.json)


if __name__ == "__main__":
    main()
