"""What calls cost where no price list says it, and what a search found."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from coe.types.base import Day, Name, NotNegative, Noun, OpenFraction, PositiveCount
from coe.types.cascades import Cascade, CascadeStats, Claim


class TokenPrice(Noun):
    """What a call of one member costs by its tokens."""

    usd_per_million_prompt_tokens: NotNegative = 0.0
    usd_per_million_completion_tokens: NotNegative = 0.0
    usd_per_call: NotNegative = 0.0


class Costs(Noun):
    """What calls of members cost where no profile and no price list says it: per call, or by token."""

    kind: Literal["costs"] = "costs"
    version: Literal[1] = 1
    unit: Annotated[str, Field(min_length=1)] = "usd"
    """``usd``, or whatever is counted instead: ``s on an RTX 4090``, ``J``, ``GMAC``."""
    source: str
    date: Day | None = None
    per_call: dict[Name, NotNegative] = Field(default_factory=dict)
    by_token: dict[Name, TokenPrice] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_price_each(self) -> Self:
        if not self.per_call and not self.by_token:
            raise ValueError("per_call: give the cost of a call of each member, or prices by_token")
        twice = sorted(set(self.per_call) & set(self.by_token))
        if twice:
            raise ValueError(f"by_token: '{twice[0]}' already has a cost per_call")
        if self.by_token and self.unit != "usd":
            raise ValueError(f"unit: token prices are in usd, not in {self.unit}")
        return self


class FrontPoint(Noun):
    """One cascade (or single model) with its measured quality and cost on the selection split."""

    cascade: Cascade
    stats: CascadeStats
    cost_per_1k: NotNegative
    """Cost of 1,000 queries at the members' unit costs, in the front's unit."""
    loss_upper_bound: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Exact upper confidence bound, on the selection split, of what the front's claim bounds; only of single models and of
    what was chosen."""


class Front(Noun):
    """What `coe search` found: the accuracy/cost front, the single models beside it, and a verdict."""

    kind: Literal["front"] = "front"
    version: Literal[1] = 1
    reference: Name
    epsilon: OpenFraction
    delta: OpenFraction
    split: str
    items: PositiveCount
    method: str
    """``exhaustive``, or what was left out and by which bound."""
    evaluated: PositiveCount
    """Number of configurations that were evaluated."""
    claim: Claim = "loss"
    """What the loss bounds bound."""
    cost_unit: str = "usd"
    """Dollars, or whatever else the costs count: seconds on a device, tokens, joules."""
    unit_cost: dict[str, NotNegative]
    """Member -> mean cost of a call."""
    oracle_cost_per_1k: NotNegative = 0.0
    """What 1,000 queries would cost if somebody always knew the cheapest member that is right."""
    cost_source: str
    """Where the unit costs come from and of what date."""
    points: tuple[FrontPoint, ...]
    """The Pareto front, cheapest first."""
    singles: tuple[FrontPoint, ...]
    """Every single model, cheapest first."""
    verdict: str
    """In words: what a cascade saves, or why a single model is better."""
    chosen: FrontPoint | None = None
    """The cheapest whose loss bound is within epsilon; None where nothing is."""
