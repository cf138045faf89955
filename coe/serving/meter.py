"""What the service is billed for: rented nodes as time goes by, and the ledger that everything is written to."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from coe.ledger import Ledger, LedgerState
from coe.records import NodeSpan, Record
from coe.types import Plan

REST_S = 3600.0
SPAN_S = 10.0
"""Without traffic a span of node time is written this often; with traffic, at every flush."""


class Meter:
    """Collects records and node time. `tick` is called about once a second; `close` writes what is left.

    Nodes are counted as the plan rents them, or as many as replies came from, where that is more.
    """

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger | None,
        clock: Callable[[], float],
        observe: Callable[[Record], None] = lambda _record: None,
    ) -> None:
        """observe: takes every record at once, also where no ledger is kept."""
        self._plan = plan
        self._ledger = ledger
        self._clock = clock
        self._observe = observe
        self._is_new = False
        self._counts_nodes = True
        self._span_start_s = self._rested_s = clock()
        self._seen: dict[str, set[str]] = {}
        self.node_type_of: Mapping[str, str] = {p.deployment: p.node_type for p in plan.placements}

    def record(self, record: Record) -> None:
        """Take a record for the next flush."""
        self._is_new = True
        self._observe(record)
        if self._ledger is not None:
            self._ledger.append(record)

    @property
    def ledger(self) -> LedgerState | None:
        """What has become of the records so far; None where no ledger is kept."""
        return None if self._ledger is None else self._ledger.state

    def saw_node(self, deployment: str, node: str) -> None:
        """A reply of `deployment` came from `node`."""
        if node:
            self._seen.setdefault(self.node_type_of[deployment], set()).add(node)

    def tick(self) -> None:
        """Write what was recorded, with the node time up to now."""
        if self._is_new or self._clock() - self._span_start_s >= SPAN_S:
            self._add_spans()
            self._is_new = False
        if self._ledger is not None:
            self._ledger.flush_aside()
        if not self._counts_nodes:
            self._rest()

    def stop_spans(self, at_s: float | None = None) -> None:
        """Write the node time up to now, and no more: from here on another meter counts it."""
        self._add_spans(at_s)
        self._counts_nodes = False

    def start_spans(self, at_s: float) -> None:
        """Count node time from now on: another meter did so far."""
        self._counts_nodes, self._span_start_s = True, at_s

    def _rest(self) -> None:
        """While another gear is in service nothing is written, and retention must not take the ledger for an old one."""
        if self._ledger is not None and self._clock() - self._rested_s >= REST_S:
            self._rested_s = self._clock()
            self._ledger.stay_young()

    def close(self) -> None:
        """Write everything and close the ledger."""
        if self._ledger is not None:
            self._add_spans()
            self._ledger.close()
            self._ledger = None

    def _add_spans(self, at_s: float | None = None) -> None:
        if not self._counts_nodes:
            return
        now = self._clock() if at_s is None else at_s
        for node in self._plan.nodes:
            is_router = node.node_type == self._plan.router.node_type
            own = self._plan.router.replicas if is_router else 0
            count = max(node.count, len(self._seen.get(node.node_type, ())) + own)
            self.record(NodeSpan(node.node_type, count, node.usd_per_hour, self._span_start_s, now))
        self._span_start_s = now
