"""What the service says of its ledger: figures for Prometheus, and a note where records wait or were lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from coe.ledger import LedgerState
from coe.serving.metrics import as_text

_COUNTS = tuple(f.name for f in fields(LedgerState) if f.name not in ("says", "last_write_s"))


def ledger_notes(state: LedgerState | None) -> tuple[str, ...]:
    """What an operator should know; nothing where all is well or no ledger is kept."""
    if state is None:
        return ()
    notes = []
    if state.says:
        notes.append(f"The ledger cannot be written ({state.says}); {state.waiting:,} records wait.")
    if state.lost:
        notes.append(f"{state.lost:,} records are lost to the ledger; the sums here have them, `coe report` will not.")
    return tuple(notes)


def together(states: Iterable[LedgerState | None]) -> LedgerState | None:
    """The sum of several ledgers of one router, those of its gears; None where none is kept."""
    kept = [state for state in states if state is not None]
    if not kept:
        return None
    sums = {name: sum(getattr(s, name) for s in kept) for name in _COUNTS}
    return LedgerState(
        **sums,
        last_write_s=max((s.last_write_s for s in kept if s.last_write_s is not None), default=None),
        says=next((s.says for s in kept if s.says), ""),
    )


def ledger_exposition(state: LedgerState | None, router: str) -> bytes:
    """The text that Prometheus scrapes; nothing where no ledger is kept."""
    return b"" if state is None else as_text(_metrics(state, router))


def _metrics(state: LedgerState, router: str) -> Iterator[Metric]:
    """Records, bytes, files, failures, and when it was last written."""
    of_router = ("router",)
    records = CounterMetricFamily(
        "coe_ledger_records_total",
        "Records of the ledger. lost: they could not be written and did not fit into memory any more.",
        labels=(*of_router, "status"),
    )
    records.add_metric((router, "written"), state.written)
    records.add_metric((router, "lost"), state.lost)
    yield records
    for name, text, value in (
        ("coe_ledger_bytes_total", "Bytes of the ledger.", state.bytes),
        ("coe_ledger_files_total", "Files of the ledger, deleted ones included.", state.parts),
        (
            "coe_ledger_files_deleted_total",
            "Old files of the folder that were deleted as keep_days says.",
            state.deleted,
        ),
        (
            "coe_ledger_write_errors_total",
            "Writes that failed; most of what they carried is written later.",
            state.errors,
        ),
    ):
        counter = CounterMetricFamily(name, text, labels=of_router)
        counter.add_metric((router,), value)
        yield counter
    for name, text, gauge_value in (
        ("coe_ledger_records_waiting", "Records that wait to be written.", float(state.waiting)),
        (
            "coe_ledger_last_write_timestamp_seconds",
            "When something was last written, in seconds since 1970; absent where nothing was.",
            state.last_write_s,
        ),
    ):
        gauge = GaugeMetricFamily(name, text, labels=of_router)
        if gauge_value is not None:
            gauge.add_metric((router,), gauge_value)
        yield gauge
