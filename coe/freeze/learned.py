"""The learned cache: a small network predicts the model's label, a second one says whether to believe it.

The predictor reads the pooled activation, in one of three shapes. The selector reads the predictor's probabilities, as
they are and sorted, and is trained to tell right predictions from wrong ones, where letting a wrong one pass counts
`false_hit_weight` times. It sees items that the predictor has not been trained on: on its own training items the
predictor is hardly ever wrong. The confidence is the selector's odds of being right, so 1 is its even chance and no
rounding makes confident items equal.

The form is that of GATI (arXiv 2101.07344); sizes, the sorted input and the split of the items are our reading.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from coe.freeze.parts import Found, Part, seeded, still
from coe.freeze.reduce import BATCH, Standardise, train

Shape = Literal["fc", "pool", "conv"]
SHAPES: tuple[Shape, ...] = ("fc", "pool", "conv")
PREDICTOR_SHARE = 0.7
"""Share of the cached items that train the predictor; the rest train the selector."""


class Predictor(Part):
    """(n, …) pooled activations -> (n, classes) logits, with one hidden layer.

    ``fc`` reads all of the grid, ``pool`` its average over positions, ``conv`` a 3 x 3 convolution of it; the latter two
    need images (n, c, h, w).
    """

    def __init__(self, shape: Shape, dims: list[int], hidden: int, classes: int) -> None:
        super().__init__()
        self.kind, self.dims, self.width, self.classes = shape, dims, hidden, classes
        features = int(torch.tensor(dims).prod())
        self.standardise = Standardise(features)
        if shape == "fc":
            body: list[nn.Module] = [nn.Flatten(), nn.Linear(features, hidden)]
        elif shape == "pool":
            body = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(dims[0], hidden)]
        else:
            channels = max(4, hidden // 8)
            body = [nn.Conv2d(dims[0], channels, 3, padding=1), nn.ReLU(), nn.Flatten()]
            body.append(nn.Linear(channels * dims[1] * dims[2], hidden))
        self.body = nn.Sequential(*body, nn.ReLU(), nn.Linear(hidden, classes))

    def config(self) -> dict[str, object]:
        return {"shape": self.kind, "dims": self.dims, "hidden": self.width, "classes": self.classes}

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.standardise(x).unflatten(1, self.dims))


class Learned(Part):
    """Predictor and selector."""

    def __init__(self, shape: Shape, dims: list[int], hidden: int, classes: int, selector_hidden: int = 16) -> None:
        super().__init__()
        self.predictor = Predictor(shape, dims, hidden, classes)
        self.selector = nn.Sequential(nn.Linear(2 * classes, selector_hidden), nn.ReLU(), nn.Linear(selector_hidden, 1))
        self.selector_hidden = selector_hidden

    def config(self) -> dict[str, object]:
        return {**self.predictor.config(), "selector_hidden": self.selector_hidden}

    def forward(self, x: Tensor) -> Found:
        """Label and confidence of each of (n, …) pooled activations."""
        probabilities = functional.softmax(self.predictor(x), dim=1)
        odds = self.select(probabilities).double().clamp(-300, 300).exp()
        return Found(probabilities.argmax(dim=1), odds)

    def select(self, probabilities: Tensor) -> Tensor:
        """(n,) log-odds that the predictor is right."""
        ordered = probabilities.sort(dim=1, descending=True).values
        return self.selector(torch.cat([probabilities, ordered], dim=1)).squeeze(1)


def fit_learned(
    x: Tensor,
    labels: Tensor,
    classes: int,
    *,
    shape: Shape,
    hidden: int,
    epochs: int,
    false_hit_weight: float,
    seed: int,
) -> Learned:
    """A cache trained on pooled activations x (n, …) to say the model's `labels` (n,) and when it can."""
    with seeded(seed):
        cache = Learned(shape, list(x.shape[1:]), hidden, classes)
        cache.to(x.device)
        order = torch.randperm(len(x), device=x.device)
        cut = max(1, int(PREDICTOR_SHARE * len(x)))
        first, second = order[:cut], order[cut:]
        cache.predictor.standardise.fit(x)
        train(cache.predictor, x[first], labels[first], epochs)
        with torch.no_grad():
            probabilities = torch.cat(
                [functional.softmax(cache.predictor(part), dim=1) for part in x[second].split(4096)]
            )
        right = probabilities.argmax(dim=1) == labels[second]
        _train_selector(cache, probabilities, right, epochs, false_hit_weight)
    still(cache)
    return cache


def _train_selector(cache: Learned, probabilities: Tensor, right: Tensor, epochs: int, weight: float) -> None:
    """Weighted cross entropy of right (n,) bool, `weight` for each prediction that is wrong."""
    optimiser = torch.optim.AdamW(cache.selector.parameters(), lr=1e-2, weight_decay=1e-3)
    cost = torch.where(right, 1.0, weight)
    with torch.enable_grad():
        for _ in range(4 * epochs):
            for rows in torch.randperm(len(right), device=right.device).split(BATCH):
                loss = functional.binary_cross_entropy_with_logits(
                    cache.select(probabilities[rows]), right[rows].float(), weight=cost[rows]
                )
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
