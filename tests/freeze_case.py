"""A small residual net trained on digits, and its items, for the tests of `coe.freeze`; seconds on one core."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from coe.freeze import Exploration, Settings, explore
from deployments.digits.members import residual_conv

BLOCKS = 4
CHANNELS = 12
KINDS = ("knn", "kmeans", "learned-fc")
SETTINGS = Settings(width=48, pool=2, clusters=40, hidden=32, reducer_epochs=15, learned_epochs=15, batch_size=32)


@cache
def items() -> dict[str, torch.Tensor]:
    """Images (n, 8, 8) in 0..1 by role; ``cached`` were trained on, the others not."""
    digits = load_digits()
    order = np.random.default_rng(3).permutation(len(digits.target))
    x = torch.tensor(digits.images[order] / 16, dtype=torch.float32)
    return {
        "cached": x[:900],
        "validation": x[900:1300],
        "held_out": x[1300:],
        "labels": torch.tensor(digits.target[order]),
    }


@cache
def model() -> nn.Module:
    """About 97% accurate on what it was not trained on."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        net = residual_conv(CHANNELS, BLOCKS)
        x, y = items()["cached"], items()["labels"][:900]
        optimiser = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=8e-3, total_steps=8 * 15)
        for _ in range(8):
            for rows in torch.randperm(900).split(60):
                loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    return net.eval()


@cache
def explored() -> Exploration:
    """Every kind behind every block, costs in multiplications so that tests do not hang on the clock."""
    return explore(
        model(),
        cache_items=items()["cached"],
        validation_items=items()["validation"],
        kinds=KINDS,
        unit="macs",
        settings=SETTINGS,
    )
