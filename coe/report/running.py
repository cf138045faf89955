"""What a router has done so far, in bounded memory: sums since its start, in the last minute and in the last hour.

Records are counted as they come, in the slot of their time; slots that are full are added to those of the longer windows.
The sums are those that `coe.report.summarise` makes of a whole ledger, and both make the same bill of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence

from coe.errors import InvalidInput, Problem
from coe.records import Answer, BatchRun, NodeSpan, Record
from coe.report.audits import AuditSums
from coe.report.bill import CallTotals, Key, Rented, routers_on
from coe.report.presence import Presence
from coe.report.sketch import Sketch
from coe.types import MISSING_VOTE, Plan

BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Bounds of the histogram of response times; the plan's promise is one more."""
MINUTE_S, HOUR_S = 60.0, 3600.0
SLOT_OF = {MINUTE_S: 5.0, HOUR_S: 60.0}
"""Length of a window -> that of the slots in which it moves on, both in seconds."""


class Tally:
    """What was counted in a stretch of time. Lists have one entry per tier."""

    def __init__(self, tiers: int) -> None:
        self.answered = [0] * tiers
        """Queries that the tier answered."""
        self.degraded = [0] * tiers
        """Of those, with a vote missing."""
        self.fallback = [0] * tiers
        """Of those, answers that the tier had not accepted, given because no later tier answered."""
        self.failed = 0
        """Queries that nobody answered."""
        self.latency = [Sketch() for _ in range(tiers)]
        self.calls: dict[Key, CallTotals] = {}

    @property
    def answers(self) -> int:
        """Queries that were answered."""
        return sum(self.answered)

    def arrived(self, tier: int) -> int:
        """Answered queries that came as far as a tier."""
        return sum(self.answered[tier:])

    def response_times(self) -> Sketch:
        """Of all tiers together."""
        together = Sketch()
        for sketch in self.latency:
            together.merge(sketch)
        return together

    def add_answer(self, answer: Answer) -> None:
        """Count a query that has come to its end."""
        if answer.answer == MISSING_VOTE:
            self.failed += 1
            return
        tier = answer.tier
        self.answered[tier] += 1
        self.degraded[tier] += answer.degraded
        self.fallback[tier] += answer.status == "fallback"
        self.latency[tier].add(answer.done_s - answer.arrival_s)

    def add_run(self, run: BatchRun) -> None:
        """Count a call."""
        key = run.tier, run.member, run.node_type
        totals = self.calls.get(key)
        if totals is None:
            totals = self.calls[key] = CallTotals()
        totals.add(run)

    def merge(self, other: Tally) -> None:
        """Add what another tally counted."""
        for mine, theirs in (
            (self.answered, other.answered),
            (self.degraded, other.degraded),
            (self.fallback, other.fallback),
        ):
            for tier, count in enumerate(theirs):
                mine[tier] += count
        self.failed += other.failed
        for sketch, theirs_too in zip(self.latency, other.latency, strict=True):
            sketch.merge(theirs_too)
        for key, totals in other.calls.items():
            self.calls.setdefault(key, CallTotals()).merge(totals)


class _Slots:
    """The slots of one window, the oldest first, and the one that is being filled."""

    def __init__(self, length_s: float, tiers: int, start_s: float) -> None:
        self.length_s, self.slot_s = length_s, SLOT_OF[length_s]
        self._tiers = tiers
        self._closed: deque[tuple[float, Tally]] = deque()
        self.open_since_s = start_s
        self.open = Tally(tiers)

    def move_on(self, now_s: float) -> Tally | None:
        """Close the open slot if its time is over, and forget what has left the window; the tally that was closed."""
        closed = None
        if now_s - self.open_since_s >= self.slot_s:
            closed = self.open
            self._closed.append((self.open_since_s, closed))
            # slots begin at whole multiples, so that a pause leaves no long one behind
            self.open_since_s += (now_s - self.open_since_s) // self.slot_s * self.slot_s
            self.open = Tally(self._tiers)
        while self._closed and self._closed[0][0] < now_s - self.length_s:
            self._closed.popleft()
        return closed

    def total(self) -> Tally:
        """Everything in the window."""
        total = Tally(self._tiers)
        for _, tally in self._closed:
            total.merge(tally)
        total.merge(self.open)
        return total

    def since_s(self, start_s: float, now_s: float) -> float:
        """When the window begins: where its first slot does, empty ones included."""
        first = self.open_since_s - (self.open_since_s - (now_s - self.length_s)) // self.slot_s * self.slot_s
        return max(start_s, first)


class _NodeTime:
    """Spans of one node type, added up: as `coe.report.bill` does with all of them, if they come in the order of time."""

    def __init__(self, plan: Plan, node_type: str, start_s: float) -> None:
        node = next(n for n in plan.nodes if n.node_type == node_type)
        self._plan, self._node_type, self._routers = plan, node_type, routers_on(plan, node_type)
        self.node_s = self.router_s = self.price_s = self._gap_s = 0.0
        self._reached_s = start_s
        self.count, self.usd_per_hour = node.count, node.usd_per_hour
        """As they were last seen."""

    def add(self, span: NodeSpan) -> None:
        length_s = span.end_s - span.start_s
        self.node_s += length_s * span.count
        self.router_s += length_s * min(span.count, self._routers)
        self.price_s += length_s * span.count * span.usd_per_hour
        self._gap_s += max(0.0, span.start_s - self._reached_s)
        self._reached_s = max(self._reached_s, span.end_s)
        self.count, self.usd_per_hour = span.count, span.usd_per_hour

    def skip(self, left_s: float, came_s: float) -> None:
        """Another plan's meter counted the nodes in between."""
        self._gap_s += max(0.0, left_s - self._reached_s)
        self._reached_s = max(self._reached_s, came_s)

    def rented(self, end_s: float) -> Rented:
        """Node time up to `end_s`; what no span covers counts as planned."""
        gap_s = self._gap_s + max(0.0, end_s - self._reached_s)
        return Rented.of(self._plan, self._node_type, self.node_s, self.router_s, self.price_s, gap_s)


class Running:
    """The sums of one router. Memory does not grow with the number of records.

    Times are those of the records' clock; they must not go back by more than records are late.
    """

    def __init__(self, plan: Plan, started_s: float) -> None:
        self.plan = plan
        self.started_s = started_s
        tiers = len(plan.cascade.tiers)
        self._total = Tally(tiers)
        self._minute, self._hour = (_Slots(length_s, tiers, started_s) for length_s in (MINUTE_S, HOUR_S))
        self._nodes = {n.node_type: _NodeTime(plan, n.node_type, started_s) for n in plan.nodes}
        self._tier_of = {m: t for t, tier in enumerate(plan.cascade.tiers) for m in tier.members}
        self._end_s = started_s
        self.audits = AuditSums(plan.cascade)
        self.presence = Presence(started_s)
        self.bounds_s: Sequence[float] = tuple(sorted({*BOUNDS_S, plan.workload.latency_s}))
        self._histogram = [0] * (len(self.bounds_s) + 1)
        self.latency_sum_s = self.latency_max_s = 0.0

    def add(self, record: Record, now_s: float) -> None:
        """Count a record that was made at `now_s`. Raises `InvalidInput` where it cannot be this plan's."""
        self._move_on(now_s)
        self.audits.add(record)
        if isinstance(record, Answer):
            self._add_answer(record)
        elif isinstance(record, BatchRun):
            if self._tier_of.get(record.member) != record.tier or record.node_type not in self._nodes:
                raise _stranger(f"'{record.member}' on '{record.node_type}' in tier {record.tier + 1}")
            self._minute.open.add_run(record)
            self._end_s = max(self._end_s, record.start_s + record.busy_s)
        elif isinstance(record, NodeSpan):
            if record.node_type not in self._nodes:
                raise _stranger(f"node type '{record.node_type}'")
            self._nodes[record.node_type].add(record)
            self._end_s = max(self._end_s, record.end_s)

    def _add_answer(self, answer: Answer) -> None:
        if answer.answer != MISSING_VOTE:
            if not 0 <= answer.tier < len(self._total.answered):
                raise _stranger(f"an answer of tier {answer.tier + 1}")
            took_s = answer.done_s - answer.arrival_s
            self._histogram[bisect_left(self.bounds_s, took_s)] += 1
            self.latency_sum_s += took_s
            self.latency_max_s = max(self.latency_max_s, took_s)
        self._minute.open.add_answer(answer)
        self._end_s = max(self._end_s, answer.done_s)

    def _move_on(self, now_s: float) -> None:
        """Hand on the slots that are over: from the minute to the hour and to the whole."""
        if now_s - self._minute.open_since_s < self._minute.slot_s:
            return
        closed = self._minute.move_on(now_s)
        if closed is not None:
            self._hour.open.merge(closed)
            self._total.merge(closed)
        self._hour.move_on(now_s)

    @property
    def end_s(self) -> float:
        """The last instant that any record speaks of."""
        return self._end_s

    def total(self) -> Tally:
        """Everything since the start."""
        total = Tally(len(self._total.answered))
        total.merge(self._total)
        total.merge(self._minute.open)
        return total

    def window(self, length_s: float, now_s: float) -> tuple[float, Tally]:
        """Since when the last minute or hour counts, in steps of a slot, and what was counted in it."""
        self._move_on(now_s)
        if length_s == MINUTE_S:
            self._minute.move_on(now_s)
            return self._minute.since_s(self.started_s, now_s), self._minute.total()
        self._hour.move_on(now_s)
        total = self._hour.total()
        total.merge(self._minute.open)
        return self._hour.since_s(self.started_s, now_s), total

    def within(self) -> list[tuple[float, int]]:
        """(bound in seconds, answers within it), rising; all answers are those within infinity."""
        cumulated, so_far = [], 0
        for bound, count in zip((*self.bounds_s, float("inf")), self._histogram, strict=True):
            so_far += count
            cumulated.append((bound, so_far))
        return cumulated

    def leave(self, at_s: float) -> None:
        """Another plan is in service from now on: what is rented is for its account."""
        self.presence.leave(at_s)

    def enter(self, at_s: float) -> None:
        """This plan is in service again."""
        if (left_s := self.presence.left_s) is None:
            return
        for time in self._nodes.values():
            time.skip(left_s, at_s)
        self.presence.enter(at_s)

    def rented(self, end_s: float) -> dict[str, Rented]:
        """Node time by node type, from the start to `end_s`, while this plan was in service."""
        if (left_s := self.presence.left_s) is not None:
            end_s = min(end_s, left_s)
        return {node_type: time.rented(end_s) for node_type, time in self._nodes.items()}

    def usd_per_hour_now(self) -> float:
        """What is rented at present."""
        return sum(time.count * time.usd_per_hour for time in self._nodes.values())

    def prices_per_hour(self) -> dict[str, float]:
        """Node type -> price of one node, as last billed."""
        return {node_type: time.usd_per_hour for node_type, time in self._nodes.items()}


def _stranger(found: str) -> InvalidInput:
    return InvalidInput(Problem("record", "must be of the plan that is served", found))
