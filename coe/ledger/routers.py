"""Node time of several routers: each writes that of the whole service, so what they tell of one moment is the same nodes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from coe.records import NodeSpan


def node_time_once(ledgers: Sequence[Sequence[NodeSpan]]) -> list[NodeSpan]:
    """The spans of several ledgers as one ledger would have them: at every moment the most nodes that one of them tells of.

    Within a ledger, spans that overlap are of different nodes and add up.
    """
    found: list[NodeSpan] = []
    for node_type in sorted({s.node_type for spans in ledgers for s in spans}):
        changes: dict[float, list[tuple[int, int, float]]] = defaultdict(list)
        for number, spans in enumerate(ledgers):
            for s in spans:
                if s.node_type == node_type and s.end_s > s.start_s:
                    changes[s.start_s].append((number, s.count, s.count * s.usd_per_hour))
                    changes[s.end_s].append((number, -s.count, -s.count * s.usd_per_hour))
        counts, prices = [0] * len(ledgers), [0.0] * len(ledgers)
        for start_s, end_s in pairwise([*sorted(changes), float("inf")]):
            for number, count, price in changes[start_s]:
                counts[number] += count
                prices[number] += price
            most = max(range(len(ledgers)), key=counts.__getitem__)
            if counts[most]:
                found.append(NodeSpan(node_type, counts[most], prices[most] / counts[most], start_s, end_s))
    return found
