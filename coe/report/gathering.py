"""What a report needs of the records of a ledger, taken from them as they pass by: no record is kept.

Calls are summed by member and node type, node time is cut to the window, and of each query a few bytes are kept
(`coe.report.queries`), so that a ledger of any length is reported in memory that a person's machine has.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Self

from coe.errors import InvalidInput, Problem
from coe.records import Answer, BatchRun, Bench, NodeSpan, Record
from coe.report.audit_times import AuditTimes
from coe.report.bill import CallTotals, Key
from coe.report.nouns import Window
from coe.report.queries import AnswerColumns, Received, refuse_other_classes, rows_of
from coe.report.window import cut_span, extent, part_of_run
from coe.table import PredictionTable
from coe.types import ABSTAINED, MISSING_VOTE, Plan

REMEDY = "give the plan that the service ran"


class Gathered:
    """Records of one plan within a window, added up."""

    def __init__(self, plan: Plan, answers: AnswerColumns | Received, window: Window | None = None) -> None:
        """answers: what is to be known of them.   window: all there is where None."""
        self.answers = answers
        self.spans: list[NodeSpan] = []
        """Cut to the window."""
        self.made: dict[Key, CallTotals] = {}
        self.audits = AuditTimes(plan.cascade)
        self.extent_s = (math.inf, -math.inf)
        """First and last instant of all records, also of those outside of the window."""
        self._window_s = (-math.inf, math.inf) if window is None else (window.start_s, window.end_s)
        self._tiers, self._classes = len(plan.cascade.tiers), len(plan.pool.classes)
        self._rented = {n.node_type for n in plan.nodes}
        self._billed = self._rented & {o.node_type for o in plan.offers}
        self._tier_of = {m: t for t, tier in enumerate(plan.cascade.tiers) for m in tier.members}
        self._strange_runs, self._strange_spans, self._strange_answers = (dict[str, Problem]() for _ in range(3))

    def add(self, record: Record) -> None:
        """Count a record."""
        start_s, end_s = extent(record)
        first_s, last_s = self.extent_s
        if start_s < first_s or end_s > last_s:
            self.extent_s = min(first_s, start_s), max(last_s, end_s)
        from_s, to_s = self._window_s
        if isinstance(record, Answer):
            if from_s <= end_s <= to_s:
                self._add_answer(record)
        elif isinstance(record, BatchRun):
            if part := part_of_run(record, from_s, to_s):
                self._add_run(record, part)
        elif isinstance(record, NodeSpan):
            if (cut := cut_span(record, from_s, to_s)) is not None:
                self._add_span(cut)
        elif end_s <= to_s:
            self.audits.add(record, is_recent=from_s <= end_s)

    def add_all(self, records: Iterable[Record]) -> Self:
        """Count all of them."""
        for record in records:
            self.add(record)
        return self

    @property
    def strangers(self) -> tuple[Problem, ...]:
        """Members, node types, tiers and classes that the plan does not have: their dollars would be guesses."""
        found = {**self._strange_runs, **self._strange_spans, **self._strange_answers}
        return tuple(found.values())

    def _add_answer(self, answer: Answer) -> None:
        self.audits.add(answer)
        if answer.answer != MISSING_VOTE and isinstance(self.answers, AnswerColumns):
            if not 0 <= answer.tier < self._tiers:
                self._strange_answers[f"tier {answer.tier}"] = strange_tier(answer.tier)
            if not ABSTAINED <= answer.answer < self._classes:
                found = f"class {answer.answer}"
                self._strange_answers[found] = Problem("ledger", "the plan has no such class", found, REMEDY)
                return
        self.answers.add(answer)

    def _add_run(self, run: BatchRun, part: float) -> None:
        if run.node_type not in self._billed:
            self._strange_runs[run.node_type] = _strange_node(run.node_type)
        if self._tier_of.get(run.member) != run.tier:
            found = f"member '{run.member}' in tier {run.tier + 1}"
            self._strange_runs[found] = Problem("ledger", "the plan has no such member in that tier", found, REMEDY)
        key = run.tier, run.member, run.node_type
        totals = self.made.get(key)
        if totals is None:
            totals = self.made[key] = CallTotals()
        totals.add(run, part)

    def _add_span(self, span: NodeSpan) -> None:
        if span.node_type not in self._rented:
            self._strange_spans[span.node_type] = _strange_node(span.node_type)
        self.spans.append(span)


def gather(
    plan: Plan, records: Iterable[Record], bench: Bench | None = None, table: PredictionTable | None = None
) -> Gathered:
    """The records of a plan's ledger, within the client's run where there is one.

    Raises `InvalidInput`, before anything is read, for predictions of other classes.
    """
    refuse_other_classes(plan, table)
    answers = (
        AnswerColumns(len(plan.cascade.tiers), rows_of(table))
        if bench is None
        else Received(a.item for a in bench.answers)
    )
    return Gathered(plan, answers, None if bench is None else run_of(bench)).add_all(records)


def gather_gear(plan: Plan, records: Iterable[Record], bench: Bench | None, rows: Mapping[str, int] | None) -> Gathered:
    """The records of a gear, with the client's labels of the queries that it asked.

    rows: item -> its row in the prediction table."""
    label_of = None if bench is None else {a.item: a.label for a in bench.answers}
    columns = AnswerColumns(len(plan.cascade.tiers), rows, label_of)
    return Gathered(plan, columns, None if bench is None else run_of(bench)).add_all(records)


def run_of(bench: Bench) -> Window:
    """The time of a client's run."""
    return Window(start_s=bench.started_s, end_s=bench.ended_s, source="bench")


def window_of(gathered: Iterable[Gathered], bench: Bench | None) -> Window:
    """The bench's run where there is one, else from the first to the last instant in the ledgers.

    Raises `InvalidInput` where neither has anything.
    """
    if bench is not None:
        return run_of(bench)
    extents = [g.extent_s for g in gathered if g.extent_s[0] <= g.extent_s[1]]
    if not extents:
        remedy = "is it the folder that `coe build --ledger` named, and was the service asked anything?"
        raise InvalidInput(Problem("ledger", "has no records", remedy=remedy))
    return Window(start_s=min(e[0] for e in extents), end_s=max(e[1] for e in extents), source="ledger")


def strange_tier(tier: int) -> Problem:
    """An answer of a tier that the plan does not have."""
    return Problem("ledger or bench", "the plan has no such tier", f"an answer of tier {tier + 1}", REMEDY)


def _strange_node(node_type: str) -> Problem:
    return Problem("ledger", "the plan rents no such node type", node_type, REMEDY)
