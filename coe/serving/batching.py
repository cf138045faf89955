"""The router's core: batches across requests, one call per member per batch, one decision per batch.

Pure asyncio: members are reached through a `call` function, time through a clock, and the ledger through `record`; so
all of it runs in tests without Ray. Every tier has a queue. Queries of many requests form a batch, by size or after a
wait; each member of the tier is called once with the whole batch; `decide` settles the batch; what it defers joins
the next tier's queue, where the escalated queries of many batches meet.

A member that fails, answers garbage or is late is a missing vote. Its call is billed all the same, when its end is known. A query
that no member of the last tier answered falls back on the best answer of the tiers before, marked as degraded; only
where there is none does it fail.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from coe.cascade.beliefs import prepared
from coe.cascade.decide import decide
from coe.cascade.evaluate import lacking
from coe.records import Answer, BatchRun, Record
from coe.table import Decision, Outputs
from coe.types import ABSTAINED, MISSING_VOTE, BoolArray, Cascade, IntArray, Placement, Probabilities

LATE_FACTOR = 2.0
"""A member is late after this many times the latency promise."""
IN_FLIGHT_PER_REPLICA = 2
"""Batches under way per replica of a tier's scarcest member: one computes, the next one waits there already."""
CLOSING_GRACE_S = 0.2

Batch = np.ndarray
T = TypeVar("T")


@dataclass(frozen=True)
class Reply:
    """What a member's replica returns: probabilities (items, classes), busy seconds, and the node it ran on."""

    probs: Probabilities
    busy_s: float
    node: str = ""


Call = Callable[[Placement, Batch], Awaitable[Reply]]


class Unanswered(Exception):
    """No member of any tier answered a query."""


@dataclass
class Query:
    """A query on its way through the tiers."""

    query_id: str
    item: Batch
    arrival_s: float
    queued_s: float
    result: asyncio.Future[Answer]
    fallback: Answer | None = field(default=None)
    heard: dict[str, Probabilities | None] = field(default_factory=dict)
    """Member -> its probabilities (classes,), or None where it failed; kept only where a later tier carries."""


class Turns:
    """Smooth weighted round robin over the placements of a member: deterministic, and in proportion to traffic."""

    def __init__(self, placements: Sequence[Placement]) -> None:
        self._placements = tuple(placements)
        self._credit = [0.0] * len(placements)

    def next(self) -> Placement:
        """The placement whose turn it is."""
        self._credit = [c + p.traffic for c, p in zip(self._credit, self._placements, strict=True)]
        chosen = max(range(len(self._credit)), key=self._credit.__getitem__)
        self._credit[chosen] -= sum(p.traffic for p in self._placements)
        return self._placements[chosen]


class TierQueue:
    """One tier: its waiting queries, its batches under way, and what becomes of them."""

    def __init__(
        self, number: int, cascade: Cascade, placements: Mapping[str, Sequence[Placement]], core: RouterCore
    ) -> None:
        self.number = number
        self.tier = tier = cascade.tiers[number]
        self._cascade = cascade
        self._voters = cascade.voters(number)
        self._is_carried = any(later.carry for later in cascade.tiers[number + 1 :])
        self.waiting: deque[Query] = deque()
        self._core = core
        self._turns = {m: Turns(placements[m]) for m in tier.members}
        self.batch_size = min(p.batch_size for m in tier.members for p in placements[m])
        replicas = min(sum(p.replicas for p in placements[m]) for m in tier.members)
        self._free = asyncio.Semaphore(IN_FLIGHT_PER_REPLICA * replicas)
        self._arrived = asyncio.Event()

    def put(self, queries: Sequence[Query]) -> None:
        """Add queries to the queue."""
        self.waiting.extend(queries)
        self._arrived.set()

    async def run(self) -> None:
        """Form and start batches for ever."""
        while True:
            await self._batch_is_due()
            await self._free.acquire()
            size = min(self.batch_size, len(self.waiting))
            batch = [self.waiting.popleft() for _ in range(size)]
            self._core.start(self._serve(batch))

    async def _batch_is_due(self) -> None:
        """Return when the queue holds a full batch, or its oldest query has waited long enough."""
        while len(self.waiting) < self.batch_size:
            self._arrived.clear()
            timeout = None
            if self.waiting:
                timeout = self.waiting[0].queued_s + self._core.wait_s - self._core.clock()
                if timeout <= 0:
                    return
            try:
                await asyncio.wait_for(self._arrived.wait(), timeout)
            except TimeoutError:
                return

    async def _serve(self, batch: list[Query]) -> None:
        """Ask the members, decide, answer what is accepted and pass on the rest."""
        try:
            try:
                outputs, asked = await self._hear(batch)
            finally:
                self._free.release()
            decision = replace(decide(self.tier, outputs), degraded=lacking(outputs, asked))
            self._core.settle(self.number, batch, decision)
        except Exception as error:  # a mistake of ours must not leave clients waiting
            for query in batch:
                if not query.result.done():
                    query.result.set_exception(error)

    async def _hear(self, batch: Sequence[Query]) -> tuple[Outputs, BoolArray]:
        """Outputs of the tier's voters on a batch, and which members were asked about each item (items, own members).

        A staged tier asks one member after the other, and only about items whose outcome is still open.
        """
        own = self.tier.members
        items = np.stack([query.item for query in batch])
        asked = np.zeros((len(batch), len(own)), dtype=np.bool_)
        said = self._carried(batch)
        staged = self.tier.dispatch == "staged"
        for group in [[m] for m in own] if staged else [list(own)]:
            first = own.index(group[0])
            still = np.flatnonzero(~decide(self.tier, self._outputs(*said)).settled) if first else np.arange(len(batch))
            if not len(still):
                break
            asked[still[:, None], np.arange(first, first + len(group))[None, :]] = True
            replies = await self._ask_members(group, items[still])
            for position, reply in enumerate(replies, start=first):
                if reply is not None:
                    said[0][still, position] = reply.argmax(axis=1)
                    said[1][still, position] = reply
        if self._is_carried:
            for row, query in enumerate(batch):
                for column in np.flatnonzero(asked[row]):
                    answered = said[0][row, column] != MISSING_VOTE
                    query.heard[own[column]] = said[1][row, column] if answered else None
        return self._outputs(*said), asked

    def _carried(self, batch: Sequence[Query]) -> tuple[IntArray, Probabilities]:
        """Answers and probabilities of all voters, filled with what earlier tiers heard; never asked is abstained."""
        answers = np.full((len(batch), len(self._voters)), MISSING_VOTE, dtype=np.int64)
        probs = np.zeros((*answers.shape, self._core.classes), dtype=np.float32)
        for column, member in enumerate(self._voters[len(self.tier.members) :], start=len(self.tier.members)):
            for row, query in enumerate(batch):
                if member not in query.heard:
                    answers[row, column] = ABSTAINED
                elif (heard := query.heard[member]) is not None:
                    answers[row, column] = heard.argmax()
                    probs[row, column] = heard
        return answers, probs

    def _outputs(self, answers: IntArray, probs: Probabilities) -> Outputs:
        """The outputs as the cascade reads them."""
        outputs = Outputs(answers, probs, texts=self._core.class_names)
        return prepared(outputs, self._voters, self._cascade.top_k, self._cascade.temperatures)

    async def _ask_members(self, members: Sequence[str], items: Batch) -> list[Probabilities | None]:
        """What each of `members` says about `items`; None for one that failed or was late."""
        calls = [self._core.start(self._ask(member, items)) for member in members]
        await asyncio.wait(calls, timeout=self._core.late_after_s)
        return [call.result() if call.done() else None for call in calls]

    async def _ask(self, member: str, items: Batch) -> Probabilities | None:
        """One member's probabilities, or None; the call is billed whatever becomes of it, also after it is late."""
        placement = self._turns[member].next()
        start = self._core.clock()
        status, busy_s, probs = "failed", None, None
        try:
            reply = await self._core.call(placement, items)
            busy_s = reply.busy_s
            if _is_sound(reply.probs, len(items), self._core.classes):
                late = self._core.clock() - start > self._core.late_after_s
                status, probs = ("late", None) if late else ("ok", reply.probs)
        except asyncio.CancelledError:
            status = "cancelled"
            raise
        except Exception as error:  # whatever a replica raises is a missing vote, and is counted
            self._core.note_failure(placement.deployment, error)
        finally:
            end = self._core.clock()
            # a replica that died cannot say how long it was busy: all the time counts
            busy = busy_s if busy_s is not None else end - start
            self._core.record(
                BatchRun(self.number, member, placement.node_type, placement.share, len(items), start, busy, status)
            )
        return probs


def _is_sound(probs: Probabilities, items: int, classes: int) -> bool:
    """True for finite probabilities of the right shape."""
    return isinstance(probs, np.ndarray) and probs.shape == (items, classes) and bool(np.isfinite(probs).all())


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
        call: Call,
        clock: Callable[[], float],
        record: Callable[[Record], None],
        note_failure: Callable[[str, Exception], None] = lambda _deployment, _error: None,
    ) -> None:
        self.class_names = tuple(class_names)
        self.classes = len(class_names)
        self.wait_s = wait_s
        self.late_after_s = LATE_FACTOR * latency_s
        self.call = call
        self.clock = clock
        self.record = record
        self.note_failure = note_failure
        by_member: dict[str, list[Placement]] = {}
        for placement in placements:
            by_member.setdefault(placement.member, []).append(placement)
        self.tiers = [TierQueue(i, cascade, by_member, self) for i in range(len(cascade.tiers))]
        self._tasks: set[asyncio.Task[Any]] = set()

    async def ask(self, queries: Mapping[str, Batch]) -> list[Answer | Unanswered]:
        """The answer to every item (id -> array), in order; `Unanswered` stands for one that nobody answered."""
        now = self.clock()
        loop = asyncio.get_running_loop()
        waiting = [Query(i, item, now, now, loop.create_future()) for i, item in queries.items()]
        self.tiers[0].put(waiting)
        results = await asyncio.gather(*(q.result for q in waiting), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, Unanswered):
                raise result
        return [r for r in results if isinstance(r, Answer | Unanswered)]

    async def run(self) -> None:
        """Keep every tier's queue moving until cancelled."""
        await asyncio.gather(*(tier.run() for tier in self.tiers))

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a batch or a member call beside everything else, and know of it when closing."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Give batches and calls under way a moment to end, then cancel them; such calls are recorded as cancelled."""
        if self._tasks:
            _, pending = await asyncio.wait(self._tasks, timeout=CLOSING_GRACE_S)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    def settle(self, number: int, batch: Sequence[Query], decision: Decision) -> None:
        """Answer what is accepted, pass on the rest; the last tier has no next and falls back."""
        now = self.clock()
        is_last = number == len(self.tiers) - 1
        deferred = []
        for i, query in enumerate(batch):
            answer = Answer(
                query.query_id,
                query.arrival_s,
                now,
                number,
                int(decision.answer[i]),
                float(decision.score[i]),
                bool(decision.degraded[i]),
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
            self.tiers[number + 1].put(deferred)

    def _finish(self, query: Query, answer: Answer | None) -> None:
        """Give a query its answer, or the fallback it has, or fail it; each is recorded once."""
        now = self.clock()
        if answer is None:
            self.record(Answer(query.query_id, query.arrival_s, now, -1, MISSING_VOTE, 0.0, True, "failed"))
            if not query.result.done():
                query.result.set_exception(Unanswered(query.query_id))
            return
        if answer is query.fallback:
            answer = Answer(
                answer.query_id, answer.arrival_s, now, answer.tier, answer.answer, answer.score, True, "fallback"
            )
        self.record(answer)
        if not query.result.done():  # a client that went away is billed like any other
            query.result.set_result(answer)
