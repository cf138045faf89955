"""Spot, sites, hosted models, request lengths, dispatch: each changes the plan as it should, and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coe.cascade.calibrate import calibrate
from coe.cost.model import total_usd
from coe.errors import Infeasible, InvalidInput
from coe.placement.candidates import dispatch_variants
from coe.placement.optimize import plan
from coe.types import (
    ApiPrice,
    Cascade,
    Link,
    Member,
    Offer,
    Plan,
    Prices,
    Profile,
    Profiles,
    Sites,
    Tier,
    TokenLengths,
    TokenRate,
)
from tests import factories

TABLE = factories.table(n=2000)
ALONE = Cascade(name="alone", tiers=(Tier(members=("large",)),))


def planned(cascade: Cascade = ALONE, prices: Prices | None = None, **changes: Any) -> Plan:
    """A plan of one cascade, uncertified; workload keys that are given replace the factory's."""
    world = {k: changes.pop(k) for k in ("pool", "profiles", "table", "any_dispatch") if k in changes}
    arguments: dict[str, Any] = {
        "pool": factories.pool(),
        "table": TABLE,
        "profiles": factories.profiles(),
        **world,
    }
    return plan(
        cascades=[cascade],
        prices=prices or factories.prices(),
        workload=factories.workload(**changes),
        inputs={},
        uncertified=True,
        reasons=False,
        **arguments,
    )


def with_offers(*more: Offer) -> Prices:
    return Prices(offers=(*factories.prices().offers, *more))


def nodes(found: Plan) -> dict[str, int]:
    return {n.node_type: n.count for n in found.nodes if n.node_type != found.router.node_type}


# --- Spot and survival ---

SPOT = factories.offer("t4-spot", "T4", 0.15, market="spot", quota=None)


def test_spot_is_used_only_as_far_as_the_floor_allows() -> None:
    safe = planned(prices=with_offers(SPOT), rate_per_s=300)
    mixed = planned(prices=with_offers(SPOT), rate_per_s=300, on_demand_floor=0.5)
    all_spot = planned(prices=with_offers(SPOT), rate_per_s=300, on_demand_floor=0.0)
    assert "t4-spot" not in nodes(safe)
    assert {"t4-spot", "t4-node"} <= set(nodes(mixed))
    assert set(nodes(all_spot)) == {"t4-spot"}
    costs = [p.cost.usd_per_hour_allocation for p in (safe, mixed, all_spot)]
    assert costs == sorted(costs, reverse=True)
    assert len(set(costs)) == 3


def test_on_demand_nodes_alone_carry_the_floor() -> None:
    found = planned(prices=with_offers(SPOT), rate_per_s=300, on_demand_floor=0.5)
    profiles = factories.profiles()
    steady = 0.0
    for p in found.placements:
        if p.node_type != "t4-spot":
            timing = next(
                t
                for t in profiles.find("large", "T4").timings
                if t.batch_size == p.batch_size  # type: ignore[union-attr]
            )
            steady += p.replicas * p.share * p.batch_size / timing.latency_p50_s * 0.6
    assert steady >= 0.5 * 300 * (1 - 1e-6)


def test_after_the_loss_of_any_node_the_load_is_still_carried() -> None:
    plain = planned(rate_per_s=20)
    safe = planned(rate_per_s=20, survive_node_loss=True, router_replicas=2)
    assert safe.router.replicas == 2
    assert sum(nodes(safe).values()) > sum(nodes(plain).values())
    (large,) = safe.placements
    timings = factories.profiles().find("large", "T4")
    assert timings is not None
    timing = next(t for t in timings.timings if t.batch_size == large.batch_size)
    per_replica = large.share * large.batch_size / timing.latency_p50_s
    left = large.replicas - round(1 / large.share)
    assert left * per_replica * 0.9 >= 20 * (1 - 1e-6)


def test_one_router_cannot_survive() -> None:
    with pytest.raises(ValueError, match="set router_replicas to 2"):
        factories.workload(survive_node_loss=True)


def test_a_floor_that_quotas_make_impossible_is_named_with_what_would_do() -> None:
    few = tuple(
        o.model_copy(update={"quota": 1 if o.accelerators_per_node == 0 else 0}) for o in factories.prices().offers
    )
    with pytest.raises(Infeasible) as caught:
        planned(prices=Prices(offers=(*few, SPOT)), rate_per_s=100)
    assert any("on-demand floor" in line for line in caught.value.conflict)
    assert any("an on-demand floor of 0% instead of 100%" in line for line in caught.value.nearest)


# --- Sites ---

AWAY = factories.offer("cloud-a100", "A100", 1.0, site="cloud", accelerator_memory_gib=40.0)
SITES = Sites(
    ingress="edge",
    links=(Link(to_site="cloud", round_trip_s=0.1, bits_per_s=1e9, usd_per_gib_there=0.09),),
    bytes_per_item=150_000,
)


def test_escalations_over_a_link_cost_time_and_money() -> None:
    at_edge = Prices(offers=(factories.prices().offers[0], factories.offer("edge-t4", "T4", 0.5, quota=1), AWAY))
    found = planned(factories.cascade(), at_edge, sites=SITES, rate_per_s=200, latency_s=1.0)
    egress = [line for line in found.allocation_lines if line.name.startswith("egress")]
    assert egress
    assert all("to cloud" in line.name for line in egress)
    away = [p for p in found.placements if p.node_type == "cloud-a100"]
    calls_per_s = sum(p.traffic * 200 * found.stats.calls[p.member] for p in away)
    by_hand = calls_per_s * 3600 * 150_000 / 2**30 * 0.09
    assert total_usd(egress) == pytest.approx(by_hand)
    assert total_usd(found.allocation_lines) == pytest.approx(found.cost.usd_per_hour_allocation)
    assert found.latency_bound_s > 0.1


def test_a_link_that_is_too_slow_for_the_promise_keeps_members_at_home() -> None:
    at_edge = Prices(offers=(factories.prices().offers[0], factories.offer("edge-t4", "T4", 5.0), AWAY))
    near = planned(sites=SITES, prices=at_edge, latency_s=0.6)
    slow = SITES.model_copy(update={"links": (SITES.links[0].model_copy(update={"round_trip_s": 0.7}),)})
    assert set(nodes(near)) == {"cloud-a100"}
    assert set(nodes(planned(sites=slow, prices=at_edge, latency_s=0.6))) == {"edge-t4"}


def test_a_link_carries_no_more_than_its_bandwidth() -> None:
    at_edge = Prices(offers=(factories.prices().offers[0], factories.offer("edge-t4", "T4", 5.0), AWAY))
    narrow = SITES.model_copy(update={"links": (SITES.links[0].model_copy(update={"bits_per_s": 1e8}),)})
    found = planned(sites=narrow, prices=at_edge, rate_per_s=100, latency_s=2.0)
    away = sum(p.traffic * 100 for p in found.placements if p.node_type == "cloud-a100")
    assert 0 < away <= 0.6 * 1e8 / (8 * 150_000) * (1 + 1e-6)


def test_a_site_that_no_link_reaches_is_named() -> None:
    lost = factories.offer("moon-a100", "A100", 1.0, site="moon")
    with pytest.raises(InvalidInput, match="no link leads from edge to 'moon'; add a link to it"):
        planned(sites=SITES, prices=with_offers(lost))


# --- Hosted models ---

API = ApiPrice(
    model="big-1",
    provider="p",
    usd_per_million_prompt_tokens=2.0,
    usd_per_million_completion_tokens=8.0,
    source="a list for tests",
    date=factories.DAY,
)


def hosted_world(usd_in: float = 2.0) -> dict[str, Any]:
    """`large` is hosted: a hundred prompt and ten completion tokens a call, half a second."""
    members = tuple(
        Member(name=m, runner="openai", options={"model": "big-1"}) if m == "large" else Member(name=m, runner="table")
        for m in TABLE.members
    )
    latency = factories.profile("large", "API", 0.1)
    small = tuple(p for p in factories.profiles().profiles if p.member != "large")
    api = API.model_copy(update={"usd_per_million_prompt_tokens": usd_in})
    return {
        "pool": factories.pool().model_copy(update={"members": members}),
        "profiles": Profiles(profiles=(*small, latency)),
        "prices": Prices(offers=factories.prices().offers, apis=(api,)),
        "tokens": (TokenLengths(prompt_tokens=100, completion_tokens=10, share=1.0),),
        "latency_s": 2.0,
    }


def test_a_hosted_model_needs_no_node_and_is_billed_by_the_token() -> None:
    found = planned(factories.cascade(), **hosted_world())
    (api,) = [p for p in found.placements if p.api]
    assert (api.member, api.api, api.node_type) == ("large", "big-1", found.router.node_type)
    (line,) = [line for line in found.allocation_lines if line.name == "API: big-1"]
    calls_per_hour = 100 * found.stats.calls["large"] * 3600
    assert line.usd == pytest.approx(calls_per_hour * (100 * 2.0 + 10 * 8.0) / 1e6)
    assert total_usd(found.allocation_lines) == pytest.approx(found.cost.usd_per_hour_allocation)
    assert total_usd(found.usage_lines) == pytest.approx(found.cost.usd_per_hour_usage)


def test_tokens_that_nobody_counted_are_not_guessed() -> None:
    world = {**hosted_world(), "tokens": ()}
    with pytest.raises(InvalidInput, match="apis: big-1: is priced by the token, and nobody counted them"):
        planned(factories.cascade(), **world)


def test_a_hosted_model_without_a_latency_is_named() -> None:
    world = hosted_world()
    world["profiles"] = Profiles(profiles=tuple(p for p in world["profiles"].profiles if p.accelerator != "API"))
    with pytest.raises(InvalidInput, match="profiles: large: is hosted, and has no profile of its latency"):
        planned(factories.cascade(), **world)


# --- Language models of one's own ---


def by_tokens(accelerator: str, short_per_s: float, long_per_s: float) -> Profile:
    return factories.profile("large", accelerator, 0.02).model_copy(
        update={
            "token_rates": (
                TokenRate(prompt_tokens=500, completion_tokens=50, requests_per_s=short_per_s, latency_p99_s=0.2),
                TokenRate(prompt_tokens=4000, completion_tokens=500, requests_per_s=long_per_s, latency_p99_s=0.4),
            )
        }
    )


LENGTHS = (
    TokenLengths(prompt_tokens=300, completion_tokens=40, share=0.8),
    TokenLengths(prompt_tokens=3000, completion_tokens=300, share=0.2),
)


def test_requests_go_where_their_length_is_cheapest() -> None:
    """A T4 does 10 short ones per second and hardly any long one; an A100 is worth its money on long ones alone."""
    profiles = Profiles(profiles=(by_tokens("T4", 10.0, 0.1), by_tokens("A100", 20.0, 10.0)))
    found = planned(profiles=profiles, tokens=LENGTHS, rate_per_s=50, latency_s=4.0)
    assert set(nodes(found)) == {"t4-node", "a100-node"}
    # 40 short per second need 40 / (0.6 x 10) T4s, 10 long ones 10 / (0.6 x 10) A100s, which have room for some short ones
    assert nodes(found)["a100-node"] == 2
    assert nodes(found)["t4-node"] <= 7
    assert sum(p.traffic for p in found.placements) == pytest.approx(1)


def test_requests_longer_than_anything_measured_are_refused() -> None:
    profiles = Profiles(profiles=(by_tokens("T4", 10.0, 1.0),))
    long = (TokenLengths(prompt_tokens=9000, completion_tokens=10, share=1.0),)
    with pytest.raises(InvalidInput, match="no rate for requests as long as the workload's, got 9000 prompt"):
        planned(profiles=profiles, tokens=long)
    with pytest.raises(InvalidInput, match="goes by tokens, and the workload does not say how long requests are"):
        planned(profiles=profiles)


def test_serverless_offers_are_left_out() -> None:
    free = factories.offer("lambda-a100", "A100", 0.01, market="serverless")
    assert "lambda-a100" not in nodes(planned(prices=with_offers(free)))


# --- Dispatch ---


def test_dispatch_variants_route_alike_and_keep_the_certificate() -> None:
    table = factories.table(n=4000)
    given = calibrate(factories.cascade(rule="vote", quorum=3), table, "large", 0.04, 0.05)
    first, staged = dispatch_variants(given)
    assert first == given
    assert staged.tiers[0].dispatch == "staged"
    assert staged.tiers_fingerprint() == given.tiers_fingerprint()
    carried = Cascade(tiers=(given.tiers[0], Tier(members=("large",), carry=1)))
    assert list(dispatch_variants(carried)) == [carried]


def test_staging_is_planned_where_it_is_cheaper() -> None:
    cascade = factories.cascade(rule="vote", quorum=3)
    given = planned(cascade, rate_per_s=400, latency_s=3.0)
    either = planned(cascade, rate_per_s=400, latency_s=3.0, any_dispatch=True)
    assert either.solver.candidates == 2
    assert either.cost.usd_per_hour_allocation <= given.cost.usd_per_hour_allocation
    assert np.isclose(sum(either.stats.accepted), 1)
