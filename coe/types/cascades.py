"""Who is asked: tiers, cascades, their certificates and what they did on a sample."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from coe.types.base import Count, Fraction, Name, Noun, OpenFraction, Positive, PositiveCount, refuse_repeats

FRACTION_RULES = frozenset(
    {"score", "mean", "both", "margin", "entropy", "vote_entropy", "jensen_shannon", "similarity"}
)
"""Rules whose score lies between 0 and 1."""


class Tier(Noun):
    """Members that are asked together, and the rule by which they answer or defer.

    Agreement is counted in votes (`quorum`), never as a share: 0.67 would never accept two of three.
    A tier with neither quorum nor threshold always answers; only the last tier of a cascade may be one.
    """

    members: Annotated[tuple[Name, ...], Field(min_length=1)]
    rule: str = "vote"
    """A key of `coe.cascade.rules.RULES` or a dotted path ``package.module:function``."""
    quorum: PositiveCount | None = None
    threshold: float | None = None
    carry: Count = 0
    """The outputs of so many tiers before, already paid for, count beside those of this tier's members."""
    dispatch: Literal["parallel", "staged"] = "parallel"
    """Ask all members at once, or one after the other until the outcome is settled: same routing, fewer calls, longer
    waits."""

    @property
    def always_answers(self) -> bool:
        """True for a tier that never defers."""
        return self.quorum is None and self.threshold is None

    @property
    def bar(self) -> float:
        """What the score must reach to be accepted; -inf for a tier that always answers."""
        if self.threshold is not None:
            return self.threshold
        return float("-inf") if self.quorum is None else float(self.quorum)

    @model_validator(mode="after")
    def _is_a_real_gate(self) -> Self:
        refuse_repeats(list(self.members), "members", "asking a model twice gives the same answer twice")
        k = len(self.members)
        if self.rule == "both":
            if (self.quorum is None) != (self.threshold is None):
                raise ValueError("rule 'both' takes a quorum (votes) and a threshold (score), and here is only one")
        elif self.quorum is not None and self.threshold is not None:
            raise ValueError("give quorum (votes) or threshold (score), not both; rule 'both' asks for the two")
        elif self.rule == "vote" and self.threshold is not None:
            raise ValueError(f"rule 'vote' takes an integer quorum (1..{k}), got threshold {self.threshold}")
        elif self.rule != "vote" and self.quorum is not None:
            raise ValueError(
                f"rule '{self.rule}' takes a threshold, got quorum {self.quorum}; only 'vote' and 'both' have a quorum"
            )
        if self.quorum is not None and self.quorum > k and self.carry == 0:
            raise ValueError(f"quorum {self.quorum} is more than the {k} members: it could never accept; use 1..{k}")
        if self.quorum == 1:
            raise ValueError("quorum 1 always accepts, so no query would reach the next tier; use 2 or more members")
        if self.rule in FRACTION_RULES and self.threshold is not None and not 0 < self.threshold <= 1:
            verdict = "always" if self.threshold <= 0 else "never"
            raise ValueError(f"threshold must be in (0, 1], got {self.threshold}: it would {verdict} accept")
        return self


Claim = Literal["excess", "loss", "disagreement"]
"""What is at most epsilon: the accuracy lost on balance; the share of queries that the cascade gets wrong and the reference
right; the share on which their answers differ, which needs no labels. Each implies the one before it.
"""


class Certificate(Noun):
    """A finite-sample claim: with probability at least 1-delta over the draw of the certification sample, `claim` is at
    most `epsilon`; so the cascade's accuracy is at most `epsilon` below the reference's.
    """

    claim: Claim = "loss"
    reference: Name
    epsilon: OpenFraction
    delta: OpenFraction
    items: PositiveCount
    """Size of the certification sample."""
    losses: Count
    """Items on which the cascade was wrong and the reference right; for `disagreement`, on which their answers differ."""
    gains: Count = 0
    """Items on which the cascade was right and the reference wrong; they only matter to the claim `excess`."""
    upper_bound: Annotated[float, Field(ge=-1, le=1)]
    """Exact one-sided (1-delta) upper confidence bound of what is claimed; at most epsilon."""
    method: str
    split: str = "certification"
    data_fingerprint: str
    """Of the certification items, labels and the outputs of the cascade's members and the reference."""
    cascade_fingerprint: str
    """Of the tiers that were certified."""


class Cascade(Noun):
    """Tiers from cheap to dear; a query stops at the first that accepts it, and the last always answers."""

    kind: Literal["cascade"] = "cascade"
    version: Literal[1] = 1
    name: Name = "cascade"
    tiers: Annotated[tuple[Tier, ...], Field(min_length=1)]
    top_k: PositiveCount | None = None
    """A member's probabilities count only for its k most probable classes; all others count as 0. Set where the recorded
    predictions hold no more, so that the service decides on what was certified."""
    temperatures: dict[Name, Positive] = Field(default_factory=dict)
    """Member -> temperature by which its probabilities are rescaled before any rule sees them; 1 where not named."""
    certificate: Certificate | None = None

    @model_validator(mode="after")
    def _only_the_last_tier_always_answers(self) -> Self:
        for i, tier in enumerate(self.tiers[:-1]):
            if tier.always_answers:
                raise ValueError(
                    f"tiers[{i}] always accepts, so tiers[{i + 1}] is never reached; give it a quorum or a threshold"
                )
        if not self.tiers[-1].always_answers:
            last = len(self.tiers) - 1
            raise ValueError(f"tiers[{last}] is the last and must always answer; remove its quorum or threshold")
        refuse_repeats(list(self.members), "tiers", "a model asked in two tiers gives the same answer twice")
        for i, tier in enumerate(self.tiers):
            if tier.carry > i:
                raise ValueError(f"tiers[{i}]: carry {tier.carry} is more than the {i} tiers before it")
            if tier.quorum is not None and tier.quorum > (k := len(self.voters(i))):
                raise ValueError(f"tiers[{i}]: quorum {tier.quorum} is more than the {k} votes that it counts")
        strangers = sorted(set(self.temperatures) - set(self.members))
        if strangers:
            raise ValueError(f"temperatures: '{strangers[0]}' is a member of no tier")
        return self

    @property
    def members(self) -> tuple[str, ...]:
        """Every member of every tier, in the order in which they are asked."""
        return tuple(m for tier in self.tiers for m in tier.members)

    def voters(self, tier: int) -> tuple[str, ...]:
        """Members whose outputs count in tier number `tier`: its own, then those of the tiers that it carries, the latest
        first."""
        carried = self.tiers[tier - self.tiers[tier].carry : tier][::-1]
        return (*self.tiers[tier].members, *(m for earlier in carried for m in earlier.members))

    def is_carried(self, tier: int) -> bool:
        """True where a later tier counts the outputs of tier number `tier`."""
        return any(number - later.carry <= tier < number for number, later in enumerate(self.tiers))

    def tiers_fingerprint(self) -> str:
        """SHA-256 of what decides: everything but name and certificate, and but the dispatch of a tier that nobody carries,
        since staged and parallel tiers route alike."""
        content = self.model_dump(mode="json", include={"tiers", "top_k", "temperatures"})
        for number, tier in enumerate(content["tiers"]):
            if not self.is_carried(number):
                del tier["dispatch"]
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class CascadeStats(Noun):
    """What a cascade did on a labelled sample. Tuples have one entry per tier."""

    items: PositiveCount
    accuracy: Fraction
    accuracy_low: Fraction
    """Lower and upper end of the exact (Clopper-Pearson) 95% interval."""
    accuracy_high: Fraction
    reach: tuple[Fraction, ...]
    """Share of all queries that arrive at the tier; the first is 1."""
    accepted: tuple[Fraction, ...]
    """Share of all queries that the tier answers; they add up to 1."""
    accuracy_accepted: tuple[Fraction | None, ...]
    """Accuracy among the queries that the tier answers; None where it answers none."""
    calls: dict[str, Fraction]
    """Member -> calls per query."""
