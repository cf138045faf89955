"""The nouns, in the order of a query's story: who can answer, what they said, who is asked, what it costs, what is
rented.

Everything is frozen and checked on construction, and a unit stands in the name of every field that has one; a bare
number is a count or a fraction. What is read from files is a pydantic model that forbids unknown keys. What members
said, in arrays, is in `coe.table`; what happened in service is in `coe.records`. Nothing here reads a file, a clock or a
random number.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from coe.errors import InvalidInput, Problem

MISSING_VOTE = -1
"""The answer of a member that did not answer (dead, late, or never asked)."""
ABSTAINED = -2
"""The answer of a member that was asked and billed, and whose output holds no answer: it agrees with nobody."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+\-/]*$", max_length=100)]
Fraction = Annotated[float, Field(ge=0, le=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(ge=1)]
Day = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Probabilities = NDArray[np.float32]
Classes = NDArray[np.int32]
Tokens = NDArray[np.int32]


class Noun(BaseModel):
    """A frozen value read from or written to a file; unknown keys, NaN and infinities are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON, so that a file can say which inputs it was made from."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


# --- Who can answer ---------------------------------------------------------------------------------------------------


class Member(Noun):
    """One model of the pool: how to run it and where its code and weights are."""

    name: Name
    runner: str = "torch"
    """A key of `coe.runners.base.RUNNERS` or a dotted path ``package.module:Class``."""
    model: str = ""
    """Import path of the factory or function, ``package.module:callable``; code never comes from a pickle."""
    weights: str | None = None
    """A safetensors file, relative to the pool file."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for the factory."""
    description: str = ""


class Pool(Noun):
    """The models that a cascade may be built from; they answer the same questions with the same classes."""

    kind: Literal["pool"] = "pool"
    version: Literal[1] = 1
    name: Name = "pool"
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    input_shape: Annotated[tuple[PositiveCount, ...], Field(min_length=1)]
    """Shape of one item, without the batch axis."""
    members: Annotated[tuple[Member, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        _refuse_repeats([m.name for m in self.members], "members", "every member needs its own name")
        _refuse_repeats(list(self.classes), "classes", "every class needs its own name")
        return self

    def member(self, name: str) -> Member:
        """The member called `name`; `InvalidInput` if the pool has none."""
        for member in self.members:
            if member.name == name:
                return member
        known = ", ".join(m.name for m in self.members)
        raise InvalidInput(Problem("pool", f"no member is called '{name}'", remedy=f"the pool has: {known}"))


FRACTION_RULES = frozenset(
    {"score", "mean", "both", "margin", "entropy", "vote_entropy", "jensen_shannon", "similarity"}
)
"""Rules whose score lies between 0 and 1."""


# --- Who is asked -----------------------------------------------------------------------------------------------------


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
        _refuse_repeats(list(self.members), "members", "asking a model twice gives the same answer twice")
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
        _refuse_repeats(list(self.members), "tiers", "a model asked in two tiers gives the same answer twice")
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


# --- What it costs ----------------------------------------------------------------------------------------------------


class BatchTiming(Noun):
    """How long one batch takes on one whole accelerator, without queueing and without the network."""

    batch_size: PositiveCount
    latency_p50_s: Positive
    latency_p99_s: Positive
    runs: Count = 0
    """How many timed runs this rests on; 0 where the source does not say."""

    @model_validator(mode="after")
    def _p99_not_below_p50(self) -> Self:
        if self.latency_p99_s < self.latency_p50_s:
            raise ValueError(f"latency_p99_s {self.latency_p99_s} is below latency_p50_s {self.latency_p50_s}")
        return self


class TokenRate(Noun):
    """What one whole accelerator carries of requests of one size, batching continuously."""

    prompt_tokens: PositiveCount
    completion_tokens: PositiveCount
    """Requests of at most these lengths."""
    requests_per_s: Positive
    """The most it carries while a request takes no longer than `latency_p99_s`."""
    latency_p99_s: Positive


class Profile(Noun):
    """One member on one accelerator. `accelerator` is ``API`` for a hosted model: the timings are then those of requests in
    flight at once."""

    member: Name
    accelerator: Name
    timings: Annotated[tuple[BatchTiming, ...], Field(min_length=1)]
    token_rates: tuple[TokenRate, ...] = ()
    """Of a language model: its throughput by the lengths of prompt and completion; then `timings` are those of one mix."""
    memory_gib: NotNegative
    load_s: NotNegative = 0.0
    hop_p99_s: NotNegative = 0.0
    """What a call costs on top of the service time: serialisation, scheduling, network."""
    origin: Literal["measured", "imported", "estimated"]
    error_factor: Annotated[float, Field(ge=1)] | None = None
    """Of an estimate: nine of ten predictions of devices left out of the fit were within this factor; else None."""
    source: str
    """Device, driver and library versions, or the document it was imported from."""
    date: Day
    code: str = ""
    """Fingerprint of the member's code and weights when it was measured; empty where it was not measured here."""

    @model_validator(mode="after")
    def _timings_make_sense(self) -> Self:
        sizes = [t.batch_size for t in self.timings]
        if sizes != sorted(set(sizes)):
            raise ValueError(f"timings must have rising batch sizes, got {sizes}")
        _refuse_repeats(
            [f"{r.prompt_tokens}+{r.completion_tokens} tokens" for r in self.token_rates],
            "token_rates",
            "keep one rate per length",
        )
        return self


class Profiles(Noun):
    """All measured, imported or estimated profiles, one per member and accelerator."""

    kind: Literal["profiles"] = "profiles"
    version: Literal[1] = 1
    profiles: Annotated[tuple[Profile, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        pairs = [f"{p.member} on {p.accelerator}" for p in self.profiles]
        _refuse_repeats(pairs, "profiles", "keep one profile per member and accelerator")
        return self

    def find(self, member: str, accelerator: str) -> Profile | None:
        """The profile of `member` on `accelerator`, or None."""
        for profile in self.profiles:
            if profile.member == member and profile.accelerator == accelerator:
                return profile
        return None


class Offer(Noun):
    """One kind of node that can be rented or is owned, and its price. CPU-only nodes have no accelerators."""

    node_type: Name
    accelerator: Name
    """What a profile is keyed by: ``T4``, ``A100-80GB``; for a CPU-only node a name of its CPU, ``CPU-m6i``."""
    accelerators_per_node: Count = 1
    accelerator_memory_gib: NotNegative = 0.0
    """Memory of one accelerator; for a CPU-only node the node's memory counts instead."""
    vcpus: Positive = 1.0
    memory_gib: Positive
    usd_per_hour: NotNegative
    market: Literal["on_demand", "spot", "reserved", "owned", "serverless"] = "on_demand"
    """``serverless`` is billed by the second of use, at `usd_per_hour` / 3600."""
    region: str = ""
    site: str = ""
    """A site of the workload (``edge``, ``cloud``) that its links reach; empty for where the queries arrive."""
    quota: Count | None = None
    """At most this many nodes; None where there is no limit."""
    provider: str | None = None
    """Who rents it out; None where the list does not say."""
    instance_type: str | None = None
    """The provider's own name for it, where `node_type` had to add a region or market."""
    source: str
    date: Day

    @property
    def devices_per_node(self) -> int:
        """Accelerators of a node; a CPU-only node counts as one device."""
        return max(1, self.accelerators_per_node)

    @property
    def device_memory_gib(self) -> float:
        """Memory of one device."""
        return self.accelerator_memory_gib if self.accelerators_per_node else self.memory_gib


class ApiPrice(Noun):
    """What one hosted model costs: by the token, by the call, or both."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    provider: str
    usd_per_million_prompt_tokens: NotNegative = 0.0
    usd_per_million_completion_tokens: NotNegative = 0.0
    usd_per_call: NotNegative = 0.0
    source: str
    date: Day


class Prices(Noun):
    """A dated price list in one currency: of nodes, of hosted models, or of both."""

    kind: Literal["prices"] = "prices"
    version: Literal[1] = 1
    currency: Literal["USD"] = "USD"
    offers: tuple[Offer, ...] = ()
    apis: tuple[ApiPrice, ...] = ()

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        if not self.offers and not self.apis:
            raise ValueError("offers: a price list needs at least one offer (or an entry in apis)")
        _refuse_repeats([o.node_type for o in self.offers], "offers", "every offer needs its own node_type")
        _refuse_repeats([f"{a.model} of {a.provider}" for a in self.apis], "apis", "keep one price each")
        return self

    def offer(self, node_type: str) -> Offer:
        """The offer of `node_type`; `InvalidInput` if there is none."""
        for offer in self.offers:
            if offer.node_type == node_type:
                return offer
        known = ", ".join(o.node_type for o in self.offers)
        raise InvalidInput(Problem("prices", f"no offer has node_type '{node_type}'", remedy=f"known: {known}"))

    def api(self, model: str) -> ApiPrice:
        """The price of the hosted `model`; `InvalidInput` if there is none, or one of several providers."""
        found = [a for a in self.apis if a.model == model]
        if len(found) == 1:
            return found[0]
        if found:
            rule = f"several providers sell '{model}': {', '.join(a.provider for a in found)}"
            raise InvalidInput(Problem("prices: apis", rule, remedy="keep one of them in the list"))
        known = ", ".join(a.model for a in self.apis)
        raise InvalidInput(Problem("prices: apis", f"no hosted model is called '{model}'", remedy=f"known: {known}"))


class FleetNode(Noun):
    """Nodes of one type in a local fleet, each a real raylet whose accelerator is declared, not there."""

    offer: Offer
    count: PositiveCount
    cpu_share: Annotated[float, Field(gt=0, le=1)]
    """Share of one CPU core that stands in for the whole accelerator: members on this node are slowed down to it."""


class Fleet(Noun):
    """A local cluster that simulates a mixed fleet: real scheduling and processes, declared prices and names."""

    kind: Literal["fleet"] = "fleet"
    version: Literal[1] = 1
    name: Name
    nodes: Annotated[tuple[FleetNode, ...], Field(min_length=1)]

    @property
    def prices(self) -> Prices:
        """The fleet's offers, with the number of nodes it has as their quota."""
        return Prices(offers=tuple(n.offer.model_copy(update={"quota": n.count}) for n in self.nodes))


# --- What is promised, and what is rented to keep it ------------------------------------------------------------------


class Link(Noun):
    """The way between the site where queries arrive and another one."""

    to_site: Annotated[str, Field(min_length=1, max_length=100)]
    round_trip_s: NotNegative
    bits_per_s: Positive | None = None
    """Bandwidth of each direction; None where it is never the limit."""
    usd_per_gib_there: NotNegative = 0.0
    usd_per_gib_back: NotNegative = 0.0


class Sites(Noun):
    """Where machines stand: the router is where queries arrive, and calls of members elsewhere cross a link."""

    ingress: Annotated[str, Field(min_length=1, max_length=100)]
    """The site where queries arrive."""
    links: tuple[Link, ...] = ()
    bytes_per_item: PositiveCount
    """What one call of a member sends there for one query."""
    bytes_per_answer: PositiveCount = 256
    """What comes back."""

    @model_validator(mode="after")
    def _one_link_each(self) -> Self:
        _refuse_repeats([link.to_site for link in self.links], "links", "keep one link to a site")
        if any(link.to_site == self.ingress for link in self.links):
            raise ValueError(f"links: '{self.ingress}' is where queries arrive; no link leads there")
        return self

    def link(self, site: str) -> Link | None:
        """The link to `site`; None for the ingress itself. `InvalidInput` where no link leads there."""
        if site in ("", self.ingress):
            return None
        for link in self.links:
            if link.to_site == site:
                return link
        known = ", ".join(link.to_site for link in self.links) or "none"
        remedy = f"add a link to it (there are: {known}), or correct the site"
        raise InvalidInput(Problem("sites: links", f"no link leads from {self.ingress} to '{site}'", remedy=remedy))


class TokenLengths(Noun):
    """A part of the requests, by the lengths of prompt and completion."""

    prompt_tokens: PositiveCount
    completion_tokens: PositiveCount
    share: Annotated[float, Field(gt=0, le=1)]


SURVIVING_UTILISATION = 0.9
"""The busiest a member may be after a node is lost, until another one has taken its place."""


class Workload(Noun):
    """The load to carry and the promises to keep."""

    kind: Literal["workload"] = "workload"
    version: Literal[1] = 1
    rate_per_s: Positive
    latency_s: Positive
    """The promise: the `latency_quantile` of response times is at most this."""
    latency_quantile: OpenFraction = 0.99
    reference: Name
    """The member whose accuracy is the yardstick."""
    max_accuracy_loss: OpenFraction
    """The cascade may be at most this far below the reference (0.01 is one percentage point)."""
    delta: OpenFraction = 0.05
    """The accuracy promise holds with confidence 1-delta."""
    target_utilisation: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Replicas are counted so that none is busier than this on average."""
    batch_wait_s: NotNegative = 0.005
    """The router waits at most this long for a batch to fill."""
    min_replicas: PositiveCount = 1
    router_node_type: Name | None = None
    """Where the router runs; by default the cheapest CPU-only offer."""
    router_replicas: PositiveCount = 1
    """Each owns a node; at least two where `survive_node_loss`."""
    on_demand_floor: Fraction = 1.0
    """If all spot nodes vanished at once, every member could still carry this part of its load. 1 means that spot saves
    nothing, 0 that everything may run on it."""
    survive_node_loss: bool = False
    """If any one node is lost, what is left carries the whole load, no member busier than `SURVIVING_UTILISATION`."""
    tokens: tuple[TokenLengths, ...] = ()
    """Lengths of the requests to language models; the shares add up to 1."""
    sites: Sites | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.tokens and abs(sum(t.share for t in self.tokens) - 1) > 1e-6:
            raise ValueError(f"tokens: the shares must add up to 1, got {sum(t.share for t in self.tokens):g}")
        if self.survive_node_loss and self.router_replicas < 2:
            raise ValueError(
                "survive_node_loss: one router on one node cannot survive its loss; set router_replicas to 2 or more"
            )
        return self


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
    traffic: Fraction
    """Share of the member's calls that this deployment serves; a member's placements add up to 1."""
    expected_batch: Positive
    """Mean batch size at the planned load."""
    expected_busy_s: NotNegative
    """Predicted busy seconds per item of one replica, at the expected batch and this share."""
    utilisation: Fraction

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


class Gear(Noun):
    """The plan for a band of loads: up to `up_to_per_s` queries per second."""

    up_to_per_s: Positive
    back_below_per_s: NotNegative
    """Below this load the service goes back to the gear before; lower than that gear's limit, so that it does not swing."""
    plan: Plan


class Gears(Noun):
    """Plans by load, from low to high, for a service to follow."""

    kind: Literal["gears"] = "gears"
    version: Literal[1] = 1
    gears: Annotated[tuple[Gear, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _rising(self) -> Self:
        limits = [g.up_to_per_s for g in self.gears]
        if limits != sorted(set(limits)):
            raise ValueError(f"gears: their limits must rise, got {limits}")
        return self


def _refuse_repeats(names: list[str], key: str, why: str) -> None:
    """ValueError naming the first name that occurs twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{key}: '{name}' appears twice; {why}")
        seen.add(name)
