"""Train the members of the image pool on the train split and write their weights as safetensors.

    python -m deployments.images.train DATA.npz POOL.yaml

Five minutes of one core; pictures are mirrored and shifted by up to two pixels while training.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from coe.files import read, write_atomically
from coe.plugins import import_path
from coe.profiler.predict import load_data
from coe.types import Pool

BATCH = 100
EPOCHS = 8
SHIFT = 2


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int) -> nn.Module:
    """Fit `model` on pictures x (n, 3, 32, 32) and labels y (n,)."""
    torch.manual_seed(seed)
    model = model.to(memory_format=torch.channels_last)  # a third faster on CPUs
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=6e-3, total_steps=EPOCHS * (len(x) // BATCH))
    model.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x), generator=generator).split(BATCH)[: len(x) // BATCH]:
            varied = _varied(x[batch], generator).contiguous(memory_format=torch.channels_last)
            loss = nn.functional.cross_entropy(model(varied), y[batch], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.to(memory_format=torch.contiguous_format).eval()


def _varied(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The batch, mirrored or not and moved by up to two pixels each way; (n, 3, 32, 32)."""
    mirrored = x.flip(3) if torch.rand(1, generator=generator) < 0.5 else x
    row, column = torch.randint(0, 2 * SHIFT + 1, (2,), generator=generator).tolist()
    padded = nn.functional.pad(mirrored, (SHIFT,) * 4, mode="replicate")
    return padded[:, :, row : row + 32, column : column + 32]


def main(data_path: str, pool_path: str) -> None:
    """Train every member."""
    pool = read(pool_path, Pool)
    data = load_data(data_path).split("train")
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    for number, member in enumerate(pool.members, start=1):
        print(f"train {member.name} ({number}/{len(pool.members)})", file=sys.stderr)
        assert member.weights is not None, f"member {member.name} needs a weights file"
        seed = zlib.crc32(member.name.encode())
        torch.manual_seed(seed)
        model = train(import_path(member.model, f"model of member '{member.name}'")(**member.options), x, y, seed)
        path = Path(pool_path).parent / member.weights
        path.parent.mkdir(parents=True, exist_ok=True)
        state = save(model.state_dict())
        write_atomically(path, lambda file, state=state: file.write(state))
    print(f"trained {len(pool.members)} members on {len(x)} pictures", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:3])
