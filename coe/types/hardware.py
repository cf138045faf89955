"""What it costs: timings of members on accelerators, offers, price lists, fleets."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from coe.errors import InvalidInput, Problem
from coe.types.base import Count, Day, Name, NotNegative, Noun, Positive, PositiveCount, refuse_repeats


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
        refuse_repeats(
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
        refuse_repeats(pairs, "profiles", "keep one profile per member and accelerator")
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
        refuse_repeats([o.node_type for o in self.offers], "offers", "every offer needs its own node_type")
        refuse_repeats([f"{a.model} of {a.provider}" for a in self.apis], "apis", "keep one price each")
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
