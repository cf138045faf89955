"""When a plan was in service: a router that changes gears leaves one and comes back to it."""

from __future__ import annotations

from collections import deque

KEPT_S = 3600.0
"""Absences are known one by one for so long, and as a sum from the beginning."""


class Presence:
    """Absences of a plan since it was first in service."""

    def __init__(self, began_s: float) -> None:
        self._began_s = began_s
        self._left_s: float | None = None
        self._sum_s = 0.0
        self._absences: deque[tuple[float, float]] = deque()

    @property
    def left_s(self) -> float | None:
        """Since when it is out of service; None while it is in service."""
        return self._left_s

    def leave(self, at_s: float) -> None:
        """Out of service from now on."""
        if self._left_s is None:
            self._left_s = at_s

    def enter(self, at_s: float) -> None:
        """In service again."""
        if self._left_s is None:
            return
        self._absences.append((self._left_s, at_s))
        self._sum_s += max(0.0, at_s - self._left_s)
        self._left_s = None
        while self._absences and self._absences[0][1] < at_s - KEPT_S:
            self._absences.popleft()

    def absent_s(self, since_s: float, now_s: float) -> float:
        """Seconds out of service from `since_s`, at most an hour ago or the beginning, to `now_s`."""
        last_s = 0.0 if self._left_s is None else max(0.0, now_s - max(self._left_s, since_s))
        if since_s <= self._began_s:
            return self._sum_s + last_s
        return last_s + sum(max(0.0, min(came, now_s) - max(left, since_s)) for left, came in self._absences)
