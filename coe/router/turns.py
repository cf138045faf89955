"""Whose turn it is, and who may start: traffic shares between placements, and calls under way of each."""

from __future__ import annotations

import asyncio
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
    """How many calls of one placement may be under way; the others wait here, where they can still be taken back."""

    def __init__(self, count: int) -> None:
        self._free = asyncio.Semaphore(count)

    async def take(self, hold_s: float) -> Callable[[], None]:
        """Wait for a slot; what is returned gives it back, once. A call that hangs loses its slot after `hold_s`."""
        await self._free.acquire()
        is_held = True

        def give_back() -> None:
            nonlocal is_held
            if is_held:
                is_held = False
                timer.cancel()
                self._free.release()

        timer = asyncio.get_running_loop().call_later(hold_s, give_back)
        return give_back
