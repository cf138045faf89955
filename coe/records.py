"""What happened: the records of a ledger, written by the service, and what a client saw of the same queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from coe.types import Noun, Positive


@dataclass(frozen=True, slots=True)
class NodeSpan:
    """Nodes of one type that were rented from start_s to end_s, busy or not. Spans never overlap for one node."""

    node_type: str
    count: int
    usd_per_hour: float
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class BatchRun:
    """One call of one member with a batch. Billed whatever its status: `busy_s` x `share` of the node's price.

    status: ok · late (answered after the router gave up) · failed · cancelled (the router no longer needed it).
    """

    tier: int
    member: str
    node_type: str
    share: float
    items: int
    start_s: float
    busy_s: float
    status: str = "ok"
    fee_usd: float = 0.0
    """What the call cost beside machines: tokens of a hosted model, bytes on a link."""
    audit: bool = False
    """Made for shadow audits, of which no client knows."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one query got, and when. `answer` is a class index, `MISSING_VOTE` for a query that failed.

    agreed, voted: members that voted for the answer, of those that had voted for anything when it was given; both 0 where that
    is not known, in a simulation or in a ledger from before.
    """

    query_id: str
    arrival_s: float
    done_s: float
    tier: int
    answer: int
    score: float
    degraded: bool
    status: str = "ok"
    agreed: int = 0
    voted: int = 0


@dataclass(frozen=True, slots=True)
class Auditing:
    """How a router makes shadow audits from `at_s` on: `coe.types.Audits`, with what it left open decided.

    strictness: how many steps the early tiers' gates are stricter than the plan's; 0 is the plan.
    """

    at_s: float
    share: float
    usd_per_hour: float
    delta: float
    alarm_above: float
    strictness: int = 0


@dataclass(frozen=True, slots=True)
class Audit:
    """A query that tier `tier` answered and that was chosen for a shadow audit, at its end. `last` is the last tier's own answer,
    `MISSING_VOTE` where there is none.

    outcome: same · differs · failed (the last tier did not answer) · unpaid (no money was left) · busy (the last tier had its
    hands full) · resting (another gear had taken over) · dropped (the router closed).
    """

    query_id: str
    tier: int
    answer: int
    last: int
    asked_s: float
    done_s: float
    outcome: str


Record = NodeSpan | BatchRun | Answer | Auditing | Audit


class BenchAnswer(Noun):
    """What the client saw of one query. Times are seconds since the Unix epoch."""

    item: str
    answer: int
    """Class index; `MISSING_VOTE` for a failed request."""
    label: int
    tier: int
    degraded: bool
    due_s: float
    """When the open loop meant to send it; latency counts from here, so a slow client hides nothing."""
    done_s: float
    http_status: int
    """0 where no response came."""

    @property
    def latency_s(self) -> float:
        """From the moment it was due to the response."""
        return self.done_s - self.due_s


class Bench(Noun):
    """One run of a client against a live service."""

    kind: Literal["bench"] = "bench"
    version: Literal[1] = 1
    url: str
    data: str
    """Data file and split."""
    rate_per_s: Positive
    seed: int
    started_s: float
    ended_s: float
    answers: Annotated[tuple[BenchAnswer, ...], Field(min_length=1)]
