"""Members that fail, are late or say nonsense are missing votes: billed, made good where they can be, and never a lost query."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from coe.cascade.evaluate import route
from coe.records import Answer
from coe.router.queries import Reply, Unanswered
from coe.types import Placement
from tests import factories
from tests.core_case import CASCADE, TABLE, Member, Service, fails, hangs


async def _wrong_shape(_where: Placement, batch: np.ndarray) -> Reply:
    return Reply(np.full((len(batch), 3), 1 / 3, dtype=np.float32), 0.001)


async def _nan(_where: Placement, batch: np.ndarray) -> Reply:
    return Reply(np.full((len(batch), 5), np.nan, dtype=np.float32), 0.001)


FAULTS: list[tuple[Member, str]] = [(fails, "failed"), (_wrong_shape, "failed"), (_nan, "failed"), (hangs, "late")]


@pytest.mark.parametrize(("fault", "status"), FAULTS, ids=["fails", "wrong shape", "NaN", "hangs"])
def test_a_faulty_member_is_a_missing_vote_and_is_billed(fault: Member, status: str) -> None:
    """Unanimity of three with one vote missing can accept nothing: all go to the large model, and none is lost."""
    table = TABLE.rows(np.arange(len(TABLE)) < 24)
    service = Service(CASCADE, table, batch_size=24, latency_s=0.1)
    service.faults["other"] = fault
    answers = service.ask()
    large = table.answers[:, table.members.index("large")]
    assert [(a.answer, a.tier) for a in answers if isinstance(a, Answer)] == [(y, 1) for y in large.tolist()]
    if status == "failed":
        assert {r.status for r in service.runs if r.member == "other"} == {"failed"}


def test_a_late_call_is_billed_with_its_real_time_when_it_ends() -> None:
    service = Service(CASCADE, batch_size=4, latency_s=0.05)
    service.faults["other"] = hangs

    async def talk() -> None:
        await service.asked(range(4))
        await asyncio.sleep(0.8)

    service.during(talk())
    (late,) = [r for r in service.runs if r.member == "other"]
    assert late.status == "late"
    assert late.busy_s == pytest.approx(0.6)


def test_a_call_that_fails_is_made_once_more_and_both_are_billed() -> None:
    table = TABLE.rows(np.arange(len(TABLE)) < 8)
    service = Service(CASCADE, table, latency_s=2.0)
    left = [1]

    async def fails_once(where: Placement, batch: np.ndarray) -> Reply:
        if left:
            left.pop()
            raise RuntimeError("the replica died")
        return service.honest(where, batch)

    service.faults["other"] = fails_once
    answers = service.ask()
    routing = route(CASCADE, table)
    assert [a.answer for a in answers if isinstance(a, Answer)] == routing.answer.tolist()
    assert sorted(r.status for r in service.runs if r.member == "other") == ["failed", "ok"]


def test_a_quorum_that_holds_anyway_is_accepted_with_a_vote_missing() -> None:
    agree = TABLE.outputs(("middle", "small")).answers[:, 0] == TABLE.outputs(("middle", "small")).answers[:, 1]
    service = Service(factories.cascade(rule="vote", quorum=2), TABLE.rows(agree))
    service.faults = {"other": fails, "middle": service.slow(0.02), "small": service.slow(0.02)}
    answers = service.ask_one_by_one()
    assert all(isinstance(a, Answer) and a.tier == 0 and a.degraded for a in answers)


def test_without_the_last_tier_a_query_falls_back_on_the_tiers_before() -> None:
    service = Service(CASCADE)
    service.faults["large"] = fails
    answers = service.ask_one_by_one()
    routing = route(CASCADE, TABLE)
    escalated = [a for a, t in zip(answers, routing.tier, strict=True) if t == 1]
    assert escalated
    assert all(isinstance(a, Answer) and a.degraded and a.status == "fallback" and a.tier == 0 for a in escalated)


def test_when_nobody_answers_the_query_fails_and_is_counted() -> None:
    service = Service(CASCADE)
    service.faults = dict.fromkeys(CASCADE.members, fails)
    answers = service.ask(range(2))
    assert all(isinstance(a, Unanswered) for a in answers)
    assert [r.status for r in service.records if isinstance(r, Answer)] == ["failed", "failed"]
    assert set(service.failures) == {f"{m}@t4-node" for m in CASCADE.members}
