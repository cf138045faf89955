"""The pool of the digits example: six torch models, from a linear map to a residual convolutional net.

Every factory returns an untrained `nn.Module` from images of shape (n, 8, 8) with values in 0..1 to logits (n, 10). The
largest needs more than fifty thousand times the multiplications of the smallest, as pools in production do.
"""

from __future__ import annotations

import torch
from torch import nn

CLASSES = 10
PIXELS = 64


def linear() -> nn.Module:
    """Softmax regression on raw pixels: 640 multiplications per image."""
    return nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, CLASSES))


def mlp(hidden: int) -> nn.Module:
    """One hidden layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES))


def small_conv(channels: int) -> nn.Module:
    """Two convolutions with pooling between them."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8)),
        nn.Conv2d(1, channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * channels * 16, CLASSES),
    )


def residual_conv(channels: int, blocks: int) -> nn.Module:
    """Residual blocks at full resolution, without any pooling until the end: slow and accurate."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8)),
        nn.Conv2d(1, channels, 3, padding=1),
        *[_Residual(channels) for _ in range(blocks)],
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(4 * channels, CLASSES),
    )


class _Residual(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))), shapes (n, channels, 8, 8) throughout."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)
