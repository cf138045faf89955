"""The k-nearest-neighbour cache: every cached item's reduced activation and the label that the model gave it.

For label i with m_i of the k neighbours, at distances d_j: S_i = m_i / k, and C_i = S_i * sum_j 1 / d_j. The answer is
the label with the largest C and that C (Kumar et al.).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from coe.freeze.parts import Found, Part

NEAREST = 1e-6
"""Distances are at least this, so that meeting a cached item again gives a large and not an infinite confidence."""
CHUNK = 2048
"""Queries at a time: all distances of a chunk are in memory at once."""


class KNN(Part):
    """vectors (items, width) and labels (items,) of the cached items."""

    def __init__(self, items: int, width: int, classes: int, k: int) -> None:
        super().__init__()
        self.classes = classes
        self.k = k
        self.register_buffer("vectors", torch.zeros(items, width))
        self.register_buffer("labels", torch.zeros(items, dtype=torch.int64))

    def config(self) -> dict[str, int]:
        items, width = self.vectors.shape
        return {"items": items, "width": width, "classes": self.classes, "k": self.k}

    def forward(self, reduced: Tensor) -> Found:
        """Label and confidence of each of (n, width) reduced activations; equal confidences go to the lower label."""
        found = [self._chunk(part) for part in reduced.split(CHUNK)]
        return Found(torch.cat([f.label for f in found]), torch.cat([f.confidence for f in found]))

    def _chunk(self, reduced: Tensor) -> Found:
        k = min(self.k, len(self.vectors))
        distance, neighbour = nearest(reduced, self.vectors, k)
        member = functional.one_hot(self.labels[neighbour], self.classes).double()  # (n, k, classes)
        share = member.sum(dim=1) / k
        confidence = share * (member / distance.double().unsqueeze(2)).sum(dim=1)
        best, label = confidence.max(dim=1)
        return Found(label, best)


def fit_knn(reduced: Tensor, labels: Tensor, classes: int, k: int) -> KNN:
    """A cache of all of (n, width) reduced activations."""
    cache = KNN(len(reduced), reduced.shape[1], classes, k)
    cache.to(reduced.device)
    cache.vectors.copy_(reduced)
    cache.labels.copy_(labels)
    return cache


def nearest(points: Tensor, centres: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Distances (n, k) and indices (n, k) of the k centres nearest to each of (n, width) points, nearest first.

    Found by one matrix product, then measured again by subtraction: the product alone loses the digits of small
    distances, which carry the highest confidences.
    """
    squared = centres.square().sum(dim=1) - 2 * points @ centres.T  # |point|^2 is the same for all centres
    index = squared.topk(k, dim=1, largest=False).indices
    distance = (points.unsqueeze(1) - centres[index]).norm(dim=2).clamp(min=NEAREST)
    order = distance.argsort(dim=1, stable=True)
    return distance.gather(1, order), index.gather(1, order)
