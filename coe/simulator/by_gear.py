"""The ledgers of gears that stand together, as a service writes them: one for each gear, with the node time of its own service.

A record belongs to the gear that asked. Node time belongs to the gear that a router is in, from the instant of a change to that
of the next; where several routers are in different gears it is in the ledgers of both, and the report counts it once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from coe.records import NodeSpan, Record


@dataclass(frozen=True)
class Shift:
    """From this instant on a router is in a gear."""

    at_s: float
    gear: int


def spans_of(gear: int, spans: Sequence[NodeSpan], shifts: Iterable[Sequence[Shift]]) -> list[NodeSpan]:
    """The node time that the routers write while they are in a gear. shifts: of each router, rising, from its start on."""
    found = []
    for of_router in shifts:
        for now, following in pairwise((*of_router, Shift(float("inf"), -1))):
            if now.gear == gear:
                found += [cut for span in spans if (cut := _cut(span, now.at_s, following.at_s)) is not None]
    return sorted(found, key=lambda s: (s.start_s, s.node_type))


def _cut(span: NodeSpan, start_s: float, end_s: float) -> NodeSpan | None:
    start_s, end_s = max(start_s, span.start_s), min(end_s, span.end_s)
    if start_s >= end_s:
        return None
    return NodeSpan(span.node_type, span.count, span.usd_per_hour, start_s, end_s)


def counted(spans: Iterable[NodeSpan]) -> Iterator[NodeSpan]:
    """Spans of single nodes as those of how many there are: no two of a node type overlap."""
    of_type: dict[str, list[NodeSpan]] = {}
    for span in spans:
        of_type.setdefault(span.node_type, []).append(span)
    for node_type, own in of_type.items():
        edges = sorted({edge for s in own for edge in (s.start_s, s.end_s)})
        for start_s, end_s in pairwise(edges):
            there = [s for s in own if s.start_s <= start_s and s.end_s >= end_s]
            if there:
                count = sum(s.count for s in there)
                usd_per_hour = sum(s.count * s.usd_per_hour for s in there) / count
                yield NodeSpan(node_type, count, usd_per_hour, start_s, end_s)


def ledger(
    gear: int, own: Sequence[Record], spans: Sequence[NodeSpan], shifts: Iterable[Sequence[Shift]]
) -> tuple[Record, ...]:
    """What the service writes of a gear. own: its calls, answers and audits.   spans: of all nodes that were rented."""
    return (*spans_of(gear, list(counted(spans)), shifts), *own)
