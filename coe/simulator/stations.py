"""Stations: the replicas of one deployment on the virtual clock. Calls wait for one with room, first come first served.

Every call takes room of a replica for some time. A batch takes all of it for the batch's time; a request to a language model a
part of it for the request's latency, as continuous batching lets it; a request to a hosted model none.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from coe.cost.capacity import service_s
from coe.placement.columns import covering_rate
from coe.simulator.network import HOP_PART, jitter_sigma, profile_of, service_times
from coe.types import IntArray, Placement, Plan, Profiles

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Part:
    """One piece of work: the room that it takes of a replica, and for how long."""

    room: float
    seconds: float


Work = Callable[[IntArray], Sequence[Part]]
"""The parts of a call about items (rows of the sample)."""


class Lost(Exception):
    """The replica was lost under a call."""


@dataclass(eq=False)
class Replica:
    """One process. `room` is what is left of it; calls that it works on end with it."""

    station: Station
    device: int
    room: float = 1.0
    is_up: bool = False
    is_leaving: bool = False
    up_since_s: float = 0.0
    working: dict[asyncio.Future[None], None] = field(default_factory=dict)

    def start(self) -> None:
        """Take calls from now on."""
        self.is_up, self.room = True, 1.0
        self.up_since_s = asyncio.get_running_loop().time()
        self.station.hand_on()

    def stop_taking(self) -> None:
        """Start no more calls; what is under way ends."""
        self.is_leaving = True

    def die(self) -> None:
        """End now; calls under way are lost."""
        if self.is_up:
            self.station.up_s += asyncio.get_running_loop().time() - self.up_since_s
        self.is_up = False
        for call in tuple(self.working):
            if not call.done():
                call.set_exception(Lost(f"a replica of {self.station.placement.deployment} was lost"))


class Station:
    """The replicas of one deployment, and the calls that wait for them."""

    def __init__(self, placement: Placement, work: Work, hop_s: float, load_s: float) -> None:
        self.placement, self.hop_s, self.load_s = placement, hop_s, load_s
        self.replicas: list[Replica] = []
        self.up_s = 0.0
        """Seconds that replicas which are gone were there."""
        self.under_way = 0
        self._work = work
        self._waiting: deque[tuple[float, asyncio.Future[Replica]]] = deque()

    async def call(self, rows: IntArray) -> tuple[float, float, float]:
        """Compute a call about `rows`. Returns mean seconds of waiting and of computing over its parts, and the replica
        seconds that it took. Raises `Lost` where a replica dies under it."""
        self.under_way += 1
        try:
            done = await asyncio.gather(*(self._part(p) for p in self._work(rows)), return_exceptions=True)
        finally:
            self.under_way -= 1
        for part in done:
            if isinstance(part, BaseException):
                raise part
        parts = [p for p in done if not isinstance(p, BaseException)]
        waited, computed, busy = (sum(column) for column in zip(*parts, strict=True))
        return waited / len(parts), computed / len(parts), busy

    async def _part(self, part: Part) -> tuple[float, float, float]:
        loop = asyncio.get_running_loop()
        asked_s = loop.time()
        replica = await self._taken(part.room)
        start_s = loop.time()
        done: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(part.seconds, lambda: None if done.done() else done.set_result(None))
        replica.working[done] = None
        try:
            await done
        finally:
            timer.cancel()
            replica.working.pop(done, None)
            replica.room += part.room
            self.hand_on()
        return start_s - asked_s, part.seconds, part.room * part.seconds

    async def _taken(self, room: float) -> Replica:
        """A replica with room, which is taken."""
        if not self._waiting and (replica := self._with_room(room)) is not None:
            replica.room -= room
            return replica
        turn: asyncio.Future[Replica] = asyncio.get_running_loop().create_future()
        self._waiting.append((room, turn))
        return await turn

    def _with_room(self, room: float) -> Replica | None:
        there = [r for r in self.replicas if r.is_up and not r.is_leaving and r.room >= room - _ROUNDING]
        return max(there, key=lambda r: r.room, default=None)

    def hand_on(self) -> None:
        """Let waiting calls start while there is room."""
        while self._waiting:
            room, turn = self._waiting[0]
            if turn.done():  # nobody waits for it any more
                self._waiting.popleft()
                continue
            replica = self._with_room(room)
            if replica is None:
                return
            self._waiting.popleft()
            replica.room -= room
            turn.set_result(replica)


def station_of(plan: Plan, placement: Placement, profiles: Profiles, rng: np.random.Generator) -> Station:
    """The station of a placement, still without replicas. Requests to a language model are as long as the workload's classes say,
    drawn by their shares. Raises `InvalidInput` where profiles lack what the plan needs."""
    profile = profile_of(plan, placement, profiles)
    sigma = jitter_sigma(profile, placement)
    hop_s = HOP_PART * profile.hop_p99_s

    def factor() -> float:
        return math.exp(sigma * rng.normal()) if sigma else 1.0

    if placement.api:
        known = profile.timings[-1].batch_size

        def hosted(rows: IntArray) -> list[Part]:
            return [Part(0.0, service_s(profile, min(len(rows), known)) * factor()) for _ in rows]

        return Station(placement, hosted, hop_s, 0.0)
    if profile.token_rates:
        lengths = plan.workload.tokens
        rates = [covering_rate(profile, part) for part in lengths]
        parts = [Part(1 / (r.requests_per_s * r.latency_p99_s), r.latency_p99_s / placement.share) for r in rates]
        shares = np.array([part.share for part in lengths])

        def by_tokens(rows: IntArray) -> list[Part]:
            drawn = rng.choice(len(parts), len(rows), p=shares / shares.sum())
            return [parts[i] for i in drawn]

        return Station(placement, by_tokens, hop_s, profile.load_s)
    times = service_times(placement, profile, placement.batch_size, placement.batch_size)

    def by_batch(rows: IntArray) -> list[Part]:
        return [Part(1.0, times[len(rows)] * factor())]

    return Station(placement, by_batch, hop_s, profile.load_s)
