"""What a call costs, before anything is placed: on hardware that can be had and holds the member."""

from __future__ import annotations

import pytest

from coe.cost.capacity import fits
from coe.cost.model import unit_costs, usage_line, usd_per_item
from coe.errors import InvalidInput
from coe.types import Prices, Profiles
from tests import factories

SLOW = factories.profile("m", "T4", 0.01)  # batch b takes 0.01 * (2 + b) seconds
FAST = factories.profile("m", "A100", 0.001)
T4 = factories.offer(usd_per_hour=3.6)
A100 = factories.offer("a100-node", "A100", 18.0)


def costs(prices: Prices, batch: float | None = None, **changes: float) -> float:
    profiles = Profiles(profiles=tuple(p.model_copy(update=changes) for p in (SLOW, FAST)))
    return unit_costs(["m"], profiles, prices, batch)["m"]


def test_a_call_by_hand() -> None:
    # T4 at $0.001 per second, one item in 0.03 s: $0.00003; A100 at $0.005 per second, 0.003 s: $0.000015
    assert costs(Prices(offers=(T4,)), batch=1) == pytest.approx(30e-6)
    assert costs(Prices(offers=(T4, A100)), batch=1) == pytest.approx(15e-6)
    # in batches of 16: 0.18 s and 0.018 s, shared by 16
    assert costs(Prices(offers=(T4, A100))) == pytest.approx(0.018 * 0.005 / 16)


def test_a_load_that_fills_more_than_the_largest_profiled_batch_counts_as_that_one() -> None:
    assert costs(Prices(offers=(T4,)), batch=51.0) == pytest.approx(usd_per_item(SLOW, T4, 16))


def test_hardware_that_cannot_be_had_or_is_too_small_has_no_price() -> None:
    sold_out = A100.model_copy(update={"quota": 0})
    assert costs(Prices(offers=(T4, sold_out)), batch=1) == pytest.approx(30e-6)
    small = A100.model_copy(update={"accelerator_memory_gib": 2.0})
    assert costs(Prices(offers=(T4, small)), batch=1, memory_gib=3.0) == pytest.approx(30e-6)
    assert fits(SLOW, T4, 1 / 16)
    assert not fits(SLOW, T4, 1 / 32)


def test_members_that_cannot_be_priced_are_all_named() -> None:
    profiles = Profiles(profiles=(SLOW.model_copy(update={"memory_gib": 17.0}),))
    with pytest.raises(InvalidInput) as caught:
        unit_costs(["m", "other"], profiles, Prices(offers=(T4,)))
    big, unknown = caught.value.problems
    assert "profiles: m: fits on no offered accelerator that has a quota, got 17 GiB" in str(big)
    assert "profiles: other: has no profile on any offered accelerator" in str(unknown)


def test_a_usage_line_is_hours_times_price() -> None:
    line = usage_line(1, "m", T4.model_copy(update={"accelerators_per_node": 4}), device_hours=0.5)
    assert (line.name, line.quantity, line.unit) == ("tier 2: m on t4-node", 0.5, "busy device-h")
    assert line.unit_price_usd == pytest.approx(0.9)
    assert line.usd == pytest.approx(0.45)
