"""A round of asking: members are asked side by side, until all have said what they will or no query waits for it any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from coe.router.hearing import Hearing
from coe.types import BoolArray

Settle = Callable[[bool, BoolArray | None], None]
"""Lets queries leave that may: all of them where asking is over (of those given), else those whose outcome is known."""


class Round:
    """One round about a batch. What the votes of one turn of the event loop settle leaves at its end."""

    def __init__(
        self, heard: Hearing, members: int, settle: Settle, clock: Callable[[], float], *, is_last: bool
    ) -> None:
        """members: how many are asked.   is_last: nobody is asked after them."""
        self._heard, self._settle, self._clock = heard, settle, clock
        self._left, self._is_last = members, is_last
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._soon: asyncio.Handle | None = None
        self._timer: asyncio.Handle | None = None

    async def over(self) -> None:
        """Wait for the end; votes that are due count as failed meanwhile. Raises what went wrong in settling."""
        self._look_at_the_time()
        try:
            await self._over
        finally:
            for handle in (self._soon, self._timer):
                if handle is not None:
                    handle.cancel()

    def has_said(self) -> None:
        """A member has said what it will."""
        self._left -= 1
        if not self._left:
            self._look()
        elif self._soon is None:  # others may speak in the same turn
            self._soon = self._loop.call_soon(self._look)

    def fail(self, error: Exception) -> None:
        """End with a mistake of ours."""
        if not self._over.done():
            self._over.set_exception(error)

    def _look(self) -> None:
        """See what is settled now."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        try:
            self._settle(not self._left and self._is_last, None)
        except Exception as error:
            self.fail(error)
        self._end_if_over()

    def _look_at_the_time(self) -> None:
        """Queries whose time for this tier is up leave without the votes that they lack."""
        heard = self._heard
        overdue = heard.open & (heard.due_s <= self._clock())
        if overdue.any():
            heard.failed |= heard.asked & heard.unheard & overdue[:, None]
            try:
                self._settle(True, overdue)
            except Exception as error:
                self.fail(error)
        self._end_if_over()
        if not self._over.done():
            left_s = float(heard.due_s[heard.open].min()) - self._clock()
            self._timer = self._loop.call_later(max(0.0, left_s), self._look_at_the_time)

    def _end_if_over(self) -> None:
        if not self._over.done() and (not self._left or not self._heard.open.any()):
            self._over.set_result(None)
