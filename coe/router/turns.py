"""Whose turn it is, and who may start: traffic shares between placements, and calls under way of each."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence


class Turns:
    """Smooth weighted round robin over the placements of a member: deterministic, and in proportion to traffic."""

    def __init__(self, traffic: Sequence[float]) -> None:
        self._traffic = list(traffic)
        self._credit = [0.0] * len(self._traffic)
        self._total = sum(self._traffic)

    def next(self) -> int:
        """Number of the placement whose turn it is."""
        self._credit = [c + t for c, t in zip(self._credit, self._traffic, strict=True)]
        chosen = max(range(len(self._credit)), key=self._credit.__getitem__)
        self._credit[chosen] -= self._total
        return chosen


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
