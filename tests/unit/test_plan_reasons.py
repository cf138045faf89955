"""What promises and loads cost, gears, what-if, diff: each figure is the plan's that it speaks of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coe import files
from coe.cli.main import run
from coe.errors import InvalidInput
from coe.placement.diff import as_markdown, as_text, diff
from coe.placement.explain import break_even, explain
from coe.placement.gears import gears_of, table
from coe.placement.optimize import plan
from coe.placement.what_if import changed
from coe.types import LoadPoint, Plan
from tests import factories

TABLE = factories.table(n=2000)


def planned(reasons: bool = False, **work: Any) -> Plan:
    return plan(
        factories.pool(),
        [factories.cascade()],
        TABLE,
        factories.profiles(),
        factories.prices(),
        factories.workload(**work),
        inputs={},
        uncertified=True,
        reasons=reasons,
    )


TIGHT = {"latency_s": 0.06, "rate_per_s": 100.0}


def test_what_giving_way_would_save_is_what_such_a_plan_costs() -> None:
    found = planned(reasons=True, **TIGHT)
    latency = [s for s in found.sensitivities if s.promise == "latency"]
    assert latency
    for s in latency:
        more = float(s.change.split(" ms")[0]) / 1000
        there = planned(**{**TIGHT, "latency_s": TIGHT["latency_s"] + more})
        assert s.usd_per_hour == pytest.approx(there.cost.usd_per_hour_allocation, abs=1e-5)
        saved = found.cost.usd_per_hour_allocation - there.cost.usd_per_hour_allocation
        assert f"{s.change} would save ${saved:.3f}/h (latency binds)" in explain(found)


def test_other_loads_are_other_plans() -> None:
    found = planned(reasons=True)
    assert [p.rate_per_s for p in found.loads] == sorted(p.rate_per_s for p in found.loads)
    for point in found.loads[::3]:
        there = planned(rate_per_s=point.rate_per_s)
        assert point.cascade_usd_per_hour == pytest.approx(there.cost.usd_per_hour_allocation, abs=1e-5)
        assert there.baseline is not None
        assert point.single_usd_per_hour == pytest.approx(there.baseline.cost.usd_per_hour_allocation, abs=1e-5)


@pytest.mark.parametrize(
    ("loads", "words"),
    [
        ([(1, 2.0, 1.0), (10, 2.0, 3.0)], "Break-even is between 1/s and 10/s"),
        ([(1, 2.0, 1.0), (10, 3.0, 3.0)], "At none of these loads"),
        ([(1, 1.0, 2.0), (10, 2.0, None)], "At all of these loads"),
        ([(1, 1.0, 2.0), (10, 3.0, 2.5)], "cheaper at 1/s, and not at every higher load"),
    ],
)
def test_break_even_in_words(loads: list[tuple[float, float, float | None]], words: str) -> None:
    points = tuple(LoadPoint(rate_per_s=r, cascade_usd_per_hour=c, single_usd_per_hour=s) for r, c, s in loads)
    assert words in break_even(planned().model_copy(update={"loads": points}))


def test_gears_rise_and_merge_where_plans_are_alike() -> None:
    found = gears_of([200, 10, 11], lambda rate: planned(rate_per_s=rate))
    assert [g.up_to_per_s for g in found.gears] == [11, 200]
    low, high = found.gears
    assert low.back_below_per_s == 0
    assert high.back_below_per_s == pytest.approx(0.8 * 11)
    assert low.plan.cost.usd_per_hour_allocation < high.plan.cost.usd_per_hour_allocation
    assert "Above 11/s" in table(found)


@pytest.mark.parametrize("rates", [[], [0, 1], [5, 5]])
def test_gears_for_loads_that_make_no_sense(rates: list[float]) -> None:
    with pytest.raises(InvalidInput, match="must be different loads above 0"):
        gears_of(rates, lambda rate: planned(rate_per_s=rate))


def test_what_if_changes_prices_quotas_and_promises() -> None:
    prices, work = changed(
        ["price.A100=1.2", "quota.t4-node=3", "rate=500", "latency_quantile=0.9"],
        factories.prices(),
        factories.workload(),
    )
    assert prices.offer("a100-node").usd_per_hour == 1.2
    assert "what if" in prices.offer("a100-node").source
    assert prices.offer("t4-node").quota == 3
    assert (work.rate_per_s, work.latency_quantile) == (500, 0.9)


def test_a_price_per_accelerator_counts_every_accelerator_of_a_node() -> None:
    four = factories.prices().model_copy(
        update={"offers": (*factories.prices().offers, factories.offer("four", "A100", 9.0, accelerators_per_node=4))}
    )
    prices, _ = changed(["price.A100=1.2"], four, factories.workload())
    assert prices.offer("four").usd_per_hour == pytest.approx(4.8)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("rate", "must be KEY=VALUE, got rate"),
        ("rats=5", "the workload has no such key; did you mean rate_per_s"),
        ("rate=fast", "rate=fast: .*number"),
        ("rate=-5", "greater than 0"),
        ("price.A10=1", "no offer has this node type or accelerator; did you mean A100"),
        ("price.A100=-1", "must be a number >= 0"),
        ("price.A100=inf", "must be a number >= 0"),
    ],
)
def test_what_if_refuses_what_it_does_not_know(setting: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        changed([setting], factories.prices(), factories.workload())


def test_a_diff_adds_up() -> None:
    before, after = planned(rate_per_s=50), planned(rate_per_s=400)
    found = diff(before, after)
    assert found.cost_increase == pytest.approx(
        after.cost.usd_per_1k_allocation / before.cost.usd_per_1k_allocation - 1
    )
    assert any(c.what == "load" and (c.before, c.after) == ("50/s", "400/s") for c in found.promises)
    assert "rented, per hour" in as_text(found)
    assert "| Dollars | before | after | |" in as_markdown(found)
    same = diff(before, before)
    assert not same.lines
    assert not same.placements
    assert not same.promises
    assert "costs the same per query" in as_text(same)


def test_a_dearer_plan_exits_with_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cheap, dear = planned(rate_per_s=400), planned(rate_per_s=50)
    files.write(tmp_path / "cheap.yaml", cheap, "")
    files.write(tmp_path / "dear.yaml", dear, "")
    compare = ["diff", str(tmp_path / "cheap.yaml"), str(tmp_path / "dear.yaml")]
    assert run(compare) == 0
    assert run([*compare, "--fail-if-cost-increases", "10%"]) == 4
    assert "allowed are 10.0%" in capsys.readouterr().err
    assert run([*compare[:1], compare[2], compare[1], "--fail-if-cost-increases", "10%"]) == 0
    assert run([*compare, "--fail-if-cost-increases", "ten"]) == 2
    assert run([*compare, "--format", "json"]) == 0


def test_without_time_the_best_so_far_is_given_with_its_gap() -> None:
    calls = iter([60.0] * 3)
    found = plan(
        factories.pool(),
        [factories.cascade(), factories.cascade(threshold=0.75).model_copy(update={"name": "other"})],
        TABLE,
        factories.profiles(),
        factories.prices(),
        factories.workload(**TIGHT),
        inputs={},
        uncertified=True,
        reasons=False,
        remaining=lambda: next(calls, 0.0),
    )
    assert found.solver.bound_usd_per_hour <= found.solver.usd_per_hour
