"""Activations to short vectors: average pooling to a small grid, then the hidden layer of a one-layer network.

The network is trained to predict the wrapped model's own label from the activation (Kumar et al., width 1024); what it
has in its hidden layer then stands for the activation. The pooling in front is our addition: without it (`pool` None)
the first layer of the network alone would cost more than most blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from coe.freeze.parts import Part, seeded, still

BATCH = 128


def pooled(activation: Tensor, pool: int | None) -> Tensor:
    """Images (n, c, h, w) averaged to at most pool x pool, sequences (n, t, c) over t; `None` leaves all as it is."""
    if pool is not None and activation.ndim == 4:
        height, width = activation.shape[2:]
        if height > pool or width > pool:
            return functional.adaptive_avg_pool2d(activation, (min(pool, height), min(pool, width)))
    if pool is not None and activation.ndim == 3:
        return activation.mean(dim=1)
    return activation


class Standardise(Part):
    """Flattens, and shifts and scales each feature to mean 0 and deviation 1 over the cached items."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def config(self) -> dict[str, int]:
        return {"features": self.features}

    def fit(self, x: Tensor) -> None:
        """From features (n, …); a feature that never varies keeps its scale."""
        flat = x.flatten(1).float()
        deviation = flat.std(dim=0, correction=0)
        self.mean.copy_(flat.mean(dim=0))
        self.scale.copy_(torch.where(deviation > 1e-6, 1 / deviation.clamp(min=1e-6), torch.ones_like(deviation)))

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - self.mean) * self.scale


class Reducer(Part):
    """(n, …) pooled activations -> (n, width)."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.standardise = Standardise(features)
        self.hidden = nn.Linear(features, width)

    def config(self) -> dict[str, int]:
        return {"features": self.hidden.in_features, "width": self.hidden.out_features}

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.hidden(self.standardise(x)))


def fit_reducer(x: Tensor, labels: Tensor, classes: int, width: int, epochs: int, seed: int) -> Reducer:
    """A reducer trained on pooled activations x (n, …) to predict the model's `labels` (n,); x decides the device."""
    with seeded(seed):
        reducer = Reducer(x.flatten(1).shape[1], width)
        head = nn.Linear(width, classes)
        reducer.to(x.device).standardise.fit(x)
        train(nn.Sequential(reducer, head.to(x.device)), x, labels, epochs)
    still(reducer)
    return reducer


def train(network: nn.Module, x: Tensor, labels: Tensor, epochs: int) -> None:
    """Fit `network` to labels (n,) by cross entropy, in place."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    network.train()
    with torch.enable_grad():
        for _ in range(epochs):
            for rows in torch.randperm(len(x), device=x.device).split(BATCH):
                loss = functional.cross_entropy(network(x[rows]), labels[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    network.eval()
