"""What each query's calls took, kept while it is on its way: dollars and tokens of calls that have ended, and how many have not.

A batch's busy seconds are shared equally by its items, fees and tokens are each item's own where the replica says so. Calls that
an answer did not wait for end after it; they are counted as under way and not guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coe.cost.parts import part_usd
from coe.types import Placement

if TYPE_CHECKING:
    from coe.router.queries import Query, Reply


@dataclass(slots=True)
class Spent:
    """Of one query, so far."""

    usd: float = 0.0
    under_way: int = 0
    """Calls that have begun and not ended: they will be billed, too."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    counted: int = 0
    """Ended calls whose tokens these are."""
    uncounted: int = 0
    """Calls of hosted models whose tokens are not known: under way, failed, or of an endpoint that does not count."""

    def begun(self, placement: Placement) -> None:
        """A call for the query has been sent."""
        self.under_way += 1
        self.uncounted += placement.api is not None


class Spending:
    """Takes down what calls took."""

    def __init__(self, usd_per_busy_s: Mapping[str, float]) -> None:
        """usd_per_busy_s: of a replica, by deployment."""
        self._usd_per_busy_s = usd_per_busy_s

    def ended(
        self, placement: Placement, queries: Sequence[Query], busy_s: float, fee_usd: float, reply: Reply | None
    ) -> None:
        """A call for `queries` has ended, with a reply in their order or without one."""
        items, price = len(queries), self._usd_per_busy_s[placement.deployment]
        fees = tokens = None
        if reply is not None:
            fees, tokens = reply.item_fees_usd, reply.tokens
        for i, query in enumerate(queries):
            spent = query.spent
            spent.under_way -= 1
            spent.usd += part_usd(busy_s, items, price, fee_usd / items if fees is None else float(fees[i]))
            if tokens is not None:
                spent.counted += 1
                spent.uncounted -= placement.api is not None
                spent.prompt_tokens += int(tokens[i, 0])
                spent.completion_tokens += int(tokens[i, 1])
