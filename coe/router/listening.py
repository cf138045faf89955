"""Who follows each query on its way: tracing, for one. The core tells a listener and never waits for it.

What becomes of member calls is in the records that the core makes; they are made in the context (`contextvars`) in which
`batched` was called, so a listener that sets a variable there knows it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from coe.records import Answer
    from coe.router.queries import Query


class Listener(Protocol):
    """What is told. `Query.trace` is the listener's own, to remember a query by."""

    def arrived(self, queries: Sequence[Query]) -> None:
        """Queries of one request wait before the first tier; called in the request's context."""

    def batched(self, tier: int, batch: Sequence[Query]) -> None:
        """They leave the tier's queue as a batch, whose calls inherit the context of this one."""

    def passed_on(self, tier: int, queries: Sequence[Query]) -> None:
        """The tier defers them; they wait before the next one."""

    def ended(self, query: Query, answer: Answer) -> None:
        """Its answer, or that there is none (`status` "failed")."""
