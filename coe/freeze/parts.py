"""What the torch modules of this package share: their base class, what a lookup returns, seeds, sizes and devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Config = dict[str, Any]
"""What a part must be told to be built with tensors of the right shapes; JSON."""


class Part(nn.Module):  # type: ignore[misc]  # torch comes without types here
    """A module that can be built again, empty, from its `config`; its tensors then come from a file."""

    def config(self) -> Config:
        """Keyword arguments of the constructor."""
        return {}


class Found(NamedTuple):
    """What a cache says about a batch."""

    label: Tensor
    """(n,) int64: the cached label."""
    confidence: Tensor
    """(n,) float64 > 0: comparable within one cache, not across caches."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's generators start from `seed` inside, and go on as before outside."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def still(module: nn.Module) -> None:
    """No more training: evaluation mode, and no gradients for its parameters."""
    module.eval().requires_grad_(False)


def memory_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)


def device_of(module: nn.Module) -> torch.device:
    """Where the module's first parameter lies; the CPU for a module without any."""
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None else first.device
