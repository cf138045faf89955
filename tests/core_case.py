"""A router core over a recorded table: its members are plain functions, and what they are asked is written down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import numpy as np

from coe.records import Answer, BatchRun, Record
from coe.router.core import RouterCore
from coe.router.queries import Reply, Unanswered
from coe.table import PredictionTable
from coe.types import Cascade, Placement
from tests import factories

T = TypeVar("T")
Member = Callable[[Placement, np.ndarray], Awaitable[Reply]]

TABLE = factories.table(n=120)
CASCADE = factories.cascade(rule="vote", quorum=3)


def placement(member: str, batch_size: int = 8, node_type: str = "t4-node", traffic: float = 1.0) -> Placement:
    """One replica on half an accelerator, believed to be fast."""
    return Placement(
        member=member,
        node_type=node_type,
        replicas=1,
        share=0.5,
        batch_size=batch_size,
        traffic=traffic,
        expected_batch=1.0,
        expected_busy_s=0.001,
        utilisation=0.1,
    )


def items(rows: Iterable[int]) -> dict[str, np.ndarray]:
    """A request: `q3` is row 3 of the table."""
    return {f"q{row}": np.array([row], dtype=np.float32) for row in rows}


def recorded(table: PredictionTable, member: str, rows: np.ndarray) -> np.ndarray:
    """What the member said of these rows. Shape (rows, classes)."""
    assert table.probs is not None
    return table.probs[rows.astype(int), table.members.index(member)]


@asynccontextmanager
async def running(core: RouterCore) -> AsyncIterator[None]:
    """The core's queues move; at the end it is closed."""
    queues = asyncio.ensure_future(core.run())
    yield
    await core.close()
    queues.cancel()


async def until_idle(core: RouterCore) -> None:
    """Wait until every call has ended, also those that no query waits for."""
    while not core.is_idle:
        await asyncio.sleep(0.01)


class Service:
    """A router core over a prediction table whose row numbers are the items; counts what its members are asked."""

    def __init__(
        self, cascade: Cascade, table: PredictionTable = TABLE, *, batch_size: int = 8, latency_s: float = 0.2
    ) -> None:
        self.table = table
        self.records: list[Record] = []
        self.batches: list[tuple[str, int]] = []
        self.failures: list[str] = []
        self.faults: dict[str, Member] = {}
        self.core = self.core_of(cascade, [placement(m, batch_size) for m in cascade.members], latency_s)

    def core_of(self, cascade: Cascade, placements: list[Placement], latency_s: float) -> RouterCore:
        """A core that asks these members, and writes down here what becomes of it."""
        return RouterCore(
            cascade,
            placements,
            self.table.classes,
            wait_s=0.002,
            latency_s=latency_s,
            call=self.call,
            clock=time.monotonic,
            record=self.records.append,
            note_failure=lambda deployment, _error: self.failures.append(deployment),
        )

    async def call(self, where: Placement, batch: np.ndarray) -> Reply:
        """A member, perhaps a faulty one."""
        self.batches.append((where.member, len(batch)))
        await asyncio.sleep(0.001)
        if where.member in self.faults:
            return await self.faults[where.member](where, batch)
        return self.honest(where, batch)

    def honest(self, where: Placement, batch: np.ndarray) -> Reply:
        """What the member said when it was recorded."""
        return Reply(recorded(self.table, where.member, batch[:, 0]), 0.001, "node-1")

    def slow(self, seconds: float) -> Member:
        """A member that is right, and takes its time."""

        async def answer(where: Placement, batch: np.ndarray) -> Reply:
            await asyncio.sleep(seconds)
            return self.honest(where, batch)

        return answer

    def during(self, talk: Coroutine[Any, Any, T]) -> T:
        """What comes of a conversation while the queues move."""

        async def all_of_it() -> T:
            async with running(self.core):
                return await talk

        return asyncio.run(asyncio.wait_for(all_of_it(), 20))

    def ask(self, rows: Iterable[int] | None = None) -> list[Answer | Unanswered]:
        """Ask about these rows in one request, by default about all; the answers in order."""
        return self.during(self.asked(range(len(self.table)) if rows is None else rows))

    async def asked(self, rows: Iterable[int], **how: Any) -> list[Answer | Unanswered]:
        """The answers about these rows, as part of a conversation."""
        return list(await self.core.ask(items(rows), **how))

    def ask_one_by_one(self) -> list[Answer | Unanswered]:
        """Ask about all rows side by side, each in a request of its own."""

        async def talk() -> list[Answer | Unanswered]:
            found = await asyncio.gather(*(self.asked([row]) for row in range(len(self.table))))
            return [answer for answers in found for answer in answers]

        return self.during(talk())

    @property
    def runs(self) -> list[BatchRun]:
        """The calls in the ledger."""
        return [r for r in self.records if isinstance(r, BatchRun)]


async def fails(_where: Placement, _batch: np.ndarray) -> Reply:
    """A member whose replica is gone."""
    raise RuntimeError("the replica died")


async def hangs(_where: Placement, batch: np.ndarray) -> Reply:
    """A member that answers after everybody has left."""
    await asyncio.sleep(0.6)
    return Reply(np.full((len(batch), 5), 0.2, dtype=np.float32), 0.6)
