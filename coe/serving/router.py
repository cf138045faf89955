"""The router: the Serve ingress that takes requests and has them answered by the plan that is in service."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from fastapi import FastAPI
from ray import serve
from ray.serve._private.constants import RAY_SERVE_USE_GRPC_BY_DEFAULT
from ray.serve.handle import DeploymentHandle

from coe.errors import InvalidInput, Problem
from coe.ledger import LedgerLimits
from coe.records import Answer
from coe.router.changing import changeable
from coe.router.queries import Reply, Unanswered
from coe.serving.door import Gate, access_logger
from coe.serving.following import running_replicas
from coe.serving.in_service import InService
from coe.serving.scaling_policy import Work
from coe.serving.service import Service
from coe.serving.starting import Starting
from coe.serving.telemetry import Tracing, provider_of
from coe.serving.v2_rpc import V2Methods, V2Rpc
from coe.serving.web import application
from coe.types import Access, Audits, Placement, Plan, Scaling

log = logging.getLogger("coe.router")


@serve.ingress()  # without an app: each replica builds its own, from its own methods
class Router(V2Methods):
    """Answers requests, over HTTP and gRPC.

    Built by `coe.serving.app`, which gives it the plan, its limits and a handle per deployment.
    """

    def __init__(
        self,
        plan: Plan,
        ledger_dir: str | None,
        handles: Mapping[str, DeploymentHandle],
        access: Access,
        scaling: Scaling | None = None,
        keeping: LedgerLimits | None = None,
        tracing: Tracing | None = None,
        audits: Audits | None = None,
    ) -> None:
        self._deployed = plan
        self._ledger_dir, self._keeping = ledger_dir, keeping
        self._spans = provider_of(tracing, os.environ)
        self._handles = {name: by_value(handle) for name, handle in handles.items()}
        self._scaling, self._audits = scaling, audits
        self._work = Work()
        application_name = serve.get_replica_context().app_name
        self._now = self._fresh(plan)
        self._starting = Starting(handles, lambda: running_replicas(application_name))
        self._before: set[asyncio.Task[None]] = set()
        self._service = Service(plan, access, self._ask, self._is_alive, self._missing, self._now.watch)
        self._gate = Gate(access, time.monotonic)
        sink = access_logger() if access.access_log else None
        self._rpc = V2Rpc(self._service, self._gate, sink, time.monotonic)
        if self._spans is not None:
            from coe.serving.tracing import TracedRpc

            tracer = self._spans.get_tracer("coe")
            self._rpc = TracedRpc(self._service, self._gate, sink, time.monotonic, tracer=tracer)

    def _fresh(self, plan: Plan) -> InService:
        followed: tuple[str, ...] = ()
        if self._scaling is not None:
            followed = tuple(self._handles)
            self._work.follow(plan, self._scaling)
        name = serve.get_replica_context().replica_tag
        tracing = None
        if self._spans is not None:
            from coe.serving.tracing import QueryTracing

            tracing = QueryTracing(self._spans.get_tracer("coe"), time.time)
        return InService(plan, self._ledger_dir, self._call, name, followed, self._keeping, tracing, self._audits)

    def __serve_build_asgi_app__(self) -> FastAPI:  # Ray Serve calls it by this name
        """The web application of this replica."""
        api = application(self._service, names_responses=False, gate=self._gate)  # Serve names them
        if self._spans is not None:
            from coe.serving.tracing import Traced

            api.front = Traced(api.front, tracer=self._spans.get_tracer("coe"))
        return api

    async def reconfigure(self, config: dict[str, Any] | None, rank: Any = None) -> None:
        """Go over to the plan in `user_config`, live: what has come is answered by the old one, what comes by the new one.

        Serve calls it when the config of this deployment changes. Raises `InvalidInput` for a plan that needs other deployments,
        whereupon Serve reports the change as failed and the old plan stays. Without a plan it is again the one of the deployment.

        rank: not used; Serve calls a method that takes it also when `user_config` is gone again.
        """
        del rank
        plan = self._deployed if not config else _plan_of(config)
        if reasons := changeable(plan, self._deployed):
            remedy = "deploy a serve.yaml that `coe build` wrote for it"
            raise InvalidInput(
                Problem("user_config: plan", f"cannot be served live: {'; '.join(reasons)}", remedy=remedy)
            )
        if plan.fingerprint() == self._now.plan.fingerprint():
            return
        old, self._now = self._now, self._fresh(plan)
        self._service.plan, self._service.watch = plan, self._now.watch
        log.warning("the plan is now %s (%s)", plan.name, plan.fingerprint()[:12])
        task = asyncio.ensure_future(old.retire())
        self._before.add(task)
        task.add_done_callback(self._before.discard)

    async def _call(self, placement: Placement, batch: np.ndarray) -> Reply:
        reply: Reply = await self._handles[placement.deployment].predict.remote(batch)
        return reply

    async def _ask(self, items: Mapping[str, np.ndarray], timeout_s: float) -> list[Answer | Unanswered]:
        self._work.arrived(len(items))
        return await self._now.ask(items, timeout_s)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """For Serve's autoscaling policy: the work that has arrived so far."""
        return self._work.report

    def _is_alive(self) -> bool:
        """Whether the queues move. Only with the first request is there an event loop to start them in."""
        self._now.start()
        return self._now.is_alive

    def _missing(self) -> list[str]:
        return self._now.readiness.missing(self._starting.look())

    def check_health(self) -> None:
        """For Ray Serve, which restarts a router whose queues have stopped."""
        if not self._now.is_alive:
            raise RuntimeError("the router's queues have stopped")

    async def __del__(self) -> None:
        """Serve calls this on shutdown: end what is under way and write the ledger to its end."""
        await self._now.close()
        if self._before:
            await asyncio.wait(self._before, timeout=1.0)
        if self._spans is not None:
            await asyncio.to_thread(self._spans.shutdown)  # which sends what is left


def by_value(handle: DeploymentHandle) -> DeploymentHandle:
    """A handle that sends arrays along with the call, as the settings for throughput want it: Serve decides it where the handle
    is made, which may be a driver without those settings. Arrays and replies are plain pickles."""
    return handle.options(
        _by_reference=not RAY_SERVE_USE_GRPC_BY_DEFAULT, request_serialization="pickle", response_serialization="pickle"
    )


def _plan_of(config: dict[str, Any]) -> Plan:
    """The plan of a `user_config`, which may hold nothing else."""
    if set(config) != {"plan"}:
        raise InvalidInput(Problem("user_config", "must have the one key 'plan'", ", ".join(config)))
    return Plan.model_validate(config["plan"])
