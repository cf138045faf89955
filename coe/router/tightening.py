"""Stricter gates for a cascade whose early answers have turned out worse than promised.

A step accepts a part of what the step before accepted, and nothing else. Votes ask for one more, up to all; scores that
end at 1 move half of the way there, once; after that, and at once where nobody knows how far a rule's scores reach, the
gate is closed and the tier passes on everything. Then every query is answered by the last tier, and there is nothing to lose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from coe.records import Auditing, Record
from coe.router.audits import Auditor
from coe.types import FRACTION_RULES, Cascade, Tier


@dataclass(frozen=True)
class Gates:
    """The tiers of a cascade as they decide now. closed: numbers of those that pass on everything."""

    tiers: tuple[Tier, ...]
    closed: frozenset[int]
    says: str
    """What is otherwise than planned, and why it stops there."""

    @property
    def are_closed(self) -> bool:
        """True where only the last tier answers."""
        return len(self.closed) == len(self.tiers) - 1


def tightened(cascade: Cascade, strictness: int) -> Gates:
    """The gates so many steps stricter than the cascade's own; 0 are its own."""
    tiers, closed, says = list(cascade.tiers), set(), []
    for number, tier in enumerate(cascade.tiers[:-1]):
        stricter, why = _stricter(tier, len(cascade.voters(number)), strictness)
        if stricter is None:
            closed.add(number)
            says.append(f"tier {number + 1} passes on everything ({why})")
        elif stricter != tier:
            tiers[number] = stricter
            says.append(f"tier {number + 1} {why}")
    return Gates(tuple(tiers), frozenset(closed), "; ".join(says))


class Seen(Protocol):
    """What audits have shown at the present gates."""

    settings: Auditing | None
    drift_since_s: float | None


class Tightening:
    """Makes the gates of one plan a step stricter each time that drift shows anew, where that is wanted. Nothing here goes back:
    that takes a new plan, or a new router."""

    def __init__(
        self,
        auditor: Auditor,
        cascade: Cascade,
        seen: Seen,
        follow: Callable[[Gates], None],
        record: Callable[[Record], None],
    ) -> None:
        """seen: counts every record before `audited` hears of it.   follow: puts gates into service."""
        self._auditor, self._cascade, self._seen = auditor, cascade, seen
        self._follow, self._record = follow, record

    def audited(self, now_s: float) -> Gates | None:
        """An audit has ended: the gates that are in service from now on, where they are others than before."""
        if not self._auditor.audits.tighten or self._seen.drift_since_s is None or self._seen.settings is None:
            return None
        strictness = self._seen.settings.strictness + 1
        gates = tightened(self._cascade, strictness)
        self._follow(gates)
        self._record(self._auditor.began(now_s, strictness))
        return gates


def _stricter(tier: Tier, voters: int, steps: int) -> tuple[Tier | None, str]:
    """A tier after so many steps, or None where it is closed; and what has become of it."""
    if steps == 0:
        return tier, ""
    if tier.rule == "vote" and tier.quorum is not None:
        quorum = tier.quorum + steps
        if quorum > voters:
            return None, f"its {voters} voters cannot be asked for more than {voters} votes"
        return tier.model_copy(update={"quorum": quorum}), f"answers at {quorum} votes instead of {tier.quorum}"
    if tier.rule in FRACTION_RULES and tier.threshold is not None and tier.threshold < 1:
        if steps > 1:
            return None, "half of the way to certainty was not enough"
        threshold = (1 + tier.threshold) / 2
        return (
            tier.model_copy(update={"threshold": threshold}),
            f"answers at {tier.rule} {threshold:.4g} instead of {tier.threshold:.4g}",
        )
    return (
        None,
        f"nothing is known of how far {tier.rule} reaches"
        if tier.threshold is None or tier.threshold != 1
        else (f"{tier.rule} reaches no further than 1"),
    )
