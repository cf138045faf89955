"""Columns: every way to run one member. On one offer, in batches of one size, on one share of an accelerator; or hosted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coe.cost.capacity import expected_batch, fits, replica_throughput_per_s, tier_latency_s
from coe.cost.model import usd_per_busy_s, usd_per_item
from coe.errors import InvalidInput, Problem
from coe.types import Link, Offer, Profile, Sites, TokenLengths, TokenRate, Workload

SHARES = (1.0, 0.5, 0.25, 0.125)
"""Powers of two pack exactly: whatever fits by sum fits on the devices."""
HOSTED = "API"
"""The accelerator of profiles of hosted models."""
_GIB = 2**30
_NO_LIMIT_PER_S = 1e9


@dataclass(frozen=True)
class Column:
    """One way to run one member.

    share: of an accelerator, 0 for a hosted model.    full_per_s: items per second of a replica that never rests, and
    latency_s: bound of its tier's time; both have one entry per class of query, a single one but for language models.
    usd_per_item: usage cost in the small batches of a light load.    fee_usd_per_item: what each call costs beside machines,
    for tokens and for bytes on a link.    site: where it runs, empty where queries arrive.
    """

    member: str
    tier: int
    offer: Offer
    batch_size: int
    share: float
    full_per_s: tuple[float, ...]
    latency_s: tuple[float, ...]
    usd_per_item: float
    profile: Profile
    fee_usd_per_item: float = 0.0
    site: str = ""
    api: str | None = None

    @property
    def is_spot(self) -> bool:
        """True where the provider may take the node away."""
        return self.api is None and self.offer.market == "spot"

    @property
    def replicas_per_node(self) -> int:
        """The most of its replicas that one node can hold."""
        return int(self.offer.devices_per_node / self.share) if self.share else 0

    def mixed_per_s(self, classes: Sequence[float]) -> float:
        """Items per second of a replica that gets the mix of classes as it comes."""
        return 1 / sum(part / rate for part, rate in zip(classes, self.full_per_s, strict=True))


@dataclass(frozen=True)
class Hosted:
    """A member that can be had as a hosted model: its profile there and the mean price of a call."""

    api: str
    usd_per_call: float
    profile: Profile


def classes_of(profile: Profile, workload: Workload) -> tuple[TokenLengths, ...]:
    """The classes of query that this profile tells apart; empty where all cost the same.

    Raises `InvalidInput` where the profile goes by tokens and the workload does not say how long its requests are.
    """
    if not profile.token_rates:
        return ()
    if not workload.tokens:
        where = f"profile of {profile.member} on {profile.accelerator}"
        rule = "goes by tokens, and the workload does not say how long requests are"
        raise InvalidInput(Problem(where, rule, remedy="give tokens (lengths and shares) in the workload"))
    return workload.tokens


def node_columns(
    member: str, tier: int, turns: int, offer: Offer, profile: Profile, demand_per_s: float, workload: Workload
) -> list[Column]:
    """Every usable way to run `member` on `offer`. `turns`: how many members of its tier are asked one after the other."""
    link = None if workload.sites is None else workload.sites.link(offer.site)
    fee = 0.0 if workload.sites is None or link is None else egress_usd(workload.sites, link)
    site = "" if link is None else link.to_site
    lengths = classes_of(profile, workload)
    columns = []
    for batch_size in [profile.timings[-1].batch_size] if lengths else [t.batch_size for t in profile.timings]:
        away_s = crossing_s(workload.sites, link, batch_size)
        for share in (s for s in SHARES if fits(profile, offer, s)):
            if lengths:
                rates = [covering_rate(profile, part) for part in lengths]
                full = tuple(r.requests_per_s * share for r in rates)
                latency = tuple(turns * (r.latency_p99_s / share + profile.hop_p99_s + away_s) for r in rates)
                usage = sum(
                    part.share * usd_per_busy_s(offer, 1.0) / r.requests_per_s
                    for part, r in zip(lengths, rates, strict=True)
                )
            else:
                n = expected_batch(profile, demand_per_s, workload.batch_wait_s, batch_size, math.inf)
                full = (replica_throughput_per_s(profile, batch_size, share),)
                latency = (turns * (tier_latency_s(profile, batch_size, share, workload.batch_wait_s) + away_s),)
                usage = usd_per_item(profile, offer, n)
            columns.append(Column(member, tier, offer, batch_size, share, full, latency, usage, profile, fee, site))
    return columns


def hosted_columns(
    member: str, tier: int, turns: int, hosted: Hosted, router: Offer, classes: int, workload: Workload
) -> list[Column]:
    """The hosted model, called from the router's node; one column per number of requests in flight at once."""
    return [
        Column(
            member,
            tier,
            router,
            timing.batch_size,
            0.0,
            (_NO_LIMIT_PER_S,) * classes,
            (turns * (workload.batch_wait_s + timing.latency_p99_s + hosted.profile.hop_p99_s),) * classes,
            0.0,
            hosted.profile,
            hosted.usd_per_call,
            api=hosted.api,
        )
        for timing in hosted.profile.timings
    ]


def covering_rate(profile: Profile, part: TokenLengths) -> TokenRate:
    """The best measured rate of requests at least as long in both respects, which is a rate these reach too.

    Raises `InvalidInput` where nothing as long was measured: nothing is extrapolated.
    """
    longer = [
        r
        for r in profile.token_rates
        if r.prompt_tokens >= part.prompt_tokens and r.completion_tokens >= part.completion_tokens
    ]
    if not longer:
        where = f"profile of {profile.member} on {profile.accelerator}"
        found = f"{part.prompt_tokens} prompt and {part.completion_tokens} completion tokens"
        raise InvalidInput(Problem(where, "has no rate for requests as long as the workload's", found, "measure them"))
    return max(longer, key=lambda r: r.requests_per_s)


def egress_usd(sites: Sites, link: Link) -> float:
    """Dollars of one call's bytes, there and back."""
    there, back = sites.bytes_per_item * link.usd_per_gib_there, sites.bytes_per_answer * link.usd_per_gib_back
    return (there + back) / _GIB


def crossing_s(sites: Sites | None, link: Link | None, batch_size: int) -> float:
    """What a link adds to a batch's time: the round trip, and the bytes of a full batch at its bandwidth."""
    if sites is None or link is None:
        return 0.0
    bits = 8 * batch_size * (sites.bytes_per_item + sites.bytes_per_answer)
    return link.round_trip_s + (bits / link.bits_per_s if link.bits_per_s else 0.0)


def link_items_per_s(sites: Sites | None, utilisation: float) -> Mapping[str, float]:
    """Site -> calls per second that its link carries within `utilisation`; links without a limit are left out."""
    if sites is None:
        return {}
    widest = max(sites.bytes_per_item, sites.bytes_per_answer)
    return {
        link.to_site: utilisation * link.bits_per_s / (8 * widest)
        for link in sites.links
        if link.bits_per_s is not None
    }
