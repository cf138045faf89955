"""Train the members of the digits pool on the train split and write their weights as safetensors.

    python -m deployments.digits.train DATA.npz POOL.yaml

Seconds per member on one core. A member whose weights are newer than its code and data is not trained again.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import numpy as np
import torch
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors.torch import save
from torch import nn

from coe.files import read, read_npz, write_atomically
from coe.plugins import import_path
from coe.types import Member, Pool

from . import data, members

BATCH = 50


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int, seed: int) -> nn.Module:
    """Fit `model` on images x (n, 8, 8) and labels y (n,), with random shifts of at most one pixel."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    steps = epochs * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=6e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(BATCH)[: len(x) // BATCH]:
            loss = nn.functional.cross_entropy(model(_shifted(x[batch], generator)), y[batch], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def _shifted(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Half of the images moved by up to one pixel each way, edges filled with background; (n, 8, 8)."""
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    moved = x.clone()
    offsets = torch.randint(0, 3, (len(x), 2), generator=generator)
    for i in torch.nonzero(torch.rand(len(x), generator=generator) < 0.5).flatten().tolist():
        row, column = offsets[i].tolist()
        moved[i] = padded[i, row : row + 8, column : column + 8]
    return moved


def _is_fresh(weights: Path, inputs: list[Path]) -> bool:
    """True where the weights are newer than everything they were made from."""
    return weights.exists() and all(weights.stat().st_mtime > path.stat().st_mtime for path in inputs)


def _untrained(member: Member) -> nn.Module:
    torch.manual_seed(_seed(member))
    factory = import_path(member.model, f"model of member '{member.name}'")
    return factory(**member.options)


def _seed(member: Member) -> int:
    return zlib.crc32(member.name.encode())


def main(data_path: str, pool_path: str) -> None:
    """Train what is not fresh."""
    pool = read(pool_path, Pool)
    arrays = read_npz(data_path)
    rows = arrays["splits"] == "train"
    x, y = torch.from_numpy(arrays["x"][rows]), torch.from_numpy(arrays["y"][rows])
    inputs = [Path(data_path), Path(members.__file__), Path(data.__file__), Path(__file__)]
    columns = (TextColumn("train {task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("", total=len(pool.members))
        for member in pool.members:
            progress.update(task, description=member.name)
            assert member.weights is not None, f"member {member.name} needs a weights file"
            weights = Path(pool_path).parent / member.weights
            if not _is_fresh(weights, inputs):
                weights.parent.mkdir(parents=True, exist_ok=True)
                model = train(_untrained(member), x, y, epochs=_epochs(member), seed=_seed(member))
                state = save(model.state_dict())
                write_atomically(weights, lambda file, state=state: file.write(state))
            progress.advance(task)
    print(f"trained {len(pool.members)} members on {int(np.sum(rows))} digits", file=sys.stderr)


def _epochs(member: Member) -> int:
    """The dearer the model per image, the fewer passes it needs and gets."""
    return 18 if "residual" in member.model else 40


if __name__ == "__main__":
    main(*sys.argv[1:3])
