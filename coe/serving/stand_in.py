"""A member that stands in for another one in a rehearsal: no weights, no cost, and answers by a fixed rule.

Queries of a rehearsal say whether they are hard. About easy ones all stand-ins give class 0 without doubt; about hard ones they
are unsure and, where classes allow it, of different opinions, so that most gates pass them on to the next tier.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from coe.runners.base import Batch
from coe.types import Member, Pool, Probabilities

RUNNER = "coe.serving.stand_in:StandIn"
HARD_TEXT, EASY_TEXT = "hard", "easy"
PREFERENCE = 0.1
"""What an unsure stand-in gives its favourite above the rest, in units of an equal share."""


class StandIn:
    """A runner. The option `favourite` is the class that it leans to where it is unsure."""

    def __init__(self, member: Member, pool: Pool, base_dir: Path) -> None:
        del base_dir
        self._classes = len(pool.classes)
        self._favourite = int(member.options.get("favourite", 0)) % self._classes

    def load(self) -> None:
        """Nothing to load."""

    def predict(self, batch: Batch) -> Probabilities:
        """Probabilities (n, classes) of a batch (n, *input_shape)."""
        first = np.asarray(batch).reshape(len(batch), -1)[:, 0]
        is_hard = first != 0 if first.dtype.kind in "iuf" else first == HARD_TEXT
        sure, unsure = np.zeros(self._classes), np.ones(self._classes)
        sure[0], unsure[self._favourite] = 1.0, 1.0 + PREFERENCE
        probs: Probabilities = np.where(is_hard[:, None], unsure / unsure.sum(), sure).astype(np.float32)
        return probs

    def close(self) -> None:
        """Nothing to free."""

    def memory_gib(self) -> float:
        """None."""
        return 0.0


def with_stand_ins(pool: Pool) -> Pool:
    """The pool with a stand-in for every member."""
    members = tuple(
        Member(name=m.name, runner=RUNNER, options={"favourite": n}, description=m.description)
        for n, m in enumerate(pool.members)
    )
    return pool.model_copy(update={"members": members})


def item_of(pool: Pool, *, is_hard: bool) -> Any:
    """What a request carries as `input`: zeros, of which the first says whether it is hard, or a text."""
    if pool.is_text:
        return HARD_TEXT if is_hard else EASY_TEXT
    numbers = np.zeros(pool.input_shape)
    numbers.flat[0] = float(is_hard)
    return numbers.tolist()
