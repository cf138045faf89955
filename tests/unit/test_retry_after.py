"""What a client is told that nobody answered: when the first of the members is tried again, where all of them rest."""

from __future__ import annotations

import numpy as np
import pytest

from coe.records import Answer
from coe.router.queries import Answers, Reply, Unanswered
from coe.router.turns import REST_S, Turns
from coe.types import Placement
from tests.core_case import CASCADE, Service, fails, items


def told(service: Service, requests: int = 1) -> list[Answers]:
    """What is said to requests about the same row, one after the other."""

    async def talk() -> list[Answers]:
        answers = [await service.core.ask(items([0])) for _ in range(requests)]
        return [a for a in answers if isinstance(a, Answers)]

    return service.during(talk())


def test_where_all_members_rest_it_is_said_when_the_first_is_tried_again() -> None:
    service = Service(CASCADE)
    service.faults = dict.fromkeys(CASCADE.members, fails)
    first, second = (answers.retry_after_s for answers in told(service, 2))
    assert first is not None
    assert REST_S - 0.5 < first <= REST_S
    assert second is not None
    assert second <= first, "the rest is that from the first failure; further ones of the same blow do not lengthen it"


def test_a_member_that_does_not_rest_needs_no_waiting_for() -> None:
    async def without_a_row(where: Placement, batch: np.ndarray) -> Reply:
        reply = service.honest(where, batch)
        reply.probs[0] = np.nan  # no answer to this item, and a sound reply to the other
        return reply

    service = Service(CASCADE)
    service.faults = dict.fromkeys(CASCADE.members, without_a_row)

    async def talk() -> list[Answer | Unanswered]:
        return await service.core.ask({i: np.array([0], dtype=np.float32) for i in ("a", "b")})

    answers = service.during(talk())
    assert isinstance(answers, Answers)
    assert [type(a) for a in answers] == [Unanswered, Answer]
    assert answers.retry_after_s is None


def test_a_standby_that_does_not_rest_needs_no_waiting_for() -> None:
    turns = Turns([1.0, 0.0])
    turns.failed(0, 10.0)
    assert turns.next_try_in_s(10.5) is None
    turns.failed(1, 10.4)
    assert turns.next_try_in_s(10.5) == pytest.approx(0.5)
    assert turns.next_try_in_s(99.0) == 0.0
    turns.answered(1, 100.0)
    assert turns.next_try_in_s(100.0) is None
