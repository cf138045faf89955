"""Trains every kind of cache behind every block, and asks each about validation items.

Caches learn from `cache_items` and thresholds from `validation_items`; both need no labels, since what counts is what the
wrapped model itself says. The two must not overlap: an item that is in the cache finds itself.
Which of the caches to keep is left to `compose`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from coe.errors import InvalidInput, Problem
from coe.freeze.blocks import Blocks, check_same_function, split
from coe.freeze.caches import KINDS, Body, Cache, Reduced
from coe.freeze.compose import Cost, Option
from coe.freeze.costs import Unit, block_costs, cost
from coe.freeze.kmeans import fit_kmeans
from coe.freeze.knn import fit_knn
from coe.freeze.learned import SHAPES, fit_learned
from coe.freeze.parts import device_of, memory_bytes, still
from coe.freeze.reduce import Reducer, fit_reducer, pooled
from coe.freeze.thresholds import pessimistic, tuned
from coe.types import BoolArray, FloatArray, IntArray

Progress = Callable[[str, int, int], None]
"""Called with what is done now, how many steps are done and how many there are."""

MARGIN = 1e-4
"""Thresholds lie this fraction above the confidence they exclude: batches of other sizes round differently."""


@dataclass(frozen=True)
class Settings:
    """Sizes and trainings; the defaults are the paper's where it states one."""

    width: int = 1024
    """Of the reduction network's hidden layer."""
    pool: int | None = 4
    """Images are averaged to a grid of at most this many cells a side before all else; None leaves them whole."""
    reducer_epochs: int = 8
    k: int = 10
    """Neighbours of the k-nearest-neighbour cache."""
    clusters: int = 200
    hidden: int = 128
    """Of a learned predictor's hidden layer."""
    learned_epochs: int = 12
    false_hit_weight: float = 5.0
    """How many times a wrong prediction counts when the selector is trained."""
    batch_size: int = 64
    """Of a full batch, as the frozen model will be asked; seconds are measured with it."""
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Variant:
    """A trained cache behind one block, and what it says about the validation items."""

    kind: str
    body: Body
    label: IntArray
    """(n,) cached label."""
    confidence: FloatArray
    """(n,)"""
    lookup_cost: Cost
    """With pooling and reduction; in seconds also with re-forming the batch."""

    @property
    def memory_bytes(self) -> int:
        """Of the table or networks, and of the reduction network."""
        return memory_bytes(self.body)


@dataclass(frozen=True, eq=False)
class Exploration:
    """Every variant behind every block. `variants` has one entry per block, and none after the last."""

    blocks: tuple[nn.Module, ...]
    classes: int
    settings: Settings
    unit: Unit
    block_costs: tuple[Cost, ...]
    variants: tuple[tuple[Variant, ...], ...]
    model_label: IntArray
    """(n,) what the wrapped model says about the validation items."""
    model_probs: FloatArray
    """(n, classes)"""

    def right(self, variant: Variant) -> BoolArray:
        """(n,) whether the cached label is the model's."""
        right: BoolArray = variant.label == self.model_label
        return right

    def threshold(self, variant: Variant, error_budget: float) -> float:
        """Pessimistic for a budget of 0, tuned to it otherwise; with the margin for rounding."""
        right = self.right(variant)
        found = pessimistic(variant.confidence, right) if error_budget == 0 else 0.0
        if error_budget > 0:
            found = tuned(variant.confidence, right, error_budget)
        return found * (1 + MARGIN)

    def option(self, variant: Variant, threshold: float) -> Option:
        """A variant with a threshold, as `compose` weighs it."""
        return Option(
            name=variant.kind,
            hits=variant.confidence > threshold,
            wrong=~self.right(variant),
            lookup_cost=variant.lookup_cost,
            memory_bytes=variant.memory_bytes,
        )

    def cache(self, variant: Variant, threshold: float, first: BoolArray) -> Cache:
        """A variant as a module. `first` (n,) are the validation items whose first hit it is.

        On a hit the cached label gets the mean probability that the model itself gave it over those items, counted as if
        one item more had been given an even chance over the classes.
        """
        given = self.model_probs[np.flatnonzero(first), variant.label[first]]
        mean = (given.sum() + 1 / self.classes) / (len(given) + 1)
        least = 1 / self.classes + 0.1 * (1 - 1 / self.classes)  # the cached label stays the most probable one
        cache = Cache(variant.kind, self.settings.pool, variant.body)
        cache.threshold.fill_(threshold)
        cache.probability.fill_(float(np.clip(mean, least, 1 - 1e-6)))
        still(cache)
        cache.to(device_of(variant.body))
        return cache


def explore(
    model: nn.Module,
    blocks: Blocks = None,
    *,
    cache_items: Any,
    validation_items: Any,
    kinds: Sequence[str] = ("knn", "kmeans"),
    unit: Unit = "seconds",
    settings: Settings | None = None,
    only_after: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Exploration:
    """Train caches of all `kinds` behind every block but the last, or behind those in `only_after` (counted from 0).

    Items are arrays or tensors (n, *input_shape). The model is put in evaluation mode, runs where its parameters are, and
    is not changed. Pooled activations of all blocks are held in memory at once. Raises `InvalidInput` for unknown kinds,
    too few items, and blocks that are not the model.
    """
    settings = settings or Settings()
    cached, asked = as_tensor(cache_items), as_tensor(validation_items)
    _check(kinds, cached, asked)
    _check_apart(cached, asked)
    model = model.eval()
    chain = split(model, blocks)
    check_same_function(model, chain, asked[:4])
    places = range(len(chain) - 1) if only_after is None else [b for b in only_after if b < len(chain) - 1]
    features, logits = _gather(chain, cached, settings.pool, device_of(model))
    asked_features, asked_logits = _gather(chain, asked, settings.pool, device_of(model))
    classes = int(logits.shape[1])
    sample = asked[: settings.batch_size].to(device_of(model))
    samples = _outputs(chain, sample)
    told = progress or _silent
    variants: list[tuple[Variant, ...]] = [() for _ in chain]
    steps = len(places) * len(kinds)
    for i, block in enumerate(places):
        bodies = _Fitter(features[block], logits.argmax(dim=1), classes, replace(settings, seed=settings.seed + block))
        found = []
        for j, kind in enumerate(kinds):
            told(f"{kind} after block {block + 1} of {len(chain)}", i * len(kinds) + j, steps)
            body = bodies.fit(kind)
            if body is not None:
                found.append(_variant(kind, body, asked_features[block], samples[block], settings.pool, unit))
        variants[block] = tuple(found)
        features[block] = asked_features[block] = torch.empty(0)  # done with it
    told("done", steps, steps)
    return Exploration(
        blocks=tuple(chain),
        classes=classes,
        settings=settings,
        unit=unit,
        block_costs=tuple(block_costs(chain, sample, unit)),
        variants=tuple(variants),
        model_label=asked_logits.argmax(dim=1).cpu().numpy(),
        model_probs=torch.softmax(asked_logits.double(), dim=1).cpu().numpy(),
    )


def _silent(what: str, done: int, total: int) -> None:
    del what, done, total


def as_tensor(items: Any) -> Tensor:
    """Floating point items as float32, whole numbers as they are."""
    tensor = items if isinstance(items, torch.Tensor) else torch.tensor(np.asarray(items))
    return tensor.float() if tensor.is_floating_point() else tensor


def _check(kinds: Sequence[str], cached: Tensor, asked: Tensor) -> None:
    problems = [
        Problem("kinds", f"'{kind}' is not a known kind of cache", remedy=f"known: {', '.join(KINDS)}")
        for kind in kinds
        if kind not in KINDS
    ]
    for name, items in (("cache_items", cached), ("validation_items", asked)):
        if len(items) < 20:
            problems.append(
                Problem(name, "must be at least 20", str(len(items)), "a threshold from so few says nothing")
            )
    if problems:
        raise InvalidInput(problems)


TWINS_ALLOWED = 0.05
"""Share of validation items that may equal a cached one: real data has some duplicates, a split made wrongly has many."""


def _check_apart(cached: Tensor, asked: Tensor) -> None:
    known = {item.tobytes() for item in cached.cpu().numpy()}
    twins = sum(item.tobytes() in known for item in asked.cpu().numpy())
    if twins > TWINS_ALLOWED * len(asked):
        remedy = "an item finds itself in the cache; split the items first"
        raise InvalidInput(
            Problem("validation_items", "must not be among the cached ones", f"{twins} that are", remedy)
        )


def _gather(
    chain: Sequence[nn.Module], items: Tensor, pool: int | None, device: torch.device
) -> tuple[list[Tensor], Tensor]:
    """Pooled activations after every block but the last, and the logits, of all items."""
    found: list[list[Tensor]] = [[] for _ in chain]
    with torch.no_grad():
        for part in items.split(256):
            here = part.to(device)
            for block, outputs in zip(chain, found, strict=True):
                here = block(here)
                if not isinstance(here, torch.Tensor):
                    raise InvalidInput(Problem("blocks", "must return one tensor", type(here).__name__))
                outputs.append(here if outputs is found[-1] else pooled(here, pool))
    gathered = [torch.cat(outputs) for outputs in found]
    return gathered[:-1], gathered[-1]


class _Fitter:
    """Fits bodies behind one block; the reduction network is trained once for all tables that need it."""

    def __init__(self, x: Tensor, labels: Tensor, classes: int, settings: Settings) -> None:
        self._x, self._labels, self._classes, self._settings = x, labels, classes, settings
        self._reduced: tuple[Reducer, Tensor] | None = None

    def fit(self, kind: str) -> Body | None:
        """A body of that kind; None where the activations do not have the shape that it needs."""
        s = self._settings
        if kind in ("knn", "kmeans"):
            reducer, reduced = self._reducer()
            if kind == "knn":
                return Reduced(reducer, fit_knn(reduced, self._labels, self._classes, s.k))
            return Reduced(reducer, fit_kmeans(reduced, self._labels, self._classes, s.clusters, s.seed))
        shape = next(shape for shape in SHAPES if kind == f"learned-{shape}")
        if shape != "fc" and self._x.ndim != 4:
            return None
        return fit_learned(
            self._x,
            self._labels,
            self._classes,
            shape=shape,
            hidden=s.hidden,
            epochs=s.learned_epochs,
            false_hit_weight=s.false_hit_weight,
            seed=s.seed,
        )

    def _reducer(self) -> tuple[Reducer, Tensor]:
        if self._reduced is None:
            s = self._settings
            reducer = fit_reducer(self._x, self._labels, self._classes, s.width, s.reducer_epochs, s.seed)
            with torch.no_grad():
                self._reduced = reducer, torch.cat([reducer(part) for part in self._x.split(4096)])
        return self._reduced


def _outputs(chain: Sequence[nn.Module], batch: Tensor) -> list[Tensor]:
    """What every block makes of one batch, unpooled."""
    found = []
    with torch.no_grad():
        for block in chain:
            batch = block(batch)
            found.append(batch)
    return found


def _variant(kind: str, body: Body, asked: Tensor, sample: Tensor, pool: int | None, unit: Unit) -> Variant:
    """What a body says about pooled activations `asked`, and what it costs on an unpooled batch `sample`."""
    with torch.no_grad():
        found = [body(part) for part in asked.split(1024)]
    label = torch.cat([f.label for f in found])
    confidence = torch.cat([f.confidence for f in found])
    middle = confidence.median()

    def looked_up_and_re_formed(batch: Tensor) -> Tensor:
        hit = body(pooled(batch, pool)).confidence > middle
        return batch[~hit]

    lookup_cost = cost(looked_up_and_re_formed, sample, unit)
    return Variant(kind, body, label.cpu().numpy(), confidence.cpu().numpy(), lookup_cost)
