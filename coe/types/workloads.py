"""What is promised: the load, its sites and lengths, and the promises to keep."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from coe.errors import InvalidInput, Problem
from coe.types.base import Fraction, Name, NotNegative, Noun, OpenFraction, Positive, PositiveCount, refuse_repeats


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
        refuse_repeats([link.to_site for link in self.links], "links", "keep one link to a site")
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
