"""Whose turn it is: traffic as planned, rest for placements that fail or stay silent, and standbys for their time."""

from __future__ import annotations

import asyncio
import time

import numpy as np

from coe.records import Answer
from coe.router.queries import Reply, Unanswered
from coe.router.turns import Turns
from coe.types import Placement
from tests import factories
from tests.core_case import CASCADE, Service, hangs, placement


def test_traffic_is_divided_as_planned() -> None:
    turns = Turns([0.7, 0.3])
    order = [turns.next() for _ in range(100)]
    assert order.count(0) == 70
    assert order[:10].count(1) == 3


def test_a_placement_that_fails_rests_and_one_without_traffic_stands_in() -> None:
    turns = Turns([1.0, 0.0])
    assert [turns.next(0.0) for _ in range(3)] == [0, 0, 0]
    turns.failed(0, 0.0)
    turns.failed(0, 0.01)  # the other calls of the same blow make the rest no longer
    assert [turns.next(0.5) for _ in range(3)] == [1, 1, 1]
    assert [turns.next(1.1) for _ in range(3)] == [0, 1, 1]  # one call shows whether it is back
    turns.failed(0, 1.2)
    assert turns.next(2.5) == 1  # it is not: it rests for twice as long
    assert turns.next(3.3) == 0
    turns.answered(0, 3.4)
    assert [turns.next(3.4) for _ in range(3)] == [0, 0, 0]


def test_where_every_placement_has_failed_they_keep_their_turns() -> None:
    turns = Turns([0.5, 0.5])
    turns.failed(0, 0.0)
    turns.failed(1, 0.0)
    assert sorted(turns.next(0.1) for _ in range(4)) == [0, 0, 1, 1]


def test_a_placement_that_does_not_reply_is_not_asked_again_before_its_rest_is_over() -> None:
    turns = Turns([1.0])
    turns.late(0, now_s=1.0, asked_s=0.5)
    assert turns.next(1.5) is None
    assert [turns.next(2.1) for _ in range(2)] == [0, None]  # one call shows whether it is back
    turns.answered(0, 3.5, is_late=True)
    assert turns.next(2.3) == 0


def test_where_one_replica_of_several_hangs_the_placement_is_asked_on() -> None:
    turns = Turns([1.0])
    turns.answered(0, 0.7)
    turns.late(0, now_s=1.0, asked_s=0.5)
    assert turns.next(1.5) == 0


def test_a_member_that_hangs_everywhere_is_a_missing_vote_at_once() -> None:
    service = Service(CASCADE, latency_s=0.05)
    service.faults["small"] = hangs

    async def two_rounds() -> list[float]:
        seconds = []
        for _ in range(2):
            began_s = time.monotonic()
            await service.asked([0])
            seconds.append(time.monotonic() - began_s)
        return seconds

    late, at_once = service.during(two_rounds())
    assert late > 0.045  # the promise
    assert at_once < 0.05
    assert sum(name == "small" for name, _ in service.batches) == 1


def test_a_client_in_a_hurry_sends_nobody_to_the_standby() -> None:
    """It left before the reply came, which was in time by the promise."""
    service = Service(CASCADE, latency_s=1.0)
    standby = placement("small", node_type="a100-node", traffic=0.0)
    service.core = service.core_of(CASCADE, [*map(placement, CASCADE.members), standby], latency_s=1.0)
    asked: list[str] = []

    async def by_place(where: Placement, batch: np.ndarray) -> Reply:
        asked.append(where.node_type)
        return await service.slow(0.05)(where, batch)

    service.faults["small"] = by_place

    async def hurried_then_patient() -> Answer | Unanswered:
        await service.asked([0], timeout_s=0.01)
        await asyncio.sleep(0.1)
        (answer,) = await service.asked([0])
        return answer

    patient = service.during(hurried_then_patient())
    assert asked == ["t4-node", "t4-node"]
    assert service.failures == []
    assert isinstance(patient, Answer)
    assert not patient.degraded


def test_calls_go_to_the_standby_while_a_placement_hangs() -> None:
    """Whoever asks first waits for the promised latency; then the standby answers, these queries and all others."""
    cascade = factories.cascade(first=("small",))
    service = Service(cascade, latency_s=0.2)
    standby = placement("large", node_type="a100-node", traffic=0.0)
    service.core = service.core_of(cascade, [placement("small"), placement("large"), standby], latency_s=0.2)
    hang = service.slow(60.0)

    async def by_place(where: Placement, batch: np.ndarray) -> Reply:
        return await hang(where, batch) if where.node_type == "t4-node" else service.honest(where, batch)

    service.faults["large"] = by_place

    async def twenty_at_a_time() -> list[Answer | Unanswered]:
        found = []
        for start in range(0, len(service.table), 20):
            found += await service.asked(range(start, start + 20))
        await service.core.abandon()
        return found

    answers = service.during(twenty_at_a_time())
    assert all(isinstance(a, Answer) for a in answers)
    late = [isinstance(a, Answer) and a.status == "fallback" for a in answers]
    assert not any(late)
    seconds = [a.done_s - a.arrival_s for a in answers if isinstance(a, Answer)]
    assert max(seconds[:20]) > 0.2
    assert max(seconds[20:]) < 0.2
