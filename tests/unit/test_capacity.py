"""Service times, batches under load, prices per busy second."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.cost.capacity import expected_batch, irregularities, replica_throughput_per_s, service_s, tier_latency_s
from coe.cost.model import node_lines, total_usd, unit_costs, usd_per_busy_s, usd_per_item
from coe.errors import InvalidInput, Stale
from coe.prices.catalog import age_days, check_age, provenance
from coe.types import BatchTiming, PlannedNodes, Profile, Profiles, RouterPlacement
from tests import factories

LINEAR = factories.profile("m", "T4", 0.01)  # batch b takes 0.01 * (2 + b) seconds


def with_times(*times: float) -> Profile:
    timings = tuple(BatchTiming(batch_size=2**i, latency_p50_s=t, latency_p99_s=t) for i, t in enumerate(times))
    return LINEAR.model_copy(update={"timings": timings})


def test_service_time_is_linear_between_what_was_measured() -> None:
    assert service_s(LINEAR, 1) == pytest.approx(0.03)
    assert service_s(LINEAR, 3) == pytest.approx(0.05)
    assert service_s(LINEAR, 16, "p99") == pytest.approx(1.2 * 0.18)


def test_nothing_is_extrapolated() -> None:
    with pytest.raises(InvalidInput, match="ends at batch size 16, got a batch of 17; profile larger batches"):
        service_s(LINEAR, 17)


@given(st.lists(st.floats(0.001, 1.0), min_size=2, max_size=5), st.floats(1, 16), st.floats(1, 16))
def test_noise_never_makes_a_larger_batch_cheaper_than_a_smaller_one(times: list[float], a: float, b: float) -> None:
    profile = with_times(*times)
    last = profile.timings[-1].batch_size
    low, high = sorted((min(a, last), min(b, last)))
    assert service_s(profile, low) <= service_s(profile, high) + 1e-12


def test_batches_under_light_load_are_what_arrives_while_waiting() -> None:
    assert expected_batch(LINEAR, 10.0, 0.02, 16, speed=1000.0) == pytest.approx(1.2, rel=1e-3)


@given(st.floats(1, 85))
def test_batches_grow_until_they_carry_the_load(rate: float) -> None:
    n = expected_batch(LINEAR, rate, 0.0, 16, speed=1.0)
    assert 1 <= n <= 16
    assert n / service_s(LINEAR, n) >= rate * (1 - 1e-9)
    arriving = rate * service_s(LINEAR, n)
    assert n == 16 or n == pytest.approx(arriving + math.exp(-arriving))


def test_half_an_accelerator_is_half_as_fast_and_costs_the_same_per_item() -> None:
    offer = factories.offer(usd_per_hour=3.6)
    assert replica_throughput_per_s(LINEAR, 8, 0.5) == pytest.approx(replica_throughput_per_s(LINEAR, 8, 1.0) / 2)
    assert usd_per_busy_s(offer, 0.5) * (service_s(LINEAR, 8) / 0.5) / 8 == pytest.approx(
        usd_per_item(LINEAR, offer, 8)
    )


def test_dollars_per_busy_second_by_hand() -> None:
    # $7.20 per hour for two accelerators: $0.001 per second each; a quarter of one: $0.00025
    offer = factories.offer(usd_per_hour=7.2, accelerators_per_node=2)
    assert usd_per_busy_s(offer, 0.25) == pytest.approx(0.00025)


def test_the_latency_bound_by_hand() -> None:
    # wait 0.005, batch in progress and own batch 1.2 * 0.1 / 0.5 each, hop 0.005
    assert tier_latency_s(LINEAR, 8, 0.5, 0.005) == pytest.approx(0.005 + 2 * 0.24 + 0.005)


def test_unit_costs_take_the_cheapest_accelerator() -> None:
    prices, profiles = factories.prices(), factories.profiles()
    costs = unit_costs(["large"], profiles, prices, batch=1.0)
    options = []
    for offer in prices.offers:
        profile = profiles.find("large", offer.accelerator)
        assert profile is not None
        options.append(usd_per_item(profile, offer, 1.0))
    assert costs["large"] == pytest.approx(min(options))


def test_the_routers_node_is_a_line_of_its_own() -> None:
    node = PlannedNodes(node_type="cpu", count=3, usd_per_hour=0.1, market="on_demand", source="s", date="2026-11-01")
    lines = node_lines([node], RouterPlacement(node_type="cpu"), hours=2.0)
    assert [(line.name, line.quantity) for line in lines] == [("router: cpu", 2.0), ("nodes: cpu", 4.0)]
    assert total_usd(lines) == pytest.approx(0.6)


def test_prices_have_an_age_and_a_source() -> None:
    prices = factories.prices()
    assert age_days(prices.offers[0], "2026-11-20") == 19
    check_age(prices, "2026-11-20", 19)
    with pytest.raises(Stale, match="cpu-node.*at most 18 days old, got 19 days"):
        check_age(prices, "2026-11-20", 18)
    assert provenance(prices.offers) == "a price list for tests (2026-11-01)"


def test_a_larger_batch_that_was_faster_is_told() -> None:
    odd = factories.profile("small", "T4", 0.01)
    timings = [t.model_dump() for t in odd.timings]
    timings[2] |= {"latency_p50_s": 0.001, "latency_p99_s": 0.002}
    odd = odd.model_copy(update={"timings": tuple(BatchTiming(**t) for t in timings)})
    (told,) = irregularities(Profiles(profiles=(odd, factories.profile("large", "T4", 0.01))))
    assert told.startswith("small on T4: a batch of 4 was timed faster (0.001 s) than one of 2 (0.04 s)")
