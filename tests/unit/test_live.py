"""Running sums against the report of the same records, sketches against sorted values, and what a view says."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.errors import InvalidInput
from coe.records import Answer, BatchRun, NodeSpan, Record
from coe.report.live import live_view, report_so_far
from coe.report.running import HOUR_S, MINUTE_S, Running
from coe.report.sketch import ACCURACY, Sketch
from coe.report.summarise import summarise
from coe.types import MISSING_VOTE, Plan, RouterPlacement
from tests import report_case as case


def end_s(record: Record) -> float:
    """When a router writes it."""
    if isinstance(record, NodeSpan):
        return record.end_s
    return record.start_s + record.busy_s if isinstance(record, BatchRun) else record.done_s


def counted(records: Sequence[Record], start_s: float, plan: Plan | None = None) -> Running:
    """The records, each at its end."""
    running = Running(plan or case.plan(), start_s)
    for record in sorted(records, key=end_s):
        running.add(record, end_s(record))
    return running


def drawn(rng: np.random.Generator, seconds: float = 200.0) -> list[Record]:
    """A ledger as a router writes it: spans one after the other, calls of every status, answers of every kind."""
    t0 = case.EPOCH_S
    edges = [0.0, *np.sort(rng.uniform(0, seconds, 12)), seconds]
    records: list[Record] = [
        NodeSpan(node, 1 + int(rng.integers(2)), usd, t0 + a, t0 + b)
        for a, b in itertools.pairwise(edges)
        for node, usd in case.PRICES.items()
    ]
    where = {"small": (0, "t4-node", 0.5), "other": (0, "t4-node", 0.5), "large": (1, "a100-node", 1.0)}
    for member in rng.choice(list(where), 300):
        tier, node, share = where[member]
        status = str(rng.choice(["ok", "ok", "ok", "late", "failed", "cancelled"]))
        busy_s = 0.0 if status == "cancelled" and rng.random() < 0.5 else float(rng.uniform(0.01, 0.5))
        start_s = t0 + float(rng.uniform(0, seconds - 1))
        records.append(BatchRun(tier, member, node, share, int(rng.integers(1, 9)), start_s, busy_s, status, 0.001))
    for n in range(500):
        arrival_s = t0 + float(rng.uniform(0, seconds - 10))
        done_s = arrival_s + float(rng.lognormal(-2, 1))
        kind = rng.random()
        if kind < 0.004:
            records.append(Answer(f"q{n}", arrival_s, done_s, -1, MISSING_VOTE, 0.0, True, "failed"))
        else:
            tier = int(rng.random() < 0.3)
            records.append(
                Answer(f"q{n}", arrival_s, done_s, tier, 0, 1.0, kind < 0.1, "fallback" if kind < 0.05 else "ok")
            )
    return records


def test_the_report_so_far_is_the_report_of_the_same_records() -> None:
    records = drawn(np.random.default_rng(7))
    sums = report_so_far(counted(records, case.EPOCH_S)).model_dump()
    whole = summarise(case.plan(), records).model_dump()
    exact = ("window", "verdict", "served", "costs", "against", "usage_lines", "other_lines", "tiers", "calls", "nodes")
    for part in exact:
        assert_close(sums[part], whole[part], part)
    assert_close(sums["comparisons"], whole["comparisons"], "comparisons")
    rest = {note for note in whole["notes"] if "latency was" not in note}  # which quotes a quantile
    assert rest < set(sums["notes"])
    latency, exactly = sums["latency"], whole["latency"]
    for name in ("p50_s", "p95_s", "p99_s"):
        assert latency[name] == pytest.approx(exactly[name], rel=ACCURACY), name
    assert latency["in_time"] == exactly["in_time"]
    kept = [p["kept"] for p in sums["promises"]]
    assert kept == [p["kept"] for p in whole["promises"]]


def assert_close(a: object, b: object, where: str) -> None:
    """Equal, but for the last digits of numbers."""
    if isinstance(a, dict) and isinstance(b, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_close(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, tuple | list) and isinstance(b, tuple | list):
        assert len(a) == len(b), where
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_close(x, y, f"{where}[{number}]")
    elif isinstance(a, float) and isinstance(b, float):
        assert a == pytest.approx(b, rel=1e-9, abs=1e-9), where
    else:
        assert a == b, where


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([0.5, 0.9, 0.99]))
def test_the_promise_is_judged_exactly_though_quantiles_are_not(seed: int, quantile: float) -> None:
    rng = np.random.default_rng(seed)
    plan = case.plan()
    work = plan.workload.model_copy(update={"latency_quantile": quantile, "latency_s": 0.5})
    plan = plan.model_copy(update={"workload": work})
    took = np.round(rng.normal(0.5, 0.004, 200), 4).clip(0.4)
    t0 = case.EPOCH_S
    answers: list[Record] = [Answer(str(i), t0, t0 + float(s), 0, 0, 1.0, False) for i, s in enumerate(took)]
    mine, whole = report_so_far(counted(answers, t0, plan)), summarise(plan, answers)
    assert mine.promises[0].kept == whole.promises[0].kept


@settings(max_examples=50)
@given(st.lists(st.floats(1e-4, 1e3), min_size=1, max_size=300), st.floats(0.01, 1.0), st.integers(0, 5))
def test_a_quantile_is_within_the_stated_share(values: list[float], share: float, lost: int) -> None:
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    rank = max(1, math.ceil(share * (len(values) + lost) - 1e-9))
    found = sketch.quantile(share, len(values) + lost)
    if rank > len(values):
        assert found is None
    else:
        assert found == pytest.approx(sorted(values)[rank - 1], rel=1.0001 * ACCURACY)


def test_sketches_add_up() -> None:
    rng = np.random.default_rng(1)
    parts, whole = [Sketch() for _ in range(3)], Sketch()
    for n, value in enumerate(rng.lognormal(0, 2, 999)):
        parts[n % 3].add(float(value))
        whole.add(float(value))
    parts[0].merge(parts[1])
    parts[0].merge(parts[2])
    assert list(parts[0].cumulated()) == list(whole.cumulated())


def test_memory_does_not_grow_with_the_records() -> None:
    """Two hours at 2 queries per second, then two hours more: windows and sums are as large as before."""
    rng = np.random.default_rng(2)
    running = Running(case.plan(), case.EPOCH_S)
    sizes = []
    for hour in range(4):
        for second in np.arange(0, 3600, 0.5):
            now_s = case.EPOCH_S + 3600 * hour + float(second)
            running.add(Answer("q", now_s - float(rng.lognormal(-2, 1)), now_s, 0, 0, 1.0, False), now_s)
            running.add(BatchRun(0, "small", "t4-node", 0.5, 2, now_s - 0.2, 0.1), now_s)
        sizes.append(len(pickle.dumps(running)))
    assert sizes[3] < 1.1 * sizes[1]
    assert sizes[3] < 300_000


@pytest.mark.parametrize("window_s", [MINUTE_S, HOUR_S])
def test_a_window_holds_what_came_since_it_began(window_s: float) -> None:
    rng = np.random.default_rng(3)
    running = Running(case.plan(), case.EPOCH_S)
    done = np.sort(rng.uniform(0, 2.5 * window_s, 2000)) + case.EPOCH_S
    for number, now_s in enumerate(done.tolist()):
        running.add(Answer("q", now_s - 0.1, now_s, 0, 0, 1.0, False), now_s)
        if number % 50 == 0:
            since_s, tally = running.window(window_s, now_s)
            assert tally.answers == (done[: number + 1] >= since_s).sum()
            assert since_s == case.EPOCH_S or 0.9 * window_s <= now_s - since_s <= window_s


def test_a_window_after_a_pause_is_empty_and_the_whole_is_not() -> None:
    running = Running(case.plan(), case.EPOCH_S)
    running.add(Answer("q", case.EPOCH_S, case.EPOCH_S + 1, 1, 0, 1.0, False), case.EPOCH_S + 1)
    later_s = case.EPOCH_S + 10_000
    view = live_view(running, later_s)
    assert [view.window(w).answers for w in ("minute", "hour", "all")] == [0, 0, 1]
    assert 55 <= view.window("minute").seconds <= 60
    assert view.window("minute").costs[1].usd_per_1k is None


def test_a_view_worked_out_by_hand() -> None:
    """Eleven answers, three of tier 2; 24 seconds of 1.3 mills each, those without a span at the planned price.

    usage: small 2 + 4 x 0.5 s and other 4 s at 0.1 mills, large 3 + 2 + 3 s at 1 mill
    """
    running = counted(case.records(), case.START_S - 9)
    now_s = case.START_S + 15
    view = live_view(running, now_s)
    everything = view.window("all")
    first, last = everything.tiers
    assert (first.arrivals, first.answers, first.escalations) == (11, 8, 3)
    assert first.agreement == pytest.approx(8 / 11)
    assert first.agreement_planned == pytest.approx(0.75)
    assert (last.arrivals, last.agreement) == (3, 1.0)
    assert first.p50_s == pytest.approx(0.25, rel=ACCURACY)
    usage, allocation = everything.costs
    assert usage.usd == pytest.approx(0.0001 * (4.0 + 4.0) + 0.001 * 8)
    assert allocation.usd == pytest.approx(24 * 0.0013)
    assert allocation.usd_per_1k == pytest.approx(24 * 1.3 / 11)
    # the single model: 0.8 mills per query on usage, 2.1 mills per second on allocation
    assert usage.saved == pytest.approx(1 - 0.0088 / (11 * 0.0008))
    assert allocation.saved == pytest.approx(1 - 1.3 / 2.1)
    assert allocation.saved_usd == pytest.approx(24 * 0.0008)
    assert view.in_time == 1.0


def test_several_routers_share_what_is_rented_and_one_cannot_report() -> None:
    plan = case.plan().model_copy(update={"router": RouterPlacement(node_type="cpu-node", replicas=2)})
    alone, half = counted(case.records(), case.START_S - 9), counted(case.records(), case.START_S - 9, plan)
    now_s = case.START_S + 15
    for one, other in zip(live_view(alone, now_s).windows, live_view(half, now_s).windows, strict=True):
        assert other.costs[1].usd == pytest.approx(one.costs[1].usd / 2)
        assert other.costs[0].usd == pytest.approx(one.costs[0].usd)
        assert other.costs[1].usd_per_hour_planned == pytest.approx(one.costs[1].usd_per_hour_planned / 2)
    with pytest.raises(InvalidInput, match="all 2 routers"):
        report_so_far(half)


def test_nothing_yet() -> None:
    running = Running(case.plan(), case.EPOCH_S)
    view = live_view(running, case.EPOCH_S)
    assert view.in_time is None
    assert [w.rate_per_s for w in view.windows] == [0, 0, 0]
    assert not view.alarms
    with pytest.raises(InvalidInput, match="nothing has happened"):
        report_so_far(running)


@pytest.mark.parametrize(
    "stranger",
    [
        BatchRun(0, "large", "a100-node", 1.0, 1, 0.0, 1.0),
        BatchRun(0, "small", "h100-node", 1.0, 1, 0.0, 1.0),
        NodeSpan("h100-node", 1, 1.0, 0.0, 1.0),
        Answer("q", 0.0, 1.0, 2, 0, 1.0, False),
    ],
    ids=["tier", "node type of a call", "node type", "answer's tier"],
)
def test_records_of_another_plan_are_refused(stranger: Record) -> None:
    with pytest.raises(InvalidInput, match="must be of the plan"):
        Running(case.plan(), 0.0).add(stranger, 1.0)


def test_alarms_say_what_is_wrong() -> None:
    t0 = case.EPOCH_S
    slow: list[Record] = [Answer(str(n), t0, t0 + 1.5, 0, 0, 1.0, False) for n in range(200)]
    failed: list[Record] = [Answer("lost", t0, t0 + 1, -1, MISSING_VOTE, 0.0, True, "failed")]
    calls: list[Record] = [BatchRun(1, "large", "a100-node", 1.0, 1, t0, 0.5, "failed")]
    alarms = "\n".join(live_view(counted(slow + failed + calls, t0), t0 + 2).alarms)
    assert "1 of 201 queries of the last hour got no answer" in alarms
    assert "promised are 500 ms" in alarms
    assert "100 answers per second in the last minute, and 1 planned" in alarms
    assert "1 of 1 calls of large on a100-node failed or were late" in alarms
    quiet: list[Record] = [Answer(str(n), t0 + n, t0 + n + 0.1, 0, 0, 1.0, False) for n in range(100)]
    assert not live_view(counted(quiet, t0), t0 + 100).alarms
