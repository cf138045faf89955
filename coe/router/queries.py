"""What passes through the router: queries, replies of members, and the two ways in which there is no answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np

from coe.records import Answer
from coe.router.spending import Spent
from coe.types import FloatArray, Placement, Probabilities, Tokens

Batch = np.ndarray


@dataclass(frozen=True)
class Reply:
    """What a member's replica returns: probabilities (items, classes), busy seconds, and the node it ran on.

    A row that is not finite is no answer to that item, a missing vote; a row of zeros is an output that holds no answer.
    """

    probs: Probabilities
    busy_s: float
    node: str = ""
    fee_usd: float = 0.0
    """What the call cost beside machines."""
    item_fees_usd: FloatArray | None = None
    """(items,): the same by item; None where nobody knows, and all items share it."""
    tokens: Tokens | None = None
    """(items, 2) prompt and completion tokens, None where nobody counts them."""


Call = Callable[[Placement, Batch], Awaitable[Reply]]


class Unanswered(Exception):
    """No member of any tier answered a query."""


class Garbage(Exception):
    """A member replied with something that is no probabilities of the right shape."""


class Late(Exception):
    """A member did not reply in time."""


class Overloaded(Exception):
    """The queues hold as much as can be answered within the promise; worth another try after `retry_after_s`."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"the queues are full; try again in {retry_after_s:.1f} s")
        self.retry_after_s = retry_after_s


class Answers(list["Answer | Unanswered"]):
    """The answers to a request, in its order, and what the calls of each item took by then."""

    spent: tuple[Spent, ...] = ()
    """Empty where the core has no prices."""
    retry_after_s: float | None = None
    """Where an item got no answer and all members of all tiers rest: seconds until the first is tried again."""


@dataclass
class Query:
    """A query on its way through the tiers."""

    query_id: str
    item: Batch
    arrival_s: float
    queued_s: float
    result: asyncio.Future[Answer]
    deadline_s: float = math.inf
    """After this moment nobody waits for the answer."""
    fallback: Answer | None = field(default=None)
    heard: dict[str, Probabilities | None] = field(default_factory=dict)
    """Member -> its probabilities (classes,), or None where it failed; kept only where a later tier carries."""
    spent: Spent = field(default_factory=Spent)
    trace: object = None
    """Of the core's listener, if there is one."""
    audited: Answer | None = field(default=None)
    """The answer that its client has already, where this is an audit; nobody waits for it then."""
