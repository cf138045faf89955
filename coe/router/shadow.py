"""The audits of a router: early answers that wait to be shown to the last tier, off the way of every query.

They go in batches of their own, one at a time, and only where nothing waits before the last tier and a replica stays idle
beside them, or nothing else is under way there. So only where a tier has a single replica may a query that comes meanwhile
find it busy, for one batch, which is no larger than what is planned to take half of the promised latency. Audits ask the last
tier's own members; what that tier carries is left out, since an early answer did not wait for it.

They go only while their plan is in service. When the router changes gears, its members may be busy for the other gear, or their
replicas may be fewer: what waits then is left out as `resting`, and so is what is chosen among the answers that the plan still
gives. None of it has to do with what the answers are. What is under way ends and counts.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import ContextVar
from typing import TYPE_CHECKING

from coe.records import Answer, Audit, BatchRun
from coe.router.audits import Auditor
from coe.router.queries import Query
from coe.types import MISSING_VOTE

if TYPE_CHECKING:
    from coe.router.core import RouterCore
    from coe.router.tier import TierQueue

FILL_S = 1.0
"""A batch of audits waits so long for more of them: fuller batches cost less, and nobody waits for these."""
QUEUE_BATCHES = 2
"""So many full batches of the tier may wait; what is chosen beyond is skipped."""

is_for_audits: ContextVar[bool] = ContextVar("is_for_audits", default=False)
"""True within a call of a member that is made for audits."""


class Shadow:
    """Audits of one router. Made for its core, whose last tier it asks."""

    def __init__(self, auditor: Auditor, tier: TierQueue, core: RouterCore) -> None:
        self.auditor = auditor
        self._tier, self._core = tier, core
        self._batch_size = min(tier.batch_size, auditor.batch_size(core.latency_s))
        self._waiting: deque[Query] = deque()
        self._asked: dict[int, Query] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_open = True
        self._is_resting = False

    def offer(self, query: Query, answer: Answer) -> None:
        """An answer has been given: audit it, if it is an early one, is chosen, and there is money and room."""
        if answer.tier >= self._tier.number or answer.status != "ok" or not self.auditor.chooses():
            return
        now = self._core.clock()
        audit = Query(query.query_id, query.item, now, now, query.result, audited=answer)
        if not self._is_open:
            self._end(audit, "dropped")
        elif self._is_resting:
            self._end(audit, "resting")
        elif self._tier.waiting or len(self._waiting) >= QUEUE_BATCHES * self._tier.batch_size:
            self._end(audit, "busy")
        elif not self.auditor.can_pay(now):
            self._end(audit, "unpaid")
        else:
            self._waiting.append(audit)
            self.nudge()

    def nudge(self) -> None:
        """Send a batch, if one is due and the last tier has a replica to spare. Whatever may change that calls this."""
        if not self._waiting or self._asked or not self._is_open:
            return
        if len(self._waiting) < self._batch_size:
            left_s = self._waiting[0].queued_s + FILL_S - self._core.clock()
            if left_s > 0:
                if self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(left_s, self._filled)
                return
        if self._tier.has_a_replica_to_spare:
            batch = self._next_batch()
            self._asked = {id(query): query for query in batch}
            self._core.start(self._ask(batch))

    def _filled(self) -> None:
        self._timer = None
        self.nudge()

    def _next_batch(self) -> list[Query]:
        batch, size_bytes = list[Query](), 0
        while self._waiting and len(batch) < self._batch_size:
            size_bytes += self._waiting[0].item.nbytes
            if batch and size_bytes > self._core.batch_bytes:
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _ask(self, batch: list[Query]) -> None:
        is_for_audits.set(True)  # of this task and those that it starts
        try:
            await self._tier.audit(batch)
        finally:
            self._give_up()
            self.nudge()

    def heard(self, query: Query, last: Answer | None) -> None:
        """What the last tier said of an audited query, or that it said nothing."""
        del self._asked[id(query)]
        self.auditor.ended(1)
        if last is None:
            self._end(query, "failed")
        else:
            same = query.audited is not None and last.answer == query.audited.answer
            self._end(query, "same" if same else "differs", last.answer)

    def billed(self, run: BatchRun) -> None:
        """A call was made for audits."""
        self.auditor.billed(run)

    def rest(self) -> None:
        """Another plan is in service from now on: no audits until `wake`; those that wait are left out."""
        self._is_resting = True
        self._leave_out("resting")

    def wake(self) -> None:
        """The plan is in service again."""
        self._is_resting = False

    def close(self) -> None:
        """No more audits; those that wait are dropped."""
        self._is_open = False
        self._leave_out("dropped")

    def _leave_out(self, outcome: str) -> None:
        """End what waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.auditor.ended(len(self._waiting))
        while self._waiting:
            self._end(self._waiting.popleft(), outcome)

    def _give_up(self) -> None:
        """End what was asked and has not been heard: only where the router closes is there any."""
        self.auditor.ended(len(self._asked))
        asked, self._asked = self._asked, {}
        for query in asked.values():
            self._end(query, "dropped")

    def _end(self, query: Query, outcome: str, last: int = MISSING_VOTE) -> None:
        answer = query.audited
        assert answer is not None
        now = self._core.clock()
        self._core.record(Audit(query.query_id, answer.tier, answer.answer, last, query.arrival_s, now, outcome))
