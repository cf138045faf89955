"""The pool of the image example: convolutional nets from pictures (n, 3, 32, 32) with values in 0..1 to logits (n, 10)."""

from __future__ import annotations

import torch
from torch import nn

CLASSES = 10


def plain(channels: int) -> nn.Module:
    """Three convolutions, each followed by pooling: a sixth of a million multiplications per picture with four channels."""
    return nn.Sequential(
        *_layer(3, channels),
        *_layer(channels, 2 * channels),
        *_layer(2 * channels, 2 * channels),
        nn.Flatten(),
        nn.Linear(2 * channels * 16, CLASSES),
    )


def _layer(before: int, after: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)


def residual(channels: int, blocks: int) -> nn.Module:
    """Residual blocks at half, a quarter and an eighth of the resolution, twice as wide each time."""
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, stride=2, padding=1)]
    for stage in range(3):
        width = channels * 2**stage
        layers += [_Residual(width) for _ in range(blocks)]
        if stage < 2:
            layers.append(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1))
    return nn.Sequential(
        *layers,
        nn.BatchNorm2d(4 * channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * channels, CLASSES),
    )


class _Residual(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))), shapes (n, channels, h, w) throughout."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        added: torch.Tensor = x + self.body(x)
        return added
