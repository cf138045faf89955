"""A batch before a tier: which votes have been heard, and whose fate is open."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coe.router.queries import Batch, Query
from coe.types import ABSTAINED, MISSING_VOTE, BoolArray, FloatArray, IntArray, Probabilities


@dataclass
class Hearing:
    """A batch before a tier: what its voters have said, and which queries are still open.

    open: (items,).   asked, failed: (items, own members); failed marks votes that were asked for and will not come.
    """

    batch: list[Query]
    items: Batch
    answers: IntArray
    probs: Probabilities
    asked: BoolArray
    failed: BoolArray
    open: BoolArray
    due_s: FloatArray
    """(items,): when this tier stops waiting for votes."""

    @property
    def is_audit(self) -> bool:
        """True where its queries have been answered already."""
        return self.batch[0].audited is not None

    @property
    def unheard(self) -> BoolArray:
        """(items, own members): no vote so far."""
        missing: BoolArray = self.answers[:, : self.asked.shape[1]] == MISSING_VOTE
        return missing

    def note_votes(self, rows: IntArray, column: int, probs: Probabilities) -> None:
        """Write down what a member said about rows; for an item that it has no numbers for, its vote is missing."""
        there = np.isfinite(probs).all(axis=1)
        answers = np.where(probs.any(axis=1), probs.argmax(axis=1), ABSTAINED)
        self.answers[rows, column] = np.where(there, answers, MISSING_VOTE)
        self.probs[rows[there], column] = probs[there]
        self.failed[rows[~there], column] = True
