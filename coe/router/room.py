"""How many batches and calls of a tier may be under way, and how many queries per second that makes as planned."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from coe.cost.capacity import at_work, in_flight
from coe.router.slots import Slots
from coe.types import Placement


class Room:
    """Of one tier. It follows deployments that have more or fewer replicas than planned."""

    def __init__(self, placements: Mapping[str, Sequence[Placement]], away_s: Mapping[str, float]) -> None:
        """placements: by member.   away_s: round trips of the deployments across a link."""
        self._placements = {p.deployment: p for own in placements.values() for p in own}
        self._by_member = [[p.deployment for p in own] for own in placements.values()]
        self._replicas = {name: p.replicas for name, p in self._placements.items()}
        self._away_s = away_s
        self.batch_size = min(p.batch_size for p in self._placements.values())
        self.full_s = max(p.full_s for p in self._placements.values())
        """Seconds of the slowest replica for a full batch, as planned."""
        self.calls = {name: Slots(self._in_flight(name)) for name in self._placements}
        """By deployment."""
        self.batches = Slots(self._scarcest(self._in_flight))
        self._at_work = self._scarcest(self._without_idling)
        self.per_s = self._planned_per_s()
        """Queries per second in full batches, as planned."""

    @property
    def is_idling(self) -> bool:
        """True while a replica of the scarcest member has nothing to do."""
        return self.batches.taken < self._at_work

    @property
    def has_some_to_spare(self) -> bool:
        """True where with one batch more there would still be an idle replica, or no other batch at all."""
        return self.batches.taken == 0 or self.batches.taken + 1 < self._at_work

    def resize(self, deployment: str, replicas: int) -> None:
        """Follow a deployment; others than this tier's are no concern."""
        if deployment not in self._placements:
            return
        self._replicas[deployment] = replicas
        self.calls[deployment].resize(self._in_flight(deployment))
        self.batches.resize(self._scarcest(self._in_flight))
        self._at_work = self._scarcest(self._without_idling)
        self.per_s = self._planned_per_s()

    def _in_flight(self, deployment: str) -> int:
        """Calls that may be under way at once."""
        return in_flight(self._placements[deployment], self._replicas[deployment], self._away_s.get(deployment, 0.0))

    def _without_idling(self, deployment: str) -> int:
        """Calls under way with which no replica is idle."""
        return at_work(self._placements[deployment], self._replicas[deployment], self._away_s.get(deployment))

    def _scarcest(self, count: Callable[[str], int]) -> int:
        """What the member with the least of it has."""
        return min(sum(map(count, own)) for own in self._by_member)

    def _planned_per_s(self) -> float:
        return min(sum(map(self._replicas_per_s, own)) for own in self._by_member)

    def _replicas_per_s(self, deployment: str) -> float:
        placement = self._placements[deployment]
        if placement.full_s <= 0:
            return math.inf
        return self._replicas[deployment] * placement.batch_size / placement.full_s
