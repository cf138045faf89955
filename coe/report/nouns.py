"""What a report holds, in the order in which it is read: what was promised, what happened, what it cost.

Only values; `coe.report.summarise` fills them in, and text, Markdown, HTML and plots show them. Dollars are never
rounded here. None stands for what could not be observed, and is shown as unknown.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from coe.report.audits import Audited
from coe.types import Claim, CostLine, Count, Day, Fraction, Name, NotNegative, Noun, OpenFraction, Positive

Basis = Literal["usage", "allocation"]
Role = Literal["cascade", "best single model", "reference"]


class Window(Noun):
    """The time that is reported on, in seconds since the Unix epoch."""

    start_s: float
    end_s: float
    source: Literal["bench", "ledger"]
    """Whether a client's run or the extent of the ledger sets it."""
    absent_s: NotNegative = 0.0
    """Part of it in which another gear was in service; it counts for nothing here."""

    @property
    def seconds(self) -> float:
        """Its length, without what is absent."""
        return max(0.0, self.end_s - self.start_s - self.absent_s)

    @property
    def hours(self) -> float:
        """Its length."""
        return self.seconds / 3600


class Promise(Noun):
    """One promise of the workload or the certificate, and what came of it."""

    name: str
    promised: str
    """In words, with the number."""
    observed: str
    kept: bool | None
    """None where it could not be observed."""


class Served(Noun):
    """How many queries were served, and how."""

    requests: Count
    answered: Count
    failed: Count
    degraded: Count
    """Answered with at least one vote missing."""
    other: Count
    """Answers in the window that the client did not ask for; they share the bill."""
    unaccounted: Count
    """Answers that the client received and the ledger does not have, or ledger lines known to be lost if more."""
    rate_per_s: NotNegative
    """Answers per second of the window."""
    planned_rate_per_s: Positive


class AccuracyRow(Noun):
    """Accuracy of one answerer with its exact (Clopper-Pearson) 95% interval."""

    name: str
    role: Role
    accuracy: Fraction
    low: Fraction | None
    """None where only the plan's figure is known."""
    high: Fraction | None
    items: Count
    """Queries it was judged on; 0 where only the plan's figure is known."""
    source: str


class Loss(Noun):
    """The certificate's claim beside the queries that were served.

    verdict: held (rate at most epsilon) · not contradicted (above, but its 95% interval reaches down to epsilon) ·
    contradicted.
    """

    reference: Name
    epsilon: OpenFraction
    delta: OpenFraction
    items: Count
    claim: Claim = "loss"
    losses: Count
    gains: Count = 0
    """As in `Certificate`."""
    rate: Annotated[float, Field(ge=-1, le=1)]
    low: Annotated[float, Field(ge=-1, le=1)]
    high: Annotated[float, Field(ge=-1, le=1)]
    verdict: Literal["held", "not contradicted", "contradicted"]


class Mismatch(Noun):
    """Live answers against `route` on the recorded predictions of the same items; degraded answers are left out."""

    compared: Count
    answers: Count
    """Items with another answer than offline."""
    tiers: Count
    """Items answered by another tier than offline."""
    examples: tuple[str, ...]
    """The first few such items."""


class TierRow(Noun):
    """One tier: what the plan expected and what came. Shares are of all answered queries."""

    tier: Count
    members: tuple[Name, ...]
    rule: str
    reach_predicted: Fraction
    reach: Fraction | None
    accepted_predicted: Fraction
    accepted: Fraction | None
    escalated_predicted: Fraction
    """Of the queries that arrive at the tier, the share that it passes on."""
    escalated: Fraction | None
    accuracy_predicted: Fraction | None
    """Among the queries that the tier answers."""
    accuracy: Fraction | None
    usd_per_1k_predicted: NotNegative
    """Usage dollars of this tier per 1,000 queries of the whole service."""
    usd_per_1k: NotNegative | None


class CallRow(Noun):
    """One member on one node type. A call that only partly falls into the window counts for that part."""

    tier: Count
    member: Name
    node_type: Name
    calls: NotNegative
    items: NotNegative
    batch_predicted: NotNegative | None
    batch: NotNegative | None
    """Mean items per call."""
    busy_s: NotNegative
    """Of replicas, each owning its share of an accelerator."""
    device_s: NotNegative
    """The same in seconds of whole accelerators."""
    busy_per_item_predicted_s: NotNegative | None
    """None for calls that the plan did not foresee."""
    busy_per_item_s: NotNegative | None
    usd: NotNegative
    usd_per_1k_predicted: NotNegative
    usd_per_1k: NotNegative | None
    late: NotNegative
    failed: NotNegative
    cancelled: NotNegative
    usd_wasted: NotNegative
    """Part of `usd` that went to late, failed and cancelled calls."""
    usd_fees: NotNegative = 0.0
    """Beside machines, for tokens of a hosted model or bytes on a link; not part of `usd`."""
    saved_items: Count = 0
    """Items that it was not asked about, because their outcome was decided before its call could start."""
    usd_audits: NotNegative = 0.0
    """Part of `usd` and `usd_fees` that shadow audits took."""


class NodeRow(Noun):
    """What is rented of one node type. usd = usd_busy + usd_router + usd_idle."""

    node_type: Name
    accelerator: Name
    devices_per_node: Count
    planned: Count
    """Nodes in the plan."""
    node_hours: NotNegative
    router_hours: NotNegative
    """Part of `node_hours` that belongs to the router."""
    busy_device_hours: NotNegative
    idle_device_hours: float
    """Negative where more busy time was recorded than rented."""
    unmetered_node_hours: NotNegative
    """Part of `node_hours` for which the ledger has no span; billed at the plan's number of nodes."""
    usd_per_hour: NotNegative
    """Per node, as billed."""
    usd: NotNegative
    usd_busy: NotNegative
    usd_router: NotNegative
    usd_idle: float
    market: str
    region: str
    source: str
    date: Day
    age_days: int
    """Age of the price at the end of the window."""


class Cost(Noun):
    """Dollars on one basis. Per 1,000 is None where nothing was answered, correct is None where no label is known."""

    basis: Basis
    usd: NotNegative
    """In the window."""
    usd_per_hour: NotNegative | None
    usd_per_1k: NotNegative | None
    usd_per_1k_correct: NotNegative | None
    usd_per_hour_predicted: NotNegative
    usd_per_1k_predicted: NotNegative
    """On allocation: of the planned nodes at the load that was observed."""
    usd_per_1k_correct_predicted: NotNegative


class Saving(Noun):
    """The cascade as metered against the best single model as planned, on one basis, for the queries of the window.

    `saved` is a share of the single model's dollars; negative where the cascade is dearer.
    """

    basis: Basis
    cascade_usd_per_1k: NotNegative
    baseline_usd_per_1k: NotNegative
    saved: float | None
    """None where the single model costs nothing."""
    saved_planned: float | None
    """Plan against plan: without the noise of a live run."""
    cascade_usd_per_1k_correct: NotNegative | None
    baseline_usd_per_1k_correct: NotNegative | None
    saved_correct: float | None


class Against(Noun):
    """The best single model that the savings are measured against."""

    member: Name
    node_type: Name
    nodes: Count
    savings: tuple[Saving, ...]
    note: str


class Latency(Noun):
    """Response times; a failed request counts as never answered, so a quantile among the failed is None."""

    source: Literal["client", "router"]
    requests: Count
    quantile: OpenFraction
    promised_s: Positive
    """At `quantile`."""
    bound_s: Positive
    """The plan's upper bound at `quantile`."""
    observed_s: NotNegative | None
    """At `quantile`."""
    p50_s: NotNegative | None
    p95_s: NotNegative | None
    p99_s: NotNegative | None
    max_s: NotNegative | None
    in_time: Fraction | None
    """Share of requests answered within `promised_s`."""
    curve: tuple[tuple[float, float], ...]
    """(seconds, share of requests answered within them), rising; for the plot."""


class Comparison(Noun):
    """One figure as planned and as metered."""

    name: str
    unit: Literal["usd", "share", "s", "items"]
    predicted: NotNegative
    metered: NotNegative | None

    @property
    def off_by(self) -> float | None:
        """Metered over predicted, minus one; None where either is missing or nothing was predicted."""
        return self.metered / self.predicted - 1 if self.metered is not None and self.predicted > 0 else None


class Report(Noun):
    """What a plan's service did in a window of time, what it cost, and which promises were kept."""

    kind: Literal["report"] = "report"
    version: Literal[1] = 1
    plan: Name
    plan_fingerprint: str
    window: Window
    verdict: tuple[str, ...]
    """In words: whether the cascade saved money against the best single model, one sentence per basis."""
    promises: tuple[Promise, ...]
    served: Served
    accuracy: tuple[AccuracyRow, ...]
    """Empty where no label is known."""
    max_accuracy_loss: OpenFraction
    loss: Loss | None
    """None without a certificate, or without the reference's answers to the served queries."""
    certificate: str
    """What is claimed, or that nothing is."""
    mismatch: Mismatch | None
    """None without predictions of the served items."""
    latency: Latency | None
    """None where nothing was asked."""
    costs: tuple[Cost, ...]
    against: Against | None
    """None where no single model keeps the promises."""
    usage_lines: tuple[CostLine, ...]
    """Busy time; they add up to the cost on the basis of usage."""
    other_lines: tuple[CostLine, ...]
    """Router and idle; with the usage lines they add up to the cost on the basis of allocation, the bill."""
    tiers: tuple[TierRow, ...]
    calls: tuple[CallRow, ...]
    nodes: tuple[NodeRow, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]
    """What a reader should know before trusting a figure."""
    audits: Audited | None = None
    """None where no shadow audits were made."""

    def cost(self, basis: Basis) -> Cost:
        """The dollars on one basis."""
        return next(cost for cost in self.costs if cost.basis == basis)

    @property
    def missed(self) -> tuple[str, ...]:
        """Every promise that was broken, in words; empty where all were kept or could not be observed."""
        return tuple(
            f"{p.name}: promised {p.promised}, observed {p.observed}" for p in self.promises if p.kept is False
        )
