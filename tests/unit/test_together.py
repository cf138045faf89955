"""One deployment for all gears: what every gear needs is there at once, what it costs is said, and what cannot be is refused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from coe.cascade.certify import verify_certificate
from coe.errors import InvalidInput
from coe.placement.packing import packed
from coe.placement.together import together
from coe.router.changing import changeable
from coe.types import Gear, Gears, Plan
from tests import gears_case as case

GEARS = case.two_gears()
WHOLE = together(GEARS)


def with_plan(number: int, **changes: Any) -> Gears:
    """The gears with one plan changed."""
    gears = list(GEARS.gears)
    gears[number] = gears[number].model_copy(update={"plan": gears[number].plan.model_copy(update=changes)})
    return GEARS.model_copy(update={"gears": tuple(gears)})


def test_every_gear_has_the_accelerator_time_that_it_was_planned_with() -> None:
    there = {p.deployment: p for p in WHOLE.plan.placements}
    for gear, served in zip(GEARS.gears, WHOLE.gears.gears, strict=True):
        for planned, now in zip(gear.plan.placements, served.plan.placements, strict=True):
            assert (now.replicas, now.share) == (there[now.deployment].replicas, there[now.deployment].share)
            assert now.replicas * now.share >= planned.replicas * planned.share - 1e-9
            # a query keeps as much of an accelerator busy as before, and a replica is no busier
            assert now.share * now.expected_busy_s == pytest.approx(planned.share * planned.expected_busy_s)
            assert now.utilisation <= planned.utilisation + 1e-9
            assert (now.traffic, now.batch_size) == (planned.traffic, planned.batch_size)


def test_shares_that_differ_become_the_largest() -> None:
    narrow, wide = case.planned(case.ACCURATE, 50.0, 0.1), case.planned(case.ACCURATE, 50.0, 0.1)
    large = next(p for p in wide.placements if p.member == "large")
    others = tuple(p for p in wide.placements if p is not large)
    half = large.model_copy(update={"share": 0.25, "replicas": 3, "expected_busy_s": 4 * large.expected_busy_s})
    narrow = narrow.model_copy(update={"placements": (*others, half)})
    wide = wide.model_copy(update={"placements": (*others, large.model_copy(update={"share": 1.0, "replicas": 2}))})
    whole = together(
        Gears(
            gears=(
                Gear(up_to_per_s=10, back_below_per_s=0, plan=narrow),
                Gear(up_to_per_s=50, back_below_per_s=8, plan=wide),
            )
        )
    )
    found = [next(p for p in g.plan.placements if p.member == "large") for g in whole.gears.gears]
    assert [(p.replicas, p.share) for p in found] == [(2, 1.0)] * 2  # three quarters of one fit on one of the two
    assert found[0].expected_busy_s == pytest.approx(large.expected_busy_s)


def test_all_replicas_have_room_at_once_and_no_node_less_would_do() -> None:
    placed = Counter(p.deployment for node in packed(WHOLE.plan) for p, _ in node.replicas)
    assert placed == {p.deployment: p.replicas for p in WHOLE.plan.placements}
    most = {n.node_type: n.count for g in GEARS.gears for n in g.plan.nodes}
    for node in WHOLE.plan.nodes:
        fewer = [n if n is not node else n.model_copy(update={"count": n.count - 1}) for n in WHOLE.plan.nodes]
        if node.count > most[node.node_type]:
            with pytest.raises(InvalidInput, match="has no room"):
                packed(WHOLE.plan.model_copy(update={"nodes": tuple(fewer)}))


def test_gears_change_into_each_other_and_keep_what_they_promise() -> None:
    for gear, served in zip(GEARS.gears, WHOLE.gears.gears, strict=True):
        assert changeable(served.plan, WHOLE.plan) == []
        verify_certificate(served.plan.cascade)
        assert served.plan.cascade.certificate == gear.plan.cascade.certificate
        assert served.plan.workload == gear.plan.workload
        assert served.plan.stats == gear.plan.stats
    assert {g.plan.cascade.name for g in WHOLE.gears.gears} == {GEARS.gears[0].plan.cascade.name}
    assert [g.plan.name for g in WHOLE.gears.gears] == ["accurate", "fast"]
    prints = {g.plan.fingerprint() for g in WHOLE.gears.gears}
    assert len(prints) == 2


def test_the_rent_is_that_of_the_machines_whatever_the_gear_is() -> None:
    rent = sum(n.count * n.usd_per_hour for n in WHOLE.plan.nodes)
    for served, gear in zip(WHOLE.gears.gears, GEARS.gears, strict=True):
        assert served.plan.cost.usd_per_hour_allocation == pytest.approx(rent)
        assert sum(line.usd for line in served.plan.allocation_lines) == pytest.approx(rent)
        assert served.plan.cost.usd_per_hour_usage == pytest.approx(gear.plan.cost.usd_per_hour_usage)
    assert rent > max(g.plan.cost.usd_per_hour_allocation for g in GEARS.gears)


def test_gears_that_stand_together_already_stay_as_they_are() -> None:
    again = together(WHOLE.gears)
    assert again.gears == WHOLE.gears
    assert again.plan.placements == WHOLE.plan.placements


def other_pool(plan: Plan) -> dict[str, Any]:
    return {"pool": plan.pool.model_copy(update={"classes": plan.pool.classes[:-1]})}


def other_member(plan: Plan) -> dict[str, Any]:
    first, *rest = plan.pool.members
    changed = first.model_copy(update={"options": {"predictions": "others.npz"}})
    return {"pool": plan.pool.model_copy(update={"members": (changed, *rest)})}


def other_price(plan: Plan) -> dict[str, Any]:
    return {"offers": tuple(o.model_copy(update={"usd_per_hour": 9.0}) for o in plan.offers)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (other_pool, r"gears: gears\[1\].plan.pool: must have the classes and inputs of gears\[0\]"),
        (other_member, r"gears: gears\[1\].plan.pool: member 'middle': must be the same in every gear"),
        (other_price, r"gears: gears\[1\].plan.offers: cpu-node: must be the same in every gear"),
        (lambda _: {"python_path": "/elsewhere"}, r"gears\[1\].plan.python_path: must be that of gears\[0\]"),
        (
            lambda p: {"router": p.router.model_copy(update={"node_type": "t4-node"})},
            r"gears\[1\].plan.router.node_type: must be that of gears\[0\], cpu-node",
        ),
    ],
)
def test_gears_that_cannot_live_together_are_refused(changes: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        together(with_plan(1, **changes(GEARS.gears[1].plan)))


def test_more_nodes_than_there_are_is_refused() -> None:
    few = [
        g.model_copy(
            update={
                "plan": g.plan.model_copy(
                    update={"offers": tuple(o.model_copy(update={"quota": 3}) for o in g.plan.offers)}
                )
            }
        )
        for g in GEARS.gears
    ]
    with pytest.raises(InvalidInput, match="t4-node: all gears together need 4 nodes of it.*quota 3"):
        together(GEARS.model_copy(update={"gears": tuple(few)}))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (((20.0, 0.0), (20.0, 8.0)), "their limits must rise"),
        (((20.0, 0.0), (40.0, 20.0)), r"gears\[1\].back_below_per_s must be below the limit of the gear before"),
    ],
)
def test_limits_rise_and_marks_lie_below_them(limits: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gears(gears=tuple(Gear(up_to_per_s=up, back_below_per_s=back, plan=WHOLE.plan) for up, back in limits))


def test_gears_have_names() -> None:
    bare = tuple(g.model_copy(update={"name": None}) for g in GEARS.gears)
    assert Gears(gears=bare).names == ("gear-1", "gear-2")
    with pytest.raises(ValueError, match="'fast' appears twice"):
        Gears(gears=tuple(g.model_copy(update={"name": "fast"}) for g in GEARS.gears))
