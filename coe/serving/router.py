"""The router: the Serve ingress that takes requests, batches them through the tiers and keeps the ledger."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from ray import serve
from ray.serve.handle import DeploymentHandle

from coe.errors import InvalidInput
from coe.ledger import Ledger
from coe.router.core import RouterCore
from coe.router.queries import Overloaded, Reply, Unanswered
from coe.serving.headers import answer_headers, request_id
from coe.serving.http_api import answer_body, asked_timeout_s, error_body, parsed_items, retry_after
from coe.serving.meter import Meter
from coe.serving.readiness import Readiness
from coe.types import Placement, Plan

FLUSH_S = 0.5
"""A killed router loses at most what was recorded since the last flush."""
SERVE_MESSAGE_BYTES = 4 * 2**20
"""What Serve lets through where nothing else is set."""
MESSAGE_FILLING = 0.9

log = logging.getLogger("coe.router")


@serve.ingress()  # without an app: each replica builds its own, from its own methods
class Router:
    """Answers `POST /predict`. Built by `coe.serving.app`, which gives it the plan and a handle per deployment."""

    def __init__(self, plan: Plan, ledger_dir: str | None, handles: Mapping[str, DeploymentHandle]) -> None:
        self._plan = plan
        self._handles = handles
        self._fresh_ids = (f"{uuid.uuid4().hex[:8]}-{n}" for n in itertools.count())
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
        self._background: tuple[asyncio.Task[None], ...] = ()

    def __serve_build_asgi_app__(self) -> FastAPI:  # Ray Serve calls it by this name
        """The web application of this replica."""
        api = FastAPI(title="coe", description="A cascade of ensembles behind one endpoint.", docs_url=None)
        api.add_api_route("/predict", self.predict, methods=["POST"])
        api.add_api_route("/healthz", self.healthz, methods=["GET"])
        api.add_api_route("/readyz", self.readyz, methods=["GET"])
        api.add_api_route("/plan", self.plan, methods=["GET"])
        return api

    def _started(self) -> None:
        """Start the queues and the ledger's clock with the first request: only then is there an event loop."""
        if not self._background:
            self._background = (
                asyncio.ensure_future(self._core.run()),
                asyncio.ensure_future(self._flush_for_ever()),
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

    async def predict(self, request: Request) -> Response:
        """Answer one or many items; see `coe.serving.http_api` for the JSON."""
        self._started()
        try:
            timeout_s = asked_timeout_s(request.headers.get("x-request-timeout-ms"))
            items = parsed_items(await request.body(), self._plan.pool.input_shape, self._fresh_ids)
        except InvalidInput as error:
            return JSONResponse(error_body(error), status_code=422)
        try:
            answers = await self._core.ask(items, timeout_s=timeout_s)
        except Overloaded as refusal:
            return JSONResponse({"error": str(refusal)}, status_code=503, headers=retry_after(refusal))
        failed = any(isinstance(answer, Unanswered) for answer in answers)
        body = answer_body(list(items), answers, self._plan.pool.classes)
        name = request_id(request.headers.get("x-request-id"), uuid.uuid4().hex)
        return JSONResponse(body, status_code=503 if failed else 200, headers=answer_headers(name, answers))

    async def healthz(self) -> Response:
        """200 once the router runs and its queues move. Serve starts it after every member is ready."""
        self._started()
        broken = [task for task in self._background if task.done()]
        return JSONResponse({"status": "broken" if broken else "ok"}, status_code=500 if broken else 200)

    async def readyz(self) -> Response:
        """200 while every tier can form its quorum, else 503 and what is missing."""
        missing = self._readiness.missing()
        body = {"status": "not ready" if missing else "ready", "missing": missing}
        return JSONResponse(body, status_code=503 if missing else 200)

    async def plan(self) -> Response:
        """The plan that is being served."""
        return Response(self._plan.model_dump_json(), media_type="application/json")

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
