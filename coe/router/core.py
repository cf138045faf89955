"""The router's core: batches across requests, one call per member per batch, one decision per batch.

Pure asyncio: members are reached through a `call` function, time through a clock, and the ledger through `record`; so all of it
runs without Ray: in tests, and in the simulator on a virtual clock. Every tier has a queue. Queries of many requests form a
batch, by size or after a wait; each member of the tier is called once with the whole batch; `decide` settles the batch; what it
defers joins the next tier's queue, where the escalated queries of many batches meet.

A query is decided early: it leaves as soon as no outstanding vote can change what becomes of it. A call that has not
started by then is not made, or made for the other queries of its batch alone; the ledger holds what was saved as
cancelled, with no busy time. A call under way ends in its own time and is billed.

A member that fails, answers garbage or has no reply within the promise is asked once more if there is time, and then is a missing
vote. Each call is billed all the same, when its end is known. A query that no member of the last tier answered falls back on the
best answer of the tiers before, marked as degraded; only where there is none does it fail.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from coe.records import Answer, Record
from coe.router.audits import Auditor
from coe.router.listening import Listener
from coe.router.queries import Answers, Batch, Call, Overloaded, Query, Unanswered
from coe.router.shadow import Shadow
from coe.router.spending import Spending
from coe.router.tier import TierQueue
from coe.router.tightening import Gates
from coe.router.turns import earliest
from coe.table import Decision
from coe.types import ABSTAINED, MISSING_VOTE, Cascade, Placement

LATE_FACTOR = 2.0
"""A query waits for a tier's votes at most for so many times the latency promise: for one call, and one made once more."""
CLOSING_GRACE_S = 0.2

T = TypeVar("T")


class RouterCore:
    """A cascade with its queues. `ask` is what a request calls; `run` must run beside it."""

    def __init__(
        self,
        cascade: Cascade,
        placements: Sequence[Placement],
        class_names: Sequence[str],
        *,
        wait_s: float,
        latency_s: float,
        batch_bytes: float = math.inf,
        away_s: Mapping[str, float] | None = None,
        call: Call,
        clock: Callable[[], float],
        record: Callable[[Record], None],
        note_failure: Callable[[str, Exception], None] = lambda _deployment, _error: None,
        note_answered: Callable[[str], None] = lambda _deployment: None,
        note_batch: Callable[[int, Sequence[float]], None] = lambda _tier, _waited_s: None,
        listener: Listener | None = None,
        usd_per_busy_s: Mapping[str, float] | None = None,
        auditor: Auditor | None = None,
    ) -> None:
        """away_s: round trips of the deployments across a link.   auditor: chooses early answers to be shown to the last tier,
        too; None for none."""
        self.class_names = tuple(class_names)
        self.classes = len(class_names)
        self.wait_s = wait_s
        self.latency_s = latency_s
        self.late_after_s = LATE_FACTOR * latency_s
        self.batch_bytes = batch_bytes
        self.away_s = dict(away_s or {})
        self.call = call
        self.clock = clock
        self.record = record
        self.note_failure = note_failure
        self.note_answered = note_answered
        self.note_batch = note_batch
        self.listener = listener
        self.spending = None if usd_per_busy_s is None else Spending(usd_per_busy_s)
        by_member: dict[str, list[Placement]] = {}
        for placement in placements:
            by_member.setdefault(placement.member, []).append(placement)
        self.tiers = [TierQueue(i, cascade, by_member, self) for i in range(len(cascade.tiers))]
        self.shadow = None if auditor is None else Shadow(auditor, self.tiers[-1], self)
        self._tasks: dict[asyncio.Task[Any], None] = {}  # in the order in which they began

    async def ask(self, queries: Mapping[str, Batch], *, timeout_s: float = math.inf) -> list[Answer | Unanswered]:
        """The answer to every item (id -> array), in order; `Unanswered` stands for one that nobody answered.

        After `timeout_s` a query takes the best answer it has. Raises `Overloaded`, before any work is done, where the
        queues hold more than the members answer within the latency promise.
        """
        self._refuse_overload(len(queries))
        now = self.clock()
        loop = asyncio.get_running_loop()
        due_s = now + timeout_s
        waiting = [Query(i, item, now, now, loop.create_future(), due_s) for i, item in queries.items()]
        if self.listener is not None:
            self.listener.arrived(waiting)
        self.tiers[0].put(waiting)
        try:
            answers = Answers([await _told(query) for query in waiting])
        except BaseException:  # the client went away, or a mistake of ours: nobody waits for the others either
            for query in waiting:
                if not query.result.cancel() and not query.result.cancelled():
                    query.result.exception()
            raise
        if self.spending is not None:
            answers.spent = tuple(replace(q.spent) for q in waiting)
        if Unanswered in map(type, answers):
            answers.retry_after_s = self._next_try_in_s()
        return answers

    def _next_try_in_s(self) -> float | None:
        """Seconds until a member is tried again; None where one does not rest: it may answer the very next query."""
        return earliest([tier.next_try_in_s() for tier in self.tiers])

    def _refuse_overload(self, arriving: int) -> None:
        """Raise `Overloaded` where what arrives could not be answered within the promise any more.

        A query waits for what is ahead of it, waiting or under way, at the pace of the tier's scarcest member; then come its own
        batch and, if it escalates, two batches of every later tier. Two batches ahead are always let in, or nothing would be.
        """
        later_s = 0.0
        for tier in reversed(self.tiers):
            new = arriving if tier.number == 0 else 0
            ahead = len(tier.waiting) + tier.under_way
            room = max(tier.capacity_per_s * (self.latency_s - later_s - tier.batch_s), 2 * tier.batch_size)
            if ahead and ahead + new > room:
                raise Overloaded((ahead + new - room) / tier.capacity_per_s)
            later_s += 2 * tier.batch_s

    def expire(self, query: Query) -> None:
        """End a query whose time is up while it waits."""
        self._finish(query, query.fallback)

    def resize(self, deployment: str, replicas: int) -> None:
        """Follow a deployment that has more or fewer replicas than planned."""
        for tier in self.tiers:
            tier.resize(deployment, replicas)

    def follow(self, gates: Gates) -> None:
        """Decide by other gates from now on, also about queries under way."""
        for tier in self.tiers:
            tier.follow(gates.tiers[tier.number], is_closed=tier.number in gates.closed)

    @property
    def is_idle(self) -> bool:
        """True where no query is left."""
        return not self._tasks and not any(tier.waiting for tier in self.tiers)

    async def run(self) -> None:
        """Keep every tier's queue moving until cancelled."""
        await asyncio.gather(*(tier.run() for tier in self.tiers))

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a batch or a member call beside everything else, and know of it when closing."""
        task = asyncio.ensure_future(work)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return task

    async def close(self) -> None:
        """Give batches and calls under way a moment to end, then cancel them; such calls are recorded as cancelled. Audits
        that wait are dropped."""
        if self.shadow is not None:
            self.shadow.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSING_GRACE_S)
            await self.abandon()

    async def abandon(self) -> None:
        """Cancel batches and calls under way, in the order in which they began."""
        pending = tuple(self._tasks)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    def settle(self, number: int, batch: Sequence[Query], decision: Decision, votes: Sequence[Sequence[int]]) -> None:
        """Answer what is accepted, pass on the rest; the last tier has no next and falls back.

        votes: of each query, the answers of the tier's voters, `MISSING_VOTE` and `ABSTAINED` among them.
        """
        now = self.clock()
        is_last = number == len(self.tiers) - 1
        deferred = []
        for i, query in enumerate(batch):
            voted_for = int(decision.answer[i])
            answer = Answer(
                query.query_id,
                query.arrival_s,
                now,
                number,
                voted_for,
                float(decision.score[i]),
                bool(decision.degraded[i]),
                agreed=votes[i].count(voted_for) if voted_for >= 0 else 0,
                voted=len(votes[i]) - votes[i].count(MISSING_VOTE) - votes[i].count(ABSTAINED),
            )
            if decision.accepted[i]:
                self._finish(query, answer)
            elif is_last:
                self._finish(query, query.fallback)
            else:
                if answer.answer != MISSING_VOTE:
                    query.fallback = answer
                query.queued_s = now
                deferred.append(query)
        if deferred:
            if self.listener is not None:
                self.listener.passed_on(number, deferred)
            self.tiers[number + 1].put(deferred)

    def _finish(self, query: Query, answer: Answer | None) -> None:
        """Give a query its answer, or the fallback it has, or fail it; each is recorded once."""
        if query.audited is not None:
            if self.shadow is not None:
                self.shadow.heard(query, answer)
            return
        now = self.clock()
        if answer is None:
            failed = Answer(query.query_id, query.arrival_s, now, -1, MISSING_VOTE, 0.0, True, "failed")
            self.record(failed)
            if self.listener is not None:
                self.listener.ended(query, failed)
            if not query.result.done():
                query.result.set_exception(Unanswered(query.query_id))
            return
        if answer is query.fallback:
            answer = replace(answer, done_s=now, degraded=True, status="fallback")
        self.record(answer)
        if self.listener is not None:
            self.listener.ended(query, answer)
        if not query.result.done():  # a client that went away is billed like any other
            query.result.set_result(answer)
        if self.shadow is not None:
            self.shadow.offer(query, answer)


async def _told(query: Query) -> Answer | Unanswered:
    """What became of a query."""
    try:
        return await query.result
    except Unanswered as none:
        return none
