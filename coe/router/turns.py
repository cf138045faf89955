"""Whose turn it is, and who may start: traffic shares between placements, and calls under way of each."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence

REST_S, LONGEST_REST_S = 1.0, 30.0
SMOOTHING, CLEARLY = 0.1, 0.8
"""Of the pace: about the last ten batches count; what is planned holds unless less than this part of it is seen."""


class Turns:
    """Smooth weighted round robin over the placements of a member: deterministic, and in proportion to traffic.

    A placement that failed rests while another one can take its turns, also one that the plan gives no traffic but keeps for
    this. After its rest it gets one call: if that is answered it is back, else it rests for twice as long.

    A placement that did not reply at all is silent besides: while it rests it is not asked even where there is no other, since
    whoever waits for it is late. One that failed at once may well answer the next time, and costs no time to ask.
    """

    def __init__(self, traffic: Sequence[float]) -> None:
        self._traffic = list(traffic)
        self._credit = [0.0] * len(self._traffic)
        self._rest_s = [0.0] * len(self._traffic)
        self._rests_until_s = [-math.inf] * len(self._traffic)
        self._is_tried = [False] * len(self._traffic)
        self._is_silent = [False] * len(self._traffic)
        self._answered_s = [-math.inf] * len(self._traffic)

    def next(self, now_s: float = 0.0) -> int | None:
        """Number of the placement whose turn it is; None where all are silent."""
        everyone = range(len(self._traffic))
        for i in everyone:
            if self._rest_s[i] and self._rests_until_s[i] <= now_s:
                self._rests_until_s[i], self._is_tried[i] = now_s + self._rest_s[i], True
                return i
        able = [i for i in everyone if not self._rest_s[i]] or [i for i in everyone if not self._is_silent[i]]
        if not able:
            return None
        traffic = {i: self._traffic[i] for i in able}
        if not any(traffic.values()):
            traffic = dict.fromkeys(able, 1.0)
        for i, share in traffic.items():
            self._credit[i] += share
        chosen = max(able, key=self._credit.__getitem__)
        self._credit[chosen] -= sum(traffic.values())
        return chosen

    @property
    def well(self) -> list[int]:
        """Placements that do not rest."""
        return [i for i, rest_s in enumerate(self._rest_s) if not rest_s]

    def is_avoided(self, placement: int) -> bool:
        """Whether the placement is silent and rests: whoever has waited for it goes elsewhere."""
        return self._is_silent[placement] and self._rest_s[placement] > 0 and not self._is_tried[placement]

    def next_try_in_s(self, now_s: float) -> float | None:
        """Seconds until the first rest ends; None where a placement does not rest, which is asked at once."""
        if not all(self._rest_s):
            return None
        return max(0.0, min(self._rests_until_s) - now_s)

    def failed(self, placement: int, now_s: float) -> None:
        """A call of this placement failed."""
        if self._rest_s[placement] and not self._is_tried[placement]:
            return  # of the same blow that it rests from already
        self._rest_s[placement] = min(max(REST_S, 2 * self._rest_s[placement]), LONGEST_REST_S)
        self._rests_until_s[placement], self._is_tried[placement] = now_s + self._rest_s[placement], False

    def late(self, placement: int, now_s: float, asked_s: float) -> None:
        """A call of this placement, made at `asked_s`, has no reply in time. If others were answered since then, it is only
        one replica of several that hangs."""
        self._is_silent[placement] = self._answered_s[placement] < asked_s
        self.failed(placement, now_s)

    def answered(self, placement: int, now_s: float, *, is_late: bool = False) -> None:
        """A call of this placement was answered: it is well; or at least worth waiting for again, where that took too long."""
        self._is_silent[placement], self._answered_s[placement] = False, now_s
        if not is_late:
            self._rest_s[placement], self._is_tried[placement] = 0.0, False


def earliest(tries: Sequence[float | None]) -> float | None:
    """The least of them; None where one is None, which needs no waiting for."""
    known = [wait_s for wait_s in tries if wait_s is not None]
    return min(known) if len(known) == len(tries) else None


class Slots:
    """How many may be under way at once; the others wait, first come first served. The number may change while some are."""

    def __init__(self, count: int) -> None:
        self._count, self._taken = count, 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def taken(self) -> int:
        """How many are under way."""
        return self._taken

    @property
    def is_full(self) -> bool:
        """True while nobody else may start."""
        return self._taken >= self._count

    def resize(self, count: int) -> None:
        """Let so many be under way from now on; whoever is beyond that ends in peace."""
        self._count = count
        self._hand_on()

    async def take(self) -> Callable[[], None]:
        """Wait for a slot; what is returned gives it back."""
        await self._acquired()
        return self._give_back

    def _give_back(self) -> None:
        self._taken -= 1
        self._hand_on()

    async def _acquired(self) -> None:
        if self._taken < self._count and not self._waiting:
            self._taken += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the slot was handed over, and nobody is there any more
                self._taken -= 1
                self._hand_on()
            raise

    def _hand_on(self) -> None:
        while self._waiting and self._taken < self._count:
            turn = self._waiting.popleft()
            if not turn.done():
                self._taken += 1
                turn.set_result(None)


class Pace:
    """How fast a tier that is full empties in truth: items per second between the ends of full batches, smoothed.

    Machines that are much slower than planned show here, and nowhere else before queries are late. While a tier is not full
    nobody can tell; then the figure creeps back to what was planned.
    """

    def __init__(self) -> None:
        self._per_s = math.inf
        self._ended_s: float | None = None

    def ended(self, now_s: float, items: int, *, is_full: bool) -> None:
        """A batch has ended; `is_full`: as large as may be, with no slot free and others waiting."""
        if self._ended_s is not None and is_full and now_s > self._ended_s:
            seen = items / (now_s - self._ended_s)
            self._per_s = seen if math.isinf(self._per_s) else self._per_s + SMOOTHING * (seen - self._per_s)
        elif not is_full:
            self._per_s *= 1 + SMOOTHING
        self._ended_s = now_s if is_full else None

    def of(self, planned_per_s: float) -> float:
        """Items per second to count with: the planned ones, unless it is clear that there are fewer."""
        return self._per_s if self._per_s < CLEARLY * planned_per_s else planned_per_s
