"""The router: the Serve ingress that takes requests, batches them through the tiers and keeps the ledger."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from coe.ledger import Ledger
from coe.records import Answer
from coe.router.core import RouterCore
from coe.router.queries import Reply, Unanswered
from coe.serving.following import follow
from coe.serving.meter import Meter
from coe.serving.readiness import Readiness
from coe.serving.scaling_policy import ARRIVED
from coe.serving.service import Service
from coe.serving.web import application
from coe.types import Access, Placement, Plan

FLUSH_S = 0.5
"""A killed router loses at most what was recorded since the last flush."""
SERVE_MESSAGE_BYTES = 4 * 2**20
"""What Serve lets through where nothing else is set."""
MESSAGE_FILLING = 0.9

log = logging.getLogger("coe.router")


@serve.ingress()  # without an app: each replica builds its own, from its own methods
class Router:
    """Answers requests. Built by `coe.serving.app`, which gives it the plan, its limits and a handle per deployment."""

    def __init__(
        self,
        plan: Plan,
        ledger_dir: str | None,
        handles: Mapping[str, DeploymentHandle],
        access: Access,
        is_scaled: bool = False,
    ) -> None:
        self._plan = plan
        self._access = access
        self._handles = handles
        self._meter = Meter(plan, _opened(plan, ledger_dir), time.time)
        self._failures: dict[str, int] = {}
        pairs = [(p.member, p.deployment) for p in plan.placements]
        self._readiness = Readiness(plan.cascade, pairs, time.monotonic)
        self._core = RouterCore(
            plan.cascade,
            plan.placements,
            plan.pool.classes,
            wait_s=plan.workload.batch_wait_s,
            latency_s=plan.workload.latency_s,
            batch_bytes=_batch_bytes(),
            call=self._call,
            clock=time.time,
            record=self._meter.record,
            note_failure=self._note_failure,
        )
        self._is_scaled = is_scaled
        self._arrived = 0
        self._background: tuple[asyncio.Task[None], ...] = ()

    def __serve_build_asgi_app__(self) -> FastAPI:  # Ray Serve calls it by this name
        """The web application of this replica."""
        service = Service(self._plan, self._access, self._ask, self._is_alive, self._readiness.missing)
        return application(service, names_responses=False)  # Serve names them

    def _started(self) -> None:
        """Start the queues and the ledger's clock with the first request: only then is there an event loop."""
        if not self._background:
            self._background = (
                asyncio.ensure_future(self._core.run()),
                asyncio.ensure_future(self._flush_for_ever()),
                *([asyncio.ensure_future(follow(self._handles, self._core.resize))] if self._is_scaled else []),
            )

    async def _call(self, placement: Placement, batch: np.ndarray) -> Reply:
        reply: Reply = await self._handles[placement.deployment].predict.remote(batch)
        self._meter.saw_node(placement.deployment, reply.node)
        self._readiness.answered(placement.deployment)
        return reply

    def _note_failure(self, deployment: str, error: Exception) -> None:
        """Count a failed call; log the first of each deployment in full, then every hundredth."""
        self._readiness.failed(deployment)
        count = self._failures[deployment] = self._failures.get(deployment, 0) + 1
        if count == 1 or count % 100 == 0:
            log.warning("call %d of %s failed: %s", count, deployment, error)

    async def _flush_for_ever(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            self._meter.tick()

    async def _ask(self, items: Mapping[str, np.ndarray], timeout_s: float) -> list[Answer | Unanswered]:
        self._started()
        self._arrived += len(items)
        return await self._core.ask(items, timeout_s=timeout_s)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """For Serve's autoscaling policy: what has arrived so far, refused or not."""
        return {ARRIVED: self._arrived}

    def _is_alive(self) -> bool:
        """Whether the queues move."""
        self._started()
        return not any(task.done() for task in self._background)

    def check_health(self) -> None:
        """For Ray Serve, which restarts a router whose queues have stopped."""
        for task in self._background:
            if task.done():
                raise RuntimeError(f"the router's queues have stopped: {task}")

    async def __del__(self) -> None:
        """Serve calls this on shutdown: end what is under way and write the ledger to its end."""
        for task in self._background:
            task.cancel()
        await self._core.close()
        self._meter.close()


def _batch_bytes() -> float:
    """What a call may carry: the message limit that Serve was started with, less what wraps the array."""
    limit = int(os.environ.get("RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH", SERVE_MESSAGE_BYTES))
    return MESSAGE_FILLING * limit


def _opened(plan: Plan, ledger_dir: str | None) -> Ledger | None:
    """A ledger of its own for this router replica."""
    if ledger_dir is None:
        return None
    name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}-{uuid.uuid4().hex[:6]}.jsonl"
    return Ledger(Path(ledger_dir) / name, plan.fingerprint(), time.time())
