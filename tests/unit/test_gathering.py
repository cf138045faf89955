"""A report that keeps no record says what one says that has them all."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.errors import InvalidInput
from coe.records import Answer, Audit, Auditing, BatchRun, NodeSpan, Record
from coe.report import queries
from coe.report.audit_times import AuditTimes
from coe.report.audits import audited
from coe.report.summarise import gather, summarise
from tests import report_case as case
from tests.whole_ledger import whole

PLAN = case.plan()
seconds = st.floats(-15, 25)
short = st.floats(0, 2)
items = st.sampled_from((*case.ITEMS, "earlier", "stranger"))
spans = st.builds(
    lambda node, count, start, length: NodeSpan(
        node, count, case.PRICES[node], case.START_S + start, case.START_S + start + length
    ),
    st.sampled_from(tuple(case.PRICES)),
    st.integers(0, 4),
    seconds,
    st.floats(0, 20),
)
runs = st.builds(
    lambda member, node, share, items, start, busy, status, fee, audit: BatchRun(
        case.MEMBERS.index(member) // 2, member, node, share, items, case.START_S + start, busy, status, fee, audit
    ),
    st.sampled_from(case.MEMBERS),
    st.sampled_from(tuple(case.PRICES)),
    st.sampled_from((0.25, 1.0)),
    st.integers(1, 8),
    seconds,
    st.one_of(st.just(0.0), short),
    st.sampled_from(("ok", "late", "failed", "cancelled")),
    st.sampled_from((0.0, 0.01)),
    st.booleans(),
)
answers = st.builds(
    lambda item, start, took, tier, answer, degraded, status: (
        Answer(item, case.START_S + start, case.START_S + start + took, tier, answer, 1.0, degraded, status)
        if answer >= 0
        else Answer(item, case.START_S + start, case.START_S + start + took, -1, -1, 0.0, True, "failed")
    ),
    items,
    seconds,
    short,
    st.integers(0, 1),
    st.integers(-1, 2),
    st.booleans(),
    st.sampled_from(("ok", "fallback")),
)
audits = st.builds(
    lambda item, start, took, outcome: Audit(item, 0, 0, 1, case.START_S + start, case.START_S + start + took, outcome),
    items,
    seconds,
    short,
    st.sampled_from(("same", "differs", "failed", "unpaid")),
)
auditings = st.builds(
    lambda at, alarm, strictness: Auditing(case.START_S + at, 0.1, 1.0, 0.05, alarm, strictness),
    seconds,
    st.sampled_from((0.01, 0.05)),
    st.integers(0, 1),
)
ledgers = st.lists(st.one_of(spans, runs, answers, answers, audits, auditings), min_size=1, max_size=40)


def same(one: Any, other: Any) -> bool:
    """Equal, numbers but for their last digits."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return one == pytest.approx(other, rel=1e-9, abs=1e-12, nan_ok=True)
    return bool(one == other)


@settings(max_examples=80, deadline=None)
@given(ledgers, st.booleans(), st.booleans(), st.sampled_from((3, 1_000_000)))
def test_one_pass_says_what_all_records_at_once_say(
    records: list[Record], with_client: bool, with_table: bool, block: int
) -> None:
    bench, table = case.bench() if with_client else None, case.table() if with_table else None
    expected = whole(PLAN, records, bench=bench, table=table)
    before, queries.BLOCK = queries.BLOCK, block
    try:
        found = summarise(PLAN, iter(records), bench=bench, table=table)
    finally:
        queries.BLOCK = before
    assert same(found.model_dump(), expected.model_dump())


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(answers, audits, auditings), max_size=60))
def test_audits_are_counted_in_the_order_of_time_however_they_come(records: list[Any]) -> None:
    times = AuditTimes(PLAN.cascade)
    for record in records:
        times.add(record)
    expected = audited(PLAN.cascade, records, 0.5)
    assert times.figures(0.5) == expected
    assert times.figures(0.5) == expected, "asking twice changes nothing"


def test_quantiles_are_exact_and_failures_count_as_never() -> None:
    rng = np.random.default_rng(0)
    took = rng.lognormal(-3, 1, 997)
    records: list[Record] = [
        Answer(f"q{i}", case.START_S, case.START_S + t, 0, 0, 1.0, False) for i, t in enumerate(took.tolist())
    ]
    records += [Answer("lost", case.START_S, case.START_S + 1, -1, -1, 0.0, True, "failed")] * 3
    latency = summarise(PLAN, records).latency
    assert latency is not None
    every = np.sort([*(r.done_s - r.arrival_s for r in records[:997] if isinstance(r, Answer)), np.inf, np.inf, np.inf])
    assert (latency.p50_s, latency.p99_s) == (every[499], every[989])
    assert latency.max_s is None


def test_no_record_is_kept() -> None:
    def alive() -> int:
        gc.collect()
        return sum(type(o) in (Answer, BatchRun) for o in gc.get_objects())  # asks nothing of the objects themselves

    before = alive()

    def passing() -> Any:
        for i in range(3000):
            yield Answer(f"query {i}", case.START_S, case.START_S + 0.1, 0, 0, 1.0, False)
            yield BatchRun(0, "small", "t4-node", 0.5, 4, case.START_S + i / 1000, 0.001)
            if i % 500 == 499:
                assert alive() - before < 100

    gathered = gather(PLAN, passing(), table=case.table())
    assert sum(calls.calls for calls in gathered.made.values()) == 3000


def test_an_answer_of_a_class_that_the_plan_does_not_have_is_refused() -> None:
    with pytest.raises(InvalidInput, match="the plan has no such class, got class 7"):
        summarise(PLAN, [Answer("a", case.START_S, case.START_S + 1, 0, 7, 1.0, False)])
