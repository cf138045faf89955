"""Which gear fits a load, without swinging between two of them. The simulator and the service run these same lines.

Three things keep a service from swinging: a gear is left downwards only below a mark that is lower than the limit at which it
was entered, loads are means over a look-back, and after any change the service stays for a while before it goes down. Up it goes
at once, since a gear that is too low refuses queries.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

from coe.router.rate import ArrivalRate
from coe.types import Gears

LONGEST_S = 1.0
"""The load is looked at this often at least."""


def next_gear(gears: Gears, current: int, rate_per_s: float) -> int:
    """Number of the gear for a load in queries per second: up as soon as the current one's limit is passed, down only below
    the mark where that gear is left."""
    last = len(gears.gears) - 1
    while current < last and rate_per_s > gears.gears[current].up_to_per_s:
        current += 1
    while current > 0 and rate_per_s < gears.gears[current].back_below_per_s:
        current -= 1
    return current


class Gearbox:
    """The gear that one router is in. It hears of every arrival; `shifted` says when another gear is due."""

    def __init__(self, gears: Gears, now_s: float, *, current: int = 0, look_back_s: float | None = None) -> None:
        """current: number of the gear to begin in.   look_back_s: in place of that of `gears`."""
        self.gears, self.current = gears, current
        self._rate = ArrivalRate(look_back_s or gears.look_back_s, now_s)
        self._changed_s = -math.inf
        self.changes = 0
        self.is_held = False
        """True: stay whatever the load is; it is measured all the same."""

    @property
    def every_s(self) -> float:
        """How often to ask."""
        return min(LONGEST_S, self._rate.slot_s)

    def arrived(self, queries: int, now_s: float) -> None:
        """So many queries have come to this router, whether they are refused or not."""
        self._rate.arrived(queries, now_s)

    def rate_per_s(self, now_s: float, routers: int = 1) -> float:
        """The load of the whole service, of which this router sees an equal part."""
        return routers * self._rate.per_s(now_s)

    def shifted(self, now_s: float, routers: int = 1) -> int | None:
        """The gear to change to, which is `current` from now on; None to stay."""
        gear = self.current if self.is_held else next_gear(self.gears, self.current, self.rate_per_s(now_s, routers))
        if gear == self.current or (gear < self.current and now_s - self._changed_s < self.gears.dwell_s):
            return None
        self.put_into(gear, now_s)
        return gear

    def put_into(self, gear: int, now_s: float) -> None:
        """Change to a gear, whatever the load is."""
        self.current, self._changed_s = gear, now_s
        self.changes += 1


async def follow_load(
    box: Gearbox,
    change: Callable[[int], Awaitable[None]],
    *,
    clock: Callable[[], float],
    routers: Callable[[], int] = lambda: 1,
) -> None:
    """Ask the gearbox again and again, and `change` when it says so, for ever. routers: that share the load at present."""
    while True:
        await asyncio.sleep(box.every_s)
        gear = box.shifted(clock(), routers())
        if gear is not None:
            await change(gear)
