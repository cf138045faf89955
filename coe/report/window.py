"""Ledger records inside a window of time. A record that lies across an end of the window counts for its part inside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from coe.errors import InvalidInput, Problem
from coe.records import Answer, Audit, Auditing, BatchRun, Bench, NodeSpan, Record
from coe.report.nouns import Window


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
    if not records:
        remedy = "is it the folder that `coe build --ledger` named, and was the service asked anything?"
        raise InvalidInput(Problem("ledger", "has no records", remedy=remedy))
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


def disjoint(spans: Iterable[NodeSpan]) -> tuple[NodeSpan, ...]:
    """Spans of one node type without overlaps: where several routers tell of the same nodes at once, the largest count holds."""
    ordered = sorted(spans, key=lambda s: s.start_s)
    if all(later.start_s >= earlier.end_s for earlier, later in pairwise(ordered)):
        return tuple(ordered)
    found: list[NodeSpan] = []
    edges = sorted({edge for s in ordered for edge in (s.start_s, s.end_s)})
    present: list[NodeSpan] = []
    coming = iter([*ordered, None])
    following = next(coming)
    for start_s, end_s in pairwise(edges):
        while following is not None and following.start_s <= start_s:
            present.append(following)
            following = next(coming)
        present = [s for s in present if s.end_s > start_s]
        if present:
            most = max(present, key=lambda s: s.count)
            found.append(NodeSpan(most.node_type, most.count, most.usd_per_hour, start_s, end_s))
    return tuple(found)


def uncovered_s(spans: Iterable[NodeSpan], window: Window) -> float:
    """Seconds of the window in which no span lies."""
    covered_s, reached_s = 0.0, window.start_s
    for span in sorted(spans, key=lambda s: s.start_s):
        covered_s += max(0.0, span.end_s - max(span.start_s, reached_s))
        reached_s = max(reached_s, span.end_s)
    return max(0.0, window.seconds - covered_s)
