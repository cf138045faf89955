"""Audits in the simulator: against what they should cost and show in theory, and against the service's own router."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coe import files
from coe.cascade.evaluate import route
from coe.cascade.expected import audits_until_shown
from coe.cli.main import run as command
from coe.errors import InvalidInput
from coe.ledger import read_ledger
from coe.placement.together import together
from coe.records import Answer, Audit, Auditing, BatchRun, Record
from coe.report.audits import AuditSums, audited
from coe.report.geared import GearsReport, summarise_gears
from coe.report.summarise import summarise
from coe.router.audits import Accounts, usd_per_audit
from coe.router.queries import Overloaded, Reply
from coe.serving.in_service import InService
from coe.simulator.arrivals import poisson, stream
from coe.simulator.auditing import SimulatedAudits
from coe.simulator.served import Served, _probabilities, serve
from coe.simulator.stations import Replica, station_of
from coe.simulator.virtual import run_virtually
from coe.types import Audits, Cascade, Failures, Placement, Plan, Profiles, Scaling, Scenario, Tier
from tests import factories, gears_case

RATE_PER_S = 30.0
PROFILES = factories.profiles()
CASCADE = factories.cascade(threshold=0.5)
PLAN = gears_case.planned(CASCADE, RATE_PER_S, 0.2)
SAMPLE = gears_case.TABLE.split("test")
RICH = Audits(share=0.5, usd_per_hour=1000.0, alarm_above=0.3)
LAST = PLAN.placements[-1].deployment
ROUTING = route(PLAN.cascade, SAMPLE)
EARLY = float((ROUTING.tier == 0).mean())
TRUTH = float((ROUTING.answer != SAMPLE.answers[:, SAMPLE.members.index("large")])[ROUTING.tier == 0].mean() * EARLY)


def came(duration_s: float, seed: int = 0, rate: float = RATE_PER_S) -> np.ndarray:
    return poisson(stream(seed, "arrivals"), rate, duration_s)


def simulated(audits: Audits | None, duration_s: float = 20.0, seed: int = 0, **more: Any) -> Served:
    return serve(PLAN, PROFILES, SAMPLE, came(duration_s, seed), audits=audits, seed=seed, **more)


def of(kind: type, run: Served) -> list[Any]:
    return [r for r in run.records if isinstance(r, kind)]


def figures(run: Served) -> SimulatedAudits:
    (found,) = run.figures.audits
    return found


@pytest.fixture(scope="module")
def rich() -> Served:
    return simulated(RICH)


@pytest.fixture(scope="module")
def without() -> Served:
    return simulated(None)


def test_as_many_are_chosen_as_the_share_says_and_each_costs_its_busy_time(rich: Served) -> None:
    found, answers = figures(rich), of(Answer, rich)
    early = sum(a.tier == 0 for a in answers)
    assert found.chosen == pytest.approx(RICH.share * early, abs=4 * math.sqrt(early * 0.25))
    assert found.planned == pytest.approx(RICH.share * sum(PLAN.stats.accepted[:-1]) * len(answers))
    assert found.planned_usd == pytest.approx(found.planned * usd_per_audit(PLAN))
    runs = [r for r in of(BatchRun, rich) if r.audit]
    price = {o.node_type: o.usd_per_hour / o.devices_per_node / 3600 for o in PLAN.offers}
    assert found.usd == pytest.approx(sum(r.busy_s * r.share * price[r.node_type] for r in runs))
    assert 0 <= sum(r.items for r in runs) - found.observed <= found.dropped
    assert found.observed + found.busy + found.dropped == found.chosen
    assert found.observed > 100
    assert found.usd == pytest.approx(found.observed * found.usd_each, rel=0.5)  # batches of audits fill otherwise
    assert (found.unpaid, found.failed, found.resting) == (0, 0, 0)


def test_what_audits_do_is_use_the_last_tier_and_delay_nothing_that_is_answered_early(
    rich: Served, without: Served
) -> None:
    mine, theirs = ({a.query_id: a for a in of(Answer, run)} for run in (rich, without))
    for query, answer in theirs.items():
        assert mine[query].tier == answer.tier
        if answer.tier == 0:
            assert mine[query].done_s == answer.done_s
    ends = [run.figures.duration_s for run in (rich, without)]
    replicas = PLAN.placements[-1].replicas
    for run, end_s in zip((rich, without), ends, strict=True):
        busy = sum(r.busy_s for r in of(BatchRun, run) if r.member == "large")
        assert run.figures.utilisation[LAST] == pytest.approx(busy / (end_s * replicas), rel=0.01)
    assert rich.figures.utilisation[LAST] > without.figures.utilisation[LAST]
    assert rich.figures.tiers[1].reach == without.figures.tiers[1].reach
    assert rich.figures.tiers[0] == without.figures.tiers[0]
    assert rich.figures.usd_per_1k_usage > without.figures.usd_per_1k_usage
    assert rich.figures.usd_per_1k_allocation == pytest.approx(without.figures.usd_per_1k_allocation, rel=0.02)
    assert without.figures.audits == ()


def test_the_budget_is_kept_and_used() -> None:
    """Enough for one audit per second, of about nine that are chosen."""
    audits = RICH.model_copy(update={"usd_per_hour": 3600 * usd_per_audit(PLAN)})
    run = simulated(audits, 30.0)
    found = figures(run)
    hours = found.seconds / 3600
    assert found.unpaid > 0.4 * found.chosen
    assert found.planned_usd == pytest.approx(audits.usd_per_hour * hours)
    assert 0.3 * found.planned_usd < found.usd <= found.planned_usd


def test_report_and_simulator_say_the_same_of_one_ledger(rich: Served) -> None:
    report = summarise(PLAN, rich.records)
    found = figures(rich)
    assert report.audits is not None
    assert report.audits.usd == pytest.approx(found.usd)
    assert (report.audits.low, report.audits.high, report.audits.verdict) == (found.low, found.high, found.verdict)
    assert (report.audits.observed, report.audits.differing) == (found.observed, found.differing)
    assert found.low <= TRUTH <= found.high
    assert rich.records_of(PLAN) == tuple(r for r in rich.records if not hasattr(r, "count"))


def test_bounds_hold_for_what_the_table_says() -> None:
    """Items are drawn anew, so every query is one of the same kind, and the truth is that of the table."""
    wrong = 0
    for seed in range(4):
        found = figures(simulated(RICH.model_copy(update={"share": 1.0}), 12.0, seed))
        assert found.observed > 50
        wrong += not found.low <= TRUTH <= found.high
    assert wrong <= 1


def test_drift_closes_gates_as_in_the_service() -> None:
    """An alarm below the truth, and votes that cannot be stricter."""
    cascade = factories.cascade(rule="vote", quorum=3)
    plan = gears_case.planned(cascade, RATE_PER_S, 0.1)
    audits = Audits(share=1.0, usd_per_hour=1000.0, alarm_above=0.0001, tighten=True)
    run = serve(plan, PROFILES, SAMPLE, came(20.0), audits=audits)
    told = [what for _, what in run.told]
    assert told == [
        "drift is shown",
        "tier 1 passes on everything (its 3 voters cannot be asked for more than 3 votes)",
    ]
    at_s = run.told[0][0]
    assert figures(run).strictness == 1
    assert {a.tier for a in of(Answer, run) if a.arrival_s > at_s} == {1}
    assert [a.strictness for a in of(Auditing, run)] == [0, 1]


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(scaling=Scaling(downscale_delay_s=2.0, upscale_delay_s=1.0, look_back_s=3.0), node_start_s=2.0),
        Scenario(failures=Failures(replica_mtbf_s=8.0), node_start_s=1.0),
        Scenario(router_mtbf_s=6.0, node_start_s=1.0),
    ],
    ids=["scaled", "replicas crash", "routers fail"],
)
def test_whatever_happens_every_early_answer_has_one_audit_and_the_budget_holds(scenario: Scenario) -> None:
    """But for a router that fails: it takes its open audits with it, and begins again with an empty purse."""
    audits = Audits(share=1.0, usd_per_hour=3600 * 5 * usd_per_audit(PLAN), alarm_above=0.3)
    run = simulated(audits, 15.0, scenario=scenario)
    early = {a.query_id for a in of(Answer, run) if a.tier == 0 and a.status == "ok"}
    chosen = [a.query_id for a in of(Audit, run)]
    fails = scenario.router_mtbf_s is not None
    assert len(chosen) == len(set(chosen))
    assert set(chosen) <= early
    assert (set(chosen) == early) is not fails
    assert len(of(Auditing, run)) == (1 + sum("router 1 failed" in what for _, what in run.told) if fails else 1)
    found = figures(run)
    assert 0 < found.usd <= audits.usd_per_hour * found.seconds / 3600


# --- Against the service ------------------------------------------------------------------------------------------------


def exact(profiles: Profiles) -> Profiles:
    """Members whose times have no common multiple and no jitter."""
    odd = {"small": 1.0, "large": 1.0173, "middle": 0.9881, "other": 1.0057}
    found = []
    for p in profiles.profiles:
        timings = [
            t.model_copy(
                update={
                    "latency_p50_s": odd[p.member] * t.latency_p50_s,
                    "latency_p99_s": odd[p.member] * t.latency_p50_s,
                }
            )
            for t in p.timings
        ]
        found.append(p.model_copy(update={"timings": tuple(timings)}))
    return Profiles(profiles=tuple(found))


def in_service(
    plan: Plan, profiles: Profiles, arrival_s: np.ndarray, items: np.ndarray, audits: Audits, folder: Path
) -> None:
    """The service's own plan, queues, sums and ledger on the virtual clock; members are the simulator's stations."""
    probs = {p.member: _probabilities(SAMPLE, p.member) for p in plan.placements}

    async def work() -> None:
        loop = asyncio.get_running_loop()
        stations = {p.deployment: station_of(plan, p, profiles, np.random.default_rng(0)) for p in plan.placements}
        for p in plan.placements:
            station = stations[p.deployment]
            station.replicas += [Replica(station, 0, is_up=True) for _ in range(p.replicas)]

        async def call(placement: Placement, batch: np.ndarray) -> Reply:
            station = stations[placement.deployment]
            _, _, busy_s = await station.call(batch[:, 0])
            await asyncio.sleep(station.hop_s)
            return Reply(probs[placement.member][batch[:, 0]], busy_s)

        accounts = Accounts(audits, plan, stream(0, "audits of router 0"), loop.time())
        auditor = accounts.auditor(plan, loop.time())
        service = InService(plan, str(folder), call, "router", clock=loop.time, auditor=auditor)

        async def ask(number: int) -> None:
            with contextlib.suppress(Overloaded):
                await service.ask({f"q{number}": np.array([items[number]])}, math.inf)

        asked = []
        for number, at in enumerate(arrival_s.tolist()):
            if at > loop.time():
                await asyncio.sleep(at - loop.time())
            asked.append(asyncio.ensure_future(ask(number)))
        await asyncio.gather(*asked)
        await asyncio.sleep(0)
        await service.close()

    run_virtually(work())


@pytest.mark.parametrize("tighten", [False, True])
def test_simulator_and_service_write_the_same_ledger(tmp_path: Path, tighten: bool) -> None:
    profiles = exact(PROFILES)
    plan = gears_case.planned(CASCADE, RATE_PER_S, 0.2, profiles=profiles, batch_wait_s=0.00437)
    audits = Audits(share=0.6, usd_per_hour=3600 * 4 * usd_per_audit(plan), alarm_above=0.001, tighten=tighten)
    run = serve(plan, profiles, SAMPLE, came(15.0), audits=audits)
    in_service(plan, profiles, came(15.0), run.item, audits, tmp_path)
    written = read_ledger(tmp_path).records
    for kind in (Answer, Auditing, Audit, BatchRun):
        ours, theirs = [r for r in run.records if type(r) is kind], [r for r in written if type(r) is kind]
        assert len(ours) == len(theirs) > 0
        for a, b in zip(ours, theirs, strict=True):
            for name in kind.__dataclass_fields__:
                mine, other = getattr(a, name), getattr(b, name)
                assert mine == (pytest.approx(other, abs=2e-5) if isinstance(mine, float) else other), (name, a, b)
    outcomes = {a.outcome for a in of(Audit, run)}
    assert {"same", "differs", "unpaid"} <= outcomes
    assert len(of(Auditing, run)) == 1 + tighten * figures(run).strictness
    assert not tighten or figures(run).strictness >= 1


# --- Gears ----------------------------------------------------------------------------------------------------------------


def test_gears_are_audited_each_by_itself_and_only_while_they_serve() -> None:
    gears = gears_case.two_gears(look_back_s=4.0, dwell_s=4.0)
    whole = together(gears).gears
    rush = np.concatenate([came(12.0), 12 + came(8.0, rate=200.0), 20 + came(14.0, rate=20.0)])
    audits = Audits(share=0.5, usd_per_hour=1000.0, alarms={"accurate": 0.3, "fast": 0.4})
    run = serve(gears.gears[0].plan, PROFILES, SAMPLE, rush, gears=gears, deployed=True, audits=audits)
    (up_s, _), (down_s, _) = run.told
    found = {a.gear: a for a in run.figures.audits}
    assert set(found) == {"accurate", "fast"}
    records: dict[str, tuple[Record, ...]] = {}
    for gear, name in zip(whole.gears, whole.names, strict=True):
        records[name] = run.ledgers(whole)[name]
        calls = [r.start_s for r in records[name] if isinstance(r, BatchRun) and r.audit]
        assert calls
        assert all((up_s <= s < down_s) == (name == "fast") for s in calls)
        assert found[name].observed > 10
        assert found[name].alarm_above == (audits.alarms or {})[name]
        seen = audited(gear.plan.cascade, records[name], 0.0)
        assert seen is not None
        assert (seen.low, seen.high) == (found[name].low, found[name].high)
    assert found["accurate"].resting + found["fast"].resting > 0
    report = summarise_gears(whole, records)
    assert report.unmetered_s == 0
    assert report.usd_allocation == pytest.approx(run.figures.usd_per_1k_allocation * report.answered / 1000)
    assert report.gears[1].seconds == pytest.approx(down_s - up_s)
    for row in report.gears:
        assert row.audits is not None
        assert row.audits.usd == pytest.approx(found[row.name].usd)
    assert sum(a.usd for a in found.values()) <= run.figures.usd_per_1k_usage * len(rush) / 1000


def test_gears_whose_machines_come_and_go_are_audited_while_they_are_there() -> None:
    gears = gears_case.two_gears(look_back_s=4.0, dwell_s=4.0)
    rush = np.concatenate([came(12.0), 12 + came(10.0, rate=150.0)])
    audits = Audits(share=0.5, usd_per_hour=1000.0, alarm_above=0.3)
    run = serve(
        gears.gears[0].plan, PROFILES, SAMPLE, rush, gears=gears, audits=audits, scenario=Scenario(node_start_s=2.0)
    )
    assert {a.gear for a in run.figures.audits} == {"accurate", "fast"}
    assert all(a.observed > 0 and a.failed == 0 for a in run.figures.audits)


# --- How soon a breach is shown ---------------------------------------------------------------------------------------------


def test_audits_until_drift_is_shown_are_those_of_streams() -> None:
    """Dynamic programming against streams that are counted as the service counts them."""
    early, audited_share, alarm, share = 0.7, 0.5, 0.05, 0.2
    expected = audits_until_shown(share, alarm, 0.05, early=early, audited=audited_share)
    rng, took = np.random.default_rng(3), []
    for _ in range(80):
        sums = AuditSums(Cascade(tiers=(Tier(members=("a",), rule="score", threshold=0.5), Tier(members=("b",)))))
        sums.add(Auditing(0.0, audited_share, 1.0, 0.05, alarm))
        audits = 0
        while sums.drift_since_s is None:
            tier = int(rng.random() >= early)
            sums.add(Answer("q", 0.0, 0.0, tier, 0, 1.0, False))
            if tier == 0 and rng.random() < audited_share:
                audits += 1
                differs = rng.random() < share / early
                sums.add(Audit("q", 0, 0, int(differs), 0.0, 0.0, "differs" if differs else "same"))
        took.append(audits)
    assert expected.mean == pytest.approx(np.mean(took), abs=4 * np.std(took) / math.sqrt(len(took)) + 2)
    assert expected.half == pytest.approx(np.median(took), rel=0.25)
    assert expected.most == pytest.approx(np.quantile(took, 0.9), rel=0.3)


def test_a_larger_breach_shows_sooner_and_one_at_the_alarm_hardly_ever() -> None:
    shown = [audits_until_shown(s, 0.05, 0.05, early=0.8, audited=0.5) for s in (0.1, 0.15, 0.3)]
    means = [s.mean for s in shown if s.mean is not None]
    assert len(means) == 3
    assert means == sorted(means, reverse=True)
    assert all(s.half is not None and s.most is not None and s.half <= s.most for s in shown)
    with pytest.raises(InvalidInput, match="at most the share of queries that are answered early, 0.8"):
        audits_until_shown(0.9, 0.05, 0.05, early=0.8, audited=0.5)


# --- The verb ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("simulated")
    files.write(where / "plan.yaml", PLAN)
    files.write(where / "profiles.yaml", PROFILES)
    files.write(where / "audits.yaml", RICH.model_copy(update={"alarm_above": None}))
    files.write_predictions(where / "predictions.npz", gears_case.TABLE)
    return where


def simulate(folder: Path, *more: str) -> int:
    place = {name: str(folder / name) for name in ("plan.yaml", "predictions.npz", "profiles.yaml")}
    known = ["--predictions", place["predictions.npz"], "--profiles", place["profiles.yaml"]]
    return command(["simulate", place["plan.yaml"], *known, "--duration", "10", *more])


def test_the_verb_says_what_audits_cost_and_what_they_would_show(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    audits = ["--audits", str(folder / "audits.yaml")]
    ledger = tmp_path / "simulated.jsonl"
    assert simulate(folder, *audits, "--ledger", str(ledger), "--breach", "0.3") == 0
    told = capsys.readouterr()
    assert "audits: alarm above" in told.err
    for part in (
        "audits of 0.5 of the early answers, for at most $1000 per hour",
        "planned  ",
        "made  ",
        "differ, of all",
    ):
        assert part in told.out
    assert "a breach of 30.00% is shown after" in told.out
    assert command(["report", "--plan", str(folder / "plan.yaml"), "--ledger", str(ledger)]) == 0
    assert "Shadow audits" in capsys.readouterr().out
    assert simulate(folder, *audits, "--format", "json") == 0
    (run,) = json.loads(capsys.readouterr().out)
    (found,) = run["audits"]
    assert found["observed"] > 0
    assert found["planned_usd"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--audits", "audits.yaml", "--engine", "compiled"],
            "the compiled engine does not know shadow audits.*use router",
        ),
        (["--breach", "0.1"], "--breach: is what audits are to show.*give --audits"),
        (["--audits", "audits.yaml", "--breach", "0.99"], "breach: must be above 0 and at most the share"),
    ],
    ids=["compiled", "no audits", "too large"],
)
def test_what_would_be_left_out_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert simulate(folder, *(str(folder / o) if o == "audits.yaml" else o for o in options)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(message, said), said


def test_the_ledgers_of_deployed_gears_are_those_that_the_report_of_gears_reads(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    files.write(tmp_path / "gears.yaml", gears_case.two_gears(look_back_s=3.0))
    audits = ["--audits", str(folder / "audits.yaml")]
    geared = ["--gears", str(tmp_path / "gears.yaml"), *audits, "--rate", "120", "--ledger"]
    assert simulate(folder, *geared, str(tmp_path / "one.jsonl")) == 2
    assert "--ledger: is one file here" in capsys.readouterr().err
    assert simulate(folder, *geared, str(folder / "plan.yaml"), "--deployed") == 2
    assert "--ledger: must be a folder with --deployed" in " ".join(capsys.readouterr().err.split())
    assert simulate(folder, *geared, str(tmp_path / "ledger"), "--deployed") == 0
    told = capsys.readouterr()
    for gear in ("accurate", "fast"):
        assert f"audits of {gear}: alarm above" in told.err
        assert f"audits of {gear} of 0.5 of the early answers" in told.out
    shown = ["report", "--plan", str(tmp_path / "gears.yaml"), "--ledger", str(tmp_path / "ledger"), "--format", "json"]
    assert command(shown) == 0
    report = GearsReport.model_validate_json(capsys.readouterr().out)
    assert [row.answered > 10 and row.audits is not None for row in report.gears] == [True, True]
    assert simulate(folder, *audits, "--ledger", str(tmp_path / "ledger")) == 2
    assert "--ledger: must be a file" in " ".join(capsys.readouterr().err.split())


def test_audits_that_cannot_be_are_refused_before_the_run() -> None:
    with pytest.raises(InvalidInput, match="alarm_above"):
        simulated(RICH.model_copy(update={"alarm_above": None}))
