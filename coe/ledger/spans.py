"""Node time as few spans: what follows on without a gap, of as many nodes at the same price, is one span."""

from __future__ import annotations

from coe.records import NodeSpan


class Spans:
    """Spans of one ledger, which writes two a second for each node type; they add up to the same node time at every moment."""

    def __init__(self) -> None:
        self._found: list[NodeSpan] = []
        self._ends: dict[tuple[str, int, float, float], list[int]] = {}
        """(node type, count, price, end) -> numbers of the spans that end so."""

    def add(self, span: NodeSpan) -> None:
        """Add a span, to the end of one that it follows on."""
        kind = span.node_type, span.count, span.usd_per_hour
        before = self._ends.get((*kind, span.start_s))
        if before and span.end_s > span.start_s:
            number = before.pop()
            if not before:
                del self._ends[*kind, span.start_s]
            self._found[number] = NodeSpan(*kind, self._found[number].start_s, span.end_s)
        else:
            number = len(self._found)
            self._found.append(span)
        self._ends.setdefault((*kind, span.end_s), []).append(number)

    @property
    def found(self) -> tuple[NodeSpan, ...]:
        """In the order in which they begin to be written."""
        return tuple(self._found)
