"""What members said, in arrays: the outputs of a batch, the decision on it, and the table of recorded predictions.

Frozen dataclasses with read-only arrays, checked on construction.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from coe.errors import InvalidInput, Problem
from coe.types import ABSTAINED, MISSING_VOTE, BoolArray, Classes, FloatArray, IntArray, Probabilities, Tokens


@dataclass(frozen=True)
class Outputs:
    """What the members of one tier said about a batch of items. A single query is a batch of one.

    answers: (items, members) class index, `MISSING_VOTE` where a member did not answer, `ABSTAINED` where its output
    holds no answer.
    probs: (items, members, classes), or None where members only give answers. Rows without a vote are ignored.
    top: None where `probs` covers every class; otherwise (items, members, k), the class of each entry of `probs`, which then
    has that shape too and falls along its last axis. What the other classes share is unknown but for its sum.
    classes: how many classes there are; needed only with `top`.
    texts: the answers that the indices stand for, for rules that read them.
    """

    answers: IntArray
    probs: Probabilities | None = None
    top: Classes | None = None
    classes: int = 0
    texts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.answers.ndim != 2:
            raise ValueError(f"answers must have shape (items, members), got {self.answers.shape}")
        if self.probs is not None and self.probs.shape[:2] != self.answers.shape:
            raise ValueError(f"probs {self.probs.shape} and answers {self.answers.shape} disagree on items or members")
        if self.top is not None and (self.probs is None or self.probs.shape != self.top.shape or self.classes < 1):
            raise ValueError("top needs probs of its own shape, and the number of classes")

    def columns(self, members: Sequence[int]) -> Outputs:
        """The outputs of the members at these positions, in this order."""
        at = list(members)
        return replace(
            self,
            answers=self.answers[:, at],
            probs=None if self.probs is None else self.probs[:, at],
            top=None if self.top is None else self.top[:, at],
        )

    def rows(self, at: BoolArray | IntArray) -> Outputs:
        """The outputs on some of the items."""
        return replace(
            self,
            answers=self.answers[at],
            probs=None if self.probs is None else self.probs[at],
            top=None if self.top is None else self.top[at],
        )

    def without(self, members: BoolArray) -> Outputs:
        """The outputs as if the members where `members` (members,) is True had not answered."""
        return replace(self, answers=np.where(members[None, :], MISSING_VOTE, self.answers))


@dataclass(frozen=True)
class Decision:
    """What a tier does with each item of a batch; all arrays have shape (items,).

    answer: class index, `MISSING_VOTE` where no member answered at all.
    accepted: True where the tier answers, False where it defers to the next.
    score: the rule's score; it is compared with the quorum or the threshold.
    degraded: True where at least one vote was missing.
    settled: True where the missing votes, whatever they were, could change neither answer nor acceptance.
    """

    answer: IntArray
    accepted: BoolArray
    score: FloatArray
    degraded: BoolArray
    settled: BoolArray

    def rows(self, which: BoolArray) -> Decision:
        """The decision on some items of the batch."""
        return Decision(
            self.answer[which], self.accepted[which], self.score[which], self.degraded[which], self.settled[which]
        )


_BLOCK = 4096
_ROUNDING = 1e-3
_HALF_ROUNDING = 5e-3
"""Five half-precision probabilities may add up to this much more than 1."""

SPLITS = ("train", "calibration", "certification", "test")


@dataclass(frozen=True)
class PredictionTable:
    """Every member's output on the same items, with the labels. The ground truth of all that is computed offline.

    members: names, in column order.              items: (n,) unique ids.        labels: (n,) class index.
    splits: (n,) one of `SPLITS` per item.        answers: (n, members) class index, `MISSING_VOTE` or `ABSTAINED`.
    probs: (n, members, classes) float32 or None; with `top` (n, members, k) only the k most probable classes, falling.
    top: (n, members, k) class of each entry of `probs`, or None where it covers every class.
    content: (n,) hash of each item's input, or None; items of equal content must not be in two splits.
    tokens: (n, members, 2) prompt and completion tokens of each call, or None where calls are not priced by token.
    classes: class names; for free text every normalised answer that occurs, which the indices stand for.
    sources: member name -> fingerprint of its code and weights, or where its outputs were imported from.
    """

    members: tuple[str, ...]
    classes: tuple[str, ...]
    items: NDArray[np.str_]
    labels: IntArray
    splits: NDArray[np.str_]
    answers: IntArray
    probs: Probabilities | None = None
    sources: dict[str, str] = field(default_factory=dict)
    top: Classes | None = None
    tokens: Tokens | None = None
    content: NDArray[np.str_] | None = None

    def __post_init__(self) -> None:
        problems = list(_table_problems(self))
        if problems:
            raise InvalidInput(problems)
        for array in (
            self.items,
            self.labels,
            self.splits,
            self.answers,
            self.probs,
            self.top,
            self.tokens,
            self.content,
        ):
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

    @property
    def top_k(self) -> int | None:
        """How many probabilities of each output are known; None where all are, or none."""
        return None if self.top is None else self.top.shape[2]

    def outputs(self, members: Sequence[str]) -> Outputs:
        """What `members`, in that order, said about every item."""
        cols = self.columns(members)
        return Outputs(
            self.answers[:, cols],
            None if self.probs is None else self.probs[:, cols],
            None if self.top is None else self.top[:, cols],
            len(self.classes),
            self.classes,
        )

    def rows(self, mask: BoolArray) -> PredictionTable:
        """The table restricted to the items where `mask` holds."""
        return replace(
            self,
            items=self.items[mask],
            labels=self.labels[mask],
            splits=self.splits[mask],
            answers=self.answers[mask],
            probs=None if self.probs is None else self.probs[mask],
            top=None if self.top is None else self.top[mask],
            tokens=None if self.tokens is None else self.tokens[mask],
            content=None if self.content is None else self.content[mask],
        )

    def only(self, members: Sequence[str]) -> PredictionTable:
        """The table restricted to `members`, in that order."""
        cols = self.columns(members)
        return replace(
            self,
            members=tuple(members),
            answers=self.answers[:, cols],
            probs=None if self.probs is None else self.probs[:, cols],
            top=None if self.top is None else self.top[:, cols],
            tokens=None if self.tokens is None else self.tokens[:, cols],
            sources={m: s for m, s in self.sources.items() if m in members},
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
        for array in (self.probs, self.top, self.tokens):
            if array is not None:
                digest.update(np.ascontiguousarray(array[:, cols]).tobytes())
        return digest.hexdigest()


def _table_problems(table: PredictionTable) -> Iterable[Problem]:
    """Everything that makes a prediction table unusable, with the item and member where it was found."""
    n, m, c = len(table.items), len(table.members), len(table.classes)
    where = "predictions"
    if table.top is not None and (table.top.ndim != 3 or not 1 <= table.top.shape[2] <= c or table.probs is None):
        yield Problem(where, f"top must have shape ({n}, {m}, k), k in 1..{c}, beside probs", str(table.top.shape))
        return
    for name, array, shape in (
        ("labels", table.labels, (n,)),
        ("splits", table.splits, (n,)),
        ("answers", table.answers, (n, m)),
        ("probs", table.probs, (n, m, c if table.top is None else table.top.shape[2])),
        ("top", table.top, (n, m, table.top_k)),
        ("tokens", table.tokens, (n, m, 2)),
        ("content", table.content, (n,)),
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
    if (strange := (table.answers < ABSTAINED) | (table.answers >= c)).any():
        row, col = np.argwhere(strange)[0]
        place = f"{where}: item '{table.items[row]}', member '{table.members[col]}'"
        yield Problem(place, f"the answer must be in 0..{c - 1}", str(table.answers[row, col]))
    if table.tokens is not None and (table.tokens < 0).any():
        row, col = np.argwhere((table.tokens < 0).any(axis=2))[0]
        place = f"{where}: item '{table.items[row]}', member '{table.members[col]}'"
        yield Problem(place, "token counts must not be negative", str(table.tokens[row, col].tolist()))
    if table.probs is not None:
        yield from _probability_problems(table, where)


def _probability_problems(table: PredictionTable, where: str) -> Iterable[Problem]:
    """The first bad row of probabilities; rows without a vote are not looked at. In blocks, so that memory stays low."""
    for start in range(0, len(table), _BLOCK):
        at = slice(start, start + _BLOCK)
        found = _first_bad_row(table, at)
        if found:
            row, col, rule, what = found
            place = f"{where}: item '{table.items[row]}', member '{table.members[col]}'"
            yield Problem(place, rule, what, "apply softmax, or import the outputs as answers only")
            return


def _first_bad_row(table: PredictionTable, at: slice) -> tuple[int, int, str, str] | None:
    """Row, column, broken rule and what was found, of the first bad row of probabilities among the items `at`."""
    assert table.probs is not None
    probs, answers = table.probs[at], table.answers[at]
    there = answers >= 0
    with np.errstate(invalid="ignore"):
        total = probs.sum(axis=2, dtype=np.float64)
    checks = [
        ("probabilities must not be NaN or infinite", ~np.isfinite(probs).all(axis=2)),
        ("probabilities must not be negative", (probs < 0).any(axis=2)),
    ]
    if table.top is None:
        checks.append(("probabilities must sum to 1 (within 0.001)", ~(np.abs(total - 1) <= _ROUNDING)))
    else:
        top = table.top[at]
        twice = np.diff(np.sort(top, axis=2), axis=2) == 0
        checks += [
            ("the most probable classes must fall in probability", (np.diff(probs, axis=2) > _ROUNDING).any(axis=2)),
            ("probabilities must sum to at most 1 (within 0.005)", ~(total <= 1 + _HALF_ROUNDING)),
            ("classes must be in 0..classes-1", ((top < 0) | (top >= len(table.classes))).any(axis=2)),
            ("a class must be listed once", twice.any(axis=2)),
            ("the answer must be the most probable class", top[:, :, 0] != answers),
        ]
    for rule, bad in checks:
        if (bad & there).any():
            row, col = np.argwhere(bad & there)[0]
            listed = "" if table.top is None else f" of classes {table.top[at][row, col].tolist()[:5]}"
            what = f"{probs[row, col].tolist()[:4]}…{listed} with sum {total[row, col]:.4g}"
            return int(row) + at.start, int(col), rule, what
    return None
