"""A query leaves a tier once outstanding votes cannot change it; calls that it no longer needs are saved or billed."""

from __future__ import annotations

import asyncio
import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.cascade.evaluate import route
from coe.records import Answer
from coe.router.queries import Unanswered
from coe.table import PredictionTable
from tests import factories
from tests.core_case import TABLE, Service


def agreed(rows: int) -> PredictionTable:
    """Rows on which the members middle and small agree."""
    answers = TABLE.outputs(("middle", "small")).answers
    return TABLE.rows((answers[:, 0] == answers[:, 1]) & (np.arange(len(TABLE)) < rows))


def test_a_query_leaves_as_soon_as_outstanding_votes_cannot_change_it() -> None:
    service = Service(factories.cascade(rule="vote", quorum=2), agreed(20), latency_s=2.0)
    service.faults["other"] = service.slow(0.5)

    async def talk() -> tuple[list[Answer | Unanswered], float]:
        began_s = time.monotonic()
        answers = await service.asked(range(4))
        took_s = time.monotonic() - began_s
        await asyncio.sleep(0.6)
        return answers, took_s

    answers, took_s = service.during(talk())
    assert took_s < 0.4
    assert all(isinstance(a, Answer) and a.tier == 0 and not a.degraded for a in answers)
    assert {r.member: r.status for r in service.runs} == {"middle": "ok", "small": "ok", "other": "ok"}


def test_a_call_that_could_not_start_in_time_is_saved_and_the_ledger_says_so() -> None:
    """Two calls of the slow member are under way; the others are decided before one of those ends."""
    table = agreed(120)
    service = Service(factories.cascade(rule="vote", quorum=2), table, batch_size=4, latency_s=2.0)
    service.faults["other"] = service.slow(0.2)

    async def talk() -> None:
        await service.asked(range(len(table)))
        await asyncio.sleep(0.5)

    service.during(talk())
    of_other = [r for r in service.runs if r.member == "other"]
    saved = sum(r.items for r in of_other if r.status == "cancelled")
    made = sum(n for m, n in service.batches if m == "other")
    assert saved > 0
    assert saved + made == len(table)
    assert all(r.busy_s == 0 for r in of_other if r.status == "cancelled")


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    quorum=st.integers(2, 3),
    batch_size=st.integers(1, 9),
    delays_ms=st.tuples(*[st.integers(0, 6)] * 4),
    dispatch=st.sampled_from(["parallel", "staged"]),
)
def test_whatever_the_members_speeds_answers_are_those_of_the_evaluation_and_every_call_is_accounted_for_once(
    quorum: int, batch_size: int, delays_ms: tuple[int, ...], dispatch: str
) -> None:
    table = TABLE.rows(np.arange(len(TABLE)) < 30)
    base = factories.cascade(rule="vote", quorum=quorum)
    first = base.tiers[0].model_copy(update={"dispatch": dispatch})
    cascade = base.model_copy(update={"tiers": (first, *base.tiers[1:])})
    service = Service(cascade, table, batch_size=batch_size, latency_s=5.0)
    service.faults = {m: service.slow(d / 1e3) for m, d in zip(cascade.members, delays_ms, strict=True)}
    answers = service.ask()
    routing = route(cascade, table)
    assert [(a.answer, a.tier, a.degraded) for a in answers if isinstance(a, Answer)] == [
        (a, t, False) for a, t in zip(routing.answer.tolist(), routing.tier.tolist(), strict=True)
    ]
    accounted = [sum(r.items for r in service.runs if r.member == m) for m in cascade.members]
    assert accounted == routing.asked.sum(axis=0).tolist()
    assert len([r for r in service.records if isinstance(r, Answer)]) == len(table)
