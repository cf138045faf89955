"""The web application over a router core whose members replay a table, behind a real HTTP server in a thread. No Ray."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import uvicorn

from coe.placement.optimize import plan
from coe.records import Answer
from coe.router.core import RouterCore
from coe.router.queries import Reply, Unanswered
from coe.serving.service import Service
from coe.serving.web import application
from coe.table import PredictionTable
from coe.types import Access, Cascade, Placement, Plan
from tests import factories
from tests.core_case import recorded

NAME = "vision/cascade"
"""With a slash, as names may have one."""
SHAPE = (2, 2)
TABLE: PredictionTable = factories.table(n=120)


@cache
def planned(*, is_text: bool = False) -> Plan:
    """A plan of two tiers for items of shape (2, 2), or for texts."""
    cascade = factories.cascade(rule="vote", quorum=3)
    inputs: dict[str, Any] = {"input_dtype": "text"} if is_text else {"input_shape": SHAPE}
    return plan(
        factories.pool(**inputs),
        [Cascade.model_validate({**cascade.model_dump(), "name": NAME})],
        TABLE,
        factories.profiles(),
        factories.prices(),
        factories.workload(latency_s=2.0),
        inputs={},
        uncertified=True,
    )


class FakeRouter:
    """What the router is to the web application. An item's first number is its row in the table, also that of a text."""

    def __init__(self, found: Plan) -> None:
        self._plan = found
        self.asked = 0
        """Items that reached a member."""
        self.down: set[str] = set()
        """Members whose calls fail."""
        self.abstaining: set[str] = set()
        """Members whose replies hold no answer."""
        self.lacking: list[str] = []
        self.fault: Exception | None = None
        """Raised in place of an answer, such as `Overloaded`."""
        self.waited_s: list[float] = []
        self.ids: list[str] = []
        self.counting: set[str] = set()
        """Members that count 10 prompt tokens and 1 completion token per item."""
        self._core: RouterCore | None = None
        self._queues: asyncio.Task[None] | None = None

    async def call(self, where: Placement, batch: np.ndarray) -> Reply:
        """A member."""
        self.asked += len(batch)
        if where.member in self.down:
            raise RuntimeError("down")
        rows = row_numbers(batch) % len(TABLE)
        probs = recorded(TABLE, where.member, rows)
        tokens = np.full((len(rows), 2), [10, 1]) if where.member in self.counting else None
        return Reply(np.zeros_like(probs) if where.member in self.abstaining else probs, 0.001, "node-1", tokens=tokens)

    async def ask(self, items: Mapping[str, np.ndarray], timeout_s: float) -> list[Answer | Unanswered]:
        """As the router asks its core."""
        self.waited_s.append(timeout_s)
        self.ids += items
        if self.fault is not None:
            raise self.fault
        if self._core is None:
            found = self._plan
            self._core = RouterCore(
                found.cascade,
                found.placements,
                found.pool.classes,
                wait_s=0.001,
                latency_s=2.0,
                call=self.call,
                clock=time.monotonic,
                record=lambda _: None,
                usd_per_busy_s={p.deployment: 3.6 for p in found.placements},
            )
            self._queues = asyncio.ensure_future(self._core.run())
        return await self._core.ask(items, timeout_s=timeout_s)

    def is_alive(self) -> bool:
        """Whether the queues move."""
        return self._queues is None or not self._queues.done()

    async def stop(self) -> None:
        """End the queues."""
        if self._core is not None and self._queues is not None:
            await self._core.close()
            self._queues.cancel()


class Served:
    """A running service: its address, and the router behind it."""

    def __init__(self, address: str, router: FakeRouter) -> None:
        self.address = address
        self.url = f"http://{address}"
        self.router = router


@contextmanager
def served(
    access: Access | None = None, log: logging.Logger | None = None, *, is_text: bool = False
) -> Iterator[Served]:
    """The application behind uvicorn, in a thread, on a free port."""
    found = planned(is_text=is_text)
    router = FakeRouter(found)
    service = Service(found, access or Access(), router.ask, router.is_alive, lambda: router.lacking)
    api = application(service, log=log)
    listener = socket.create_server(("127.0.0.1", 0))
    host, port = listener.getsockname()
    server = uvicorn.Server(uvicorn.Config(api, log_level="critical", lifespan="off", access_log=False))

    async def run() -> None:
        await server.serve(sockets=[listener])
        await router.stop()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    deadline_s = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline_s:
        time.sleep(0.01)
    try:
        yield Served(f"{host}:{port}", router)
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def row_numbers(batch: np.ndarray) -> np.ndarray:
    """(items,) the first number of each item; 0 for a text without one."""
    if batch.dtype.kind != "U":
        return np.abs(batch[:, 0, 0].astype(np.float64))
    assert batch.shape[1:] == (1,), "an item of text is one text"
    found = [re.search(r"[0-9]{1,9}", text) for text in batch[:, 0].tolist()]
    return np.array([0 if number is None else int(number[0]) for number in found], dtype=np.float64)


def item(row: int) -> list[list[float]]:
    """The input whose answer is that of a row of the table."""
    return [[float(row), 0.0], [0.5, -1.0]]


def items(rows: int) -> np.ndarray:
    """(rows, 2, 2) float32: the first rows of the table."""
    return np.array([item(row) for row in range(rows)], dtype=np.float32)
