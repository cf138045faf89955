"""A router's gears without Ray, on a virtual clock: changes as in the simulator, nothing lost, each call billed once."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from coe.cascade.evaluate import route
from coe.errors import InvalidInput
from coe.ledger import Ledger, LedgerFile, plans_in, read_ledger
from coe.placement.together import together
from coe.records import Answer, BatchRun, NodeSpan, Record
from coe.report.geared import GearsReport, as_markdown, as_text, summarise_gears
from coe.report.live import report_so_far
from coe.report.running import Running
from coe.report.window import disjoint
from coe.router.queries import Overloaded, Reply
from coe.router.shifting import follow_load
from coe.serving.geared import Geared
from coe.serving.in_service import InService, hand_over
from coe.serving.meter import REST_S, Meter
from coe.simulator.served import _probabilities, serve
from coe.simulator.virtual import run_virtually
from coe.types import Placement, Plan
from tests import factories
from tests import gears_case as case

GEARS = case.two_gears(look_back_s=6.0, dwell_s=10.0)
WHOLE = together(GEARS)
SAMPLE = case.TABLE.split("test")
STEP = ((30.0, 10.0), (200.0, 6.0), (20.0, 20.0))
"""(queries per second, for so many seconds)"""


def arrivals(steps: tuple[tuple[float, float], ...] = STEP, seed: int = 3) -> np.ndarray:
    rng, start_s, came = np.random.default_rng(seed), 0.0, []
    for rate, seconds in steps:
        came.append(start_s + np.sort(rng.random(rng.poisson(rate * seconds))) * seconds)
        start_s += seconds
    return np.concatenate(came)


@dataclass
class Run:
    """What a router did on the virtual clock."""

    changes: list[tuple[float, int]] = field(default_factory=list)
    gear_at: dict[str, int] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    refused: int = 0
    end_s: float = 0.0
    metrics: str = ""
    view: object = None


def served(came: np.ndarray, ledger: Path | None = None) -> Run:
    """The service's gears, driven by arrivals; members take 5 ms and answer as recorded."""
    probs = {m: _probabilities(SAMPLE, m) for m in SAMPLE.members}

    async def work() -> Run:
        loop, run = asyncio.get_running_loop(), Run()

        async def call(placement: Placement, batch: np.ndarray) -> Reply:
            await asyncio.sleep(0.005)
            return Reply(probs[placement.member][batch[:, 0].astype(int)], 0.004)

        def fresh(plan: Plan) -> InService:
            return InService(plan, None if ledger is None else str(ledger), call, "router", clock=loop.time)

        geared = Geared(WHOLE.gears, fresh, clock=loop.time, ticks=loop.time)
        now = [geared.current()]
        now[0].start()

        async def change(gear: int) -> None:
            run.changes.append((loop.time(), gear))
            hand_over(now[0], geared.of(gear), loop.time())
            now[0] = geared.of(gear)

        async def ask(number: int) -> None:
            item = f"q{number}"
            run.gear_at[item] = geared.box.current
            try:
                (answer,) = await now[0].ask({item: np.array([number % len(SAMPLE)])}, np.inf)
            except Overloaded:
                run.refused += 1
                return
            assert isinstance(answer, Answer)
            run.answers[item] = answer

        following = asyncio.ensure_future(follow_load(geared.box, change, clock=loop.time))
        asked = []
        for number, at in enumerate(came.tolist()):
            if at > loop.time():
                await asyncio.sleep(at - loop.time())
            geared.arrived(1)
            asked.append(asyncio.ensure_future(ask(number)))
        await asyncio.gather(*asked)
        run.end_s = loop.time()
        run.metrics = now[0].watch.metrics().decode()
        run.view = now[0].watch.view()
        following.cancel()
        for kept in geared.kept:
            await kept.close()
        return run

    return run_virtually(work())


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ledger")


@pytest.fixture(scope="module")
def run(ledger: Path) -> Run:
    return served(arrivals(), ledger)


def ledgers(ledger: Path) -> dict[str, LedgerFile]:
    return {g.name or "": read_ledger(ledger, g.plan.fingerprint()) for g in WHOLE.gears.gears}


def of(kind: type, found: LedgerFile) -> list[Record]:
    return [r for r in found.records if isinstance(r, kind)]


def test_service_and_simulator_change_gears_at_the_same_instants(run: Run) -> None:
    simulated = serve(GEARS.gears[0].plan, factories.profiles(), SAMPLE, arrivals(), gears=GEARS, deployed=True)
    assert [gear for _, gear in run.changes] == [1, 0]
    assert [what for _, what in simulated.told] == ["gear 1 -> 2", "gear 2 -> 1"]
    assert [at for at, _ in run.changes] == pytest.approx([at for at, _ in simulated.told])


def test_nothing_is_lost_and_every_query_is_answered_by_the_gear_in_which_it_came(run: Run, ledger: Path) -> None:
    assert len(run.answers) + run.refused == len(arrivals())
    found = ledgers(ledger)
    for gear, served_as in enumerate(WHOLE.gears.gears):
        routing = route(served_as.plan.cascade, SAMPLE)
        mine = [item for item, answer in run.answers.items() if run.gear_at[item] == gear]
        assert len(mine) > 100
        assert {a.query_id for a in of(Answer, found[served_as.name or ""])} == set(mine)  # type: ignore[attr-defined]
        rows = [int(item[1:]) % len(SAMPLE) for item in mine]
        assert [run.answers[i].answer for i in mine] == routing.answer[rows].tolist()
        assert [run.answers[i].tier for i in mine] == routing.tier[rows].tolist()


def test_node_time_is_written_exactly_once(run: Run, ledger: Path) -> None:
    for node in WHOLE.plan.nodes:
        spans = [s for f in ledgers(ledger).values() for s in of(NodeSpan, f) if s.node_type == node.node_type]
        spans.sort(key=lambda s: s.start_s)
        assert {s.count for s in spans} == {node.count}
        assert [s.end_s for s in spans[:-1]] == [s.start_s for s in spans[1:]]
        assert (spans[0].start_s, spans[-1].end_s) == pytest.approx((0.0, run.end_s), abs=1e-6)


def test_the_report_says_how_long_each_gear_served_and_bills_once(run: Run, ledger: Path) -> None:
    found = ledgers(ledger)
    assert plans_in(ledger) == {g.plan.fingerprint() for g in WHOLE.gears.gears}
    report = summarise_gears(WHOLE.gears, {name: f.records for name, f in found.items()}, table=None)
    (up_s, _), (down_s, _) = run.changes
    low, high = report.gears
    assert high.seconds == pytest.approx(down_s - up_s)
    assert low.seconds + high.seconds == pytest.approx(report.window.seconds, rel=1e-3)
    assert report.answered == len(run.answers)
    rent = sum(n.count * n.usd_per_hour for n in WHOLE.plan.nodes) * report.window.hours
    assert report.usd_allocation == pytest.approx(rent)
    assert low.usd_rented + high.usd_rented == pytest.approx(rent)
    price = {o.node_type: o.usd_per_hour / o.devices_per_node for o in WHOLE.plan.offers}
    runs = [r for f in found.values() for r in of(BatchRun, f)]
    assert report.usd_usage == pytest.approx(sum(r.busy_s * r.share * price[r.node_type] for r in runs) / 3600)
    assert "0.2" not in low.promised
    for row, gear in zip(report.gears, GEARS.gears, strict=True):
        certificate = gear.plan.cascade.certificate
        assert certificate is not None
        assert f"{100 * certificate.epsilon:g}" in row.promised
        assert row.accuracy_planned == gear.plan.stats.accuracy
    for told in (as_text(report), as_markdown(report)):
        assert "accurate" in told
        assert "fast" in told
    assert GearsReport.model_validate_json(report.model_dump_json()) == report


def test_several_routers_rent_the_same_nodes(ledger: Path) -> None:
    """A second router's ledger of the same hour adds calls and answers, and no node time."""
    found = {name: f.records for name, f in ledgers(ledger).items()}
    twice = {name: (*rows, *(r for r in rows if isinstance(r, NodeSpan))) for name, rows in found.items()}
    once, both = (summarise_gears(WHOLE.gears, rows) for rows in (found, twice))
    assert both.usd_allocation == pytest.approx(once.usd_allocation)


def test_overlapping_spans_become_the_largest_count() -> None:
    spans = [
        NodeSpan("t", 1, 1.0, 0, 10),
        NodeSpan("t", 3, 1.0, 4, 6),
        NodeSpan("t", 2, 1.0, 5, 12),
        NodeSpan("t", 1, 1.0, 20, 21),
    ]
    found = disjoint(spans)
    assert [(s.start_s, s.end_s, s.count) for s in found] == [
        (0, 4, 1),
        (4, 5, 3),
        (5, 6, 3),
        (6, 10, 2),
        (10, 12, 2),
        (20, 21, 1),
    ]
    assert disjoint(spans[:1] + spans[3:]) == (spans[0], spans[3])


def test_the_live_figures_of_a_gear_count_its_own_time(run: Run, ledger: Path) -> None:
    """Sums that were fed as the service does, with an absence, against the report of the ledgers."""
    (up_s, _), (down_s, _) = run.changes
    plan, found = WHOLE.gears.gears[0].plan, ledgers(ledger)["accurate"]
    running, left = Running(plan, 0.0), False
    for r in sorted(found.records, key=lambda r: getattr(r, "done_s", getattr(r, "end_s", None)) or r.start_s):  # type: ignore[union-attr]
        at = r.done_s if isinstance(r, Answer) else r.end_s if isinstance(r, NodeSpan) else r.start_s
        if at > up_s and not left:
            running.leave(up_s)
            running.enter(down_s)
            left = True
        running.add(r, at)
    report = report_so_far(running)
    spans = of(NodeSpan, found)
    in_service_s = sum(s.end_s - s.start_s for s in spans if s.node_type == plan.router.node_type)  # type: ignore[attr-defined]
    assert report.window.seconds == pytest.approx(in_service_s, abs=0.01)
    rent = sum(n.count * n.usd_per_hour for n in plan.nodes) * in_service_s / 3600
    assert report.cost("allocation").usd == pytest.approx(rent, rel=1e-3)
    assert sum(n.unmetered_node_hours for n in report.nodes) * 3600 < 0.05


def test_metrics_keep_the_sums_of_all_gears_and_the_gauges_of_one(run: Run) -> None:
    lines = [line for line in run.metrics.splitlines() if not line.startswith("#")]
    assert len({line.rpartition(" ")[0] for line in lines}) == len(lines)  # no sample twice
    assert run.metrics.count("# TYPE coe_requests_total counter") == 1
    value = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}
    answered = sum(v for k, v in value.items() if k.startswith("coe_requests_total{"))
    assert answered == len(run.answers)
    assert value['coe_gear{gear="accurate",router="router"}'] == 1
    assert value['coe_gear{gear="fast",router="router"}'] == 0
    assert value['coe_gear_changes_total{router="router"}'] == 2
    seconds = sum(v for k, v in value.items() if k.startswith("coe_gear_seconds_total"))
    assert seconds == pytest.approx(run.end_s)
    rented = sum(v for k, v in value.items() if k.startswith("coe_cost_usd_total") and "allocation" in k)
    rent = sum(n.count * n.usd_per_hour for n in WHOLE.plan.nodes)
    assert rented == pytest.approx(rent * run.end_s / 3600, rel=0.01)
    assert not any(k.startswith("coe_queue_length") and 'gear="fast"' in k for k in value)


def test_the_live_view_says_which_gear_it_is_in(run: Run) -> None:
    gears = run.view.gears  # type: ignore[attr-defined]
    assert gears.now == "accurate"
    assert [g.epsilon for g in gears.gears] == [0.1, 0.2]
    assert gears.gears[1].seconds == pytest.approx(run.changes[1][0] - run.changes[0][0])
    assert 10 < gears.rate_per_s < 30


def test_an_operator_holds_a_gear_by_its_name() -> None:
    geared = Geared(WHOLE.gears, lambda _: pytest.fail("not needed"), clock=lambda: 0.0, ticks=lambda: 0.0)
    geared.hold("fast")
    assert (geared.box.current, geared.box.is_held) == (1, True)
    assert geared.box.shifted(100.0) is None
    geared.release()
    assert geared.box.shifted(100.0) == 0
    with pytest.raises(InvalidInput, match="user_config: gear.*'?medium'?.*accurate, fast"):
        geared.hold("medium")


def test_the_ledger_of_a_gear_that_rests_does_not_look_old(tmp_path: Path) -> None:
    """Or `keep_days` would delete the file that it goes on in."""
    now_s = [0.0]
    ledger = Ledger(tmp_path / "rests.jsonl", "plan", 0.0)
    meter = Meter(WHOLE.gears.gears[0].plan, ledger, lambda: now_s[0])
    meter.stop_spans(0.0)
    meter.tick()
    ledger.flush()
    os.utime(tmp_path / "rests.jsonl", (1.0, 1.0))
    meter.tick()
    assert (tmp_path / "rests.jsonl").stat().st_mtime == 1.0
    now_s[0] = REST_S
    meter.tick()
    assert (tmp_path / "rests.jsonl").stat().st_mtime > 1e9
    meter.close()
