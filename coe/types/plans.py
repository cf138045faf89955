"""What is rented to keep the promises: placements, bills, plans, gears."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from coe.types.base import Day, Fraction, Name, NotNegative, Noun, Positive, PositiveCount, refuse_repeats
from coe.types.cascades import Cascade, CascadeStats
from coe.types.hardware import ApiPrice, Offer, Prices
from coe.types.pool import Pool
from coe.types.workloads import Link, Workload


class Placement(Noun):
    """One member on one node type: one Serve deployment."""

    member: Name
    node_type: Name
    replicas: PositiveCount
    share: Annotated[float, Field(gt=0, le=1)]
    """Share of one accelerator that each replica owns; 1 for a hosted model, which needs none."""
    api: str | None = None
    """The hosted model that answers, called from the router's node; None where the member runs on a node of its own."""
    batch_size: PositiveCount
    calls_at_once: PositiveCount | None = None
    """Calls that one replica, or the hosted model, works on side by side; None where a batch takes all of it."""
    traffic: Fraction
    """Share of the member's calls that this deployment serves; a member's placements add up to 1."""
    expected_batch: Positive
    """Mean batch size at the planned load."""
    expected_busy_s: NotNegative
    """Predicted busy seconds per item of one replica, at the expected batch and this share."""
    full_batch_s: Positive | None = None
    """Predicted seconds of one replica for a full batch; None where a member does not go by batches."""
    utilisation: Fraction

    @property
    def full_s(self) -> float:
        """Seconds of one replica for a full batch, from the mean time per item where nothing better is known."""
        return self.batch_size * self.expected_busy_s if self.full_batch_s is None else self.full_batch_s

    @property
    def deployment(self) -> str:
        """Name of the Serve deployment."""
        return f"{self.member}@{self.node_type}"


class RouterPlacement(Noun):
    """Where the router runs. It owns its node."""

    node_type: Name
    replicas: PositiveCount = 1


class PlannedNodes(Noun):
    """Nodes of one type that the plan rents, with the price and where it came from."""

    node_type: Name
    count: PositiveCount
    usd_per_hour: NotNegative
    """Per node."""
    market: str
    source: str
    date: Day


class CostLine(Noun):
    """quantity x unit_price_usd = usd. Lines of one cost basis add up to the bill."""

    name: str
    quantity: float
    unit: str
    unit_price_usd: float
    usd: float


class PredictedCost(Noun):
    """Dollars at the planned load on both cost bases."""

    usd_per_hour_usage: NotNegative
    """Busy time only: what the queries themselves consume."""
    usd_per_hour_allocation: NotNegative
    """What is rented, busy or not."""
    usd_per_1k_usage: NotNegative
    usd_per_1k_allocation: NotNegative
    usd_per_1k_correct_usage: NotNegative
    usd_per_1k_correct_allocation: NotNegative

    @classmethod
    def of(cls, usage_usd_per_hour: float, allocation_usd_per_hour: float, rate_per_s: float, accuracy: float) -> Self:
        """Both bases from dollars per hour, the rate in queries per second and the accuracy (above 0)."""
        per_1k = 1000 / (3600 * rate_per_s)
        return cls(
            usd_per_hour_usage=usage_usd_per_hour,
            usd_per_hour_allocation=allocation_usd_per_hour,
            usd_per_1k_usage=usage_usd_per_hour * per_1k,
            usd_per_1k_allocation=allocation_usd_per_hour * per_1k,
            usd_per_1k_correct_usage=usage_usd_per_hour * per_1k / accuracy,
            usd_per_1k_correct_allocation=allocation_usd_per_hour * per_1k / accuracy,
        )


class Baseline(Noun):
    """The best single model on its best node type: the cheapest that keeps the same promises."""

    member: Name
    node_type: Name
    nodes: PositiveCount
    accuracy: Fraction
    cost: PredictedCost
    note: str = ""


class Sensitivity(Noun):
    """What one changed promise would do to the bill."""

    promise: str
    change: str
    """In words: ``10 ms more``, ``one more l4-node``."""
    usd_per_hour: NotNegative
    """What the cheapest plan of the same cascade costs then."""


class LoadPoint(Noun):
    """The cheapest plans at another load: of the cascade, and of the best single model; None where there is none."""

    rate_per_s: Positive
    cascade_usd_per_hour: NotNegative | None = None
    single_usd_per_hour: NotNegative | None = None


class SolverReport(Noun):
    """How much the optimiser knows about its answer."""

    status: Literal["proved", "gap"]
    usd_per_hour: NotNegative
    bound_usd_per_hour: NotNegative
    candidates: PositiveCount
    message: str = ""


class Plan(Noun):
    """Which members run where, what it will cost and why: everything `coe build` needs."""

    kind: Literal["plan"] = "plan"
    version: Literal[1] = 1
    name: Name
    cascade: Cascade
    workload: Workload
    stats: CascadeStats
    """Of the cascade on the certification split."""
    pool: Pool
    placements: Annotated[tuple[Placement, ...], Field(min_length=1)]
    router: RouterPlacement
    nodes: Annotated[tuple[PlannedNodes, ...], Field(min_length=1)]
    offers: tuple[Offer, ...]
    """The offers of the nodes above, so that a plan needs no price list beside it."""
    apis: tuple[ApiPrice, ...] = ()
    """The prices of the hosted models that placements call."""
    latency_bound_s: Positive
    """Predicted upper bound of the promised latency quantile."""
    tier_latency_s: tuple[Positive, ...]
    cost: PredictedCost
    usage_lines: tuple[CostLine, ...]
    allocation_lines: tuple[CostLine, ...]
    solver: SolverReport
    baseline: Baseline | None = None
    """None where no single model keeps the promises."""
    python_path: str = ""
    """Folder that must be importable where members run (that of the pool file)."""
    rejected: tuple[str, ...] = ()
    """The cheapest alternatives that were not chosen, with the reason."""
    sensitivities: tuple[Sensitivity, ...] = ()
    """Promises that cost money, and what giving way a little would save."""
    loads: tuple[LoadPoint, ...] = ()
    """The cascade against the best single model at other loads, rising."""
    profile_origins: dict[str, str] = Field(default_factory=dict)
    """Deployment -> where its timings are from: measured, imported or estimated (with its error), source and date."""
    simulated: str | None = None
    """What a simulation of the plan found, where one was made."""
    inputs: dict[str, str]
    """Name of each input -> fingerprint."""

    def offer(self, node_type: str) -> Offer:
        """The offer behind a node type of the plan."""
        return Prices(offers=self.offers).offer(node_type)

    def api(self, model: str) -> ApiPrice:
        """The price of a hosted model of the plan; `InvalidInput` where the plan does not say."""
        return Prices(offers=self.offers, apis=self.apis).api(model)

    def link(self, placement: Placement) -> Link | None:
        """The link that a placement's calls cross; None where it runs where the queries arrive."""
        sites = self.workload.sites
        return None if sites is None or placement.api else sites.link(self.offer(placement.node_type).site)

    @property
    def away_s(self) -> dict[str, float]:
        """Deployment -> round trip of the link that its calls cross; without those that cross none."""
        crossing = ((p.deployment, self.link(p)) for p in self.placements)
        return {deployment: link.round_trip_s for deployment, link in crossing if link is not None}


class Gear(Noun):
    """The plan for a band of loads: up to `up_to_per_s` queries per second."""

    name: Name | None = None
    up_to_per_s: Positive
    back_below_per_s: NotNegative
    """Below this load the service goes back to the gear before; lower than that gear's limit, so that it does not swing."""
    plan: Plan


class Gears(Noun):
    """Plans by load, from low to high, for a service to follow."""

    kind: Literal["gears"] = "gears"
    version: Literal[1] = 1
    look_back_s: Positive = 30.0
    """The load that is followed is a mean over so long."""
    dwell_s: NotNegative = 30.0
    """After a change the service stays so long before it goes back down. It goes up at once: there queries wait."""
    gears: Annotated[tuple[Gear, ...], Field(min_length=1)]

    @property
    def names(self) -> tuple[str, ...]:
        """Of all gears; ``gear-1`` and so on where a file gives none."""
        return tuple(g.name or f"gear-{number}" for number, g in enumerate(self.gears, 1))

    @model_validator(mode="after")
    def _rising(self) -> Self:
        limits = [g.up_to_per_s for g in self.gears]
        if limits != sorted(set(limits)):
            raise ValueError(f"gears: their limits must rise, got {limits}")
        for number, (low, high) in enumerate(zip(self.gears, self.gears[1:], strict=False), 1):
            if high.back_below_per_s >= low.up_to_per_s:
                found = f"{high.back_below_per_s:g} and {low.up_to_per_s:g}"
                rule = "must be below the limit of the gear before, or the service swings between the two"
                raise ValueError(f"gears[{number}].back_below_per_s {rule}, got {found}")
        refuse_repeats(list(self.names), "gears", "give every gear a name of its own")
        return self
