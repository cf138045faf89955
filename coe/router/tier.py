"""One tier of the router: batches out of its queue, its members' votes heard, its queries answered or passed on."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from coe.cascade.beliefs import prepared
from coe.cascade.decide import decide
from coe.cascade.evaluate import lacking
from coe.cost.capacity import half
from coe.router.calls import Calls
from coe.router.hearing import Hearing
from coe.router.pace import Pace
from coe.router.queries import Query
from coe.router.room import Room
from coe.router.round import Round
from coe.table import Outputs
from coe.types import ABSTAINED, MISSING_VOTE, BoolArray, Cascade, IntArray, Placement, Probabilities, Tier

if TYPE_CHECKING:
    from coe.router.core import RouterCore


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
        own = {m: tuple(placements[m]) for m in tier.members}
        self._room = Room(own, core.away_s)
        self._calls = Calls(number, own, self._room.calls, core)
        self.batch_size = self._room.batch_size
        self.under_way = 0
        """Queries in batches that have been sent."""
        self._pace = Pace()
        self._is_closed = False
        self._broken: asyncio.Future[None] | None = None
        """Pending while batches are formed; a mistake of ours in doing so ends it."""
        self._look: asyncio.Handle | None = None
        """The next look at the queue."""

    @property
    def capacity_per_s(self) -> float:
        """Queries per second that leave this tier when its scarcest member is never idle: as planned, or as seen if it is
        clearly less."""
        return self._pace.of(self._room.per_s)

    @property
    def batch_s(self) -> float:
        """Seconds of a replica for a full batch: as planned, longer where the tier is slower than planned."""
        planned = self._room.per_s
        slower = planned / self._pace.of(planned) if math.isfinite(planned) else 1.0
        return self._room.full_s * slower

    def resize(self, deployment: str, replicas: int) -> None:
        """Follow a deployment that has more or fewer replicas than before."""
        self._room.resize(deployment, replicas)
        self._look_soon()

    def follow(self, tier: Tier, *, is_closed: bool) -> None:
        """Decide by another gate: that of `tier`, which is the same in all else, or by none, passing on everything."""
        self.tier, self._is_closed = tier, is_closed

    @property
    def has_a_replica_to_spare(self) -> bool:
        """True where nothing waits, and with one batch more there would still be an idle replica, or no other batch at all."""
        return not self.waiting and self._room.has_some_to_spare

    def next_try_in_s(self) -> float | None:
        """Seconds until the first of its members is tried again; None where one of them does not rest."""
        return self._calls.next_try_in_s()

    def put(self, queries: Sequence[Query]) -> None:
        """Add queries to the queue."""
        self.waiting.extend(queries)
        self._look_soon()

    async def run(self) -> None:
        """Form and start batches until cancelled. Raises what went wrong in doing so."""
        self._broken = asyncio.get_running_loop().create_future()
        self._look_soon()
        try:
            await self._broken
        finally:
            self._look_at(None)
            self._broken = None

    def _look_soon(self) -> None:
        """Look at the queue when the loop has done what it is at: queries of many requests come in one turn of it."""
        if self._broken is not None:
            self._look_at(asyncio.get_running_loop().call_soon(self._send_batches))

    def _look_at(self, look: asyncio.Handle | None) -> None:
        """Look then and at no other time."""
        if self._look is not None:
            self._look.cancel()
        self._look = look

    def _send_batches(self, *, is_due: bool = False) -> None:
        """Send what is due, and look again when the next batch will be. is_due: the oldest query has waited long enough."""
        self._look_at(None)
        try:
            while self.waiting and not self._room.batches.is_full:
                wait_s = 0.0 if is_due else self._wait_s()
                if wait_s > 0:
                    if wait_s < math.inf:
                        later = partial(self._send_batches, is_due=True)
                        self._look_at(asyncio.get_running_loop().call_later(wait_s, later))
                    return
                self._send_batch()
                is_due = False
        except Exception as error:
            if self._broken is not None and not self._broken.done():
                self._broken.set_exception(error)

    def _wait_s(self) -> float:
        """Seconds until a batch is due; infinite where something has to happen first.

        A full one is due at once, another when its oldest query has waited long enough and a replica is idle: behind a busy one
        it would wait as long, and could not grow. One that is half full goes there all the same, so that no replica is idle while
        the next batch is on its way.
        """
        if len(self.waiting) >= self.batch_size:
            return 0.0
        if len(self.waiting) >= half(self.batch_size) or self._room.is_idling:
            return self.waiting[0].queued_s + self._core.wait_s - self._core.clock()
        return math.inf

    def _send_batch(self) -> None:
        """Take a slot and start a batch, if anybody still waits for one."""
        batch = self._next_batch()
        if not batch:
            return
        now = self._core.clock()
        self._core.note_batch(self.number, [now - query.queued_s for query in batch])
        if self._core.listener is not None:
            self._core.listener.batched(self.number, batch)
        self.under_way += len(batch)
        self._core.start(self._serve(batch, self._room.batches.taken_at_once()))

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
                is_full = len(batch) == self.batch_size and self._room.batches.is_full and bool(self.waiting)
                self._pace.ended(self._core.clock(), len(batch), is_full=is_full and is_telling)
                give_back()
                self._look_soon()
                if self._core.shadow is not None:
                    self._core.shadow.nudge()
        except Exception as error:  # a mistake of ours must not leave clients waiting
            for query in batch:
                if not query.result.done():
                    query.result.set_exception(error)

    async def audit(self, batch: list[Query]) -> None:
        """Ask the members about queries that have been answered; neither the pace nor the queries under way count them."""
        give_back = await self._room.batches.take()
        try:
            await self._hear(self._hearing(batch))
        finally:
            give_back()
            self._look_soon()

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

        def settle(is_over: bool, among: BoolArray | None) -> None:
            self._settle(heard, is_over=is_over, among=among)

        own = self.tier.members
        groups = [[m] for m in own] if self.tier.dispatch == "staged" else [list(own)]
        for number, group in enumerate(groups, start=1):
            rows = np.flatnonzero(heard.open)
            if not len(rows):
                return
            asking = Round(heard, len(group), settle, self._core.clock, is_last=number == len(groups))
            for member in group:
                self._core.start(self._ask(member, heard, rows, asking))
            await asking.over()

    async def _ask(self, member: str, heard: Hearing, rows: IntArray, asking: Round) -> None:
        """Ask a member, and say so when it has said what it will."""
        try:
            await self._calls.ask(member, heard, rows)
        except Exception as error:  # a mistake of ours: what a replica raises is a missing vote
            asking.fail(error)
        asking.has_said()

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
