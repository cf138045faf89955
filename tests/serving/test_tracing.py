"""Spans of real requests through a real router core, caught in memory. No Ray, no collector."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx
import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode

from coe.cascade.evaluate import route
from coe.errors import Unavailable
from coe.router.core import RouterCore
from coe.router.queries import Reply
from coe.serving.door import Gate
from coe.serving.service import Service
from coe.serving.telemetry import provider_of
from coe.serving.tracing import QueryTracing, Traced, TracedRpc
from coe.serving.v2_messages import CLASSES
from coe.serving.web import application
from coe.types import Access, Placement, Tracing
from tests.core_case import recorded, running, until_idle
from tests.serving.web_case import TABLE, planned, row_numbers

PLAN = planned()
ROUTING = route(PLAN.cascade, TABLE)
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class World:
    """A service whose spans are caught."""

    def __init__(self, sampler: Sampler = ALWAYS_ON, wait_s: float = 0.02, down: frozenset[str] = frozenset()) -> None:
        self.caught = InMemorySpanExporter()
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.caught))
        self.tracer, self._down = provider.get_tracer("coe"), down
        tracing = QueryTracing(self.tracer, time.time)
        self.core = RouterCore(
            PLAN.cascade,
            PLAN.placements,
            PLAN.pool.classes,
            wait_s=wait_s,
            latency_s=2.0,
            call=self._call,
            clock=time.time,
            record=tracing.recording(lambda _record: None),
            listener=tracing,
        )
        self.service = Service(PLAN, Access(), self._ask, lambda: True, list)
        self.api = application(self.service)
        self.api.front = Traced(self.api.front, tracer=self.tracer)

    async def _ask(self, items: Mapping[str, np.ndarray], timeout_s: float) -> Any:
        return await self.core.ask(items, timeout_s=timeout_s)

    async def _call(self, where: Placement, batch: np.ndarray) -> Reply:
        if where.member in self._down:
            raise RuntimeError("down")
        said = recorded(TABLE, where.member, row_numbers(batch) % len(TABLE))
        return Reply(said, 0.001, "node-1", fee_usd=0.5)

    def run(self, talk: Callable[[httpx.AsyncClient], Awaitable[object]]) -> list[ReadableSpan]:
        """The spans of a conversation, once everything is over."""

        async def all_of_it() -> None:
            transport = httpx.ASGITransport(app=self.api)
            async with running(self.core):
                async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
                    await talk(client)
                await until_idle(self.core)

        asyncio.run(all_of_it())
        return list(self.caught.get_finished_spans())


def body(*rows: int) -> dict[str, Any]:
    return {"items": [{"id": f"row {row}", "input": [[row, 0], [0, 0]]} for row in rows]}


def named(spans: list[ReadableSpan], start: str) -> list[ReadableSpan]:
    return [span for span in spans if span.name.startswith(start)]


def parent_of(span: ReadableSpan, spans: list[ReadableSpan]) -> ReadableSpan:
    assert span.parent is not None
    (found,) = (s for s in spans if s.context.span_id == span.parent.span_id)
    return found


def traceparent(flags: str = "01") -> dict[str, str]:
    return {"traceparent": f"00-{TRACE}-{SPAN}-{flags}"}


def rows_of_tier(tier: int) -> list[int]:
    return [int(row) for row in np.flatnonzero(ROUTING.tier == tier)]


def test_a_request_is_a_child_of_the_clients_span_and_has_a_span_per_tier_batch_and_call() -> None:
    escalating = rows_of_tier(1)[0]
    headers = traceparent() | {"x-request-id": "mine-1"}
    spans = World().run(lambda client: client.post("/predict", json=body(escalating), headers=headers))
    assert all(f"{span.context.trace_id:032x}" == TRACE for span in spans)
    (request,) = named(spans, "POST")
    assert (request.name, request.kind) == ("POST /predict", SpanKind.SERVER)
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == SPAN
    facts = dict(request.attributes or {})
    assert (facts["http.response.status_code"], facts["coe.items"], facts["coe.request_id"]) == (200, 1, "mine-1")
    for number, outcome in ((1, "deferred"), (2, "answered")):
        (tier,) = named(spans, f"tier {number}")
        assert parent_of(tier, spans) is request
        assert tier.attributes is not None
        assert (tier.attributes["coe.outcome"], tier.attributes["coe.query_id"]) == (outcome, f"row {escalating}")
        (batch,) = (b for b in named(spans, "batch") if parent_of(b, spans) is tier)
        calls = [c for c in named(spans, "call") if parent_of(c, spans) is batch]
        members = {dict(c.attributes or {})["coe.member"] for c in calls}
        assert members == set(PLAN.cascade.tiers[number - 1].members)
        assert all(c.kind is SpanKind.CLIENT and dict(c.attributes or {})["coe.fee_usd"] == 0.5 for c in calls)
        assert (tier.start_time or 0) <= (batch.start_time or 0) <= (tier.end_time or 0)
    assert len(spans) == 1 + 2 + 2 + len(PLAN.cascade.members)


def test_a_batch_of_several_requests_hangs_below_one_and_is_linked_with_the_others() -> None:
    rows = rows_of_tier(0)[:3]

    async def at_once(client: httpx.AsyncClient) -> None:
        await asyncio.gather(*(client.post("/predict", json=body(row)) for row in rows))

    spans = World(wait_s=0.2).run(at_once)
    (batch,) = named(spans, "batch")
    tiers = named(spans, "tier")
    assert len({t.context.trace_id for t in tiers}) == 3, "each request is a trace of its own"
    first = parent_of(batch, spans)
    others = [t for t in tiers if t is not first]
    assert {link.context.span_id for link in batch.links} == {t.context.span_id for t in others}
    assert [[link.context.span_id for link in t.links] for t in others] == [[batch.context.span_id]] * 2
    assert dict(batch.attributes or {})["coe.batch.items"] == 3


def test_who_is_not_sampled_has_no_spans_and_no_part_in_those_of_others() -> None:
    rows = rows_of_tier(0)[:2]

    async def at_once(client: httpx.AsyncClient) -> None:
        traced = client.post("/predict", json=body(rows[0]), headers=traceparent("01"))
        await asyncio.gather(client.post("/predict", json=body(rows[1]), headers=traceparent("00")), traced)

    spans = World(ParentBased(TraceIdRatioBased(0.0)), wait_s=0.2).run(at_once)
    assert len(named(spans, "POST")) == len(named(spans, "tier")) == 1
    (batch,) = named(spans, "batch")
    assert not batch.links
    assert dict(batch.attributes or {})["coe.batch.items"] == 2
    assert World(ParentBased(TraceIdRatioBased(0.0))).run(lambda c: c.post("/predict", json=body(1))) == []


def test_what_fails_is_marked() -> None:
    world = World(down=frozenset(PLAN.cascade.members))
    spans = world.run(lambda client: client.post("/predict", json=body(1)))
    (request,) = named(spans, "POST")
    assert request.status.status_code is StatusCode.ERROR
    calls = named(spans, "call")
    assert calls
    assert all(
        c.status.status_code is StatusCode.ERROR and dict(c.attributes or {})["coe.status"] == "failed" for c in calls
    )
    (last,) = named(spans, "tier 2")
    assert dict(last.attributes or {})["coe.outcome"] == "failed"
    ids = {span.context.span_id for span in spans}
    assert all(span.parent is None or span.parent.span_id in ids for span in spans), "every span has ended"


def test_requests_that_carry_no_items_have_no_spans_and_refusals_have_one() -> None:
    async def talk(client: httpx.AsyncClient) -> None:
        await client.get("/healthz")
        await client.get("/metrics")
        assert (await client.post("/predict", json={"items": []})).status_code == 422

    (span,) = World().run(talk)
    assert dict(span.attributes or {})["http.response.status_code"] == 422


class Rpc:
    """What gRPC gives a method."""

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return list(traceparent().items())

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def set_trailing_metadata(self, metadata: object) -> None:
        self.trailing = metadata


def test_an_inference_over_grpc_is_a_request_too() -> None:
    world = World()
    rpc = TracedRpc(world.service, Gate(Access(), time.monotonic), None, time.monotonic, tracer=world.tracer)
    request = CLASSES["ModelInferRequest"](model_name=PLAN.cascade.name)
    request.inputs.add(name="input", datatype="FP32", shape=[1, 2, 2])
    request.raw_input_contents.append(np.array([[[1, 0], [0, 0]]], dtype=np.float32).tobytes())
    spans = world.run(lambda _client: rpc.respond("ModelInfer", request.SerializeToString(), Rpc()))
    (found,) = named(spans, "inference.GRPCInferenceService/ModelInfer")
    assert f"{found.context.trace_id:032x}" == TRACE
    assert parent_of(named(spans, "tier 1")[0], spans) is found


# --- Whether it is on -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tracing", "environment", "is_on"),
    [
        (None, {}, False),
        (None, {"OTEL_SERVICE_NAME": "mine"}, False),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, True),
        (None, {"OTEL_TRACES_EXPORTER": "console"}, True),
        (None, {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, False),
        (Tracing(endpoint="http://127.0.0.1:9/v1/traces"), {}, True),
        (Tracing(), {"OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_what_turns_tracing_on(tracing: Tracing | None, environment: dict[str, str], is_on: bool) -> None:
    provider = provider_of(tracing, environment)
    assert (provider is not None) == is_on
    if provider is not None:
        assert provider.resource.attributes["service.name"] == "coe"
        provider.shutdown()


def test_without_the_packages_asking_for_it_is_refused_and_the_environment_is_not_heard(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(Unavailable, match=r"pip install 'coe\[tracing\]'"):
        provider_of(Tracing(), {})
    assert provider_of(None, {"OTEL_TRACES_EXPORTER": "otlp"}) is None
    assert "requests are not traced" in caplog.text


def test_off_means_that_nothing_of_it_is_imported() -> None:
    check = (
        "import sys, coe.router.core, coe.serving.telemetry as t; assert t.provider_of(None, {}) is None;"
        "sys.exit(any(m.startswith('opentelemetry') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
