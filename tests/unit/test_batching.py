"""The router's core forms batches, escalates as the evaluation does, and writes every call and every answer down."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from coe.cascade.evaluate import route
from coe.cost.capacity import at_work, in_flight
from coe.records import Answer
from coe.router.queries import Reply
from coe.types import Cascade, Placement, Tier
from tests import factories
from tests.core_case import CASCADE, TABLE, Service, placement


@pytest.mark.parametrize(
    "cascade",
    [
        CASCADE,
        factories.cascade(threshold=0.8),
        Cascade(
            tiers=(
                Tier(members=("small", "other"), quorum=2),
                Tier(members=("middle",), rule="score", threshold=0.7),
                Tier(members=("large",)),
            )
        ),
        Cascade(
            tiers=(
                Tier(members=("small", "other"), rule="score", threshold=0.8),
                Tier(members=("middle",), rule="vote", quorum=3, carry=1),
                Tier(members=("large",), rule="score", carry=2),
            )
        ),
        Cascade(
            top_k=2,
            temperatures={"small": 1.5},
            tiers=(
                Tier(members=("small", "other"), rule="score", threshold=0.8, dispatch="staged"),
                Tier(members=("middle", "large"), rule="mean", carry=1, dispatch="staged"),
            ),
        ),
    ],
    ids=["vote", "score", "three tiers", "carried", "staged and carried"],
)
def test_the_service_answers_what_the_evaluation_predicts(cascade: Cascade) -> None:
    service = Service(cascade)
    answers = service.ask_one_by_one()
    routing = route(cascade, TABLE)
    accounted = {m: sum(r.items for r in service.runs if r.member == m) for m in cascade.members}
    assert accounted == dict(zip(cascade.members, routing.asked.sum(axis=0).tolist(), strict=True))
    assert [(a.answer, a.tier) for a in answers if isinstance(a, Answer)] == list(
        zip(routing.answer.tolist(), routing.tier.tolist(), strict=True)
    )
    assert not any(a.degraded for a in answers if isinstance(a, Answer))


def test_queries_of_many_requests_share_batches_and_every_member_is_asked_once_per_batch() -> None:
    service = Service(CASCADE)
    service.ask_one_by_one()
    for member in CASCADE.tiers[0].members:
        sizes = [n for m, n in service.batches if m == member]
        assert sum(sizes) <= len(TABLE)
        assert max(sizes) == 8
        assert len(sizes) <= len(TABLE) / 4
    escalated = [n for m, n in service.batches if m == "large"]
    assert max(escalated) > 1, "escalated queries of several batches form one"


def test_a_batch_that_is_not_half_full_grows_in_the_queue_while_every_replica_is_busy() -> None:
    service = Service(factories.cascade(first=("small",)), batch_size=16, latency_s=10.0)
    everyone_is_there = asyncio.Event()

    async def waits(where: Placement, batch: np.ndarray) -> Reply:
        await everyone_is_there.wait()
        return service.honest(where, batch)

    async def talk() -> None:
        asked = [asyncio.ensure_future(service.asked([0]))]
        while not service.batches:
            await asyncio.sleep(0.001)
        for row in range(1, 6):
            asked.append(asyncio.ensure_future(service.asked([row])))
            await asyncio.sleep(0.004)  # twice what a batch waits
        everyone_is_there.set()
        await asyncio.gather(*asked)

    service.faults["small"] = waits
    service.during(talk())
    assert [n for member, n in service.batches if member == "small"] == [1, 5]


def test_half_a_batch_waits_at_the_replica_and_one_across_a_link_is_sent_at_once() -> None:
    assert [at_work(placement("small"), 2), in_flight(placement("small"), 2)] == [2, 4]
    assert at_work(placement("small"), 2, 0.0) == 4
    away_s = 2.5 * placement("small").full_s
    assert [at_work(placement("small"), 2, away_s), in_flight(placement("small"), 2, away_s)] == [10, 10]
    service = Service(factories.cascade(first=("small",)), batch_size=4)
    service.faults["small"] = service.slow(0.05)
    service.ask(range(6))  # a full batch, and one that is half full
    first, second = (r.start_s for r in service.runs if r.member == "small")
    assert second - first < 0.04


def test_batches_are_split_by_bytes() -> None:
    service = Service(CASCADE)
    service.core.batch_bytes = 3 * 4
    service.ask(range(12))
    assert max(n for _, n in service.batches) == 3


def test_every_call_and_every_answer_is_in_the_ledger() -> None:
    service = Service(CASCADE)
    service.ask_one_by_one()
    made = [r for r in service.runs if r.status != "cancelled"]
    assert sorted((r.member, r.items) for r in made) == sorted(service.batches)
    answers = [r.query_id for r in service.records if isinstance(r, Answer)]
    assert sorted(answers) == sorted(f"q{row}" for row in range(len(TABLE)))


def test_answers_come_back_in_the_order_of_the_request() -> None:
    rows = [*range(49, 24, -1), *range(25)]
    assert [a.query_id for a in Service(CASCADE).ask(rows) if isinstance(a, Answer)] == [f"q{row}" for row in rows]


def test_a_mistake_of_ours_reaches_the_client_instead_of_hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("coe.router.tier.decide", broken)
    with pytest.raises(ZeroDivisionError):
        Service(CASCADE).ask([0])


def test_shutdown_records_calls_under_way_as_cancelled() -> None:
    service = Service(CASCADE, latency_s=1.0)
    service.faults["other"] = service.slow(0.6)

    async def talk() -> None:
        question = asyncio.ensure_future(service.asked([0]))
        await asyncio.sleep(0.05)
        await service.core.close()
        await asyncio.sleep(0)
        question.cancel()

    service.during(talk())
    assert {r.member: r.status for r in service.runs} == {"middle": "ok", "small": "ok", "other": "cancelled"}
