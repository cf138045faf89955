"""A router's web application over records made up for tests, behind a real HTTP server in a thread. No Ray, no members."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import uvicorn

from coe.records import Answer, BatchRun, NodeSpan
from coe.report.audits import Audited
from coe.router.queries import Unanswered
from coe.serving.live_page import Watch
from coe.serving.service import Service
from coe.serving.web import application
from coe.types import MISSING_VOTE, Access, Plan
from tests import report_case as case

NOW_S = case.EPOCH_S
UP_S = 600.0


def watch(
    plan: Plan | None = None, *, up_s: float = UP_S, failing: bool = False, audits: Audited | None = None
) -> Watch:
    """A router that has been up for `up_s` seconds, with one query each second; `failing`: of the last minute one in ten."""
    rng, clock = np.random.default_rng(4), [NOW_S - up_s]
    seen = Watch(plan or case.plan(), lambda: clock[0], "replica-1", waiting=lambda: [3, 1], audits=lambda: audits)
    for second in range(1, int(up_s) + 1):
        clock[0] = now_s = NOW_S - up_s + second
        took_s = float(rng.lognormal(-1.9, 0.35))
        tier = int(rng.random() < 0.27)
        if failing and up_s - second < 60 and second % 10 == 0:
            seen.record(Answer("q", now_s - took_s, now_s, -1, MISSING_VOTE, 0.0, True, "failed"))
        else:
            seen.record(Answer("q", now_s - took_s, now_s, tier, 0, 2.0, False))
        seen.record(BatchRun(0, "small", "t4-node", 0.5, 1, now_s - 0.4, 0.35))
        if rng.random() < 0.2:
            seen.record(BatchRun(0, "other", "t4-node", 0.5, 1, now_s - 0.4, 0.0, "cancelled"))
        else:
            seen.record(BatchRun(0, "other", "t4-node", 0.5, 1, now_s - 0.4, 0.45))
        if tier:
            seen.record(BatchRun(1, "large", "a100-node", 1.0, 1, now_s - 0.8, 0.75, "late" if failing else "ok"))
        for node in seen.running.plan.nodes:
            seen.record(NodeSpan(node.node_type, node.count, node.usd_per_hour, now_s - 1, now_s))
    return seen


class Asked:
    """Which paths a server was asked for, from its access log."""

    def __init__(self) -> None:
        self.paths: list[str] = []


@contextmanager
def served(seen: Watch, access: Access | None = None) -> Iterator[tuple[str, Asked]]:
    """Its address, and what it is asked for."""

    async def ask(items: Mapping[str, np.ndarray], _timeout_s: float) -> list[Answer | Unanswered]:
        return [Unanswered(item) for item in items]

    service = Service(seen.running.plan, access or Access(), ask, lambda: True, list, seen)
    api = application(service, log=logging.getLogger("tests.live"))
    asked = Asked()

    @api.middleware("http")
    async def note(request, call_next):  # type: ignore[no-untyped-def]
        asked.paths.append(request.url.path)
        return await call_next(request)

    listener = socket.create_server(("127.0.0.1", 0))
    host, port = listener.getsockname()
    server = uvicorn.Server(uvicorn.Config(api, log_level="critical", lifespan="off", access_log=False))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    deadline_s = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline_s:
        time.sleep(0.01)
    try:
        yield f"http://{host}:{port}", asked
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
