"""The queries of a report: what was asked, what came back and when. The client's view where there is a client, else the
ledger's."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from coe.errors import InvalidInput, Problem
from coe.records import Bench
from coe.report.nouns import (
    Latency,
    Served,
    Window,
)
from coe.report.window import Clipped
from coe.table import PredictionTable
from coe.types import MISSING_VOTE, BoolArray, FloatArray, IntArray, Plan

CURVE_POINTS = 160
"""Points of the latency curve; enough for a plot, little enough for a file."""


@dataclass(frozen=True)
class Asked:
    """The queries that are judged, in order; arrays have shape (queries,).

    answers: class index, `MISSING_VOTE` where it failed.   labels: class index, `MISSING_VOTE` where none is known.
    tiers: the tier that answered.   latency_s: infinite where it failed.   rows: row in the prediction table, or -1.
    """

    items: tuple[str, ...]
    answers: IntArray
    labels: IntArray
    tiers: IntArray
    degraded: BoolArray
    latency_s: FloatArray
    rows: IntArray

    @property
    def answered(self) -> BoolArray:
        return np.asarray(self.answers != MISSING_VOTE, dtype=np.bool_)

    @property
    def judged(self) -> BoolArray:
        """Queries whose label is known; where any is in the prediction table, only those that are."""
        labelled = np.asarray(self.labels != MISSING_VOTE, dtype=np.bool_)
        known = labelled & (self.rows >= 0)
        return known if known.any() else labelled

    @property
    def correct(self) -> BoolArray:
        """A failed query is not correct."""
        return np.asarray(self.answered & (self.answers == self.labels), dtype=np.bool_)

    @property
    def accuracy(self) -> float | None:
        """Among the judged queries that were answered, for dollars per correct answer; None where there are none."""
        among = self.judged & self.answered
        return float(self.correct[among].mean()) if among.any() else None


def asked_of(plan: Plan, inside: Clipped, bench: Bench | None, table: PredictionTable | None) -> Asked:
    """What the client saw, or without one what the router wrote."""
    if bench is not None:
        items = tuple(a.item for a in bench.answers)
        answers = _ints(a.answer if a.http_status == 200 else MISSING_VOTE for a in bench.answers)
        labels = _ints(a.label for a in bench.answers)
        tiers = _ints(a.tier for a in bench.answers)
        degraded = [a.degraded for a in bench.answers]
        took_s = [a.latency_s for a in bench.answers]
    else:
        items = tuple(a.query_id for a in inside.answers)
        answers = _ints(a.answer for a in inside.answers)
        labels = np.full(len(items), MISSING_VOTE, dtype=np.int64)
        tiers = _ints(a.tier for a in inside.answers)
        degraded = [a.degraded for a in inside.answers]
        took_s = [a.done_s - a.arrival_s for a in inside.answers]
    row_of = {} if table is None else {item: row for row, item in enumerate(table.items.tolist())}
    rows = _ints(row_of.get(item, -1) for item in items)
    if table is not None:
        if table.classes != plan.pool.classes:
            remedy = "give the predictions that the plan was made from"
            raise InvalidInput(Problem("predictions", "must have the classes of the plan's pool", remedy=remedy))
        labels = _labels(items, labels, rows, table)
    latency_s = np.where(answers != MISSING_VOTE, np.array(took_s, dtype=np.float64), np.inf)
    return Asked(items, answers, labels, tiers, np.array(degraded, dtype=np.bool_), latency_s, rows)


def _labels(items: Sequence[str], labels: IntArray, rows: IntArray, table: PredictionTable) -> IntArray:
    """Labels completed from the table; where both are known they must agree."""
    there = rows >= 0
    recorded = np.where(there, table.labels[np.maximum(rows, 0)], MISSING_VOTE)
    differ = there & (labels != MISSING_VOTE) & (labels != recorded)
    if differ.any():
        first = int(np.flatnonzero(differ)[0])
        found = f"item '{items[first]}' is {labels[first]} for the client and {recorded[first]} in the predictions"
        remedy = "give the predictions of the data that was sent"
        raise InvalidInput(Problem("bench and predictions", "must agree on every label", found, remedy))
    return np.where(labels == MISSING_VOTE, recorded, labels)


def _ints(values: Iterable[int]) -> IntArray:
    return np.array(list(values), dtype=np.int64)


def served_of(plan: Plan, inside: Clipped, asked: Asked, window: Window, unaccounted: int) -> Served:
    answered = int(asked.answered.sum())
    written = Counter(a.query_id for a in inside.answers if a.answer != MISSING_VOTE)
    received = Counter(item for item, there in zip(asked.items, asked.answered.tolist(), strict=True) if there)
    lacking = (received - written).total()
    other = (written - Counter(asked.items)).total()
    return Served(
        requests=len(asked.items),
        answered=answered,
        failed=len(asked.items) - answered,
        degraded=int((asked.degraded & asked.answered).sum()),
        other=other,
        unaccounted=max(unaccounted, lacking),
        rate_per_s=(answered + other) / window.seconds if window.seconds > 0 else 0.0,
        planned_rate_per_s=plan.workload.rate_per_s,
    )


def latency_of(plan: Plan, asked: Asked, source: Literal["client", "router"]) -> Latency | None:
    n = len(asked.items)
    if n == 0:
        return None
    ordered = np.sort(asked.latency_s)
    finite = ordered[np.isfinite(ordered)]
    chosen = np.unique(np.linspace(0, len(finite) - 1, min(len(finite), CURVE_POINTS)).round().astype(int))
    work = plan.workload
    return Latency(
        source=source,
        requests=n,
        quantile=work.latency_quantile,
        promised_s=work.latency_s,
        bound_s=plan.latency_bound_s,
        observed_s=_quantile(ordered, work.latency_quantile),
        p50_s=_quantile(ordered, 0.5),
        p95_s=_quantile(ordered, 0.95),
        p99_s=_quantile(ordered, 0.99),
        max_s=_quantile(ordered, 1.0),
        in_time=float((ordered <= work.latency_s).mean()),
        curve=tuple((max(0.0, float(finite[i])), (int(i) + 1) / n) for i in chosen),
    )


def _quantile(ordered: FloatArray, quantile: float) -> float | None:
    """The smallest time within which at least that share was answered; None where failed requests reach so far down."""
    value = float(ordered[max(0, math.ceil(quantile * len(ordered) - 1e-9) - 1)])
    return max(0.0, value) if math.isfinite(value) else None
