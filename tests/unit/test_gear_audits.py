"""Audits of a router that changes gears, on a virtual clock: an account for each, one purse, no audits while a gear rests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from coe.cascade.evaluate import route
from coe.errors import InvalidInput
from coe.ledger import read_ledger
from coe.placement.together import together
from coe.records import Answer, Audit, Auditing, BatchRun, Record
from coe.report.geared import as_text, summarise_gears
from coe.report.live import LiveView
from coe.router.audits import Accounts, usd_per_audit
from coe.router.queries import Reply
from coe.serving.geared import Geared
from coe.serving.in_service import InService, hand_over
from coe.simulator.served import _probabilities
from coe.simulator.virtual import run_virtually
from coe.types import Audits, Cascade, Gears, Placement, Plan, Tier
from tests import gears_case as case

WHOLE = together(case.two_gears())
NAMES = WHOLE.gears.names
SAMPLE = case.TABLE.split("test")
ALARMS = {"accurate": 0.2, "fast": 0.3}
ALL = Audits(share=1.0, usd_per_hour=1000.0, alarms=ALARMS)
CALL_S = 0.005
GAP_S = 0.02


@dataclass
class Run:
    """What the router did: each gear's records, what pages and metrics said in the end, and when it changed."""

    records: dict[str, tuple[Record, ...]]
    view: LiveView
    metrics: str
    notes: tuple[str, ...]
    gear_of: dict[str, str] = field(default_factory=dict)
    left_s: list[float] = field(default_factory=list)

    def audits(self, gear: str) -> list[Audit]:
        return [r for r in self.records[gear] if isinstance(r, Audit)]

    def outcomes(self, gear: str) -> dict[str, int]:
        found = [a.outcome for a in self.audits(gear)]
        return {outcome: found.count(outcome) for outcome in sorted(set(found))}

    def calls(self, gear: str) -> list[BatchRun]:
        return [r for r in self.records[gear] if isinstance(r, BatchRun) and r.audit]


def served(
    folder: Path,
    parts: Sequence[tuple[str, int]],
    audits: Audits = ALL,
    *,
    broken: str = "",
    gap_s: float = GAP_S,
    linger_s: float = 0.0,
    seed: int = 0,
) -> Run:
    """So many queries in one gear after the other, one each `gap_s`; changes come between two of them, `linger_s` after the last,
    and wait for nothing. broken: a gear whose `middle` says another class than recorded, and is sure of it."""
    probs = {m: _probabilities(SAMPLE, m) for m in SAMPLE.members}
    gear_of: dict[str, str] = {}
    left_s: list[float] = []

    async def work() -> tuple[LiveView, str, tuple[str, ...]]:
        loop = asyncio.get_running_loop()
        accounts = Accounts(audits, WHOLE.gears, np.random.default_rng(seed), loop.time())

        def fresh(plan: Plan) -> InService:
            async def call(placement: Placement, batch: np.ndarray) -> Reply:
                await asyncio.sleep(CALL_S)
                found = probs[placement.member][batch[:, 0].astype(int)]
                if plan.name == broken and placement.member == "middle":
                    found = np.roll(np.round(found), 1, axis=1)
                return Reply(found, CALL_S)

            auditor = accounts.auditor(plan, loop.time())
            return InService(plan, str(folder), call, "router", clock=loop.time, auditor=auditor)

        geared = Geared(WHOLE.gears, fresh, clock=loop.time, ticks=loop.time)
        geared.hold(parts[0][0])
        now, asked, number = geared.current(), [], 0
        for name, queries in parts:
            if name != now.plan.name:
                await asyncio.sleep(linger_s)
                geared.hold(name)
                before, now = now, geared.current()
                hand_over(before, now, loop.time())
                left_s.append(loop.time())
            for _ in range(queries):
                gear_of[f"q{number}"] = name
                asked.append(asyncio.ensure_future(now.ask({f"q{number}": np.array([number % len(SAMPLE)])}, 5.0)))
                await asyncio.sleep(gap_s)
                number += 1
        await asyncio.gather(*asked)
        await asyncio.sleep(3.0)
        seen = now.watch.view(), now.watch.metrics().decode(), now.watch.report().notes
        for kept in geared.kept:
            await kept.close()
        return seen

    view, metrics, notes = run_virtually(work())
    records = {g.name or "": read_ledger(folder, g.plan.fingerprint()).records for g in WHOLE.gears.gears}
    return Run(records, view, metrics, notes, gear_of, left_s)


def expected(gear: str, queries: Sequence[str]) -> dict[str, str]:
    """Query -> what an audit of its early answer must find, by the table."""
    cascade = WHOLE.gears.gears[NAMES.index(gear)].plan.cascade
    alone = Cascade(tiers=(cascade.tiers[-1],), top_k=cascade.top_k, temperatures=cascade.temperatures)
    routing, last = route(cascade, SAMPLE), route(alone, SAMPLE)
    rows = {q: int(q[1:]) % len(SAMPLE) for q in queries}
    return {
        q: "same" if routing.answer[row] == last.answer[row] else "differs"
        for q, row in rows.items()
        if routing.tier[row] == 0
    }


PARTS = (("accurate", 250), ("fast", 250), ("accurate", 100), ("fast", 100))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ledger")


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return served(folder, PARTS, linger_s=3.0)


def test_every_gears_answers_are_audited_by_its_own_last_tier(run: Run) -> None:
    for gear in NAMES:
        mine = [q for q, name in run.gear_of.items() if name == gear]
        found = {a.query_id: a.outcome for a in run.audits(gear)}
        assert found == expected(gear, mine)
        assert {"same", "differs"} == set(found.values())
        last = set(WHOLE.gears.gears[NAMES.index(gear)].plan.cascade.tiers[-1].members)
        assert {r.member for r in run.calls(gear)} == last
        (began,) = [r for r in run.records[gear] if isinstance(r, Auditing)]
        assert began.alarm_above == ALARMS[gear]


def test_what_is_seen_is_each_gears_own(run: Run) -> None:
    report = summarise_gears(WHOLE.gears, run.records)
    assert run.view.gears is not None
    assert run.view.audits == run.view.gears.gears[1].audits
    for row, live in zip(report.gears, run.view.gears.gears, strict=True):
        assert row.audits is not None
        assert live.audits is not None
        assert row.audits.model_dump(exclude={"usd"}) == live.audits.model_dump(exclude={"usd"})
        price = {o.node_type: o.usd_per_hour / o.devices_per_node for o in WHOLE.plan.offers}
        assert row.audits.usd == pytest.approx(
            sum(r.busy_s * r.share * price[r.node_type] for r in run.calls(row.name)) / 3600
        )
        assert live.audits.usd == pytest.approx(row.audits.usd)
        assert f"{row.name}, shadow audits: {row.audits.observed:,} early answers compared" in as_text(report)
        compared = f'coe_audits_total{{gear="{row.name}",outcome="differs",router="router"}} {row.audits.differing:.1f}'
        assert compared in run.metrics
        assert f'coe_audit_disagreement_ratio{{bound="low",gear="{row.name}",router="router"}}' in run.metrics
        assert f'coe_certificate_drift{{gear="{row.name}",router="router"}} 0.0' in run.metrics
    resting = run.view.gears.gears[0].audits
    assert resting is not None
    assert f"Audits of gear accurate: {resting.says}." in run.notes


@pytest.mark.parametrize("seed", [1, 2])
def test_only_the_bound_of_a_broken_gear_breaks(tmp_path: Path, seed: int) -> None:
    """The upper gear's first tier is wrong; the lower one, of the same members, keeps a clean account, and its gates."""
    tighten = ALL.model_copy(update={"tighten": True, "share": 0.5})
    run = served(tmp_path, PARTS, tighten, broken="fast", linger_s=3.0, seed=seed)
    low, high = (g.audits for g in summarise_gears(WHOLE.gears, run.records).gears)
    assert low is not None
    assert high is not None
    assert (low.verdict == "drift", low.strictness) == (False, 0)
    assert low.low < low.alarm_above
    assert high.strictness >= 1
    fast = [r for r in run.records["fast"] if isinstance(r, Answer)]
    early = [r.tier == 0 for r in fast]
    assert np.mean(early[:20]) > 0.3
    assert not any(early[-50:]), "its gate closes in the end"
    assert any(r.tier == 0 for r in run.records["accurate"][-200:] if isinstance(r, Answer))
    assert 'coe_audit_strictness{gear="accurate",router="router"} 0.0' in run.metrics


def test_drift_of_a_gear_that_rests_is_still_an_alarm(tmp_path: Path) -> None:
    run = served(tmp_path, (("fast", 250), ("accurate", 50)), broken="fast", linger_s=3.0)
    assert [a for a in run.view.alarms if a.startswith("Drift in gear fast: The last tier answers at least")]
    assert run.view.audits is not None
    assert run.view.audits.verdict != "drift"
    assert 'coe_certificate_drift{gear="fast",router="router"} 1.0' in run.metrics
    assert 'coe_certificate_drift{gear="accurate",router="router"} 0.0' in run.metrics


def test_a_gear_that_is_left_is_not_audited_until_it_is_back(tmp_path: Path) -> None:
    """Changes without waiting: what waits for its audit is left out, and so is what the gear answers after the change."""
    run = served(tmp_path, (("accurate", 40), ("fast", 100), ("accurate", 40)), gap_s=0.002)
    left_s, back_s = run.left_s
    outcomes = run.outcomes("accurate")
    assert outcomes["resting"] >= 1
    assert sum(outcomes.values()) == len(expected("accurate", [q for q, g in run.gear_of.items() if g == "accurate"]))
    assert {a.query_id for a in run.audits("accurate") if a.outcome == "resting"} <= {f"q{n}" for n in range(40)}
    began = [r.start_s for r in run.calls("accurate")]
    assert not [s for s in began if left_s <= s < back_s]
    assert [s for s in began if s >= back_s]
    assert not {run.gear_of[a.query_id] for a in run.audits("fast")} - {"fast"}
    report = summarise_gears(WHOLE.gears, run.records)
    low = report.gears[0].audits
    assert low is not None
    assert (low.resting, low.skipped) == (
        outcomes["resting"],
        sum(outcomes.get(o, 0) for o in ("resting", "busy", "unpaid")),
    )
    assert "because another gear had taken over" in as_text(report)


def test_all_gears_are_paid_from_one_budget(tmp_path: Path) -> None:
    """So small that both gears' audits wait for money: together they spend no more than has come in."""
    each = min(usd_per_audit(g.plan) for g in WHOLE.gears.gears)
    budget = ALL.model_copy(update={"usd_per_hour": 3600 * each})
    run = served(tmp_path, PARTS, budget, linger_s=3.0)
    seconds = max(r.done_s for r in run.records["fast"] if isinstance(r, Answer)) + 3
    spent = [row.audits.usd for row in summarise_gears(WHOLE.gears, run.records).gears if row.audits]
    assert min(spent) > 0
    assert sum(spent) <= each * seconds
    assert min(run.outcomes(name)["unpaid"] for name in NAMES) > 20


def alone(name: str) -> Gears:
    """The gears, one of them with its last tier alone."""
    gears = []
    for gear in WHOLE.gears.gears:
        last = Cascade(tiers=(Tier(members=gear.plan.cascade.tiers[-1].members, rule="score"),))
        plan = gear.plan.model_copy(update={"cascade": last}) if name in (gear.name, "both") else gear.plan
        gears.append(gear.model_copy(update={"plan": plan}))
    return WHOLE.gears.model_copy(update={"gears": tuple(gears)})


def test_a_gear_of_one_tier_has_nothing_to_audit() -> None:
    gears = alone("fast")
    accounts = Accounts(ALL, gears, np.random.default_rng(0), 0.0)
    assert accounts.auditor(gears.gears[0].plan, 0.0) is not None
    assert accounts.auditor(gears.gears[1].plan, 0.0) is None
    with pytest.raises(InvalidInput, match="every gear has one tier"):
        Accounts(ALL, alone("both"), np.random.default_rng(0), 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"alarms": {"accurate": 0.2, "fastest": 0.1}, "alarm_above": 0.1},
            "alarms: must be of gears.*fastest.*accurate, fast",
        ),
        ({"alarms": {"accurate": 0.2}}, "gear 'fast': audits: alarm_above: must be given"),
        ({"usd_per_hour": 1e-9}, "gear 'accurate': audits: usd_per_hour: must pay for one audit an hour"),
    ],
    ids=["unknown gear", "no alarm", "no money"],
)
def test_what_cannot_be_audited_is_refused_by_gear(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Accounts(ALL.model_copy(update=changes), WHOLE.gears, np.random.default_rng(0), 0.0)


def test_one_plan_has_no_alarms_by_gear() -> None:
    with pytest.raises(InvalidInput, match="alarms.*one plan is served"):
        Accounts(ALL.model_copy(update={"alarm_above": 0.1}), WHOLE.plan, np.random.default_rng(0), 0.0)


def test_a_pinned_plan_pays_from_the_same_purse() -> None:
    """A plan that is no gear has the general alarm, and no money of its own."""
    accounts = Accounts(ALL.model_copy(update={"alarm_above": 0.11}), WHOLE.gears, np.random.default_rng(0), 0.0)
    gear = WHOLE.gears.gears[0].plan
    other = gear.model_copy(update={"workload": gear.workload.model_copy(update={"latency_s": 0.7})})
    pinned, own = accounts.auditor(other, 0.0), accounts.auditor(gear, 0.0)
    assert pinned is not None
    assert own is not None
    assert (pinned.alarm_above, own.alarm_above) == (0.11, 0.2)
    at_s = pinned.usd_each / ALL.usd_per_hour * 3600
    assert pinned.can_pay(at_s)
    assert not own.can_pay(at_s)
