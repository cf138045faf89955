"""Whether requests are traced, and where their spans go: by the part `tracing` of the deployment's arguments, or by
OpenTelemetry's own environment variables on the router's node.

The packages come with `coe[tracing]`; without one of both settings none of them is imported.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from coe.errors import Unavailable
from coe.types import Tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

SWITCHES = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Variables of which one turns tracing on. Endpoint, headers, sampler and limits are read by OpenTelemetry itself."""
NEEDED = "tracing needs OpenTelemetry: pip install 'coe[tracing]'"

log = logging.getLogger("coe.router")


def provider_of(tracing: Tracing | None, environment: Mapping[str, str]) -> TracerProvider | None:
    """What spans are made with; None where tracing is off.

    Raises `Unavailable` where `tracing` asks for it and OpenTelemetry is not installed; where only the environment does, the log
    says so.
    """
    exporter = environment.get("OTEL_TRACES_EXPORTER", "otlp")
    is_off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or exporter == "none"
    if is_off or (tracing is None and not any(environment.get(name) for name in SWITCHES)):
        return None
    try:
        return _provider(tracing or Tracing(), exporter, environment)
    except ImportError as error:
        if tracing is not None:
            raise Unavailable(f"{NEEDED} ({error})") from None
        log.warning("%s (%s); requests are not traced", NEEDED, error)
        return None


def _provider(tracing: Tracing, exporter: str, environment: Mapping[str, str]) -> TracerProvider:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    to: SpanExporter
    if exporter == "console":
        to = ConsoleSpanExporter()
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        to = OTLPSpanExporter(endpoint=tracing.endpoint)
    name = tracing.service_name or environment.get("OTEL_SERVICE_NAME") or "coe"
    provider = TracerProvider(
        sampler=None if tracing.sample is None else ParentBased(TraceIdRatioBased(tracing.sample)),
        resource=Resource.create({"service.name": name}),
    )
    provider.add_span_processor(BatchSpanProcessor(to))
    return provider
