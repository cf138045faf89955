"""The load that gears follow and when they change: estimator and gearbox on a virtual clock."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.placement.optimize import plan
from coe.router.rate import SLOTS, SURE, ArrivalRate
from coe.router.shifting import Gearbox, follow_load
from coe.simulator.virtual import run_virtually
from coe.types import Gear, Gears
from tests import factories

PLAN = plan(
    factories.pool(),
    [factories.cascade()],
    factories.table(n=400),
    factories.profiles(),
    factories.prices(),
    factories.workload(),
    inputs={},
    uncertified=True,
    reasons=False,
)


def gears(look_back_s: float = 6.0, dwell_s: float = 10.0) -> Gears:
    """Three gears: up to 10, 20 and 40 queries per second."""
    return Gears(
        look_back_s=look_back_s,
        dwell_s=dwell_s,
        gears=tuple(
            Gear(up_to_per_s=up, back_below_per_s=back, plan=PLAN)
            for up, back in ((10.0, 0.0), (20.0, 8.0), (40.0, 16.0))
        ),
    )


@given(
    gaps=st.lists(st.floats(0.0, 3.0), min_size=1, max_size=80),
    counts=st.integers(1, 5),
    look_back_s=st.floats(0.5, 20.0),
    began_s=st.floats(0.0, 1e6),
)
def test_the_rate_is_what_counting_by_hand_gives(
    gaps: list[float], counts: int, look_back_s: float, began_s: float
) -> None:
    """Arrivals in whole slots of the look-back, over the time since those slots began."""
    rate, now_s, came = ArrivalRate(look_back_s, began_s), began_s, []
    for gap in gaps:
        now_s += gap
        rate.arrived(counts, now_s)
        came.append(now_s)
    slot_s = look_back_s / SLOTS
    number = int((now_s - began_s) // slot_s)
    seen = sum(counts for at in came if int((at - began_s) // slot_s) >= number - SLOTS)
    since_s = began_s + max(0, number - SLOTS) * slot_s
    assert rate.per_s(now_s) == pytest.approx(seen / max(now_s - since_s, SURE * look_back_s))
    assert rate.per_s(now_s + 2 * look_back_s) == 0.0


def test_the_rate_of_a_steady_load_is_that_load_and_a_step_is_seen_within_the_look_back() -> None:
    rate = ArrivalRate(10.0, 0.0)
    seen = {}
    for tick in range(6000):
        now_s = tick / 100
        if tick % (10 if now_s < 30 else 2) == 0:  # 10 per second, then 50
            rate.arrived(1, now_s)
        if tick % 100 == 0:
            seen[now_s] = rate.per_s(now_s)
    assert all(seen[s] == pytest.approx(10.0, abs=0.2) for s in range(5, 30))
    assert min(s for s in range(31, 60) if seen[s] > 30.0) in (35, 36)  # half of the step after half of the look-back
    assert all(seen[s] == pytest.approx(50.0, abs=0.2) for s in range(41, 60))


def test_what_has_not_been_seen_for_long_is_not_believed() -> None:
    rate = ArrivalRate(20.0, 100.0)
    rate.arrived(1, 100.0)
    assert rate.per_s(100.01) == pytest.approx(1 / (SURE * 20.0))


def changes(box: Gearbox, arrivals: np.ndarray, until_s: float) -> list[tuple[float, int]]:
    """(second, gear) of every change, asked once a slot."""
    found, i, now_s = [], 0, 0.0
    while now_s < until_s:
        now_s += box.every_s
        while i < len(arrivals) and arrivals[i] <= now_s:
            box.arrived(1, float(arrivals[i]))
            i += 1
        gear = box.shifted(now_s)
        if gear is not None:
            found.append((now_s, gear))
    return found


def test_up_at_once_and_down_after_the_dwell() -> None:
    arrivals = np.concatenate(
        [np.arange(0, 20, 0.2), np.arange(20, 24, 0.02), np.arange(24, 60, 0.5)]
    )  # 5, 50 and 2 per second
    box = Gearbox(gears(dwell_s=15.0), 0.0)
    found = changes(box, arrivals, 60.0)
    assert [gear for _, gear in found] == [1, 2, 0]
    assert 20 < found[0][0] < found[1][0] < 24
    assert found[2][0] == pytest.approx(found[1][0] + 15.0, abs=1.0)
    assert box.changes == 3


@given(
    loads=st.lists(st.floats(0.0, 60.0), min_size=1, max_size=12),
    dwell_s=st.floats(0.0, 20.0),
    seed=st.integers(0, 9),
)
def test_laws_of_changing(loads: list[float], dwell_s: float, seed: int) -> None:
    """Whatever the load: every step down is a dwell after the change before, and every change is one that the rule asks for."""
    rng = np.random.default_rng(seed)
    arrivals = np.sort(
        np.concatenate([10 * i + 10 * rng.random(rng.poisson(10 * load)) for i, load in enumerate(loads)])
    )
    followed = gears(dwell_s=dwell_s)
    box = Gearbox(followed, 0.0)
    before, last_s = 0, -np.inf
    downs = 0
    for at, gear in changes(box, arrivals, 10.0 * len(loads)):
        assert gear != before
        assert gear > before or at - last_s >= dwell_s
        downs += gear < before
        before, last_s = gear, at
    assert downs * dwell_s <= 10.0 * len(loads)
    assert box.changes <= downs + len(followed.gears[1:]) * (downs + 1)


def test_routers_scale_their_part() -> None:
    """Two routers, each with half of 30 per second, change as one with all of it would."""
    whole, half = Gearbox(gears(), 0.0), Gearbox(gears(), 0.0)
    found = []
    for tick in range(1, 300):
        now_s = tick / 10
        whole.arrived(3, now_s)
        half.arrived(1 + tick % 2, now_s)
        found.append((whole.shifted(now_s), half.shifted(now_s, routers=2)))
    assert whole.current == half.current == 2
    assert half.rate_per_s(30.0, routers=2) == pytest.approx(30.0, rel=0.03)


def test_a_hand_on_the_gearbox_counts_as_a_change() -> None:
    box = Gearbox(gears(dwell_s=10.0), 0.0)
    box.put_into(2, 0.0)
    assert box.shifted(9.0) is None
    assert box.shifted(10.0) == 0


def test_following_calls_for_every_change_on_the_loops_clock() -> None:
    async def run() -> list[tuple[float, int]]:
        import asyncio

        loop = asyncio.get_running_loop()
        box, found = Gearbox(gears(dwell_s=5.0), loop.time()), []

        async def change(gear: int) -> None:
            found.append((loop.time(), gear))

        task = asyncio.ensure_future(follow_load(box, change, clock=loop.time))
        for _ in range(300):  # 15 per second for 20 s, then nothing
            await asyncio.sleep(1 / 15)
            box.arrived(1, loop.time())
        await asyncio.sleep(20)
        task.cancel()
        return found

    found = run_virtually(run())
    assert [gear for _, gear in found] == [1, 0]
    assert found[1][0] > 20.0
