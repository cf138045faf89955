"""Deadlines, what is refused before any work, and the pace by which a tier's queue is bounded."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from coe.records import Answer
from coe.router.pace import Pace
from coe.router.queries import Overloaded, Unanswered
from tests.core_case import CASCADE, TABLE, Service, fails, hangs, items


def test_a_deadline_is_split_over_the_tiers_and_kept() -> None:
    service = Service(CASCADE, latency_s=10.0)
    service.faults = dict.fromkeys(CASCADE.members, hangs)

    async def talk() -> tuple[list[Answer | Unanswered], float]:
        began_s = time.monotonic()
        answers = await service.asked(range(4), timeout_s=0.2)
        return answers, time.monotonic() - began_s

    answers, took_s = service.during(talk())
    assert all(isinstance(a, Unanswered) for a in answers)
    assert 0.15 < took_s < 0.5
    assert {m for m, _ in service.batches} == set(CASCADE.members), "the last tier had its part of the time"


def test_what_cannot_be_answered_within_the_promise_is_refused_before_any_work() -> None:
    # capacity 1,000 per second, batches of 2 ms: of the 10 ms one is for the query's own batch and two for the last tier's
    service = Service(CASCADE, batch_size=2, latency_s=0.01)

    async def before_the_queues_move() -> None:
        first = asyncio.ensure_future(service.core.ask(items(range(10))))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refused:
            await service.core.ask(items([11]))
        assert refused.value.retry_after_s == pytest.approx(0.007)  # eleven where four may be
        first.cancel()

    asyncio.run(before_the_queues_move())
    assert service.records == []


def test_the_pace_of_a_tier_is_seen_only_while_it_is_full() -> None:
    pace = Pace()
    assert pace.of(100.0) == 100.0
    for end in range(1, 60):  # four items every tenth of a second
        pace.ended(end / 10, 4, is_full=True)
    assert pace.of(100.0) == pytest.approx(40.0, rel=0.05)
    assert pace.of(45.0) == 45.0, "a little less than planned may be chance"
    for _ in range(12):  # it is not full any more: it may be as fast as planned again
        pace.ended(100.0, 1, is_full=False)
    assert pace.of(100.0) == 100.0


@pytest.mark.parametrize("is_down", [False, True])
def test_batches_with_missing_votes_say_nothing_of_the_pace(is_down: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the service would refuse queries for a while after a member hung."""
    service = Service(CASCADE, batch_size=2)
    told: list[bool] = []

    def ended(_now_s: float, _items: int, *, is_full: bool) -> None:
        told.append(is_full)

    monkeypatch.setattr(service.core.tiers[0]._pace, "ended", ended)
    if is_down:
        service.faults["small"] = fails
    answers = TABLE.outputs(("middle", "other")).answers
    open_without = np.flatnonzero(answers[:, 0] == answers[:, 1])[:20]  # others leave before the vote is missing
    service.ask(open_without.tolist())
    assert len(told) == 10
    assert any(told) != is_down
