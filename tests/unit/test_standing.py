"""Gears on the machines of one plan: limits that the simulator confirms, bounds, bills, refusals, and the verb."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from coe import files
from coe.cascade.evaluate import evaluate
from coe.cascade.expected import differing_bound
from coe.cli.main import run as command
from coe.errors import InvalidInput
from coe.placement.gears import BACK
from coe.placement.standing import carried_per_s, gears_on, joined
from coe.placement.together import together
from coe.simulator.served import serve
from coe.types import Audits, Cascade, Gears, Tier
from tests import factories
from tests import gears_case as case

PLAN = case.planned(case.ACCURATE, 60.0, 0.05)
SAMPLE = case.TABLE.split("certification")
QUICK = Cascade(
    name="fast", tiers=(Tier(members=("small",), rule="score", threshold=0.8), Tier(members=("other",), rule="score"))
)
FAST = case.certified(QUICK, 0.2)
GEARS = gears_on(PLAN, [FAST], SAMPLE)


def test_limits_are_where_the_busiest_replica_is_as_busy_as_planned() -> None:
    target = PLAN.workload.target_utilisation
    for gear in GEARS.gears:
        assert max(p.utilisation for p in gear.plan.placements) == pytest.approx(target)
        assert gear.up_to_per_s == carried_per_s(PLAN, gear.plan.cascade, gear.plan.stats)
    assert GEARS.gears[0].up_to_per_s >= 60.0 - 1e-9  # the plan was made for 60 per second
    assert GEARS.gears[1].back_below_per_s == BACK * GEARS.gears[0].up_to_per_s


def test_the_simulator_finds_that_the_machines_carry_the_limit_and_keep_the_promise() -> None:
    gear = GEARS.gears[1]
    rate = gear.up_to_per_s
    came = np.cumsum(np.random.default_rng(0).exponential(1 / rate, int(15 * rate)))
    run = serve(gear.plan, factories.profiles(), case.TABLE.split("test"), came)
    target = PLAN.workload.target_utilisation
    busy = max(run.figures.utilisation.values())
    assert target < busy < 0.97  # limits count full batches, and here they are not full: a query takes more time
    assert run.figures.goodput > 0.99
    assert run.figures.latency_p99_s <= gear.plan.latency_bound_s
    assert run.figures.accuracy == pytest.approx(gear.plan.stats.accuracy, abs=0.04)


def test_nothing_more_is_rented_and_the_bill_is_that_of_the_plan() -> None:
    deployment = together(GEARS)
    there = [(p.deployment, p.replicas, p.share, p.batch_size) for p in deployment.plan.placements]
    assert there == [(p.deployment, p.replicas, p.share, p.batch_size) for p in PLAN.placements]
    assert deployment.plan.nodes == PLAN.nodes
    rent = sum(n.count * n.usd_per_hour for n in PLAN.nodes)
    for gear in deployment.gears.gears:
        assert gear.plan.cost.usd_per_hour_allocation == pytest.approx(rent)
        used = sum(line.usd for line in gear.plan.usage_lines)
        assert used == pytest.approx(gear.plan.cost.usd_per_hour_usage)
        assert gear.plan.stats == evaluate(gear.plan.cascade, SAMPLE)
        claim = gear.plan.cascade.certificate
        assert claim is not None
        assert gear.plan.workload.max_accuracy_loss == claim.epsilon
    # the plan's own cascade: the same dollars per query as the optimiser found, whatever the load
    assert GEARS.gears[0].plan.cost.usd_per_1k_usage == pytest.approx(PLAN.cost.usd_per_1k_usage, rel=1e-6)


def test_what_makes_no_gear_is_refused() -> None:
    with pytest.raises(InvalidInput, match="cascade 'fast': names 'small', which the plan does not place"):
        gears_on(
            PLAN.model_copy(update={"placements": tuple(p for p in PLAN.placements if p.member != "small")}),
            [FAST],
            SAMPLE,
        )
    with pytest.raises(
        InvalidInput, match="cascade 'fast': must be answered within the plan's promise of 0.5 s.*its bound is 20"
    ):
        gears_on(PLAN.model_copy(update={"tier_latency_s": (10.0, 0.1)}), [FAST], SAMPLE)
    with pytest.raises(InvalidInput, match="must carry more than the gear before"):
        gears_on(PLAN, [FAST, FAST.model_copy(update={"name": "again"})], SAMPLE)


def test_plans_are_joined_by_their_loads() -> None:
    low, high = (g.plan for g in case.two_gears().gears)
    found = joined([high, low], ["plans/busy.yaml", "plans/quiet.yaml"])
    assert found.names == ("quiet", "busy")
    assert [g.up_to_per_s for g in found.gears] == [50.0, 400.0]
    with pytest.raises(InvalidInput, match="must be for different loads"):
        joined([low, low], ["a", "b"])


def test_the_verb_writes_gears_that_build_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = {name: str(tmp_path / f"{name}.yaml") for name in ("plan", "fast", "gears", "serve", "bare", "other")}
    predictions = str(tmp_path / "predictions.npz")
    files.write_predictions(predictions, case.TABLE)
    files.write(places["plan"], PLAN)
    files.write(places["fast"], FAST)
    made = ["gears", places["plan"], "--cascade", places["fast"], "--predictions", predictions, "--dwell", "7"]
    assert command([*made, "-o", places["gears"]]) == 0
    found = files.read(places["gears"], Gears)
    assert found == GEARS.model_copy(update={"dwell_s": 7.0})
    assert "up to/s" in capsys.readouterr().out

    assert command(["build", places["gears"], "-o", places["serve"]]) == 0
    told = capsys.readouterr().err
    assert "fast: up to" in told
    assert f"${PLAN.cost.usd_per_hour_allocation:.3f} per hour, whichever serves" in told
    arguments = files.yaml_mapping(Path(places["serve"]))["applications"][0]["args"]
    assert Gears.model_validate(arguments["gears"]) == together(found).gears
    head = Path(places["serve"]).read_text().split("proxy_location")[0]
    assert "fast: up to" in head

    audits, profiles = str(tmp_path / "audits.yaml"), str(tmp_path / "profiles.yaml")
    files.write(audits, Audits(share=0.1, usd_per_hour=1.0, alarm_above=0.2))
    files.write(profiles, factories.profiles())
    simulated = ["simulate", places["plan"], "--predictions", predictions, "--profiles", profiles]
    ran = [*simulated, "--gears", places["gears"], "--deployed", "--rate", "80", "--duration", "10"]
    assert command([*ran, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["goodput"] > 0.9

    silent, audited = str(tmp_path / "silent.yaml"), str(tmp_path / "audited.yaml")
    files.write(silent, Audits(share=0.1, usd_per_hour=1.0))
    built = ["build", places["gears"], "--predictions", predictions, "--uncertified", "--audits", silent, "-o", audited]
    assert command(built) == 0
    told = capsys.readouterr().err
    alarms = files.yaml_mapping(Path(audited))["applications"][0]["args"]["audits"]["alarms"]
    for gear in found.gears:
        differing, items, bound = differing_bound(gear.plan.cascade, SAMPLE, 0.05)
        assert alarms[gear.name] == bound
        assert f"audits of {gear.name}: alarm above {bound:.2%}" in told
        assert f"answers {differing} of {items} certification items" in " ".join(told.split())
    assert command([*built[:2], *built[4:-1], places["other"]]) == 2
    assert "gear 'fast': audits: alarm_above: must be given" in " ".join(capsys.readouterr().err.split())

    bare = [
        found.gears[0],
        found.gears[1].model_copy(
            update={"plan": found.gears[1].plan.model_copy(update={"cascade": QUICK})},
        ),
    ]
    files.write(places["bare"], found.model_copy(update={"gears": tuple(bare)}))
    assert command(["build", places["bare"], "-o", places["other"]]) == 2
    assert "gears[1] 'fast': cascade 'cascade': has no certificate" in capsys.readouterr().err
    assert command(["build", places["bare"], "--uncertified", "-o", places["other"]]) == 0
    capsys.readouterr()

    for arguments_, message in (
        (
            ["build", places["gears"], "--live", places["serve"], "--pin", "slow", "-o", places["other"]],
            "must be a gear",
        ),
        (
            ["build", places["bare"], "--uncertified", "--live", places["serve"], "-o", places["other"]],
            "of the same gears",
        ),
        (["build", places["plan"], "--pin", "fast", "-o", places["other"]], "names a gear of a deployed file"),
        (["gears", places["plan"], "--cascade", places["fast"], "-o", places["other"]], "--predictions: is needed"),
        ([*made[:2], places["plan"], *made[2:], "-o", places["other"]], "goes with one plan"),
        (["report", "--plan", places["gears"], "--ledger", str(tmp_path)], "holds no ledger of these gears"),
        (
            ["build", places["gears"], "--audits", audits, "--live", places["serve"], "-o", places["other"]],
            "--audits: are those of the deployed file",
        ),
        ([*simulated, "--deployed"], "--deployed: is how gears are served"),
    ):
        assert command(arguments_) == 2
        assert message in capsys.readouterr().err
    assert (
        command(["build", places["plan"], "--live", places["serve"], "-o", places["other"]]) == 0
    )  # a plan may be pinned
    (router,) = files.yaml_mapping(Path(places["other"]))["applications"][0]["deployments"]
    assert set(router["user_config"]) == {"plan"}
