"""What each query cost: parts that add up to the ledger, and nothing guessed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np
import pytest

from coe.cost.model import SECONDS_PER_HOUR, usd_per_busy_s
from coe.cost.parts import part_usd
from coe.records import Answer, BatchRun, Record
from coe.router.core import RouterCore
from coe.router.queries import Answers, Query, Reply
from coe.types import Placement
from tests import factories
from tests.core_case import items, placement, recorded, running, until_idle

PRICE = {"small": 1.0, "middle": 2.0, "other": 3.0, "large": 5.0}
TABLE = factories.table(n=60)


def test_a_part_by_hand() -> None:
    """Half a T4 of a node of two at $0.72 an hour, for 0.4 s and 8 items: 0.4 x 0.72 / 2 x 0.5 / 3600 / 8, and a fee."""
    offer = factories.offer(usd_per_hour=0.72, accelerators_per_node=2)
    got = part_usd(0.4, 8, usd_per_busy_s(offer, 0.5), 0.001)
    assert got == pytest.approx(0.4 * 0.72 / 2 * 0.5 / SECONDS_PER_HOUR / 8 + 0.001)


class World:
    """A core whose members take a time, a fee and tokens of their own for each item; keeps records and queries."""

    def __init__(self, slow: str = "", failing: str = "", hosted: Sequence[str] = ()) -> None:
        cascade = factories.cascade(rule="vote", quorum=3)
        self.records: list[Record] = []
        self.queries: list[Query] = []
        self._slow, self._failing = slow, failing
        placements = [placement(m).model_copy(update={"api": "big-1"} if m in hosted else {}) for m in cascade.members]
        self.core = RouterCore(
            cascade,
            placements,
            TABLE.classes,
            wait_s=0.002,
            latency_s=0.5,
            call=self._call,
            clock=time.monotonic,
            record=self.records.append,
            listener=self,
            usd_per_busy_s={p.deployment: PRICE[p.member] for p in placements},
        )

    async def _call(self, where: Placement, batch: np.ndarray) -> Reply:
        await asyncio.sleep(0.2 if where.member == self._slow else 0.001)
        if where.member == self._failing:
            raise RuntimeError("down")
        rows = batch[:, 0].astype(int)
        probs = recorded(TABLE, where.member, rows)
        if where.api is None:
            return Reply(probs, 0.01 * len(rows), "node-1")
        fees, counts = 0.5 * rows, np.stack([rows, rows % 7], axis=1)
        return Reply(probs, 0.0, fee_usd=float(fees.sum()), item_fees_usd=fees, tokens=counts)

    def ask(self, rows: Sequence[int], at_once: int = 60) -> list[Answers]:
        async def all_of_it() -> list[Answers]:
            groups = [rows[i : i + at_once] for i in range(0, len(rows), at_once)]
            async with running(self.core):
                got = await asyncio.gather(*(self.core.ask(items(group)) for group in groups))
                await until_idle(self.core)
            return [answers for answers in got if isinstance(answers, Answers)]

        return asyncio.run(all_of_it())

    def arrived(self, queries: Sequence[Query]) -> None:
        self.queries += queries

    def batched(self, tier: int, batch: Sequence[Query]) -> None: ...

    def passed_on(self, tier: int, queries: Sequence[Query]) -> None: ...

    def ended(self, query: Query, answer: Answer) -> None: ...


@pytest.mark.parametrize(
    "world",
    [
        pytest.param(World(), id="all local"),
        pytest.param(World(hosted=["large"]), id="one hosted"),
        pytest.param(World(failing="other"), id="one fails"),
        pytest.param(World(slow="other"), id="one slow"),
    ],
)
def test_parts_of_queries_add_up_to_the_ledger(world: World) -> None:
    world.ask(range(20), at_once=7)
    runs = [r for r in world.records if isinstance(r, BatchRun)]
    billed = sum(run.busy_s * PRICE[run.member] + run.fee_usd for run in runs)
    assert sum(q.spent.usd for q in world.queries) == pytest.approx(billed)
    assert billed > 0
    assert all(q.spent.under_way == 0 for q in world.queries)


def test_tokens_are_each_items_own() -> None:
    world = World(hosted=["large"])
    (answers,) = world.ask(range(60))
    told = dict(zip([q.query_id for q in world.queries], answers.spent, strict=True))
    asked_large = {q.query_id for q in world.queries if q.spent.counted}
    escalated = {a.query_id for a in answers if isinstance(a, Answer) and a.tier == 1}
    assert asked_large == escalated
    assert 0 < len(escalated) < 60
    for query_id, spent in told.items():
        row = int(query_id.removeprefix("q"))
        expected = (row, row % 7, 1, 0) if query_id in escalated else (0, 0, 0, 0)
        assert (spent.prompt_tokens, spent.completion_tokens, spent.counted, spent.uncounted) == expected


def test_a_call_that_the_answer_did_not_wait_for_is_under_way_and_not_in_the_sum() -> None:
    """All three must agree, so where the first two do not, the query goes on before the third has answered."""
    world = World(slow="other", hosted=["other"])
    answers = world.ask(range(60), at_once=1)
    early = [
        (a, s)
        for told in answers
        for a, s in zip(told, told.spent, strict=True)
        if isinstance(a, Answer) and a.tier == 1
    ]
    left_behind = [s for _, s in early if s.under_way]
    assert left_behind
    assert all(s.under_way == 1 and s.uncounted == 1 for s in left_behind), "its tokens are not known, and not guessed"
    assert all(q.spent.under_way == 0 and q.spent.uncounted == 0 for q in world.queries), "in the end they are"


def test_a_hosted_model_that_fails_leaves_its_tokens_unknown() -> None:
    world = World(failing="large", hosted=["large"])
    (answers,) = world.ask(range(60))
    asked = [s for s in answers.spent if s.uncounted]
    assert asked
    assert all(s.counted == 0 and s.under_way == 0 for s in asked)


def test_without_prices_nothing_is_counted() -> None:
    world = World()
    world.core.spending = None
    (answers,) = world.ask(range(5))
    assert answers.spent == ()
