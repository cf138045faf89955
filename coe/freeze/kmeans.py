"""The k-means cache: cluster centres, each with its majority label and the share of its items that have it.

The answer is the label of the nearest centre, with confidence = majority share / distance (Kumar et al.). It takes a
few hundred vectors where the k-nearest-neighbour cache takes all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from coe.freeze.knn import nearest
from coe.freeze.parts import Found, Part

CHUNK = 8192


class KMeans(Part):
    """centres (clusters, width), majority labels (clusters,) and majority shares (clusters,)."""

    def __init__(self, clusters: int, width: int) -> None:
        super().__init__()
        self.register_buffer("centres", torch.zeros(clusters, width))
        self.register_buffer("labels", torch.zeros(clusters, dtype=torch.int64))
        self.register_buffer("shares", torch.zeros(clusters))

    def config(self) -> dict[str, int]:
        clusters, width = self.centres.shape
        return {"clusters": clusters, "width": width}

    def forward(self, reduced: Tensor) -> Found:
        """Label and confidence of each of (n, width) reduced activations."""
        distance, index = nearest(reduced, self.centres, 1)
        at = index[:, 0]
        return Found(self.labels[at], self.shares[at].double() / distance[:, 0].double())


def fit_kmeans(reduced: Tensor, labels: Tensor, classes: int, clusters: int, seed: int, rounds: int = 25) -> KMeans:
    """A cache of at most `clusters` clusters of (n, width) reduced activations; no cluster is empty."""
    centres = cluster(reduced, min(clusters, len(reduced)), seed, rounds)
    assigned = _assign(reduced, centres)
    votes = torch.zeros(len(centres), classes, dtype=torch.float64, device=reduced.device)
    weights = functional.one_hot(labels, classes).double()
    votes.index_add_(0, assigned, weights)
    size = votes.sum(dim=1)
    kept = size > 0
    most, label = votes[kept].max(dim=1)
    cache = KMeans(int(kept.sum()), reduced.shape[1])
    cache.to(reduced.device)
    cache.centres.copy_(centres[kept])
    cache.labels.copy_(label)
    cache.shares.copy_(most / size[kept])
    return cache


def cluster(points: Tensor, clusters: int, seed: int, rounds: int) -> Tensor:
    """Centres (clusters, width) by k-means++ and Lloyd's rounds; a cluster that runs empty moves to the farthest point."""
    generator = torch.Generator().manual_seed(seed)
    centres = _spread(points, clusters, generator)
    before = None
    for _ in range(rounds):
        assigned = _assign(points, centres)
        if before is not None and torch.equal(assigned, before):
            break
        before = assigned
        size = torch.bincount(assigned, minlength=clusters)
        total = torch.zeros_like(centres).index_add_(0, assigned, points)
        centres = torch.where(size.unsqueeze(1) > 0, total / size.clamp(min=1).unsqueeze(1), centres)
        empty = torch.nonzero(size == 0).flatten()
        if len(empty):
            distance = (points - centres[assigned]).square().sum(dim=1)
            centres[empty] = points[distance.topk(len(empty)).indices]
    return centres


def _spread(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """k-means++: each next centre is drawn with probability proportional to its squared distance from those chosen."""
    first = int(torch.randint(len(points), (1,), generator=generator))
    chosen = [first]
    distance = (points - points[first]).square().sum(dim=1)
    for _ in range(clusters - 1):
        mass = distance.double().cumsum(0)
        draw = torch.rand(1, generator=generator, dtype=torch.float64).to(points.device) * mass[-1]
        index = int(torch.searchsorted(mass, draw).clamp(max=len(points) - 1))
        chosen.append(index)
        distance = torch.minimum(distance, (points - points[index]).square().sum(dim=1))
    return points[torch.tensor(chosen, device=points.device)].clone()


def _assign(points: Tensor, centres: Tensor) -> Tensor:
    """(n,) index of the nearest centre."""
    squares = centres.square().sum(dim=1)
    return torch.cat([(squares - 2 * part @ centres.T).argmin(dim=1) for part in points.split(CHUNK)])
