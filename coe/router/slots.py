"""Who may start: calls and batches under way at once are counted, the others wait their turn."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


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

    def taken_at_once(self) -> Callable[[], None]:
        """A slot where one is free, as what gives it back."""
        assert not self.is_full
        self._taken += 1
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
