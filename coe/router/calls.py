"""The calls of a tier: whose turn it is, who may start, what came back, and what becomes of those that fail or are late."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from coe.records import BatchRun
from coe.router.hearing import Hearing
from coe.router.queries import Batch, Garbage, Late, Query
from coe.router.slots import Slots
from coe.router.turns import Turns, earliest
from coe.types import IntArray, Placement, Probabilities

if TYPE_CHECKING:
    from coe.router.core import RouterCore

PATIENCE = 0.1
"""Part of the promised latency that a call may be on its way before its placement counts as slower than planned."""


class Calls:
    """Asks the members of one tier. Each call is billed when its end is known."""

    def __init__(
        self, number: int, placements: Mapping[str, Sequence[Placement]], slots: Mapping[str, Slots], core: RouterCore
    ) -> None:
        """number: of the tier.   placements: by member, in the tier's order.   slots: by deployment."""
        self._number = number
        self._members = tuple(placements)
        self._placements = placements
        self._turns = {m: Turns([p.traffic for p in own]) for m, own in placements.items()}
        self._slots = slots
        self._slow: set[str] = set()
        """Deployments whose last call took longer than planned."""
        self._core = core

    def next_try_in_s(self) -> float | None:
        """Seconds until the first of the members is tried again; None where one of them does not rest."""
        now = self._core.clock()
        return earliest([turns.next_try_in_s(now) for turns in self._turns.values()])

    async def ask(self, member: str, heard: Hearing, rows: IntArray) -> None:
        """Ask one member about rows of a batch, and note what it says.

        A call that fails, or has no reply within the promised latency, is made once more if there is time, on another placement
        where there is one. A member that is silent everywhere is a missing vote at once.
        """
        column, turns = self._members.index(member), self._turns[member]
        heard.asked[rows, column] = True
        retries = 1
        while len(rows):
            began_s = self._core.clock()
            turn = turns.next(began_s)
            if turn is None:
                break
            called, probs = await self._asked_once(member, turn, heard, rows)
            if probs is not None:
                heard.note_votes(called[heard.open[called]], column, probs[heard.open[called]])
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
            self._number,
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
