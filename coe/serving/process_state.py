"""What the router's process takes, for Prometheus: what grows here while the load does not is a leak."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric

from coe.serving.metrics import as_text

PROC = Path("/proc/self")


def process_exposition(tasks: int, router: str, proc: Path = PROC) -> bytes:
    """The text that Prometheus scrapes. tasks: of the event loop.   proc: where Linux tells; elsewhere only tasks are known."""
    values = {"coe_router_tasks": ("Tasks of the router's event loop, those of requests under way included.", tasks)}
    try:
        pages = int((proc / "statm").read_text().split()[1])
        values["coe_router_resident_bytes"] = ("Memory of the router's process.", pages * os.sysconf("SC_PAGE_SIZE"))
        values["coe_router_open_files"] = ("Open files and connections.", len(list((proc / "fd").iterdir())))
    except OSError:
        pass
    return as_text(_gauges(values, router))


def _gauges(values: dict[str, tuple[str, int]], router: str) -> Iterator[Metric]:
    """Each as a gauge."""
    for name, (text, value) in values.items():
        gauge = GaugeMetricFamily(name, text, labels=("router",))
        gauge.add_metric((router,), value)
        yield gauge
