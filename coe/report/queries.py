"""The queries of a report: what was asked, what came back and when. The client's view where there is a client, else the
ledger's, of which a few bytes are kept for each query.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from coe.errors import InvalidInput, Problem
from coe.records import Answer, Bench
from coe.report.nouns import (
    Latency,
    Served,
    Window,
)
from coe.table import PredictionTable
from coe.types import MISSING_VOTE, BoolArray, FloatArray, IntArray, Plan

CURVE_POINTS = 160
"""Points of the latency curve; enough for a plot, little enough for a file."""
BLOCK = 100_000
"""Queries that are looked at together, in arrays of eight bytes for each figure."""

Ints = NDArray[np.signedinteger[Any]]


# --- From a ledger, as its answers pass by ------------------------------------------------------------------------------


class AnswerColumns:
    """What a report needs of answers: 14 bytes of each; 4 more with recorded predictions, and 4 with a client's labels."""

    def __init__(
        self, tiers: int, rows: Mapping[str, int] | None = None, label_of: Mapping[str, int] | None = None
    ) -> None:
        """rows: item -> its row in the prediction table.   label_of: item -> class, as a client knows it, of the only queries
        that count."""
        self._tiers, self._row_of, self._label_of = tiers, rows, label_of
        self.answers, self.tiers, self.degraded = array("i"), array("b"), array("b")
        self.latency_s = array("d")
        self.rows, self.labels = array("i"), array("i")

    def add(self, answer: Answer) -> None:
        """Count the answer to one more query."""
        if self._label_of is not None:
            label = self._label_of.get(answer.query_id)
            if label is None:
                return
            self.labels.append(label)
        if self._row_of is not None:
            self.rows.append(self._row_of.get(answer.query_id, -1))
        is_answered = answer.answer != MISSING_VOTE
        self.answers.append(answer.answer)
        self.tiers.append(answer.tier if 0 <= answer.tier < self._tiers else -1)
        self.degraded.append(answer.degraded)
        self.latency_s.append(answer.done_s - answer.arrival_s if is_answered else math.inf)


class Received:
    """Which of a client's queries a ledger holds an answer to, and how many others it holds."""

    def __init__(self, queries: Iterable[str]) -> None:
        self._asked = Counter(queries)
        self._written = dict.fromkeys(self._asked, 0)
        self._others = 0

    def add(self, answer: Answer) -> None:
        """Count an answer; a query that failed has none."""
        if answer.answer == MISSING_VOTE:
            return
        if answer.query_id in self._written:
            self._written[answer.query_id] += 1
        else:
            self._others += 1

    def lacking(self, answered: Iterable[str]) -> int:
        """How many of these, which the client says were answered, the ledger does not hold."""
        return sum(max(0, count - self._written[query]) for query, count in Counter(answered).items())

    @property
    def others(self) -> int:
        """Answers to nobody's query, or to one that was asked less often."""
        return self._others + sum(max(0, count - self._asked[query]) for query, count in self._written.items())


def rows_of(table: PredictionTable | None) -> dict[str, int] | None:
    """Item -> its row."""
    return None if table is None else {item: row for row, item in enumerate(table.items.tolist())}


# --- The queries that are judged ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """Some of the queries, in order; arrays have shape (queries,).

    answers: class index, `MISSING_VOTE` where it failed.   labels: class index, `MISSING_VOTE` where none is known.
    tiers: the tier that answered.   rows: row in the prediction table, or -1.
    """

    answers: IntArray
    labels: IntArray
    tiers: IntArray
    degraded: BoolArray
    rows: IntArray
    is_of_table: bool
    """True where only queries that are in the prediction table are judged."""

    @property
    def answered(self) -> BoolArray:
        return np.asarray(self.answers != MISSING_VOTE, dtype=np.bool_)

    @property
    def judged(self) -> BoolArray:
        """Queries whose label is known; where any is in the prediction table, only those that are."""
        labelled = np.asarray(self.labels != MISSING_VOTE, dtype=np.bool_)
        return labelled & (self.rows >= 0) if self.is_of_table else labelled

    @property
    def correct(self) -> BoolArray:
        """A failed query is not correct."""
        return np.asarray(self.answered & (self.answers == self.labels), dtype=np.bool_)


@dataclass(frozen=True)
class Asked:
    """All queries, in as few bytes as will do; `blocks` has them as they are thought of.

    latency_s: rising, infinite where a query failed.   rows: in the prediction table, or -1; empty without one.
    labels: `MISSING_VOTE` where none is known; empty where none is known but by the table.   recorded: (rows,) the table's.
    """

    answers: Ints
    tiers: Ints
    degraded: Ints | BoolArray
    latency_s: FloatArray
    rows: Ints
    labels: Ints
    recorded: IntArray

    @classmethod
    def of_ledger(cls, columns: AnswerColumns, table: PredictionTable | None) -> Asked:
        """As the router wrote it. Sorts the columns' response times."""
        latency_s: FloatArray = np.asarray(columns.latency_s)
        latency_s.sort()
        return cls(
            np.asarray(columns.answers),
            np.asarray(columns.tiers),
            np.asarray(columns.degraded),
            latency_s,
            np.asarray(columns.rows),
            np.asarray(columns.labels),
            _recorded_labels(table),
        )

    @classmethod
    def of_client(cls, bench: Bench, table: PredictionTable | None) -> Asked:
        """As the client saw it. Raises `InvalidInput` where it knows another label than the table."""
        row_of = rows_of(table)
        answers = _ints(a.answer if a.http_status == 200 else MISSING_VOTE for a in bench.answers)
        took_s = np.array([a.latency_s for a in bench.answers], dtype=np.float64)
        asked = cls(
            answers,
            _ints(a.tier for a in bench.answers),
            np.array([a.degraded for a in bench.answers], dtype=np.bool_),
            np.sort(np.where(answers != MISSING_VOTE, took_s, np.inf)),
            _ints(() if row_of is None else (row_of.get(a.item, -1) for a in bench.answers)),
            _ints(a.label for a in bench.answers),
            _recorded_labels(table),
        )
        _refuse_other_labels(bench, asked)
        return asked

    def __len__(self) -> int:
        return len(self.answers)

    def blocks(self) -> Iterator[Block]:
        """All of them, some at a time."""
        return (self._block(start, is_of_table=self._is_of_table) for start in range(0, len(self), BLOCK))

    def count(self, which: Callable[[Block], BoolArray]) -> int:
        """How many queries are so."""
        return sum(int(which(block).sum()) for block in self.blocks())

    @property
    def accuracy(self) -> float | None:
        """Among the judged queries that were answered, for dollars per correct answer; None where there are none."""
        return self.accuracy_of(lambda _: True)

    def accuracy_of(self, which: Callable[[Block], BoolArray | Literal[True]]) -> float | None:
        """Among those of the judged queries that were answered and are so; None where there are none."""
        among = self.count(lambda b: b.judged & b.answered & which(b))
        return self.count(lambda b: b.judged & b.correct & which(b)) / among if among else None

    def are_recorded(self) -> bool:
        """True where there are judged queries and all of them are in the prediction table."""
        return self.count(lambda b: b.judged) > 0 and not self.count(lambda b: b.judged & (b.rows < 0))

    @cached_property
    def _is_of_table(self) -> bool:
        """Whether a query whose label is known is in the prediction table."""
        starts = range(0, len(self), BLOCK if len(self.rows) else max(1, len(self)))
        blocks = (self._block(start, is_of_table=True) for start in starts) if len(self.rows) else ()
        return any(bool(block.judged.any()) for block in blocks)

    def _block(self, start: int, *, is_of_table: bool) -> Block:
        part = slice(start, start + BLOCK)
        answers = self.answers[part].astype(np.int64)
        rows = _or_missing(self.rows[part], len(answers))
        labels = _or_missing(self.labels[part], len(answers))
        if len(self.recorded):
            recorded = np.where(rows >= 0, self.recorded[np.maximum(rows, 0)], MISSING_VOTE)
            labels = np.where(labels == MISSING_VOTE, recorded, labels)
        return Block(
            answers, labels, self.tiers[part].astype(np.int64), self.degraded[part].astype(np.bool_), rows, is_of_table
        )


def _or_missing(column: Ints, count: int) -> IntArray:
    """A column in eight bytes; where it is empty, `MISSING_VOTE`, which for rows means none, too."""
    return column.astype(np.int64) if len(column) else np.full(count, MISSING_VOTE, dtype=np.int64)


def _recorded_labels(table: PredictionTable | None) -> IntArray:
    return np.empty(0, dtype=np.int64) if table is None else np.asarray(table.labels)


def _refuse_other_labels(bench: Bench, asked: Asked) -> None:
    """`InvalidInput` where client and table know different labels of an item."""
    if not len(asked.recorded):
        return
    recorded = np.where(asked.rows >= 0, asked.recorded[np.maximum(asked.rows, 0)], MISSING_VOTE)
    differ = (asked.rows >= 0) & (asked.labels != MISSING_VOTE) & (asked.labels != recorded)
    if differ.any():
        first = int(np.flatnonzero(differ)[0])
        item, label = bench.answers[first].item, bench.answers[first].label
        found = f"item '{item}' is {label} for the client and {recorded[first]} in the predictions"
        remedy = "give the predictions of the data that was sent"
        raise InvalidInput(Problem("bench and predictions", "must agree on every label", found, remedy))


def refuse_other_classes(plan: Plan, table: PredictionTable | None) -> None:
    """`InvalidInput` for predictions of another task."""
    if table is not None and table.classes != plan.pool.classes:
        remedy = "give the predictions that the plan was made from"
        raise InvalidInput(Problem("predictions", "must have the classes of the plan's pool", remedy=remedy))


def _ints(values: Iterable[int]) -> IntArray:
    return np.array(list(values), dtype=np.int64)


# --- Counted ------------------------------------------------------------------------------------------------------------


def served_of(plan: Plan, asked: Asked, window: Window, *, lacking: int, other: int, unaccounted: int) -> Served:
    """Counts. lacking: answers of the client that are not in the ledger.   other: of the ledger that are not the client's."""
    answered = asked.count(lambda b: b.answered)
    return Served(
        requests=len(asked),
        answered=answered,
        failed=len(asked) - answered,
        degraded=asked.count(lambda b: b.degraded & b.answered),
        other=other,
        unaccounted=max(unaccounted, lacking),
        rate_per_s=(answered + other) / window.seconds if window.seconds > 0 else 0.0,
        planned_rate_per_s=plan.workload.rate_per_s,
    )


def latency_of(plan: Plan, asked: Asked, source: Literal["client", "router"]) -> Latency | None:
    """Exact quantiles of the response times; None where nothing was asked."""
    n, ordered = len(asked), asked.latency_s
    if n == 0:
        return None
    finite = ordered[: np.searchsorted(ordered, np.inf)]
    chosen = np.unique(np.linspace(0, len(finite) - 1, min(len(finite), CURVE_POINTS)).round().astype(int))
    work = plan.workload
    return Latency(
        source=source,
        requests=n,
        quantile=work.latency_quantile,
        promised_s=work.latency_s,
        bound_s=plan.latency_bound_s,
        observed_s=quantile_of(ordered, work.latency_quantile),
        p50_s=quantile_of(ordered, 0.5),
        p95_s=quantile_of(ordered, 0.95),
        p99_s=quantile_of(ordered, 0.99),
        max_s=quantile_of(ordered, 1.0),
        in_time=share_within(ordered, work.latency_s) or 0.0,
        curve=tuple((max(0.0, float(finite[i])), (int(i) + 1) / n) for i in chosen),
    )


def quantile_of(ordered: FloatArray, quantile: float) -> float | None:
    """The smallest of rising times within which at least that share was answered; None where failed requests reach so far down,
    or where there are none."""
    if not len(ordered):
        return None
    value = float(ordered[max(0, math.ceil(quantile * len(ordered) - 1e-9) - 1)])
    return max(0.0, value) if math.isfinite(value) else None


def share_within(ordered: FloatArray, time_s: float) -> float | None:
    """Share of rising times that are at most so long; None where there are none."""
    return int(np.searchsorted(ordered, time_s, side="right")) / len(ordered) if len(ordered) else None


def merged(times: Sequence[FloatArray]) -> FloatArray:
    """Several rising columns as one."""
    together: FloatArray = np.concatenate(times)
    together.sort(kind="stable")  # which merges what is sorted already
    return together
