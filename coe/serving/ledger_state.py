"""What the service says of its ledger: figures for Prometheus, and a note where records wait or were lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from coe.ledger import LedgerState

_COUNTS = tuple(f.name for f in fields(LedgerState) if f.name != "says")


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
    return LedgerState(**sums, says=next((s.says for s in kept if s.says), ""))


def ledger_exposition(state: LedgerState | None, router: str) -> bytes:
    """The text that Prometheus scrapes; nothing where no ledger is kept."""
    if state is None:
        return b""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(state, router))
    text: bytes = generate_latest(registry)
    return text


class _Collected:
    """What prometheus_client calls a collector."""

    def __init__(self, state: LedgerState, router: str) -> None:
        self._state, self._router = state, router

    def collect(self) -> Iterator[Metric]:
        """Records, bytes, files, failures."""
        state, of_router = self._state, ("router",)
        records = CounterMetricFamily(
            "coe_ledger_records_total",
            "Records of the ledger. lost: they could not be written and did not fit into memory any more.",
            labels=(*of_router, "status"),
        )
        records.add_metric((self._router, "written"), state.written)
        records.add_metric((self._router, "lost"), state.lost)
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
            counter.add_metric((self._router,), value)
            yield counter
        waiting = GaugeMetricFamily("coe_ledger_records_waiting", "Records that wait to be written.", labels=of_router)
        waiting.add_metric((self._router,), state.waiting)
        yield waiting
