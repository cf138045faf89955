"""How many members an answer rests on."""

from __future__ import annotations

import asyncio

import numpy as np

from coe.ledger import encoded
from coe.records import Answer, Record
from coe.router.core import RouterCore
from coe.router.queries import Query, Reply
from coe.table import Decision
from coe.types import ABSTAINED, MISSING_VOTE, Placement
from tests.serving.web_case import planned

ROWS = [[1, 1, 0], [2, 2, 2], [1, MISSING_VOTE, 1], [3, ABSTAINED, MISSING_VOTE], [ABSTAINED] * 3]


def settled() -> list[Record]:
    """What the core records of the queries that a tier answers."""
    found, records = planned(), list[Record]()

    async def never(_where: Placement, _batch: np.ndarray) -> Reply:
        raise AssertionError("no member is asked")

    async def run() -> None:
        core = RouterCore(
            found.cascade,
            found.placements,
            found.pool.classes,
            wait_s=0.0,
            latency_s=1.0,
            call=never,
            clock=lambda: 1.0,
            record=records.append,
        )
        loop = asyncio.get_running_loop()
        queries = [Query(str(n), np.zeros((2, 2)), 0.0, 0.0, loop.create_future()) for n in range(len(ROWS))]
        answers = np.array([row[0] for row in ROWS])
        yes, no = np.ones(len(ROWS), dtype=np.bool_), np.zeros(len(ROWS), dtype=np.bool_)
        core.settle(1, queries, Decision(answers, yes, np.ones(len(ROWS)), no, yes), ROWS)

    asyncio.run(run())
    return records


def test_members_that_say_nothing_do_not_count_as_votes() -> None:
    answers = [record for record in settled() if isinstance(record, Answer)]
    assert [(a.agreed, a.voted) for a in answers] == [(2, 3), (3, 3), (2, 2), (1, 1), (0, 0)]


def test_the_ledger_keeps_them() -> None:
    assert encoded(settled()[0]).endswith(',"ok",2,3]\n')
