"""How many queries arrive per second: a mean over a look-back, counted in slots, so that memory does not grow with the load."""

from __future__ import annotations

from collections import deque

SLOTS = 30
"""Of a look-back."""
SURE = 0.25
"""Part of the look-back that must have passed before what was seen is taken for the whole; until then silence counts, too."""


class ArrivalRate:
    """Arrivals per second over the last `look_back_s` seconds, a slot more at most. Times are seconds of any clock that only
    goes forward."""

    def __init__(self, look_back_s: float, now_s: float) -> None:
        self.slot_s = look_back_s / SLOTS
        self._least_s = SURE * look_back_s
        self._began_s = now_s
        self._slots: deque[tuple[int, int]] = deque()
        """(number of the slot, arrivals in it), rising."""

    def arrived(self, queries: int, now_s: float) -> None:
        """So many have come."""
        number = self._number(now_s)
        if self._slots and self._slots[-1][0] >= number:
            last, count = self._slots[-1]
            self._slots[-1] = (last, count + queries)
        else:
            self._slots.append((number, queries))
            self._forget(number)

    def per_s(self, now_s: float) -> float:
        """The rate: over the look-back, or since the beginning where that is shorter."""
        number = self._number(now_s)
        self._forget(number)
        since_s = self._began_s + max(0, number - SLOTS) * self.slot_s
        return sum(count for _, count in self._slots) / max(now_s - since_s, self._least_s)

    def _number(self, now_s: float) -> int:
        return int((now_s - self._began_s) // self.slot_s)

    def _forget(self, number: int) -> None:
        """Drop slots that have left the look-back."""
        while self._slots and self._slots[0][0] < number - SLOTS:
            self._slots.popleft()
