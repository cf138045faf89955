"""The pool of the image example: convolutional nets from pictures (n, 3, 32, 32) with values in 0..1 to logits (n, 10)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

CLASSES = 10


def stacked(channels: int, depths: Sequence[int]) -> nn.Module:
    """Three stages of `depths` convolutions, each stage twice as wide as the one before and followed by pooling."""
    layers: list[nn.Module] = []
    before = 3
    for stage, depth in enumerate(depths):
        width = channels * 2**stage
        for _ in range(depth):
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        layers.append(nn.MaxPool2d(2))
    side = 32 // 2 ** len(depths)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * side * side, CLASSES))
