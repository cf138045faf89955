"""Whose turn it is, and who may start: traffic shares between placements, and calls under way of each."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence

REST_S, LONGEST_REST_S = 1.0, 30.0


class Turns:
    """Smooth weighted round robin over the placements of a member: deterministic, and in proportion to traffic.

    A placement that failed rests while another one can take its turns, also one that the plan gives no traffic but keeps for
    this. After its rest it gets one call: if that is answered it is back, else it rests for twice as long.
    """

    def __init__(self, traffic: Sequence[float]) -> None:
        self._traffic = list(traffic)
        self._credit = [0.0] * len(self._traffic)
        self._rest_s = [0.0] * len(self._traffic)
        self._rests_until_s = [-math.inf] * len(self._traffic)
        self._is_tried = [False] * len(self._traffic)

    def next(self, now_s: float = 0.0) -> int:
        """Number of the placement whose turn it is."""
        everyone = range(len(self._traffic))
        for i in everyone:
            if self._rest_s[i] and self._rests_until_s[i] <= now_s:
                self._rests_until_s[i], self._is_tried[i] = now_s + self._rest_s[i], True
                return i
        awake = [i for i in everyone if not self._rest_s[i]] or list(everyone)
        traffic = {i: self._traffic[i] for i in awake}
        if not any(traffic.values()):
            traffic = dict.fromkeys(awake, 1.0)
        for i, share in traffic.items():
            self._credit[i] += share
        chosen = max(awake, key=self._credit.__getitem__)
        self._credit[chosen] -= sum(traffic.values())
        return chosen

    def failed(self, placement: int, now_s: float) -> None:
        """A call of this placement failed or was late."""
        if self._rest_s[placement] and not self._is_tried[placement]:
            return  # of the same blow that it rests from already
        self._rest_s[placement] = min(max(REST_S, 2 * self._rest_s[placement]), LONGEST_REST_S)
        self._rests_until_s[placement], self._is_tried[placement] = now_s + self._rest_s[placement], False

    def answered(self, placement: int) -> None:
        """A call of this placement was answered: it is well."""
        self._rest_s[placement], self._is_tried[placement] = 0.0, False


class Slots:
    """How many may be under way at once; the others wait, first come first served. The number may change while some are."""

    def __init__(self, count: int) -> None:
        self._count, self._taken = count, 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def resize(self, count: int) -> None:
        """Let so many be under way from now on; whoever is beyond that ends in peace."""
        self._count = count
        self._hand_on()

    async def take(self, hold_s: float = math.inf) -> Callable[[], None]:
        """Wait for a slot; what is returned gives it back, once. Whoever hangs loses the slot after `hold_s`."""
        await self._acquired()
        is_held = True
        timer: asyncio.TimerHandle | None = None

        def give_back() -> None:
            nonlocal is_held
            if is_held:
                is_held = False
                if timer is not None:
                    timer.cancel()
                self._taken -= 1
                self._hand_on()

        if math.isfinite(hold_s):
            timer = asyncio.get_running_loop().call_later(hold_s, give_back)
        return give_back

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
