"""The numbers of a report: one ledger worked out by hand, and properties that hold for any."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.cascade.evaluate import accuracy_interval
from coe.errors import InvalidInput
from coe.records import Answer, BatchRun, Bench, NodeSpan, Record
from coe.report.nouns import Report, Window
from coe.report.summarise import gather, summarise
from coe.report.window import cut_span, part_of_run, uncovered_s
from tests import report_case as case


def report(**changes: Any) -> Report:
    """The hand-made case, with any argument of `summarise` changed."""
    arguments = {"plan": case.plan(), "records": case.records(), "bench": case.bench(), "table": case.table()}
    arguments.update(changes)
    return summarise(arguments.pop("plan"), arguments.pop("records"), **arguments)


def promise(result: Report, name: str) -> bool | None:
    return next(p.kept for p in result.promises if p.name == name)


# --- By hand ----------------------------------------------------------------------------------------------------------


def test_the_bill_worked_out_by_hand() -> None:
    """The window is 10 s. A t4-node second costs $0.0002, and the small members own half of it: $0.0001 per busy second.

    small   1 s (the half of a 2 s call) + 4 x 0.5 s =  3 s x 0.0001 = $0.0003   1 + 8 = 9 items
    other                                  4 x 1.0 s =  4 s x 0.0001 = $0.0004          10 items
    large   3 s + 1 s (the half of a 2 s call)       =  4 s x 0.0010 = $0.0040   2 + 1 = 3 items
                                                          usage      = $0.0047
    t4-node    10 s x 0.0002 = $0.002, idle 0.002 - 0.0007 = $0.0013
    a100-node  10 s x 0.0010 = $0.010, idle 0.010 - 0.0040 = $0.0060
    cpu-node   10 s x 0.0001 = $0.001, the router's
                                     allocation, the bill  = $0.0130
    """
    result = report()
    usd = {line.name: line.usd for line in (*result.usage_lines, *result.other_lines)}
    assert usd == pytest.approx(
        {
            "tier 1: small on t4-node": 0.0003,
            "tier 1: other on t4-node": 0.0004,
            "tier 2: large on a100-node": 0.0040,
            "idle: t4-node": 0.0013,
            "idle: a100-node": 0.0060,
            "router: cpu-node": 0.0010,
        }
    )
    assert result.cost("usage").usd == pytest.approx(0.0047)
    assert result.cost("allocation").usd == pytest.approx(0.0130)
    small, other, large = result.calls
    assert (small.calls, small.items, small.busy_s) == pytest.approx((4.5, 9, 3))
    assert (other.calls, other.items, other.busy_s) == pytest.approx((4, 10, 4))
    assert (large.calls, large.items, large.busy_s) == pytest.approx((1.5, 3, 4))
    assert (other.late, other.usd_wasted) == pytest.approx((1, 0.0001))


def test_dollars_per_query_worked_out_by_hand() -> None:
    """Ten answers, eight of them right: 4.7 mills are $0.47 per 1,000 and $0.5875 per 1,000 correct.

    large alone is planned at 0.8 busy seconds per query, $0.80 per 1,000; and at two a100-nodes with a router, 7.56 $/h,
    of which ten seconds are $0.021, or $2.10 per 1,000. It is right on nine of the ten: $0.8889 and $2.3333 per 1,000
    correct. So the cascade saved 1 - 0.47/0.80 = 41.25% on usage, and 1 - 1.30/2.10 = 38.1% on allocation.
    """
    result = report()
    usage, allocation = result.costs
    assert (usage.usd_per_1k, usage.usd_per_1k_correct) == pytest.approx((0.47, 0.5875))
    assert (allocation.usd_per_1k, allocation.usd_per_1k_correct) == pytest.approx((1.30, 1.625))
    assert allocation.usd_per_hour == pytest.approx(0.013 * 360)
    assert result.against is not None
    on_usage, on_allocation = result.against.savings
    assert on_usage.baseline_usd_per_1k == pytest.approx(0.80)
    assert on_allocation.baseline_usd_per_1k == pytest.approx(2.10)
    assert (on_usage.saved, on_allocation.saved) == pytest.approx((0.4125, 1 - 1.30 / 2.10))
    assert (on_usage.saved_correct, on_allocation.saved_correct) == pytest.approx(
        (1 - 0.5875 / (0.8 / 0.9), 1 - 1.625 / (2.1 / 0.9))
    )
    # planned: 0.4 x 0.0001 + 0.5 x 0.0001 + 0.25 x 0.8 x 0.001 = $0.00029 per query
    assert [c.usd_per_1k_predicted for c in result.calls] == pytest.approx([0.04, 0.05, 0.20])
    assert usage.usd_per_1k_predicted == pytest.approx(0.29)
    assert on_usage.saved_planned == pytest.approx(1 - 0.29 / 0.80)


def test_calls_that_early_decisions_saved_cost_nothing_and_are_counted_apart() -> None:
    before = summarise(case.plan(), case.records(), bench=case.bench())
    saved = BatchRun(0, "other", "t4-node", 0.5, 3, case.START_S + 1, 0.0, "cancelled")
    after = summarise(case.plan(), [*case.records(), saved], bench=case.bench())
    one, other = (next(r for r in found.calls if r.member == "other") for found in (before, after))
    assert other.saved_items == 3
    assert other.model_copy(update={"saved_items": 0}) == one
    assert after.costs == before.costs
    assert any(note.startswith("Early decisions saved 3 questions to members, about $") for note in after.notes)


def test_queries_worked_out_by_hand() -> None:
    """Tier 1 answers seven of ten, six rightly; tier 2 three, two rightly. large alone is right on nine."""
    result = report()
    first, second = result.tiers
    assert (first.reach, first.accepted, first.escalated, first.accuracy) == pytest.approx((1, 0.7, 0.3, 6 / 7))
    assert (second.reach, second.accepted, second.escalated, second.accuracy) == pytest.approx((0.3, 0.3, 0, 2 / 3))
    assert {row.role: row.accuracy for row in result.accuracy} == {
        "cascade": 0.8,
        "best single model": 0.9,
        "reference": 0.9,
    }
    assert (result.accuracy[0].low, result.accuracy[0].high) == accuracy_interval(8, 10)
    assert result.loss is not None
    assert (result.loss.losses, result.loss.rate) == (1, 0.1)  # item 9
    assert result.latency is not None
    assert (result.latency.p50_s, result.latency.observed_s) == pytest.approx((0.3, 0.45), abs=1e-6)


def test_promises_are_judged_each_on_its_own() -> None:
    result = report()
    assert promise(result, "latency") is True  # 0.45 s of 0.5 s
    assert promise(result, "accuracy") is False  # 10 points below large, 5 are allowed
    assert promise(result, "certificate") is True  # 1 of 10 does not contradict 5%: its interval starts at 0.3%
    assert promise(result, "answers") is True
    assert promise(result, "ledger") is True
    assert len(result.missed) == 1
    assert "10.00 points below" in result.missed[0]
    assert result.loss is not None
    assert result.loss.verdict == "not contradicted"


def test_a_claim_is_contradicted_where_its_whole_interval_lies_above() -> None:
    table, bench = case.table(), case.bench()
    wrong = tuple(a.model_copy(update={"answer": (a.label + 1) % 3}) for a in bench.answers)
    result = report(bench=bench.model_copy(update={"answers": wrong}), table=table)
    assert result.loss is not None
    assert result.loss.verdict == "contradicted"
    assert promise(result, "certificate") is False


def test_live_answers_are_compared_with_the_offline_cascade() -> None:
    assert (agree := report().mismatch) is not None
    assert (agree.compared, agree.answers, agree.tiers) == (10, 0, 0)
    answers = list(case.bench().answers)
    answers[3] = answers[3].model_copy(update={"answer": 1})
    answers[4] = answers[4].model_copy(update={"tier": 1})
    answers[5] = answers[5].model_copy(update={"answer": 0, "degraded": True})  # a vote was missing: may differ
    changed = report(bench=case.bench().model_copy(update={"answers": tuple(answers)})).mismatch
    assert changed is not None
    assert (changed.compared, changed.answers, changed.tiers) == (9, 1, 1)
    assert changed.examples == ("item-03", "item-04")


# --- The verdict ------------------------------------------------------------------------------------------------------


def test_the_verdict_says_saved_on_each_basis() -> None:
    usage, allocation = report().verdict
    assert usage.startswith("On usage the cascade SAVED 41.2%: $0.470 against $0.800")
    assert allocation.startswith("On allocation the cascade SAVED 38.1%: $1.30 against $2.10")


def test_the_verdict_says_plainly_that_a_cascade_cost_more() -> None:
    plan = case.plan()
    assert plan.baseline is not None
    cheap = plan.baseline.model_copy(update={"cost": plan.baseline.cost.of(0.36, 3.6, 1.0, 0.95)})
    result = report(plan=plan.model_copy(update={"baseline": cheap}))
    # 0.36 $/h at one query per second are $0.10 per 1,000, and 3.60 $/h are $1.00
    assert result.verdict[0].startswith("On usage the cascade did NOT save, it cost 370.0% MORE: $0.470 against $0.100")
    assert result.verdict[1].startswith("On allocation the cascade did NOT save, it cost 30.0% MORE: $1.30 against")


def test_the_verdict_without_a_single_model_that_keeps_the_promises() -> None:
    result = report(plan=case.plan(baseline=False))
    assert result.against is None
    assert "No single model keeps these promises" in result.verdict[0]


# --- The window -------------------------------------------------------------------------------------------------------


def test_without_a_client_the_window_is_the_extent_of_the_ledger() -> None:
    result = report(bench=None)
    assert (result.window.start_s, result.window.end_s) == (case.START_S - 9, case.START_S + 15)
    assert result.served.answered == 11
    assert result.latency is not None
    assert (result.latency.source, result.latency.requests) == ("router", 11)
    assert result.accuracy[0].items == 10  # the labels of the table; 'earlier' has none


def test_without_client_and_predictions_nothing_is_said_about_accuracy() -> None:
    result = report(bench=None, table=None)
    assert result.accuracy == ()
    assert (promise(result, "accuracy"), promise(result, "certificate")) == (None, None)
    assert result.cost("usage").usd_per_1k_correct is None
    assert result.missed == ()


def test_an_empty_ledger_is_refused() -> None:
    with pytest.raises(InvalidInput, match="has no records"):
        report(records=(), bench=None)


def test_node_time_that_the_ledger_lacks_is_billed_as_planned() -> None:
    """Spans of the a100-node end 4 s before the window does: its bill stays the same and a note says so."""
    cut = tuple(
        replace(r, end_s=case.END_S - 4) if isinstance(r, NodeSpan) and r.node_type == "a100-node" else r
        for r in case.records()
    )
    result = report(records=cut)
    assert result.cost("allocation").usd == pytest.approx(0.013)
    node = next(n for n in result.nodes if n.node_type == "a100-node")
    assert node.unmetered_node_hours == pytest.approx(4 / 3600)
    assert any("40.0% of the time of a100-node is not in the ledger" in note for note in result.notes)


def test_more_nodes_than_planned_are_billed_and_noted() -> None:
    more = tuple(
        replace(r, count=2) if isinstance(r, NodeSpan) and r.node_type == "t4-node" else r for r in case.records()
    )
    result = report(records=more)
    assert result.cost("allocation").usd == pytest.approx(0.015)
    assert any("2 nodes of t4-node were rented and 1 planned" in note for note in result.notes)


def test_the_ledgers_price_is_billed_and_a_change_is_noted() -> None:
    """Twice the price doubles usage, idle and bill of that node type alike."""
    dearer = tuple(
        replace(r, usd_per_hour=7.2) if isinstance(r, NodeSpan) and r.node_type == "a100-node" else r
        for r in case.records()
    )
    result = report(records=dearer)
    usd = {line.name: line.usd for line in (*result.usage_lines, *result.other_lines)}
    assert usd["tier 2: large on a100-node"] == pytest.approx(0.008)
    assert usd["idle: a100-node"] == pytest.approx(0.012)
    assert any("a100-node was billed at $7.20 per hour and planned at $3.60" in note for note in result.notes)


def test_busier_than_rented_is_shown_and_noted() -> None:
    extra = BatchRun(1, "large", "a100-node", 1.0, 8, case.START_S, 9.0)
    result = report(records=(*case.records(), extra))
    idle = next(line for line in result.other_lines if line.name == "idle: a100-node")
    assert idle.usd == pytest.approx(0.010 - 0.013)
    assert any("busy for longer than it was rented" in note for note in result.notes)


@pytest.mark.parametrize(
    ("start_s", "busy_s", "part"),
    [
        pytest.param(2, 3, 1.0, id="inside"),
        pytest.param(-2, 4, 0.5, id="over-the-start"),
        pytest.param(9, 4, 0.25, id="over-the-end"),
        pytest.param(-5, 20, 0.5, id="over-both-ends"),
        pytest.param(4, 0, 1.0, id="without-length"),
        pytest.param(-3, 3, 0.0, id="ends-where-it-starts"),
        pytest.param(11, 1, 0.0, id="after"),
    ],
)
def test_a_call_counts_for_its_part_inside_the_window(start_s: float, busy_s: float, part: float) -> None:
    assert part_of_run(BatchRun(0, "small", "t4-node", 0.5, 4, start_s, busy_s), 0, 10) == pytest.approx(part)


def test_spans_are_cut_and_gaps_are_found() -> None:
    window = Window(start_s=0, end_s=10, source="bench")
    spans = [NodeSpan("t4-node", 1, 1.0, -3, 2), NodeSpan("t4-node", 1, 1.0, 4, 7), NodeSpan("t4-node", 2, 1.0, 6, 30)]
    inside = [cut for s in (*spans, NodeSpan("t4-node", 1, 1.0, 11, 12)) if (cut := cut_span(s, 0, 10)) is not None]
    assert [(s.start_s, s.end_s) for s in inside] == [(0, 2), (4, 7), (6, 10)]
    assert uncovered_s(inside, window) == pytest.approx(2)
    assert uncovered_s([], window) == pytest.approx(10)


# --- What went wrong --------------------------------------------------------------------------------------------------


def test_failed_requests_are_wrong_and_never_answered() -> None:
    answers = list(case.bench().answers)
    answers[0] = answers[0].model_copy(update={"http_status": 503, "answer": -1, "tier": -1})
    result = report(bench=case.bench().model_copy(update={"answers": tuple(answers)}))
    assert (result.served.failed, result.served.answered) == (1, 9)
    assert result.accuracy[0].accuracy == pytest.approx(0.7)
    assert result.latency is not None
    assert result.latency.observed_s is None  # 99% were not answered at all
    assert (promise(result, "latency"), promise(result, "answers")) == (False, False)
    # per correct answer: 0.0047 / 7 correct of 9 answered
    assert result.cost("usage").usd_per_1k == pytest.approx(1000 * 0.0047 / 9)
    assert result.cost("usage").usd_per_1k_correct == pytest.approx(1000 * 0.0047 / 7)


def test_answers_that_the_ledger_lacks_are_counted() -> None:
    lost = tuple(r for r in case.records() if not (isinstance(r, Answer) and r.query_id == "item-04"))
    result = report(records=lost)
    assert result.served.unaccounted == 1
    assert promise(result, "ledger") is False
    assert report(unaccounted=3).served.unaccounted == 3


def test_answers_to_other_clients_share_the_bill() -> None:
    stranger = Answer("somebody-elses", case.START_S + 1, case.START_S + 2, 0, 1, 2.0, False)
    result = report(records=(*case.records(), stranger))
    assert result.served.other == 1
    assert result.cost("usage").usd_per_1k == pytest.approx(1000 * 0.0047 / 11)


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(BatchRun(0, "stranger", "t4-node", 1.0, 1, case.START_S, 1.0), id="unknown-member"),
        pytest.param(BatchRun(1, "small", "t4-node", 1.0, 1, case.START_S, 1.0), id="member-of-another-tier"),
        pytest.param(BatchRun(0, "small", "h100-node", 1.0, 1, case.START_S, 1.0), id="call-on-unknown-node-type"),
        pytest.param(NodeSpan("h100-node", 1, 9.9, case.START_S, case.END_S), id="unknown-node-type"),
    ],
)
def test_records_of_another_plan_are_refused(record: Record) -> None:
    with pytest.raises(InvalidInput, match="give the plan that the service ran"):
        report(records=(*case.records(), record))


def test_labels_of_client_and_predictions_must_agree() -> None:
    answers = list(case.bench().answers)
    answers[2] = answers[2].model_copy(update={"label": 0})
    with pytest.raises(InvalidInput, match="'item-02' is 0 for the client and 2 in the predictions"):
        report(bench=case.bench().model_copy(update={"answers": tuple(answers)}))


# --- For any ledger ---------------------------------------------------------------------------------------------------

seconds = st.floats(-20, 40)
spans = st.builds(
    lambda node, count, usd, start, length: NodeSpan(
        node, count, usd, case.START_S + start, case.START_S + start + length
    ),
    st.sampled_from(tuple(case.PRICES)),
    st.integers(0, 4),
    st.floats(0, 50),
    seconds,
    st.floats(0, 30),
)
runs = st.builds(
    lambda member, node, share, items, start, busy, status: BatchRun(
        case.MEMBERS.index(member) // 2, member, node, share, items, case.START_S + start, busy, status
    ),
    st.sampled_from(case.MEMBERS),
    st.sampled_from(tuple(case.PRICES)),
    st.sampled_from((0.125, 0.25, 0.5, 1.0)),
    st.integers(1, 8),
    seconds,
    st.floats(0, 20),
    st.sampled_from(("ok", "late", "failed", "cancelled")),
)


@settings(max_examples=60)
@given(st.lists(st.one_of(spans, runs), max_size=12), st.booleans())
def test_the_lines_add_up_to_the_bill(records: list[Record], with_client: bool) -> None:
    """Usage lines are the busy dollars, all lines are the rented dollars, and each is quantity x unit price."""
    bench: Bench | None = case.bench() if with_client else None
    result = report(records=(*records, *case.records()[-10:]), bench=bench, table=None)
    lines = (*result.usage_lines, *result.other_lines)
    rented = sum(n.node_hours * n.usd_per_hour for n in result.nodes)
    assert sum(line.usd for line in lines) == pytest.approx(rented, rel=1e-9, abs=1e-12)
    assert result.cost("allocation").usd == pytest.approx(rented, rel=1e-9, abs=1e-12)
    assert sum(line.usd for line in result.usage_lines) == pytest.approx(sum(c.usd for c in result.calls), abs=1e-12)
    for line in lines:
        assert line.quantity * line.unit_price_usd == pytest.approx(line.usd, rel=1e-9, abs=1e-10)
    for node in result.nodes:
        assert node.usd == pytest.approx(node.usd_busy + node.usd_router + node.usd_idle, abs=1e-12)


@settings(max_examples=40)
@given(st.lists(st.one_of(spans, runs), max_size=12), st.floats(0.05, 0.95))
def test_two_halves_of_a_window_cost_what_the_whole_does(records: list[Record], at: float) -> None:
    """Clipping neither loses nor doubles a second."""
    cut = case.START_S + 10 * at
    whole, first, second = (
        gather(case.plan(), records, case.bench().model_copy(update={"started_s": a, "ended_s": b}))
        for a, b in ((case.START_S, case.END_S), (case.START_S, cut), (cut, case.END_S))
    )
    for busy in (
        lambda g: sum(calls.busy_s for calls in g.made.values()),
        lambda g: sum((s.end_s - s.start_s) * s.count for s in g.spans),
    ):
        assert busy(first) + busy(second) == pytest.approx(busy(whole), abs=1e-5)


@settings(max_examples=40)
@given(st.lists(st.floats(0.001, 2), min_size=1, max_size=60), st.floats(0.5, 0.999))
def test_the_promised_quantile_is_the_smallest_time_that_enough_requests_met(times: list[float], q: float) -> None:
    first = case.bench().answers[0]
    answers = tuple(first.model_copy(update={"done_s": first.due_s + t}) for t in times)
    plan = case.plan()
    plan = plan.model_copy(update={"workload": plan.workload.model_copy(update={"latency_quantile": q})})
    bench = case.bench().model_copy(update={"answers": answers})
    latency = summarise(plan, case.records(), bench=bench).latency
    assert latency is not None
    took = np.array([a.latency_s for a in answers])
    assert latency.observed_s is not None
    assert (took <= latency.observed_s).mean() >= q - 1e-9
    assert (took < latency.observed_s).mean() < q
