"""Whose turn it is: traffic shares between placements, and rests of those that fail or fall silent."""

from __future__ import annotations

import math
from collections.abc import Sequence

REST_S, LONGEST_REST_S = 1.0, 30.0


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
