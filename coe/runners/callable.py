"""A member that is a plain function: batch (n, *input_shape) in, probabilities (n, classes) out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from coe.errors import InvalidInput, Problem
from coe.runners.base import Batch, imported
from coe.types import Member, Pool, Probabilities


class CallableRunner:
    """Calls the function that `model` names, with the member's options as keyword arguments.

    Raises `InvalidInput` for a member with weights: a function keeps its own.
    """

    def __init__(self, member: Member, pool: Pool, base_dir: Path) -> None:
        del pool  # a function needs no more than the batch
        if member.weights is not None:
            rule = "runner 'callable' does not load weights"
            remedy = "read them in the function's module, or write a runner and name it by dotted path"
            raise InvalidInput(Problem(f"member '{member.name}'", rule, member.weights, remedy))
        self._member = member
        self._base_dir = base_dir
        self._function: Callable[..., Any] | None = None

    def load(self) -> None:
        """Import the function."""
        self._function = imported(self._member, self._base_dir)

    def predict(self, batch: Batch) -> Probabilities:
        """What the function returns."""
        assert self._function is not None, "load() comes first"
        return np.asarray(self._function(batch, **self._member.options))

    def close(self) -> None:
        """Nothing to free."""

    def memory_gib(self) -> float:
        """0: what a function holds is not known."""
        return 0.0
