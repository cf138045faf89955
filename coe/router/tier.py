"""One tier of the router: batches out of its queue, its members' votes heard, its queries answered or passed on."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from coe.cascade.beliefs import prepared
from coe.cascade.decide import decide
from coe.cascade.evaluate import lacking
from coe.cost.capacity import at_work, half, in_flight
from coe.records import BatchRun
from coe.router.queries import Batch, Garbage, Late, Query
from coe.router.turns import Pace, Slots, Turns, earliest
from coe.table import Outputs
from coe.types import ABSTAINED, MISSING_VOTE, BoolArray, Cascade, FloatArray, IntArray, Placement, Probabilities, Tier

if TYPE_CHECKING:
    from coe.router.core import RouterCore

PATIENCE = 0.1
"""Part of the promised latency that a call may be on its way before its placement counts as slower than planned."""


@dataclass
class Hearing:
    """A batch before a tier: what its voters have said, and which queries are still open.

    open: (items,).   asked, failed: (items, own members); failed marks votes that were asked for and will not come.
    """

    batch: list[Query]
    items: Batch
    answers: IntArray
    probs: Probabilities
    asked: BoolArray
    failed: BoolArray
    open: BoolArray
    due_s: FloatArray
    """(items,): when this tier stops waiting for votes."""

    @property
    def is_audit(self) -> bool:
        """True where its queries have been answered already."""
        return self.batch[0].audited is not None


class TierQueue:
    """One tier: its waiting queries, its batches under way, and what becomes of them."""

    def __init__(
        self, number: int, cascade: Cascade, placements: Mapping[str, Sequence[Placement]], core: RouterCore
    ) -> None:
        self.number = number
        self.tier = tier = cascade.tiers[number]
        self._tiers_left = len(cascade.tiers) - number
        self._cascade = cascade
        self._voters = cascade.voters(number)
        self._is_carried = any(later.carry for later in cascade.tiers[number + 1 :])
        self.waiting: deque[Query] = deque()
        self._core = core
        self._placements = {m: tuple(placements[m]) for m in tier.members}
        self._turns = {m: Turns([p.traffic for p in placements[m]]) for m in tier.members}
        self._replicas = {p.deployment: p.replicas for m in tier.members for p in placements[m]}
        self._slow: set[str] = set()
        """Deployments whose last call took longer than planned."""
        self._slots = {p.deployment: Slots(self._in_flight(p)) for m in tier.members for p in placements[m]}
        self.batch_size = min(p.batch_size for m in tier.members for p in placements[m])
        self.under_way = 0
        """Queries in batches that have been sent."""
        self._planned_batch_s = max(p.full_s for m in tier.members for p in placements[m])
        self._pace = Pace()
        self._batches = Slots(self._most_batches())
        self._at_work = self._batches_at_work()
        self._planned_per_s = self._per_s()
        self._is_closed = False
        self._changed = asyncio.Event()
        """Queries came, or a batch ended."""

    @property
    def capacity_per_s(self) -> float:
        """Queries per second that leave this tier when its scarcest member is never idle: as planned, or as seen if it is
        clearly less."""
        return self._pace.of(self._planned_per_s)

    @property
    def batch_s(self) -> float:
        """Seconds of a replica for a full batch: as planned, longer where the tier is slower than planned."""
        planned = self._planned_per_s
        slower = planned / self._pace.of(planned) if math.isfinite(planned) else 1.0
        return self._planned_batch_s * slower

    def _per_s(self) -> float:
        """Queries per second in full batches, as planned."""
        return min(
            sum(
                self._replicas[p.deployment] * p.batch_size / p.full_s if p.full_s > 0 else math.inf
                for p in self._placements[m]
            )
            for m in self.tier.members
        )

    def _most_batches(self) -> int:
        """Batches under way at once: what the scarcest member can take."""
        return min(sum(self._in_flight(p) for p in self._placements[m]) for m in self.tier.members)

    def _in_flight(self, placement: Placement) -> int:
        """Calls of a placement that may be under way at once."""
        away_s = self._core.away_s.get(placement.deployment, 0.0)
        return in_flight(placement, self._replicas[placement.deployment], away_s)

    def _batches_at_work(self) -> int:
        """Batches under way with which no replica of the scarcest member is idle."""
        away_s = self._core.away_s
        return min(
            sum(at_work(p, self._replicas[p.deployment], away_s.get(p.deployment)) for p in self._placements[m])
            for m in self.tier.members
        )

    def resize(self, deployment: str, replicas: int) -> None:
        """Follow a deployment that has more or fewer replicas than before."""
        for placement in (p for own in self._placements.values() for p in own if p.deployment == deployment):
            self._replicas[deployment] = replicas
            self._slots[deployment].resize(self._in_flight(placement))
            self._batches.resize(self._most_batches())
        self._at_work = self._batches_at_work()
        self._planned_per_s = self._per_s()
        self._changed.set()

    def follow(self, tier: Tier, *, is_closed: bool) -> None:
        """Decide by another gate: that of `tier`, which is the same in all else, or by none, passing on everything."""
        self.tier, self._is_closed = tier, is_closed

    @property
    def has_a_replica_to_spare(self) -> bool:
        """True where nothing waits, and with one batch more there would still be an idle replica, or no other batch at all."""
        taken = self._batches.taken
        return not self.waiting and (taken == 0 or taken + 1 < self._at_work)

    def next_try_in_s(self) -> float | None:
        """Seconds until the first of its members is tried again; None where one of them does not rest."""
        now = self._core.clock()
        tries = [turns.next_try_in_s(now) for turns in self._turns.values()]
        return earliest(tries)

    def put(self, queries: Sequence[Query]) -> None:
        """Add queries to the queue."""
        self.waiting.extend(queries)
        self._changed.set()

    async def run(self) -> None:
        """Form and start batches for ever."""
        while True:
            await self._batch_is_due()
            give_back = await self._batches.take()
            batch = self._next_batch()
            if batch:
                now = self._core.clock()
                self._core.note_batch(self.number, [now - query.queued_s for query in batch])
                if self._core.listener is not None:
                    self._core.listener.batched(self.number, batch)
                self.under_way += len(batch)
                self._core.start(self._serve(batch, give_back))
            else:
                give_back()

    def _next_batch(self) -> list[Query]:
        """The oldest queries, as many as one call may carry; what nobody waits for any more ends here."""
        now, batch, size_bytes = self._core.clock(), list[Query](), 0
        while self.waiting and len(batch) < self.batch_size:
            query = self.waiting[0]
            if query.deadline_s <= now:
                self._core.expire(self.waiting.popleft())
                continue
            size_bytes += query.item.nbytes
            if batch and size_bytes > self._core.batch_bytes:
                break
            batch.append(self.waiting.popleft())
        return batch

    async def _batch_is_due(self) -> None:
        """Return when the queue holds a full batch, or its oldest query has waited long enough and a replica is idle: behind a
        busy one a batch would wait as long, and could not grow. One that is half full goes there all the same, so that no replica
        is idle while the next batch is on its way."""
        while len(self.waiting) < self.batch_size:
            self._changed.clear()
            timeout = None
            is_half = len(self.waiting) >= half(self.batch_size) and not self._batches.is_full
            if self.waiting and (is_half or self._batches.taken < self._at_work):
                timeout = self.waiting[0].queued_s + self._core.wait_s - self._core.clock()
                if timeout <= 0:
                    return
            try:
                await asyncio.wait_for(self._changed.wait(), timeout)
            except TimeoutError:
                return

    async def _serve(self, batch: list[Query], give_back: Callable[[], None]) -> None:
        """Ask the members, and answer or pass on each query as soon as its outcome is known."""
        try:
            is_telling = False
            try:
                heard = self._hearing(batch)
                await self._hear(heard)
                is_telling = not heard.failed.any()  # how long nobody replied does not say how fast they are who do
            finally:
                self.under_way -= len(batch)
                is_full = len(batch) == self.batch_size and self._batches.is_full and bool(self.waiting)
                self._pace.ended(self._core.clock(), len(batch), is_full=is_full and is_telling)
                give_back()
                self._changed.set()
                if self._core.shadow is not None:
                    self._core.shadow.nudge()
        except Exception as error:  # a mistake of ours must not leave clients waiting
            for query in batch:
                if not query.result.done():
                    query.result.set_exception(error)

    async def audit(self, batch: list[Query]) -> None:
        """Ask the members about queries that have been answered; neither the pace nor the queries under way count them."""
        give_back = await self._batches.take()
        try:
            await self._hear(self._hearing(batch))
        finally:
            give_back()
            self._changed.set()

    def _hearing(self, batch: list[Query]) -> Hearing:
        """Nobody asked yet; the votes that earlier tiers heard are there."""
        now = self._core.clock()
        shape = (len(batch), len(self.tier.members))
        left_s = np.array([query.deadline_s - now for query in batch])
        return Hearing(
            batch,
            np.stack([query.item for query in batch]),
            *self._carried(batch),
            asked=np.zeros(shape, dtype=np.bool_),
            failed=np.zeros(shape, dtype=np.bool_),
            open=np.ones(len(batch), dtype=np.bool_),
            due_s=now + np.minimum(left_s / self._tiers_left, self._core.late_after_s),
        )

    async def _hear(self, heard: Hearing) -> None:
        """Ask about a batch until every query of it has left the tier.

        A staged tier asks one member after the other, and only about items whose outcome is still open.
        """
        own = self.tier.members
        for group in [[m] for m in own] if self.tier.dispatch == "staged" else [list(own)]:
            if heard.asked.any() and self.tier.dispatch == "staged":
                self._settle(heard, is_over=False)
            rows = np.flatnonzero(heard.open)
            if not len(rows):
                return
            asking = {self._core.start(self._ask(member, heard, rows)) for member in group}
            while asking and heard.open.any():
                timeout = max(0.0, float(heard.due_s[heard.open].min()) - self._core.clock())
                _, asking = await asyncio.wait(asking, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                overdue = heard.open & (heard.due_s <= self._core.clock())
                if overdue.any():
                    heard.failed |= heard.asked & self._unheard(heard) & overdue[:, None]
                    self._settle(heard, is_over=True, among=overdue)
                if asking:
                    self._settle(heard, is_over=False)
        self._settle(heard, is_over=True)

    def _unheard(self, heard: Hearing) -> BoolArray:
        """(items, own members): no vote so far."""
        missing: BoolArray = heard.answers[:, : len(self.tier.members)] == MISSING_VOTE
        return missing

    def _settle(self, heard: Hearing, *, is_over: bool, among: BoolArray | None = None) -> None:
        """Let open queries (of `among`) leave: all of them where asking is over, else those that are settled.

        Where a later tier carries, a query that escalates waits for every vote, since all of them go with it.
        """
        rows = np.flatnonzero(heard.open if among is None else heard.open & among)
        if not len(rows):
            return
        outputs = self._outputs(heard.answers[rows], heard.probs[rows])
        decision = decide(self.tier, outputs)
        if self._is_closed:
            decision = replace(decision, accepted=np.zeros_like(decision.accepted))
        leaves = np.ones(len(rows), dtype=np.bool_) if is_over else decision.settled
        if not is_over and self._is_carried:
            is_staged = self.tier.dispatch == "staged"
            leaves = leaves & (decision.accepted | np.bool_(is_staged))
        if not leaves.any():
            return
        degraded = lacking(outputs, heard.failed[rows])
        decision = replace(decision, degraded=degraded).rows(leaves)
        rows = rows[leaves]
        heard.open[rows] = False
        if self._is_carried:
            self._keep_heard(heard, rows)
        self._core.settle(self.number, [heard.batch[row] for row in rows], decision, outputs.answers[leaves].tolist())

    def _keep_heard(self, heard: Hearing, rows: IntArray) -> None:
        """What the tiers to come may carry."""
        for row in rows:
            for column in np.flatnonzero(heard.asked[row]):
                answered = heard.answers[row, column] != MISSING_VOTE
                member = self.tier.members[column]
                heard.batch[row].heard[member] = heard.probs[row, column] if answered else None

    def _carried(self, batch: Sequence[Query]) -> tuple[IntArray, Probabilities]:
        """Answers and probabilities of all voters, filled with what earlier tiers heard; never asked is abstained."""
        answers = np.full((len(batch), len(self._voters)), MISSING_VOTE, dtype=np.int64)
        probs = np.zeros((*answers.shape, self._core.classes), dtype=np.float32)
        for column, member in enumerate(self._voters[len(self.tier.members) :], start=len(self.tier.members)):
            for row, query in enumerate(batch):
                if member not in query.heard:
                    answers[row, column] = ABSTAINED
                elif (heard := query.heard[member]) is not None:
                    answers[row, column] = heard.argmax() if heard.any() else ABSTAINED
                    probs[row, column] = heard
        return answers, probs

    def _outputs(self, answers: IntArray, probs: Probabilities) -> Outputs:
        """The outputs as the cascade reads them."""
        outputs = Outputs(answers, probs, texts=self._core.class_names)
        return prepared(outputs, self._voters, self._cascade.top_k, self._cascade.temperatures)

    async def _ask(self, member: str, heard: Hearing, rows: IntArray) -> None:
        """Ask one member about rows of a batch, and note what it says.

        A call that fails, or has no reply within the promised latency, is made once more if there is time, on another placement
        where there is one. A member that is silent everywhere is a missing vote at once.
        """
        column, turns = self.tier.members.index(member), self._turns[member]
        heard.asked[rows, column] = True
        retries = 1
        while len(rows):
            began_s = self._core.clock()
            turn = turns.next(began_s)
            if turn is None:
                break
            called, probs = await self._asked_once(member, turn, heard, rows)
            if probs is not None:
                self._note_votes(heard, called[heard.open[called]], column, probs[heard.open[called]])
                return
            rows = rows[heard.open[rows]]
            if len(called):
                if not retries or not self._is_time(heard, rows, began_s):
                    break
                retries -= 1
        heard.failed[rows[heard.open[rows]], column] = True

    def _is_time(self, heard: Hearing, rows: IntArray, began_s: float) -> bool:
        """Whether a call may be made once more: there is time for as much again, or half of the promised latency."""
        now = self._core.clock()
        return len(rows) > 0 and float(heard.due_s[rows].max()) - now > min(now - began_s, self._core.latency_s / 2)

    def _note_votes(self, heard: Hearing, rows: IntArray, column: int, probs: Probabilities) -> None:
        """Write down what a member said about rows; for an item that it has no numbers for, its vote is missing."""
        there = np.isfinite(probs).all(axis=1)
        answers = np.where(probs.any(axis=1), probs.argmax(axis=1), ABSTAINED)
        heard.answers[rows, column] = np.where(there, answers, MISSING_VOTE)
        heard.probs[rows[there], column] = probs[there]
        heard.failed[rows[~there], column] = True

    async def _asked_once(
        self, member: str, turn: int, heard: Hearing, rows: IntArray
    ) -> tuple[IntArray, Probabilities | None]:
        """Rows that the call was made for (those still open when it could start), and their probabilities or None.

        None are called where the placement has fallen silent meanwhile. A call that has no reply within the promised latency goes
        on by itself, and is billed when it ends.
        """
        turn = self._with_a_slot(member, turn)
        placement, still = self._placements[member][turn], rows[:0]
        try:
            give_back = await self._slots[placement.deployment].take()
            still = rows[heard.open[rows]]
        finally:
            if saved := len(rows) - len(still):
                self._record(placement, saved, self._core.clock(), 0.0, "cancelled", audit=heard.is_audit)
        try:
            if not len(still) or self._turns[member].is_avoided(turn):
                return still[:0], None
            start, queries = self._core.clock(), [heard.batch[row] for row in still]
            due_s = min(float(heard.due_s[still].max()), start + self._core.latency_s)
            call = self._core.start(self._called(member, turn, heard.items[still], due_s, queries))
            await asyncio.wait({call}, timeout=self._core.latency_s)
            if call.done():
                return still, call.result()
            self._turns[member].late(turn, self._core.clock(), start)
            self._core.note_failure(placement.deployment, Late("no reply within the promised latency"))
            return still, None
        finally:
            give_back()

    def _with_a_slot(self, member: str, turn: int) -> int:
        """The placement whose turn it is; where its calls take longer than planned and it has no slot free, another one of our
        own machines that is well and has."""
        placements = self._placements[member]
        deployment = placements[turn].deployment
        if deployment in self._slow and self._slots[deployment].is_full:
            for other in self._turns[member].well:
                if placements[other].api is None and not self._slots[placements[other].deployment].is_full:
                    return other
        return turn

    def _note_pace(self, placement: Placement, took_s: float) -> None:
        """Keep in mind whether a call took longer than its batch and the one before, the link, and a part of the promise."""
        away_s = self._core.away_s.get(placement.deployment, 0.0)
        if took_s > 2 * placement.full_s + away_s + PATIENCE * self._core.latency_s:
            self._slow.add(placement.deployment)
        else:
            self._slow.discard(placement.deployment)

    async def _called(
        self, member: str, turn: int, items: Batch, due_s: float, queries: Sequence[Query]
    ) -> Probabilities | None:
        """A member's probabilities, or None; the call is billed whatever becomes of it, also after it is late."""
        placement, start = self._placements[member][turn], self._core.clock()
        status, busy_s, fee_usd, probs, sound = "failed", None, 0.0, None, None
        for query in queries if self._core.spending is not None else ():
            query.spent.begun(placement)
        try:
            reply = await self._core.call(placement, items)
            busy_s, fee_usd = reply.busy_s, reply.fee_usd
            if not _is_sound(reply.probs, len(items), self._core.classes):
                raise Garbage(_described(reply.probs))
            now, sound = self._core.clock(), reply
            status, probs = ("late", None) if now > due_s else ("ok", reply.probs)
            is_late = now - start > self._core.latency_s
            self._turns[member].answered(turn, now, is_late=is_late)
            self._note_pace(placement, now - start)
            if not is_late:
                self._core.note_answered(placement.deployment)
        except asyncio.CancelledError:
            status = "cancelled"
            raise
        except Exception as error:  # whatever a replica raises is a missing vote, and is counted
            self._turns[member].failed(turn, self._core.clock())
            self._core.note_failure(placement.deployment, error)
        finally:
            # a replica that died cannot say how long it was busy: all the time counts; a hosted model keeps no machine of ours
            whole = 0.0 if placement.api else self._core.clock() - start
            busy_s, is_audit = whole if busy_s is None else busy_s, queries[0].audited is not None
            self._record(placement, len(items), start, busy_s, status, fee_usd, audit=is_audit)
            if self._core.spending is not None:
                self._core.spending.ended(placement, queries, busy_s, fee_usd, sound)
        return probs

    def _record(
        self,
        placement: Placement,
        items: int,
        start_s: float,
        busy_s: float,
        status: str,
        fee_usd: float = 0.0,
        *,
        audit: bool,
    ) -> None:
        """Write one call to the ledger."""
        run = BatchRun(
            self.number,
            placement.member,
            placement.node_type,
            placement.share,
            items,
            start_s,
            busy_s,
            status,
            fee_usd,
            audit,
        )
        self._core.record(run)
        if audit and self._core.shadow is not None:
            self._core.shadow.billed(run)


def _described(reply: object) -> str:
    """What came instead of probabilities."""
    if not isinstance(reply, np.ndarray):
        return f"replied with {type(reply).__name__} instead of an array"
    return f"replied with {reply.dtype} of shape {reply.shape}, without a finite row or of the wrong shape"


def _is_sound(probs: Probabilities, items: int, classes: int) -> bool:
    """True for probabilities of the right shape, finite for one item at least."""
    return (
        isinstance(probs, np.ndarray)
        and probs.shape == (items, classes)
        and np.issubdtype(probs.dtype, np.number)
        and bool(np.isfinite(probs).all(axis=1).any())
    )
