"""Ledger records inside a window of time. A record that lies across an end of the window counts for its part inside."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from coe.records import Audit, Auditing, BatchRun, NodeSpan, Record
from coe.report.nouns import Window


def extent(record: Record) -> tuple[float, float]:
    """First and last instant that a record speaks of."""
    if isinstance(record, NodeSpan):
        return record.start_s, record.end_s
    if isinstance(record, BatchRun):
        return record.start_s, record.start_s + record.busy_s
    if isinstance(record, Auditing):
        return record.at_s, record.at_s
    if isinstance(record, Audit):
        return record.done_s, record.done_s
    return record.arrival_s, record.done_s


def part_of_run(run: BatchRun, start_s: float, end_s: float) -> float:
    """The part [0..1] of a call that falls into a window; all of one without length that lies in it."""
    began_s, ended_s = extent(run)
    inside_s = min(ended_s, end_s) - max(began_s, start_s)
    if inside_s > 0:
        # over end - start and not over busy_s: beside an epoch time that has lost digits, and a part must reach 1
        return inside_s / (ended_s - began_s)
    return 1.0 if inside_s == 0 and began_s == ended_s else 0.0


def cut_span(span: NodeSpan, start_s: float, end_s: float) -> NodeSpan | None:
    """A span within a window; None where nothing of it is."""
    cut = max(span.start_s, start_s), min(span.end_s, end_s)
    return NodeSpan(span.node_type, span.count, span.usd_per_hour, *cut) if cut[0] < cut[1] else None


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
