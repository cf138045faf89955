"""The report of a plan by all its records at once: what `coe.report.summarise` says in one pass, said with every record in hand.

Slow and simple on purpose; only tests read it.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from coe.cascade.evaluate import accuracy_interval, losses, route
from coe.records import Answer, Audit, Auditing, BatchRun, Bench, NodeSpan, Record
from coe.report.audits import audited
from coe.report.bill import CallTotals, Key, nodes_and_calls
from coe.report.nouns import AccuracyRow, Latency, Loss, Mismatch, Report, Role, Served, Window
from coe.report.quality import EXAMPLES, _rate_interval
from coe.report.queries import CURVE_POINTS
from coe.report.summarise import Quality, assembled
from coe.table import PredictionTable
from coe.types import MISSING_VOTE, BoolArray, FloatArray, IntArray, Plan


def whole(
    plan: Plan,
    records: Sequence[Record],
    *,
    bench: Bench | None = None,
    table: PredictionTable | None = None,
    unaccounted: int = 0,
    ledger_notes: Sequence[str] = (),
) -> Report:
    """The report over the bench's window, or over the whole ledger without one."""
    window = window_of(records, bench)
    inside = clip(records, window)
    asked = asked_of(inside, bench, table)
    served = served_of(plan, inside, asked, window, unaccounted)
    made: dict[Key, CallTotals] = defaultdict(CallTotals)
    for part in inside.runs:
        made[part.run.tier, part.run.member, part.run.node_type].add(part.run, part.part)
    bill = nodes_and_calls(plan, inside.spans, made, window, served.answered + served.other)
    at = asked.tiers[asked.answered]
    return assembled(
        plan,
        window,
        served,
        latency_of(plan, asked, "router" if bench is None else "client"),
        bill,
        [int((at == number).sum()) for number in range(len(plan.cascade.tiers))],
        Quality(
            rows=accuracy_rows(plan, asked, table),
            loss=loss_of(plan, asked, table),
            mismatch=mismatch_of(plan, asked, table),
            observed=asked.accuracy,
            by_tier=_accuracy_by_tier(plan, asked),
            audits=audited(plan.cascade, (*inside.audits, *inside.answers), sum(row.usd_audits for row in bill[1])),
        ),
        ledger_notes,
    )


@dataclass(frozen=True)
class PartOfRun:
    """A member call and the part of it (0..1] that falls into the window."""

    run: BatchRun
    part: float

    @property
    def busy_s(self) -> float:
        """Busy seconds inside the window."""
        return self.run.busy_s * self.part


@dataclass(frozen=True)
class Clipped:
    """What of a ledger falls into a window. Spans are cut at its ends; answers belong where they were done."""

    spans: tuple[NodeSpan, ...]
    runs: tuple[PartOfRun, ...]
    answers: tuple[Answer, ...]
    audits: tuple[Auditing | Audit, ...] = ()
    """Those that ended inside, and how they were made: also what was settled before."""


def window_of(records: Sequence[Record], bench: Bench | None) -> Window:
    """The bench's run where there is one, else from the first to the last instant in the ledger.

    Raises `InvalidInput` where neither has anything.
    """
    if bench is not None:
        return Window(start_s=bench.started_s, end_s=bench.ended_s, source="bench")
    extents = [_extent(record) for record in records]
    return Window(start_s=min(e[0] for e in extents), end_s=max(e[1] for e in extents), source="ledger")


def _extent(record: Record) -> tuple[float, float]:
    if isinstance(record, NodeSpan):
        return record.start_s, record.end_s
    if isinstance(record, BatchRun):
        return record.start_s, record.start_s + record.busy_s
    if isinstance(record, Auditing):
        return record.at_s, record.at_s
    if isinstance(record, Audit):
        return record.done_s, record.done_s
    return record.arrival_s, record.done_s


def clip(records: Iterable[Record], window: Window) -> Clipped:
    """The parts of the records that lie inside the window."""
    spans, runs, answers, audits = [], [], [], list[Auditing | Audit]()
    for record in records:
        start_s, end_s = _extent(record)
        if isinstance(record, Answer):
            if window.start_s <= end_s <= window.end_s:
                answers.append(record)
            continue
        if isinstance(record, Auditing | Audit):
            if end_s <= window.end_s and (isinstance(record, Auditing) or window.start_s <= end_s):
                audits.append(record)
            continue
        inside_s = min(end_s, window.end_s) - max(start_s, window.start_s)
        if isinstance(record, NodeSpan):
            if inside_s > 0:
                cut = (max(start_s, window.start_s), min(end_s, window.end_s))
                spans.append(NodeSpan(record.node_type, record.count, record.usd_per_hour, *cut))
        elif inside_s > 0:
            # over end - start and not over busy_s: beside an epoch time that has lost digits, and a part must reach 1
            runs.append(PartOfRun(record, inside_s / (end_s - start_s)))
        elif inside_s == 0 and start_s == end_s:
            runs.append(PartOfRun(record, 1.0))
    return Clipped(tuple(spans), tuple(runs), tuple(answers), tuple(audits))


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


def asked_of(inside: Clipped, bench: Bench | None, table: PredictionTable | None) -> Asked:
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
        labels = _labels(labels, rows, table)
    latency_s = np.where(answers != MISSING_VOTE, np.array(took_s, dtype=np.float64), np.inf)
    return Asked(items, answers, labels, tiers, np.array(degraded, dtype=np.bool_), latency_s, rows)


def _labels(labels: IntArray, rows: IntArray, table: PredictionTable) -> IntArray:
    """Labels completed from the table."""
    there = rows >= 0
    recorded = np.where(there, table.labels[np.maximum(rows, 0)], MISSING_VOTE)
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


def accuracy_rows(plan: Plan, asked: Asked, table: PredictionTable | None) -> tuple[AccuracyRow, ...]:
    """The cascade as served; beside it the best single model and the reference on the same queries."""
    judged = asked.judged
    n = int(judged.sum())
    rows = []
    if n:
        right = int(asked.correct[judged].sum())
        low, high = accuracy_interval(right, n)
        rows.append(
            AccuracyRow(
                name="cascade",
                role="cascade",
                accuracy=right / n,
                low=low,
                high=high,
                items=n,
                source="as served",
            )
        )
    replayed = table if n and (asked.rows[judged] >= 0).all() else None
    if plan.baseline is not None:
        baseline = plan.baseline.member
        if replayed is not None and baseline in replayed.members:
            rows.append(_replayed(baseline, "best single model", asked, replayed))
        elif n:
            source = "plan, certification split"
            rows.append(
                AccuracyRow(
                    name=baseline,
                    role="best single model",
                    accuracy=plan.baseline.accuracy,
                    low=None,
                    high=None,
                    items=0,
                    source=source,
                )
            )
    reference = plan.workload.reference
    if replayed is not None and reference in replayed.members:
        rows.append(_replayed(reference, "reference", asked, replayed))
    return tuple(rows)


def _replayed(member: str, role: Role, asked: Asked, table: PredictionTable) -> AccuracyRow:
    """A single model's recorded answers to the judged queries."""
    right = _recorded(member, asked, table) == asked.labels[asked.judged]
    low, high = accuracy_interval(int(right.sum()), len(right))
    return AccuracyRow(
        name=member,
        role=role,
        accuracy=float(right.mean()),
        low=low,
        high=high,
        items=len(right),
        source="recorded answers to the same queries",
    )


def _recorded(member: str, asked: Asked, table: PredictionTable) -> IntArray:
    """Answers of a member to the judged queries."""
    recorded: IntArray = table.answers[asked.rows[asked.judged], table.columns([member])[0]]
    return recorded


def loss_of(plan: Plan, asked: Asked, table: PredictionTable | None) -> Loss | None:
    """How often the cascade was wrong where the certificate's reference is right."""
    certificate, judged = plan.cascade.certificate, asked.judged
    if certificate is None or table is None or not judged.any() or not (asked.rows[judged] >= 0).all():
        return None
    if certificate.reference not in table.members:
        return None
    recorded = _recorded(certificate.reference, asked, table)
    answers, labels = asked.answers[judged], asked.labels[judged]
    claim, n = certificate.claim, int(judged.sum())
    lost = int((answers != recorded).sum() if claim == "disagreement" else losses(answers, recorded, labels).sum())
    gained = int(losses(recorded, answers, labels).sum()) if claim == "excess" else 0
    low, high = _rate_interval(claim, lost, gained, n)
    rate = (lost - gained) / n
    reached = "not contradicted" if low <= certificate.epsilon else "contradicted"
    return Loss(
        reference=certificate.reference,
        epsilon=certificate.epsilon,
        delta=certificate.delta,
        items=n,
        claim=claim,
        losses=lost,
        gains=gained,
        rate=rate,
        low=low,
        high=high,
        verdict="held" if rate <= certificate.epsilon else reached,
    )


def mismatch_of(plan: Plan, asked: Asked, table: PredictionTable | None) -> Mismatch | None:
    """Live answers that differ from the offline cascade on the same items. Degraded and failed ones are left out."""
    compared = asked.answered & ~asked.degraded & (asked.rows >= 0)
    if table is None or not compared.any():
        return None
    offline = route(plan.cascade, table)
    rows = asked.rows[compared]
    other_answer = offline.answer[rows] != asked.answers[compared]
    other_tier = offline.tier[rows] != asked.tiers[compared]
    which = np.flatnonzero(compared)[other_answer | other_tier][:EXAMPLES]
    return Mismatch(
        compared=int(compared.sum()),
        answers=int(other_answer.sum()),
        tiers=int(other_tier.sum()),
        examples=tuple(asked.items[i] for i in which),
    )


def _accuracy_by_tier(plan: Plan, asked: Asked) -> tuple[float | None, ...]:
    """Among the judged queries that each tier answered; None where there are none."""
    judged = [asked.judged & asked.answered & (asked.tiers == number) for number in range(len(plan.cascade.tiers))]
    return tuple(float(asked.correct[among].mean()) if among.any() else None for among in judged)
