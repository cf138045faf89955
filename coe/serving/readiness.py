"""Whether a router can answer: every tier must be able to form its quorum from members that have started and are not failing.

A member is down after `FAILURES` failed calls in a row, until one succeeds or `MEMORY_S` have passed: without traffic
nothing would ever show that it is back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from coe.types import Cascade

FAILURES = 3
MEMORY_S = 10.0


class Readiness:
    """Counts failed calls in a row by deployment, and says which tiers cannot answer."""

    def __init__(self, cascade: Cascade, deployments: Iterable[tuple[str, str]], clock: Callable[[], float]) -> None:
        """deployments: (member, deployment) pairs; a member is up while one of its deployments is."""
        self._cascade = cascade
        self._clock = clock
        self._of: dict[str, list[str]] = {}
        for member, deployment in deployments:
            self._of.setdefault(member, []).append(deployment)
        self._failed: dict[str, tuple[int, float]] = {}

    def failed(self, deployment: str) -> None:
        """A call of `deployment` failed."""
        count, _ = self._failed.get(deployment, (0, 0.0))
        self._failed[deployment] = count + 1, self._clock()

    def answered(self, deployment: str) -> None:
        """A call of `deployment` came back."""
        self._failed.pop(deployment, None)

    def missing(self, starting: Collection[str] = ()) -> list[str]:
        """What each tier that cannot answer lacks; nothing when the router is ready.

        starting: deployments that have not run yet.
        """
        lines = []
        for number, tier in enumerate(self._cascade.tiers):
            voters = self._cascade.voters(number)
            down = [m for m in voters if not self._is_up(m, starting)]
            needed = max(1, tier.quorum or 1)
            if len(voters) - len(down) < needed:
                lines.append(f"tier {number} needs {needed} of {len(voters)} members; down: {', '.join(down)}")
        return lines

    def _is_up(self, member: str, starting: Collection[str]) -> bool:
        return any(d not in starting and not self._is_down(d) for d in self._of[member])

    def _is_down(self, deployment: str) -> bool:
        count, last_s = self._failed.get(deployment, (0, 0.0))
        return count >= FAILURES and self._clock() - last_s < MEMORY_S
