"""A member that replays what it once said: recorded predictions instead of a model.

With it a whole service runs anywhere, and what it answers can be compared with the table item by item. An item's input
is its row number in the table, so the pool's `input_shape` is ``[1]``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from coe.errors import InvalidInput, Problem
from coe.files import read_predictions
from coe.runners.base import Batch, resolved, row_numbers
from coe.table import PredictionTable
from coe.types import MISSING_VOTE, IntArray, Member, Pool, Probabilities

GIB = 2**30


class TableRunner:
    """Replays the column `options.member` (by default the member's own name) of the table `options.predictions`.

    Answers without probabilities are replayed as certainties.
    """

    def __init__(self, member: Member, pool: Pool, base_dir: Path) -> None:
        self._where = f"member '{member.name}'"
        unknown = sorted(set(member.options) - {"predictions", "member"})
        if unknown or "predictions" not in member.options:
            found = f"options {', '.join(sorted(member.options)) or 'none'}"
            rule = "runner 'table' takes the options predictions (an .npz file) and member (a column of it)"
            raise InvalidInput(Problem(self._where, rule, found))
        self._path = resolved(str(member.options["predictions"]), base_dir)
        self._column_name = str(member.options.get("member", member.name))
        self._classes = pool.classes
        self._answers: IntArray | None = None
        self._probs: Probabilities | None = None

    def load(self) -> None:
        """Read the table, and refuse one with other classes or without this member."""
        table = read_predictions(self._path)
        if table.classes != self._classes:
            rule = f"the classes of {self._path} must be those of the pool"
            raise InvalidInput(Problem(self._where, rule, ", ".join(table.classes[:8])))
        self._keep(table, table.columns([self._column_name])[0])

    def _keep(self, table: PredictionTable, column: int) -> None:
        self._answers = np.ascontiguousarray(table.answers[:, column])
        if table.probs is not None:
            self._probs = np.ascontiguousarray(table.probs[:, column])

    def predict(self, batch: Batch) -> Probabilities:
        """Probabilities (n, classes) recorded for a batch (n, 1) of row numbers.

        Raises `InvalidInput` for a row that the table does not have, or where this member has no answer.
        """
        assert self._answers is not None, "load() comes first"
        rows = self._rows(batch)
        answers = self._answers[rows]
        if (answers == MISSING_VOTE).any():
            row = int(rows[(answers == MISSING_VOTE).argmax()])
            raise InvalidInput(Problem(self._where, f"has no recorded answer for row {row} of {self._path}"))
        if self._probs is not None:
            return self._probs[rows]
        certain: Probabilities = np.eye(len(self._classes), dtype=np.float32)[answers]
        return certain

    def _rows(self, batch: Batch) -> IntArray:
        assert self._answers is not None
        return row_numbers(batch, len(self._answers), self._where)

    def close(self) -> None:
        """Forget the table."""
        self._answers = self._probs = None

    def memory_gib(self) -> float:
        """Size of the recorded column."""
        arrays = (self._answers, self._probs)
        return sum(a.nbytes for a in arrays if a is not None) / GIB
