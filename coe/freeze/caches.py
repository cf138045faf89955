"""A cache as it stands behind a block: pooling, a body that looks up, a threshold, and what to say on a hit.

Bodies are known by kind: ``knn`` and ``kmeans`` behind a reducer, and ``learned-fc``, ``learned-pool``, ``learned-conv``.
Each can be built again from its configuration alone, with its tensors then read from a file.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from coe.errors import InvalidInput, Problem
from coe.freeze.kmeans import KMeans
from coe.freeze.knn import KNN
from coe.freeze.learned import SHAPES, Learned
from coe.freeze.parts import Config, Found, Part, still
from coe.freeze.reduce import Reducer, pooled

KINDS: tuple[str, ...] = ("knn", "kmeans", *(f"learned-{shape}" for shape in SHAPES))


class Reduced(Part):
    """A reducer and a table of reduced activations."""

    def __init__(self, reducer: Reducer, table: KNN | KMeans) -> None:
        super().__init__()
        self.reducer = reducer
        self.table = table

    def config(self) -> Config:
        return {"reducer": self.reducer.config(), "table": self.table.config()}

    def forward(self, x: Tensor) -> Found:
        """Label and confidence of each of (n, …) pooled activations."""
        found: Found = self.table(self.reducer(x))
        return found


Body = Reduced | Learned


class Cache(Part):
    """A body with its pooling, its threshold, and the probability that a hit gives to the cached label."""

    def __init__(self, kind: str, pool: int | None, body: Body) -> None:
        super().__init__()
        self.kind = kind
        self.pool = pool
        self.body = body
        self.register_buffer("threshold", torch.zeros((), dtype=torch.float64))
        self.register_buffer("probability", torch.zeros((), dtype=torch.float64))

    def config(self) -> Config:
        return {"kind": self.kind, "pool": self.pool, "body": self.body.config()}

    def forward(self, activation: Tensor) -> Found:
        """Label and confidence of each item of a block's output."""
        found: Found = self.body(pooled(activation, self.pool))
        return found

    def log_probabilities(self, label: Tensor, classes: int) -> Tensor:
        """(n, classes) float32: `probability` for the cached label, the rest in equal parts for all others."""
        inside = self.probability.log().float()
        outside = ((1 - self.probability) / (classes - 1)).log().float()
        return torch.where(functional.one_hot(label, classes).bool(), inside, outside)


def build(config: Config) -> Cache:
    """An empty cache of a configuration, its tensors yet to be read."""
    body = _body(str(config["kind"]), config["body"])
    cache = Cache(str(config["kind"]), config["pool"], body)
    still(cache)
    return cache


def _body(kind: str, config: dict[str, Any]) -> Body:
    if kind in ("knn", "kmeans"):
        table = KNN if kind == "knn" else KMeans
        return Reduced(Reducer(**config["reducer"]), table(**config["table"]))
    if kind in KINDS:
        return Learned(**config)
    raise InvalidInput(Problem("kind of cache", "is not known", f"'{kind}'", f"known: {', '.join(KINDS)}"))
