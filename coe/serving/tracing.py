"""OpenTelemetry's view of the service: a span per request, per query and tier, per batch, and per member call.

    POST /predict                     a request; its parent is the client's span (W3C `traceparent`)
      tier 1                          a query before a tier, from its queue to its answer or to the next tier
        batch                         a batch, below the first traced query in it; those of all others link to it, and it to them
          call small@t4-node          a call of a member, which may end after the batch has been decided
      tier 2
        ...

Only traced requests have spans: for a batch without one nothing is made. Needs opentelemetry-api; who makes and sends the spans
is `telemetry`'s business.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coe.records import Answer, BatchRun, Record
from coe.router.queries import Query
from coe.serving.door import Gate
from coe.serving.lanes import path_of
from coe.serving.service import Service
from coe.serving.v2_messages import SERVICE
from coe.serving.v2_messages import Message as Rpc
from coe.serving.v2_rpc import V2Rpc

NANO = 1e9
UNROUTED = frozenset({401, 404, 405, 429})
"""Statuses of requests whose path may be anything."""
_parents = TraceContextTextMapPropagator()


@dataclass
class _Batch:
    """A batch's span, and how many traced queries of it have not left the tier."""

    span: Span
    context: Context
    open: int


@dataclass
class _Way:
    """A traced query: its request, and its span before the present tier."""

    request: Context
    span: Span
    batch: _Batch | None = None


_batch: ContextVar[_Batch | None] = ContextVar("coe_batch", default=None)


class QueryTracing:
    """The router core's listener (`coe.router.listening`); `recording` adds the member calls."""

    def __init__(self, tracer: Tracer, clock: Callable[[], float]) -> None:
        """clock: that of the router core, in seconds since the epoch."""
        self._tracer, self._clock = tracer, clock

    def arrived(self, queries: Sequence[Query]) -> None:
        """Begin the first tier's span of each, where their request is traced."""
        request = trace.get_current_span()
        if not request.is_recording():
            return
        request.set_attribute("coe.items", len(queries))
        context = trace.set_span_in_context(request)
        for query in queries:
            query.trace = _Way(context, self._before(0, query, context))

    def batched(self, tier: int, batch: Sequence[Query]) -> None:
        """Begin the batch's span, where a query of it is traced."""
        ways = [query.trace for query in batch if isinstance(query.trace, _Way)]
        if not ways:
            _batch.set(None)
            return
        first, *others = ways
        span = self._tracer.start_span(
            "batch",
            trace.set_span_in_context(first.span),
            attributes={"coe.tier": tier + 1, "coe.batch.items": len(batch)},
            links=[Link(way.span.get_span_context()) for way in others],
            start_time=self._now(),
        )
        for way in others:
            way.span.add_link(span.get_span_context())
        made = _Batch(span, trace.set_span_in_context(span), len(ways))
        for way in ways:
            way.batch = made
        _batch.set(made)

    def passed_on(self, tier: int, queries: Sequence[Query]) -> None:
        """End the tier's span and begin the next one's."""
        for query in queries:
            way = query.trace
            if isinstance(way, _Way):
                self._left(way, {"coe.outcome": "deferred"})
                query.trace = _Way(way.request, self._before(tier + 1, query, way.request))

    def ended(self, query: Query, answer: Answer) -> None:
        """End the last span of a query."""
        way = query.trace
        if not isinstance(way, _Way):
            return
        if answer.status == "failed":
            way.span.set_status(Status(StatusCode.ERROR, "nobody answered"))
        facts = {
            "coe.outcome": "answered" if answer.status == "ok" else answer.status,
            "coe.answer": answer.answer,
            "coe.score": answer.score,
            "coe.agreed": answer.agreed,
            "coe.voted": answer.voted,
            "coe.degraded": answer.degraded,
        }
        self._left(way, facts)
        query.trace = None

    def recording(self, record: Callable[[Record], None]) -> Callable[[Record], None]:
        """`record` with a span for each call of a traced batch."""

        def both(made: Record) -> None:
            record(made)
            # audits may begin in the context of whatever batch has just ended
            if isinstance(made, BatchRun) and not made.audit and (batch := _batch.get()) is not None:
                self._call(batch, made)

        return both

    def _call(self, batch: _Batch, run: BatchRun) -> None:
        facts: dict[str, str | int | float] = {
            "coe.member": run.member,
            "coe.node_type": run.node_type,
            "coe.items": run.items,
            "coe.status": run.status,
        }
        if run.status == "cancelled" and run.busy_s == 0:
            if batch.span.is_recording():
                batch.span.add_event("call saved", facts)
            return
        span = self._tracer.start_span(
            f"call {run.member}@{run.node_type}",
            batch.context,
            SpanKind.CLIENT,
            attributes={**facts, "coe.busy_s": run.busy_s, "coe.fee_usd": run.fee_usd},
            start_time=int(run.start_s * NANO),
        )
        if run.status != "ok":
            span.set_status(Status(StatusCode.ERROR, run.status))
        span.end(self._now())

    def _before(self, tier: int, query: Query, request: Context) -> Span:
        facts: dict[str, str | int] = {"coe.query_id": query.query_id, "coe.tier": tier + 1}
        return self._tracer.start_span(
            f"tier {tier + 1}", request, attributes=facts, start_time=int(query.queued_s * NANO)
        )

    def _left(self, way: _Way, facts: dict[str, Any]) -> None:
        now = self._now()
        way.span.set_attributes(facts)
        way.span.end(now)
        if way.batch is not None:
            way.batch.open -= 1
            if way.batch.open == 0:
                way.batch.span.end(now)

    def _now(self) -> int:
        return int(self._clock() * NANO)


class Traced:
    """ASGI middleware: a span for each request that may carry items. The outermost, so that refusals have theirs, too."""

    def __init__(self, app: ASGIApp, *, tracer: Tracer) -> None:
        self._app, self._tracer = app, tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer within a span."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        span = self._tracer.start_span(
            "POST",
            _parents.extract(dict(Headers(scope=scope))),
            SpanKind.SERVER,
            attributes={"http.request.method": "POST", "url.path": scope["path"]},
        )

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                _name(span, scope, message["status"])
                span.set_attribute("http.response.status_code", message["status"])
                if message["status"] >= 500:
                    span.set_status(Status(StatusCode.ERROR))
            await send(message)

        with trace.use_span(span, end_on_exit=True):
            await self._app(scope, receive, sending)


def _name(span: Span, scope: Scope, status: int) -> None:
    """Name a span by its path, if that is one that is served, of which there are few; and give it the id that the logs have."""
    if status not in UNROUTED:
        span.update_name(f"POST {path_of(scope)}")
        span.set_attribute("http.route", path_of(scope))
    visit = scope.get("state", {}).get("visit")
    if visit is not None:
        span.set_attribute("coe.request_id", visit.request_id)


class TracedRpc(V2Rpc):
    """As `V2Rpc`, with a span for each inference."""

    def __init__(
        self,
        service: Service,
        gate: Gate,
        access_log: logging.Logger | None,
        clock: Callable[[], float],
        *,
        tracer: Tracer,
    ) -> None:
        super().__init__(service, gate, access_log, clock)
        self._tracer = tracer

    async def respond(self, method: str, body: bytes, context: Any) -> Rpc:
        """Answer within a span."""
        if method != "ModelInfer":
            return await super().respond(method, body, context)
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        span = self._tracer.start_span(
            f"{SERVICE}/{method}",
            _parents.extract(metadata),
            SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": SERVICE, "rpc.method": method},
        )
        with trace.use_span(span, end_on_exit=True):
            return await super().respond(method, body, context)
