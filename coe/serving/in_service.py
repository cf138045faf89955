"""One plan in service: its queues, its ledger, its sums. A router has one, and for a moment two when the plan changes live."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from coe.cost.model import usd_per_busy_s
from coe.ledger import Ledger, LedgerLimits
from coe.records import Answer, Audit, Record
from coe.router.audits import Auditor
from coe.router.core import RouterCore
from coe.router.queries import Call, Reply, Unanswered
from coe.router.tightening import Tightening
from coe.serving.following import follow
from coe.serving.live_page import Watch
from coe.serving.meter import Meter
from coe.serving.readiness import Readiness
from coe.types import Placement, Plan

if TYPE_CHECKING:
    from coe.serving.tracing import QueryTracing

FLUSH_S = 0.5
"""A killed router loses at most what was recorded since the last flush."""
DRAINED_S = 0.05
RESTATED_S = 3600.0
"""How audits are made is said again so often, since older files of the ledger may be gone."""
SERVE_MESSAGE_BYTES = 4 * 2**20
"""What Serve lets through where nothing else is set."""
MESSAGE_FILLING = 0.9

log = logging.getLogger("coe.router")


class InService:
    """A plan that is being served. `start` needs an event loop; everything before does not."""

    def __init__(
        self,
        plan: Plan,
        ledger_dir: str | None,
        call: Call,
        router: str,
        followed: Collection[str] = (),
        keeping: LedgerLimits | None = None,
        tracing: QueryTracing | None = None,
        auditor: Auditor | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """call: asks a placement's replicas.   router: how this one is called among several.   followed: deployments whose
        replicas come and go.   keeping: sizes and ages of the ledger's files.   auditor: of this plan; None for no audits."""
        self._auditor, self._clock = auditor, clock
        self.plan = plan
        self._followed = followed
        self._call = call
        self._failures: dict[str, int] = {}
        self.watch = Watch(plan, clock, router, waiting=self._waiting, ledger=lambda: self._meter.ledger)
        self._meter = Meter(plan, _opened(plan, ledger_dir, keeping), clock, self.watch.record)
        pairs = [(p.member, p.deployment) for p in plan.placements]
        self.readiness = Readiness(plan.cascade, pairs, time.monotonic)
        self._core = RouterCore(
            plan.cascade,
            plan.placements,
            plan.pool.classes,
            wait_s=plan.workload.batch_wait_s,
            latency_s=plan.workload.latency_s,
            batch_bytes=_batch_bytes(),
            away_s=plan.away_s,
            call=self._metered,
            clock=clock,
            record=self._record if tracing is None else tracing.recording(self._record),
            note_failure=self._note_failure,
            note_answered=self.readiness.answered,
            listener=tracing,
            usd_per_busy_s={p.deployment: usd_per_busy_s(plan.offer(p.node_type), p.share) for p in plan.placements},
            auditor=self._auditor,
        )
        self._tightening = None
        if auditor is not None:
            seen = self.watch.running.audits
            self._tightening = Tightening(auditor, plan.cascade, seen, self._core.follow, self._meter.record)
            self._meter.record(auditor.began(clock()))
        self._background: tuple[asyncio.Task[None], ...] = ()

    def start(self) -> None:
        """Start queues and the ledger's clock, if they do not run yet."""
        if not self._background:
            self._background = (
                asyncio.ensure_future(self._core.run()),
                asyncio.ensure_future(self._flush_for_ever()),
                *([asyncio.ensure_future(follow(self._followed, self._core.resize))] if self._followed else []),
            )

    @property
    def is_alive(self) -> bool:
        """Whether the queues move."""
        return not any(task.done() for task in self._background)

    async def ask(self, items: Mapping[str, np.ndarray], timeout_s: float) -> list[Answer | Unanswered]:
        """As `RouterCore.ask`."""
        self.start()
        return await self._core.ask(items, timeout_s=timeout_s)

    def enter(self, at_s: float) -> None:
        """Take what comes from now on: the nodes are this plan's to bill."""
        if self._core.shadow is not None:
            self._core.shadow.wake()
        self._meter.start_spans(at_s)
        self.watch.running.enter(at_s)

    def leave(self, at_s: float) -> None:
        """Only end what has come: the nodes are another's to bill from now on. `enter` may follow."""
        if self._core.shadow is not None:
            self._core.shadow.rest()
        self._meter.stop_spans(at_s)
        self.watch.running.leave(at_s)

    async def retire(self) -> None:
        """Answer what is still here, and close; the nodes are another's to bill from now on."""
        self._meter.stop_spans()
        while not self._core.is_idle:
            await asyncio.sleep(DRAINED_S)
        await self.close()

    async def close(self) -> None:
        """End what is under way and write the ledger to its end."""
        for task in self._background:
            task.cancel()
        await self._core.close()
        self._meter.close()

    async def _metered(self, placement: Placement, batch: np.ndarray) -> Reply:
        reply = await self._call(placement, batch)
        self._meter.saw_node(placement.deployment, reply.node)
        return reply

    def _record(self, record: Record) -> None:
        """Bill and count a record; one that first shows drift makes the gates a step stricter, if that is wanted."""
        self._meter.record(record)
        if isinstance(record, Audit) and self._tightening is not None:
            gates = self._tightening.audited(self._clock())
            if gates is not None:
                where = "" if self.watch.gearing is None else f" in gear {self.plan.name}"
                log.warning("drift%s: %s", where, gates.says)

    def _note_failure(self, deployment: str, error: Exception) -> None:
        """Count a failed call; log the first of each deployment in full, then every hundredth."""
        self.readiness.failed(deployment)
        count = self._failures[deployment] = self._failures.get(deployment, 0) + 1
        if count == 1 or count % 100 == 0:
            log.warning("call %d of %s failed: %s", count, deployment, error)

    def _waiting(self) -> list[int]:
        """Queries in each tier's queue."""
        return [len(tier.waiting) for tier in self._core.tiers]

    async def _flush_for_ever(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            self._restate_audits()
            self._meter.tick()

    def _restate_audits(self) -> None:
        said = self.watch.running.audits.settings
        if self._auditor is not None and said is not None and self._clock() - said.at_s >= RESTATED_S:
            self._meter.record(self._auditor.began(self._clock(), said.strictness))


def hand_over(old: InService, to: InService, at_s: float) -> None:
    """From this instant on `to` is in service, and the nodes are its to bill."""
    old.leave(at_s)
    to.enter(at_s)


def _batch_bytes() -> float:
    """What a call may carry: the message limit that Serve was started with, less what wraps the array."""
    limit = int(os.environ.get("RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH", SERVE_MESSAGE_BYTES))
    return MESSAGE_FILLING * limit


def _opened(plan: Plan, ledger_dir: str | None, keeping: LedgerLimits | None) -> Ledger | None:
    """A ledger of its own for this router and plan."""
    if ledger_dir is None:
        return None
    name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}-{uuid.uuid4().hex[:6]}.jsonl"
    return Ledger(Path(ledger_dir) / name, plan.fingerprint(), time.time(), keeping)
