"""What members said, in arrays: the outputs of a batch, the decision on it, and the table of recorded predictions.

Frozen dataclasses with read-only arrays, checked on construction.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from coe.errors import InvalidInput, Problem
from coe.types import MISSING_VOTE, BoolArray, FloatArray, IntArray, Probabilities


@dataclass(frozen=True)
class Outputs:
    """What the members of one tier said about a batch of items. A single query is a batch of one.

    answers: (items, members) class index, `MISSING_VOTE` where a member did not answer.
    probs: (items, members, classes), or None where members only give answers. Rows of missing votes are ignored.
    """

    answers: IntArray
    probs: Probabilities | None = None

    def __post_init__(self) -> None:
        if self.answers.ndim != 2:
            raise ValueError(f"answers must have shape (items, members), got {self.answers.shape}")
        if self.probs is not None and self.probs.shape[:2] != self.answers.shape:
            raise ValueError(f"probs {self.probs.shape} and answers {self.answers.shape} disagree on items or members")


@dataclass(frozen=True)
class Decision:
    """What a tier does with each item of a batch; all arrays have shape (items,).

    answer: class index, `MISSING_VOTE` where no member answered at all.
    accepted: True where the tier answers, False where it defers to the next.
    score: the rule's score; it is compared with the quorum or the threshold.
    degraded: True where at least one vote was missing.
    """

    answer: IntArray
    accepted: BoolArray
    score: FloatArray
    degraded: BoolArray


SPLITS = ("train", "calibration", "certification", "test")


@dataclass(frozen=True)
class PredictionTable:
    """Every member's output on the same items, with the labels. The ground truth of all that is computed offline.

    members: names, in column order.              items: (n,) unique ids.        labels: (n,) class index.
    splits: (n,) one of `SPLITS` per item.        answers: (n, members), `MISSING_VOTE` where a member has none.
    probs: (n, members, classes) float32 or None. sources: member name -> fingerprint of its code and weights.
    """

    members: tuple[str, ...]
    classes: tuple[str, ...]
    items: NDArray[np.str_]
    labels: IntArray
    splits: NDArray[np.str_]
    answers: IntArray
    probs: Probabilities | None = None
    sources: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = list(_table_problems(self))
        if problems:
            raise InvalidInput(problems)
        for array in (self.items, self.labels, self.splits, self.answers, self.probs):
            if array is not None:
                array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.items)

    def columns(self, members: Sequence[str]) -> list[int]:
        """Column numbers of `members`; `InvalidInput` names those that the table lacks."""
        lacking = [m for m in members if m not in self.members]
        if lacking:
            raise InvalidInput(
                Problem(
                    "predictions",
                    f"no predictions of {', '.join(lacking)}",
                    remedy=f"run `coe predict` for them; the table has: {', '.join(self.members)}",
                )
            )
        return [self.members.index(m) for m in members]

    def outputs(self, members: Sequence[str]) -> Outputs:
        """What `members`, in that order, said about every item."""
        cols = self.columns(members)
        return Outputs(self.answers[:, cols], None if self.probs is None else self.probs[:, cols])

    def rows(self, mask: BoolArray) -> PredictionTable:
        """The table restricted to the items where `mask` holds."""
        return PredictionTable(
            self.members,
            self.classes,
            self.items[mask],
            self.labels[mask],
            self.splits[mask],
            self.answers[mask],
            None if self.probs is None else self.probs[mask],
            self.sources,
        )

    def split(self, name: str) -> PredictionTable:
        """The items of one split; `InvalidInput` if it is empty."""
        mask = self.splits == name
        if not mask.any():
            there = ", ".join(sorted(set(self.splits.tolist()))) or "none"
            raise InvalidInput(
                Problem("predictions", f"the split '{name}' has no items", remedy=f"splits there: {there}")
            )
        return self.rows(mask)

    def fingerprint(self, members: Sequence[str] | None = None) -> str:
        """SHA-256 over items, labels and the outputs of `members` (all by default, order as given)."""
        cols = self.columns(members if members is not None else self.members)
        digest = hashlib.sha256()
        names = [self.members[c] for c in cols]
        digest.update(json.dumps([names, list(self.classes), self.items.tolist()]).encode())
        digest.update(self.labels.tobytes())
        digest.update(np.ascontiguousarray(self.answers[:, cols]).tobytes())
        if self.probs is not None:
            digest.update(np.ascontiguousarray(self.probs[:, cols]).tobytes())
        return digest.hexdigest()


def _table_problems(table: PredictionTable) -> Iterable[Problem]:
    """Everything that makes a prediction table unusable, with the item and member where it was found."""
    n, m, c = len(table.items), len(table.members), len(table.classes)
    where = "predictions"
    for name, array, shape in (
        ("labels", table.labels, (n,)),
        ("splits", table.splits, (n,)),
        ("answers", table.answers, (n, m)),
        ("probs", table.probs, (n, m, c)),
    ):
        if array is not None and array.shape != shape:
            yield Problem(where, f"{name} must have shape {shape}", str(array.shape), "all members need the same items")
            return
    if n == 0 or m == 0:
        yield Problem(where, "a table needs at least one item and one member", f"{n} items, {m} members")
        return
    items, counts = np.unique(table.items, return_counts=True)
    if (counts > 1).any():
        yield Problem(f"{where}: items", "every item id must be unique", f"'{items[counts > 1][0]}' more than once")
    unknown = sorted(set(table.splits.tolist()) - set(SPLITS))
    if unknown:
        yield Problem(f"{where}: splits", f"must be among {', '.join(SPLITS)}", ", ".join(unknown))
    if ((table.labels < 0) | (table.labels >= c)).any():
        row = int(np.flatnonzero((table.labels < 0) | (table.labels >= c))[0])
        yield Problem(f"{where}: item '{table.items[row]}'", f"the label must be in 0..{c - 1}", str(table.labels[row]))
    if ((table.answers < MISSING_VOTE) | (table.answers >= c)).any():
        row, col = np.argwhere((table.answers < MISSING_VOTE) | (table.answers >= c))[0]
        place = f"{where}: item '{table.items[row]}', member '{table.members[col]}'"
        yield Problem(place, f"the answer must be in 0..{c - 1}", str(table.answers[row, col]))
    if table.probs is not None:
        yield from _probability_problems(table, where)


def _probability_problems(table: PredictionTable, where: str) -> Iterable[Problem]:
    """The first NaN, negative or badly summing row of probabilities; rows of missing votes are not looked at."""
    assert table.probs is not None
    there = table.answers != MISSING_VOTE
    total = table.probs.sum(axis=2, dtype=np.float64)
    for rule, bad in (
        ("probabilities must not be NaN or infinite", ~np.isfinite(table.probs).all(axis=2)),
        ("probabilities must not be negative", (table.probs < 0).any(axis=2)),
        ("probabilities must sum to 1 (within 0.001)", ~(np.abs(total - 1) <= 1e-3)),
    ):
        if (bad & there).any():
            row, col = np.argwhere(bad & there)[0]
            place = f"{where}: item '{table.items[row]}', member '{table.members[col]}'"
            found = f"{table.probs[row, col].tolist()[:4]}… with sum {total[row, col]:.4g}"
            yield Problem(place, rule, found, "apply softmax, or import the outputs as answers only")
            return
