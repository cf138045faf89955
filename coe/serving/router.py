"""The router: the Serve ingress that takes requests and has them answered by the plan that is in service."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import FastAPI
from ray import serve
from ray.serve._private.constants import RAY_SERVE_USE_GRPC_BY_DEFAULT
from ray.serve.handle import DeploymentHandle

from coe.errors import InvalidInput, Problem
from coe.ledger import LedgerLimits
from coe.records import Answer
from coe.router.audits import Accounts
from coe.router.changing import changeable
from coe.router.queries import Reply, Unanswered
from coe.router.shifting import follow_load
from coe.serving.door import Gate, access_logger
from coe.serving.following import follow, running_replicas
from coe.serving.garbage import look_for_garbage_seldom
from coe.serving.geared import Geared
from coe.serving.in_service import InService, hand_over
from coe.serving.scaling_policy import ROUTER, Work
from coe.serving.service import Service
from coe.serving.starting import Starting
from coe.serving.telemetry import provider_of
from coe.serving.v2_rpc import V2Methods, V2Rpc
from coe.serving.web import application
from coe.serving.whole_writes import write_responses_whole
from coe.types import Access, Audits, Gears, Placement, Plan, Scaling, Tracing

log = logging.getLogger("coe.router")


@dataclass(frozen=True)
class Wanted:
    """What a `user_config` asks for: a plan, a gear to stay in, or neither."""

    plan: Plan | None = None
    gear: str | None = None

    @classmethod
    def of(cls, config: dict[str, Any] | None) -> Wanted:
        """Of a `user_config`, which may hold nothing else."""
        if not config:
            return cls()
        if set(config) not in ({"plan"}, {"gear"}):
            raise InvalidInput(Problem("user_config", "must have one key, 'plan' or 'gear'", ", ".join(config)))
        if "gear" in config:
            return cls(gear=str(config["gear"]))
        return cls(plan=Plan.model_validate(config["plan"]))


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
        gears: Gears | None = None,
    ) -> None:
        """gears: as `coe.placement.together` has them served by this deployment; the router then follows the load."""
        write_responses_whole()
        look_for_garbage_seldom()
        self._deployed = plan
        self._ledger_dir, self._keeping = ledger_dir, keeping
        self._spans = provider_of(tracing, os.environ)
        self._handles = {name: by_value(handle) for name, handle in handles.items()}
        self._scaling = scaling
        self._accounts = (
            None if audits is None else Accounts(audits, gears or plan, np.random.default_rng(), time.time())
        )
        self._work = Work(() if gears is None or scaling is None else handles)
        application_name = serve.get_replica_context().app_name
        self._geared = None if gears is None else Geared(gears, self._fresh)
        self._following: tuple[asyncio.Task[None], ...] = ()
        self._now = self._fresh(plan) if self._geared is None else self._geared.current()
        self._follow_work()
        self._starting = Starting(handles, lambda: running_replicas(application_name))
        self._before: set[asyncio.Task[None]] = set()
        self._service = Service(self._now.plan, access, self._ask, self._is_alive, self._missing, self._now.watch)
        self._gate = Gate(access, time.monotonic)
        sink = access_logger() if access.access_log else None
        self._rpc = V2Rpc(self._service, self._gate, sink, time.monotonic)
        if self._spans is not None:
            from coe.serving.tracing import TracedRpc

            tracer = self._spans.get_tracer("coe")
            self._rpc = TracedRpc(self._service, self._gate, sink, time.monotonic, tracer=tracer)

    def _fresh(self, plan: Plan) -> InService:
        followed = () if self._scaling is None else tuple(self._handles)
        name = serve.get_replica_context().replica_tag
        tracing = None
        if self._spans is not None:
            from coe.serving.tracing import QueryTracing

            tracing = QueryTracing(self._spans.get_tracer("coe"), time.time)
        auditor = None if self._accounts is None else self._accounts.auditor(plan, time.time())
        return InService(plan, self._ledger_dir, self._call, name, followed, self._keeping, tracing, auditor)

    def __serve_build_asgi_app__(self) -> FastAPI:  # Ray Serve calls it by this name
        """The web application of this replica."""
        api = application(self._service, names_responses=False, gate=self._gate)  # Serve names them
        if self._spans is not None:
            from coe.serving.tracing import Traced

            api.front = Traced(api.front, tracer=self._spans.get_tracer("coe"))
        return api

    async def reconfigure(self, config: dict[str, Any] | None, rank: Any = None) -> None:
        """Go over to the plan or gear in `user_config`, live: what has come is answered by the old one, what comes by the new.

        Serve calls it when the config of this deployment changes. Raises `InvalidInput` for a plan that needs other deployments,
        whereupon Serve reports the change as failed and the old plan stays. Without a plan it is again the one of the deployment,
        which follows the load where it has gears.

        rank: not used; Serve calls a method that takes it also when `user_config` is gone again.
        """
        del rank
        wanted = Wanted.of(config)
        if wanted.plan is not None or self._geared is None:
            self._go_over_to_plan(wanted)
            return
        if wanted.gear is None:
            self._geared.release()
        else:
            self._geared.hold(wanted.gear)
        self._go_over(self._geared.current())

    def _go_over_to_plan(self, wanted: Wanted) -> None:
        """To a plan that is no gear."""
        if wanted.gear is not None:
            raise InvalidInput(Problem("user_config: gear", "this service has no gears", wanted.gear))
        plan = wanted.plan or self._deployed
        if reasons := changeable(plan, self._deployed):
            remedy = "deploy a serve.yaml that `coe build` wrote for it"
            raise InvalidInput(
                Problem("user_config: plan", f"cannot be served live: {'; '.join(reasons)}", remedy=remedy)
            )
        if self._geared is not None:
            self._geared.hold()
        if plan.fingerprint() != self._now.plan.fingerprint():
            self._go_over(self._fresh(plan))

    def _go_over(self, to: InService) -> None:
        """Let `to` take what comes from now on; gears are kept, other plans end when what they have is answered."""
        if to is self._now:
            return
        old, self._now = self._now, to
        hand_over(old, to, time.time())
        self._follow_work()
        self._service.plan, self._service.watch = to.plan, to.watch
        log.warning("the plan is now %s (%s)", to.plan.name, to.plan.fingerprint()[:12])
        if self._geared is not None and self._geared.went_over(old, to):
            return
        task = asyncio.ensure_future(old.retire())
        self._before.add(task)
        task.add_done_callback(self._before.discard)

    def _follow_work(self) -> None:
        """From now on the work that queries bring is that of the plan in service."""
        if self._scaling is not None:
            self._work.follow(self._now.plan, self._scaling)

    def _follow_load(self) -> None:
        """Change gears with the load from now on, if the router has gears and does not do so yet."""
        geared = self._geared
        if geared is None or self._following:
            return

        async def change(gear: int) -> None:
            self._go_over(geared.of(gear))

        def count(_router: str, running: int) -> None:
            geared.routers = running

        following = follow_load(geared.box, change, clock=time.monotonic, routers=lambda: geared.routers)
        counting = [follow((ROUTER,), count)] if self._deployed.router.replicas > 1 else []
        self._following = tuple(asyncio.ensure_future(work) for work in (following, *counting))

    async def _call(self, placement: Placement, batch: np.ndarray) -> Reply:
        reply: Reply = await self._handles[placement.deployment].predict.remote(batch)
        return reply

    async def _ask(self, items: Mapping[str, np.ndarray], timeout_s: float) -> list[Answer | Unanswered]:
        self._work.arrived(len(items))
        if self._geared is not None:
            self._follow_load()
            self._geared.arrived(len(items))
        return await self._now.ask(items, timeout_s)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """For Serve's autoscaling policy: the work that has arrived so far."""
        return self._work.report

    def _is_alive(self) -> bool:
        """Whether the queues move. Only with the first request is there an event loop to start them in."""
        self._now.start()
        self._follow_load()
        return self._moves

    def _missing(self) -> list[str]:
        return self._now.readiness.missing(self._starting.look())

    def check_health(self) -> None:
        """For Ray Serve, which restarts a router whose queues have stopped."""
        if not self._moves:
            raise RuntimeError("the router's queues have stopped")

    @property
    def _moves(self) -> bool:
        """Whether all that should go on does."""
        return self._now.is_alive and not any(task.done() for task in self._following)

    async def __del__(self) -> None:
        """Serve calls this on shutdown: end what is under way and write the ledger to its end."""
        for task in self._following:
            task.cancel()
        await self._now.close()
        for gear in () if self._geared is None else self._geared.kept:
            if gear is not self._now:
                await gear.close()
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
