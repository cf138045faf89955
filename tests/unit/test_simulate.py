"""Simulated plans: ledgers that report and theory agree with, verification, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coe import files
from coe.cascade.evaluate import evaluate, route
from coe.cli.main import run as command
from coe.errors import InvalidInput, Unavailable
from coe.placement.optimize import plan
from coe.records import Answer, BatchRun
from coe.report.summarise import summarise
from coe.simulator.arrivals import diurnal, gamma, on_off, poisson, replay, stream
from coe.simulator.figures import interval
from coe.simulator.observed import observed
from coe.simulator.run import records_of, simulate
from coe.simulator.served import with_start
from coe.simulator.verify import tightened, verdict, verified
from coe.types import Failures, Link, Loss, Plan, Profiles, Scenario, Sites, Workload
from tests import factories

TABLE = factories.table(n=2000)
SAMPLE = TABLE.split("certification")
PROFILES = factories.profiles()


def planned(workload: Workload | None = None, **work: Any) -> Plan:
    return plan(
        factories.pool(),
        [factories.cascade()],
        TABLE,
        PROFILES,
        factories.prices(),
        workload or factories.workload(**work),
        inputs={},
        uncertified=True,
        reasons=False,
    )


PLAN = planned()


def arrivals(rate: float = 100.0, duration_s: float = 60.0, seed: int = 0) -> np.ndarray:
    return poisson(stream(seed, "arrivals"), rate, duration_s)


def test_a_simulated_ledger_is_read_by_the_report() -> None:
    found = simulate(PLAN, PROFILES, SAMPLE, arrivals())
    records = list(with_start(list(records_of(PLAN, SAMPLE, found)), 1_000_000.0))
    report = summarise(PLAN, records)
    assert report.served.answered == len(found.load.arrival_s)
    used = next(c for c in report.costs if c.basis == "usage")
    assert used.usd_per_1k == pytest.approx(found.figures.usd_per_1k_usage, rel=1e-6)
    assert found.figures.usd_per_1k_usage == pytest.approx(PLAN.cost.usd_per_1k_usage, rel=0.2)


def test_tiers_and_answers_are_those_of_evaluation() -> None:
    found = simulate(PLAN, PROFILES, SAMPLE, arrivals(400.0, 60.0))
    stats = evaluate(PLAN.cascade, SAMPLE)
    assert found.figures.accuracy == pytest.approx(stats.accuracy, abs=0.02)
    assert [t.reach for t in found.figures.tiers] == pytest.approx(stats.reach, abs=0.02)
    done = [r for r in records_of(PLAN, SAMPLE, found) if isinstance(r, Answer)]
    for record in done[:200]:
        item = found.load.item[int(record.query_id[1:])]
        assert (record.tier, record.answer) == (found.load.routing.tier[item], found.load.routing.answer[item])


def test_the_same_seed_gives_the_same_ledger_and_another_seed_another() -> None:
    one, again, other = (
        list(records_of(PLAN, SAMPLE, simulate(PLAN, PROFILES, SAMPLE, arrivals(), seed=s))) for s in (1, 1, 2)
    )
    assert one == again
    assert one != other


def test_too_much_load_misses_the_promise_and_a_tighter_plan_keeps_it() -> None:
    swamped = simulate(PLAN, PROFILES, SAMPLE, arrivals(3000.0, 20.0)).figures
    judged = verdict([swamped], PLAN.workload)
    assert not judged.kept
    assert "MISSES" in str(judged)
    assert swamped.goodput < 0.9
    work = PLAN.workload
    lower = tightened(work)
    assert lower is not None
    assert lower.target_utilisation < work.target_utilisation
    assert tightened(work.model_copy(update={"target_utilisation": 0.1})) is None


def test_a_plan_is_tightened_until_it_keeps_its_promise() -> None:
    asked: list[float] = []

    def plan_at(workload: Workload) -> Plan:
        asked.append(workload.target_utilisation)
        # the first plans are made for a hundredth of the load, and so cannot carry it
        part = 0.01 if len(asked) < 3 else 1.0
        small = planned(workload.model_copy(update={"rate_per_s": workload.rate_per_s * part}))
        return small.model_copy(update={"workload": workload})

    work = factories.workload(rate_per_s=800.0)
    found = verified(plan_at, work, PROFILES, SAMPLE)
    assert len(asked) == 3
    assert asked == sorted(asked, reverse=True)
    assert "keeps its latency promise" in str(found.simulated)
    assert "target utilisation lowered from 60%" in str(found.simulated)


def test_without_time_to_plan_again_the_first_plan_stands_and_says_that_it_misses() -> None:
    plans = iter([planned(rate_per_s=8.0)])

    def plan_at(workload: Workload) -> Plan:
        found = next(plans, None)
        if found is None:
            raise Unavailable("no time left")
        return found.model_copy(update={"workload": workload})

    found = verified(plan_at, factories.workload(rate_per_s=800.0), PROFILES, SAMPLE)
    assert "MISSES" in str(found.simulated)


def test_profiles_that_end_below_the_plans_batches_are_refused() -> None:
    short = Profiles(profiles=tuple(p.model_copy(update={"timings": p.timings[:1]}) for p in PROFILES.profiles))
    with pytest.raises(InvalidInput, match="must hold the plan's batches of"):
        simulate(PLAN, short, SAMPLE, arrivals())


def test_queries_that_nobody_answers_have_failed() -> None:
    silent = factories.table(n=400, missing=1.0, probs=False)
    found = simulate(
        PLAN.model_copy(update={"cascade": factories.cascade(rule="vote", quorum=3)}), PROFILES, silent, arrivals()
    )
    answers = [r for r in records_of(PLAN, SAMPLE, found) if isinstance(r, Answer)]
    assert {a.status for a in answers} == {"failed"}


def test_the_warm_up_is_in_no_figure() -> None:
    """Half a minute of hardly anything, then load: without the first half utilisation and batches are those of the load."""
    quiet_then_busy = np.concatenate([arrivals(2.0, 30.0), 30 + arrivals(300.0, 30.0)])
    whole = simulate(PLAN, PROFILES, SAMPLE, quiet_then_busy).figures
    busy = simulate(PLAN, PROFILES, SAMPLE, quiet_then_busy, warm_up_s=30.0).figures
    for name, used in busy.utilisation.items():
        assert used > 1.2 * whole.utilisation[name]
    assert busy.tiers[0].mean_batch > whole.tiers[0].mean_batch
    assert whole.duration_s - busy.duration_s == pytest.approx(30)
    rent = sum(n.count * n.usd_per_hour for n in PLAN.nodes) / 3600
    assert busy.usd_per_1k_allocation == pytest.approx(1000 * rent * busy.duration_s / busy.queries)


def test_a_link_adds_its_round_trip() -> None:
    link = Link(to_site="cloud", round_trip_s=0.2)
    sites = Sites(ingress="edge", links=(link,), bytes_per_item=1000)
    away = tuple(o.model_copy(update={"site": "cloud"}) if o.accelerators_per_node else o for o in PLAN.offers)
    far = PLAN.model_copy(
        update={"offers": away, "workload": PLAN.workload.model_copy(update={"sites": sites, "latency_s": 2.0})}
    )
    near_s = simulate(PLAN, PROFILES, SAMPLE, arrivals()).figures.tiers[0].network_s
    far_s = simulate(far, PROFILES, SAMPLE, arrivals()).figures.tiers[0].network_s
    assert far_s - near_s == pytest.approx(0.2)


def test_simulated_and_observed_side_by_side() -> None:
    found = simulate(PLAN, PROFILES, SAMPLE, arrivals())
    records = list(records_of(PLAN, SAMPLE, found))
    seen = observed(
        PLAN, [r for r in records if isinstance(r, Answer)], [r for r in records if isinstance(r, BatchRun)]
    )
    for name, of, value in seen.rows():
        assert of(found.figures) == pytest.approx(value, rel=1e-6), name


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        mean, half = interval(rng.normal(3.0, 1.0, 5).tolist())
        held += abs(mean - 3.0) <= half
    assert 0.91 <= held / 400 <= 0.985
    assert interval([1.0]) == (1.0, float("inf"))


@pytest.mark.parametrize(
    ("make", "rate"),
    [
        (lambda rng: gamma(rng, 50.0, 400.0, 3.0), 50.0),
        (lambda rng: on_off(rng, 50.0, 4000.0, 1.0, 3.0), 50.0),
        (lambda rng: diurnal(rng, 50.0, 400.0, 0.9, period_s=100.0), 50.0),
    ],
)
def test_arrivals_have_their_rate(make: Any, rate: float) -> None:
    times = make(stream(0, "arrivals"))
    assert np.all(np.diff(times) >= 0)
    duration = 4000.0 if times[-1] > 500 else 400.0
    assert len(times) / duration == pytest.approx(rate, rel=0.1)


def test_burstiness_is_the_variation_of_gaps() -> None:
    for cv in (0.5, 1.0, 3.0):
        gaps = np.diff(gamma(stream(1, "arrivals"), 100.0, 1000.0, cv))
        assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda: replay(np.array([])), "trace: holds no request"),
        (lambda: replay(np.array([0.0, 2.0, 1.0])), "request 3: goes back in time, got 1 s after 2 s"),
        (lambda: replay(np.array([0.0, np.nan])), "no number"),
        (lambda: replay(np.array([0.0]), 0.0), "scale: must be above 0"),
        (lambda: poisson(stream(0, "a"), 0.0, 1.0), "rate: must be above 0"),
        (lambda: gamma(stream(0, "a"), 1.0, 1.0, 0.0), "burstiness: must be above 0"),
        (lambda: simulate(PLAN, PROFILES, SAMPLE, np.empty(0)), "arrivals: there are none"),
        (lambda: simulate(PLAN, PROFILES, SAMPLE, arrivals(), warm_up_s=99.0), "warm-up: must end before the last"),
        (lambda: simulate(PLAN, PROFILES, SAMPLE.only(["large"]), arrivals()), "no predictions of"),
        (lambda: simulate(PLAN, factories.profiles({"large": 0.1}), SAMPLE, arrivals()), "has no profile on"),
    ],
)
def test_bad_input_is_named(what: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        what()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files.write(tmp_path / "plan.yaml", PLAN, "")
    files.write(tmp_path / "profiles.yaml", PROFILES, "")
    files.write_predictions(tmp_path / "predictions.npz", TABLE)
    (tmp_path / "trace.csv").write_text("t_s\n" + "".join(f"{i / 50}\n" for i in range(500)))
    base = ["simulate", str(tmp_path / "plan.yaml"), "--predictions", str(tmp_path / "predictions.npz")]
    base += ["--profiles", str(tmp_path / "profiles.yaml"), "--duration", "10"]
    ledgers = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for ledger in ledgers:
        assert command([*base, "--ledger", str(ledger), "--replications", "2"]) == 0
    assert ledgers[0].read_bytes() == ledgers[1].read_bytes()
    assert command([*base, "--compare", str(ledgers[0]), "--trace", str(tmp_path / "trace.csv"), "--scale", "2"]) == 0
    assert "off by" in capsys.readouterr().out
    assert command(["report", "--plan", str(tmp_path / "plan.yaml"), "--ledger", str(ledgers[0])]) == 0
    assert command([*base, "--rate", "5000", "--gate"]) == 4
    assert command([*base, "--warm-up", "20"]) == 2


def folder(tmp_path: Path) -> list[str]:
    """A plan with what it was made from, and the command that simulates it for ten seconds."""
    files.write(tmp_path / "plan.yaml", PLAN, "")
    files.write(tmp_path / "profiles.yaml", PROFILES, "")
    files.write_predictions(tmp_path / "predictions.npz", TABLE)
    base = ["simulate", str(tmp_path / "plan.yaml"), "--predictions", str(tmp_path / "predictions.npz")]
    return [*base, "--profiles", str(tmp_path / "profiles.yaml"), "--duration", "10"]


def test_a_scenario_is_simulated_by_the_routers_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = folder(tmp_path)
    loss = Loss(at_s=5.0, node_type="t4-node")
    files.write(tmp_path / "scenario.yaml", Scenario(node_start_s=2.0, failures=Failures(losses=(loss,))), "")
    scenario = ["--scenario", str(tmp_path / "scenario.yaml")]
    assert command([*base, *scenario, "--ledger", str(tmp_path / "ledger.jsonl")]) == 0
    told = capsys.readouterr().out
    assert "t4-node #4 lost" in told
    assert command(["report", "--plan", str(tmp_path / "plan.yaml"), "--ledger", str(tmp_path / "ledger.jsonl")]) == 0
    assert command([*base, *scenario, "--engine", "compiled"]) == 2
    assert "does not know a scenario" in capsys.readouterr().err
    assert command([*base, "--engine", "router", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["unanswered"] == 0


def test_a_trace_may_say_which_items_were_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Hard items in the first half, easy ones in the second: escalation follows the trace."""
    base = folder(tmp_path)
    split = TABLE.split("test")
    routing = route(PLAN.cascade, split)
    hard, easy = (split.items[routing.tier == t].tolist() for t in (1, 0))
    lines = [f"2026-11-01T12:00:{i / 10:06.3f}Z,{(hard if i < 100 else easy)[i % 50]}" for i in range(200)]
    (tmp_path / "log.csv").write_text("when,item\n" + "\n".join(lines) + "\n")
    out = tmp_path / "trace.csv"
    asked = ["--time-column", "when", "--time-unit", "iso", "--item-column", "item"]
    assert command(["import", "trace", str(tmp_path / "log.csv"), *asked, "-o", str(out)]) == 0
    assert "200 requests in 20 s, 10.1/s on average" in capsys.readouterr().err
    reach = []
    for seconds in ("9.95", "100"):
        asked = ["--trace", str(out), "--item-column", "item", "--duration", seconds, "--format", "json"]
        assert command([*base[:-2], *asked]) == 0
        reach.append(json.loads(capsys.readouterr().out)[0]["tiers"][1]["reach"])
    assert reach == [1.0, 0.5]
    out.write_text("t_s,item\n0,nobody\n1,knows\n")
    assert command([*base[:-2], "--trace", str(out), "--item-column", "item"]) == 2
    assert "2 requests name items that the predictions' split lacks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("t_s\n5\n1\n", [], "goes back in time"),
        ("t_s\nsoon\n", [], "must be a number"),
        ("t_s\nsoon\n", ["--time-unit", "iso"], "must be a date with a time"),
        ("t_s\n1\n", [], "must hold two requests at different moments"),
        ("when\n1\n", [], "t_s"),
    ],
)
def test_bad_traces_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, options: list[str], message: str
) -> None:
    (tmp_path / "log.csv").write_text(text)
    assert command(["import", "trace", str(tmp_path / "log.csv"), *options, "-o", str(tmp_path / "t.csv")]) == 2
    assert message in capsys.readouterr().err


def test_an_imported_trace_sets_a_workloads_rate(tmp_path: Path) -> None:
    """Ten quiet seconds and one busy one: the workload gets the busy one's rate."""
    (tmp_path / "log.csv").write_text("t_s\n" + "".join(f"{t}\n" for t in [*range(10), *np.linspace(10, 10.99, 100)]))
    files.write(tmp_path / "workload.yaml", factories.workload(), "")
    asked = ["--workload", str(tmp_path / "workload.yaml"), "--peak", "1", "-o", str(tmp_path / "t.csv")]
    assert command(["import", "trace", str(tmp_path / "log.csv"), *asked]) == 0
    assert files.read(tmp_path / "workload.yaml", Workload).rate_per_s == pytest.approx(100, abs=1)


def test_other_profiles_than_the_plans_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = folder(tmp_path)
    files.write(tmp_path / "plan.yaml", PLAN.model_copy(update={"inputs": {"profiles.yaml": "others"}}), "")
    assert command(base) == 0
    told = capsys.readouterr().err
    assert "the plan was not made from this" in told
    assert "profiles.yaml" in told
