"""The router's core with members that are plain functions: batches, escalation, missing votes, billing, and no lost query."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.cascade.evaluate import route
from coe.cost.capacity import at_work, in_flight
from coe.records import Answer, BatchRun, Record
from coe.router.core import RouterCore
from coe.router.pace import Pace
from coe.router.queries import Answers, Overloaded, Reply, Unanswered
from coe.router.turns import REST_S, Turns
from coe.table import PredictionTable
from coe.types import Cascade, Placement, Tier
from tests import factories

Member = Callable[[Placement, np.ndarray], Awaitable[Reply]]


def placement(member: str, batch_size: int = 8, node_type: str = "t4-node", traffic: float = 1.0) -> Placement:
    return Placement(
        member=member,
        node_type=node_type,
        replicas=1,
        share=0.5,
        batch_size=batch_size,
        traffic=traffic,
        expected_batch=1.0,
        expected_busy_s=0.001,
        utilisation=0.1,
    )


class Service:
    """A router core over a prediction table whose row numbers are the items; counts what its members are asked."""

    def __init__(
        self, cascade: Cascade, table: PredictionTable, *, batch_size: int = 8, latency_s: float = 0.2
    ) -> None:
        self.table = table
        self.records: list[Record] = []
        self.batches: list[tuple[str, int]] = []
        self.failures: list[str] = []
        self.faults: dict[str, Member] = {}
        self.core = self.core_of(cascade, [placement(m, batch_size) for m in cascade.members], latency_s)

    def core_of(self, cascade: Cascade, placements: list[Placement], latency_s: float) -> RouterCore:
        """A core that asks these members, and writes down here what becomes of it."""
        return RouterCore(
            cascade,
            placements,
            self.table.classes,
            wait_s=0.002,
            latency_s=latency_s,
            call=self.call,
            clock=time.monotonic,
            record=self.records.append,
            note_failure=lambda deployment, _error: self.failures.append(deployment),
        )

    async def call(self, where: Placement, batch: np.ndarray) -> Reply:
        self.batches.append((where.member, len(batch)))
        await asyncio.sleep(0.001)
        if where.member in self.faults:
            return await self.faults[where.member](where, batch)
        return self.honest(where, batch)

    def honest(self, where: Placement, batch: np.ndarray) -> Reply:
        assert self.table.probs is not None
        rows = batch[:, 0].astype(int)
        return Reply(self.table.probs[rows, self.table.members.index(where.member)], 0.001, "node-1")

    def slow(self, seconds: float) -> Member:
        """A member that is right, and takes its time."""

        async def answer(where: Placement, batch: np.ndarray) -> Reply:
            await asyncio.sleep(seconds)
            return self.honest(where, batch)

        return answer

    def ask(self, *requests: dict[str, int]) -> list[Answer | Unanswered]:
        """Send requests (id -> row) side by side; all answers in order."""

        async def run() -> list[Answer | Unanswered]:
            queues = asyncio.ensure_future(self.core.run())
            arrays = [{i: np.array([row], dtype=np.float32) for i, row in r.items()} for r in requests]
            results = await asyncio.gather(*(self.core.ask(a) for a in arrays))
            await self.core.close()
            queues.cancel()
            return [answer for result in results for answer in result]

        return asyncio.run(asyncio.wait_for(run(), 20))

    @property
    def runs(self) -> list[BatchRun]:
        return [r for r in self.records if isinstance(r, BatchRun)]


TABLE = factories.table(n=120)
CASCADE = factories.cascade(rule="vote", quorum=3)


def everything(table: PredictionTable = TABLE) -> list[dict[str, int]]:
    return [{f"q{row}": row} for row in range(len(table))]


@pytest.mark.parametrize(
    "cascade",
    [
        CASCADE,
        factories.cascade(threshold=0.8),
        Cascade(
            tiers=(
                Tier(members=("small", "other"), quorum=2),
                Tier(members=("middle",), rule="score", threshold=0.7),
                Tier(members=("large",)),
            )
        ),
        Cascade(
            tiers=(
                Tier(members=("small", "other"), rule="score", threshold=0.8),
                Tier(members=("middle",), rule="vote", quorum=3, carry=1),
                Tier(members=("large",), rule="score", carry=2),
            )
        ),
        Cascade(
            top_k=2,
            temperatures={"small": 1.5},
            tiers=(
                Tier(members=("small", "other"), rule="score", threshold=0.8, dispatch="staged"),
                Tier(members=("middle", "large"), rule="mean", carry=1, dispatch="staged"),
            ),
        ),
    ],
    ids=["vote", "score", "three tiers", "carried", "staged and carried"],
)
def test_the_service_answers_what_the_evaluation_predicts(cascade: Cascade) -> None:
    service = Service(cascade, TABLE)
    answers = service.ask(*everything())
    routing = route(cascade, TABLE)
    accounted = {m: sum(r.items for r in service.runs if r.member == m) for m in cascade.members}
    assert accounted == dict(zip(cascade.members, routing.asked.sum(axis=0).tolist(), strict=True))
    assert [(a.answer, a.tier) for a in answers if isinstance(a, Answer)] == list(
        zip(routing.answer.tolist(), routing.tier.tolist(), strict=True)
    )
    assert not any(a.degraded for a in answers if isinstance(a, Answer))


def test_queries_of_many_requests_share_batches_and_every_member_is_asked_once_per_batch() -> None:
    service = Service(CASCADE, TABLE)
    service.ask(*everything())
    for member in CASCADE.tiers[0].members:
        sizes = [n for m, n in service.batches if m == member]
        assert sum(sizes) <= len(TABLE)
        assert max(sizes) == 8
        assert len(sizes) <= len(TABLE) / 4
    escalated = [n for m, n in service.batches if m == "large"]
    assert max(escalated) > 1, "escalated queries of several batches form one"


def test_a_batch_that_is_not_half_full_grows_in_the_queue_while_every_replica_is_busy() -> None:
    service = Service(factories.cascade(first=("small",)), TABLE, batch_size=16, latency_s=10.0)
    everyone_is_there = asyncio.Event()

    async def waits(where: Placement, batch: np.ndarray) -> Reply:
        await everyone_is_there.wait()
        return service.honest(where, batch)

    async def run() -> None:
        queues = asyncio.ensure_future(service.core.run())
        asked = [asyncio.ensure_future(service.core.ask({"q0": np.array([0], dtype=np.float32)}))]
        while not service.batches:
            await asyncio.sleep(0.001)
        for row in range(1, 6):
            asked.append(asyncio.ensure_future(service.core.ask({f"q{row}": np.array([row], dtype=np.float32)})))
            await asyncio.sleep(0.004)  # twice what a batch waits
        everyone_is_there.set()
        await asyncio.gather(*asked)
        await service.core.close()
        queues.cancel()

    service.faults["small"] = waits
    asyncio.run(run())
    assert [n for member, n in service.batches if member == "small"] == [1, 5]


def test_half_a_batch_waits_at_the_replica_and_one_across_a_link_is_sent_at_once() -> None:
    assert [at_work(placement("small"), 2), in_flight(placement("small"), 2)] == [2, 4]
    assert at_work(placement("small"), 2, 0.0) == 4
    away_s = 2.5 * placement("small").full_s
    assert [at_work(placement("small"), 2, away_s), in_flight(placement("small"), 2, away_s)] == [10, 10]
    service = Service(factories.cascade(first=("small",)), TABLE, batch_size=4)
    service.faults["small"] = service.slow(0.05)
    service.ask({f"q{row}": row for row in range(6)})  # a full batch, and one that is half full
    first, second = (r.start_s for r in service.runs if r.member == "small")
    assert second - first < 0.04


def test_every_call_and_every_answer_is_in_the_ledger() -> None:
    service = Service(CASCADE, TABLE)
    service.ask(*everything())
    made = [r for r in service.runs if r.status != "cancelled"]
    assert sorted((r.member, r.items) for r in made) == sorted(service.batches)
    answers = [r.query_id for r in service.records if isinstance(r, Answer)]
    assert sorted(answers) == sorted(f"q{row}" for row in range(len(TABLE)))


def test_answers_come_back_in_the_order_of_the_request() -> None:
    service = Service(CASCADE, TABLE)
    request = {f"q{row}": row for row in range(50)}
    assert [a.query_id for a in service.ask(request) if isinstance(a, Answer)] == list(request)


async def _fails(_where: Placement, _batch: np.ndarray) -> Reply:
    raise RuntimeError("the replica died")


async def _hangs(_where: Placement, batch: np.ndarray) -> Reply:
    await asyncio.sleep(0.6)
    return Reply(np.full((len(batch), 5), 0.2, dtype=np.float32), 0.6)


async def _wrong_shape(_where: Placement, batch: np.ndarray) -> Reply:
    return Reply(np.full((len(batch), 3), 1 / 3, dtype=np.float32), 0.001)


async def _nan(_where: Placement, batch: np.ndarray) -> Reply:
    return Reply(np.full((len(batch), 5), np.nan, dtype=np.float32), 0.001)


FAULTS: list[tuple[Member, str]] = [(_fails, "failed"), (_wrong_shape, "failed"), (_nan, "failed"), (_hangs, "late")]


@pytest.mark.parametrize(("fault", "status"), FAULTS, ids=["fails", "wrong shape", "NaN", "hangs"])
def test_a_faulty_member_is_a_missing_vote_and_is_billed(fault: Member, status: str) -> None:
    """Unanimity of three with one vote missing can accept nothing: all go to the large model, and none is lost."""
    table = TABLE.rows(np.arange(len(TABLE)) < 24)
    service = Service(CASCADE, table, batch_size=24, latency_s=0.1)
    service.faults["other"] = fault
    answers = service.ask({f"q{row}": row for row in range(len(table))})
    large = table.answers[:, table.members.index("large")]
    assert [(a.answer, a.tier) for a in answers if isinstance(a, Answer)] == [(y, 1) for y in large.tolist()]
    if status == "failed":
        assert {r.status for r in service.runs if r.member == "other"} == {"failed"}


def test_a_late_call_is_billed_with_its_real_time_when_it_ends() -> None:
    table = TABLE.rows(np.arange(len(TABLE)) < 4)
    service = Service(CASCADE, table, batch_size=4, latency_s=0.05)
    service.faults["other"] = _hangs

    async def run() -> None:
        queues = asyncio.ensure_future(service.core.run())
        await service.core.ask({str(row): np.array([row], dtype=np.float32) for row in range(4)})
        await asyncio.sleep(0.8)
        queues.cancel()

    asyncio.run(run())
    (late,) = [r for r in service.runs if r.member == "other"]
    assert late.status == "late"
    assert late.busy_s == pytest.approx(0.6)


def test_a_quorum_that_holds_anyway_is_accepted_with_a_vote_missing() -> None:
    cascade = factories.cascade(rule="vote", quorum=2)
    agree = TABLE.outputs(("middle", "small")).answers[:, 0] == TABLE.outputs(("middle", "small")).answers[:, 1]
    table = TABLE.rows(agree)
    service = Service(cascade, table)
    service.faults = {"other": _fails, "middle": service.slow(0.02), "small": service.slow(0.02)}
    answers = service.ask(*everything(table))
    assert all(isinstance(a, Answer) and a.tier == 0 and a.degraded for a in answers)


def test_without_the_last_tier_a_query_falls_back_on_the_tiers_before() -> None:
    service = Service(CASCADE, TABLE)
    service.faults["large"] = _fails
    answers = service.ask(*everything())
    routing = route(CASCADE, TABLE)
    escalated = [a for a, t in zip(answers, routing.tier, strict=True) if t == 1]
    assert escalated
    assert all(isinstance(a, Answer) and a.degraded and a.status == "fallback" and a.tier == 0 for a in escalated)


def test_when_nobody_answers_the_query_fails_and_is_counted() -> None:
    service = Service(CASCADE, TABLE)
    service.faults = dict.fromkeys(CASCADE.members, _fails)
    answers = service.ask({"q0": 0, "q1": 1})
    assert all(isinstance(a, Unanswered) for a in answers)
    assert [r.status for r in service.records if isinstance(r, Answer)] == ["failed", "failed"]
    assert set(service.failures) == {f"{m}@t4-node" for m in CASCADE.members}


def unanswered_after(service: Service, asks: int = 1) -> list[float | None]:
    """What is said after each of some requests that nobody answers, one after the other."""

    async def run() -> list[float | None]:
        queues = asyncio.ensure_future(service.core.run())
        told = []
        for number in range(asks):
            answers = await service.core.ask({f"q{number}": np.array([0], dtype=np.float32)})
            assert isinstance(answers, Answers)
            told.append(answers.retry_after_s)
        await service.core.close()
        queues.cancel()
        return told

    return asyncio.run(asyncio.wait_for(run(), 20))


def test_where_all_members_rest_it_is_said_when_the_first_is_tried_again() -> None:
    service = Service(CASCADE, TABLE)
    service.faults = dict.fromkeys(CASCADE.members, _fails)
    first, second = unanswered_after(service, 2)
    assert first is not None
    assert REST_S - 0.5 < first <= REST_S
    assert second is not None
    assert second <= first, "the rest is that from the first failure; further ones of the same blow do not lengthen it"


def test_a_member_that_does_not_rest_needs_no_waiting_for() -> None:
    async def without_a_row(where: Placement, batch: np.ndarray) -> Reply:
        reply = service.honest(where, batch)
        reply.probs[0] = np.nan  # no answer to this item, and a sound reply to the other
        return reply

    service = Service(CASCADE, TABLE)
    service.faults = dict.fromkeys(CASCADE.members, without_a_row)
    core = service.core

    async def run() -> list[Answer | Unanswered]:
        queues = asyncio.ensure_future(core.run())
        answers = await core.ask({i: np.array([0], dtype=np.float32) for i in ("a", "b")})
        await core.close()
        queues.cancel()
        return answers

    answers = asyncio.run(asyncio.wait_for(run(), 20))
    assert isinstance(answers, Answers)
    assert [type(a) for a in answers] == [Unanswered, Answer]
    assert answers.retry_after_s is None


def test_a_standby_that_does_not_rest_needs_no_waiting_for() -> None:
    turns = Turns([1.0, 0.0])
    turns.failed(0, 10.0)
    assert turns.next_try_in_s(10.5) is None
    turns.failed(1, 10.4)
    assert turns.next_try_in_s(10.5) == pytest.approx(0.5)
    assert turns.next_try_in_s(99.0) == 0.0
    turns.answered(1, 100.0)
    assert turns.next_try_in_s(100.0) is None


def test_a_mistake_of_ours_reaches_the_client_instead_of_hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("coe.router.tier.decide", broken)
    with pytest.raises(ZeroDivisionError):
        Service(CASCADE, TABLE).ask({"q0": 0})


def test_shutdown_records_calls_under_way_as_cancelled() -> None:
    service = Service(CASCADE, TABLE, latency_s=1.0)
    service.faults["other"] = _hangs

    async def run() -> None:
        queues = asyncio.ensure_future(service.core.run())
        question = asyncio.ensure_future(service.core.ask({"q0": np.array([0], dtype=np.float32)}))
        await asyncio.sleep(0.05)
        await service.core.close()
        await asyncio.sleep(0)
        queues.cancel()
        question.cancel()

    asyncio.run(run())
    assert {r.member: r.status for r in service.runs} == {"middle": "ok", "small": "ok", "other": "cancelled"}


def test_traffic_is_divided_as_planned() -> None:
    turns = Turns([0.7, 0.3])
    order = [turns.next() for _ in range(100)]
    assert order.count(0) == 70
    assert order[:10].count(1) == 3


def test_a_placement_that_fails_rests_and_one_without_traffic_stands_in() -> None:
    turns = Turns([1.0, 0.0])
    assert [turns.next(0.0) for _ in range(3)] == [0, 0, 0]
    turns.failed(0, 0.0)
    turns.failed(0, 0.01)  # the other calls of the same blow make the rest no longer
    assert [turns.next(0.5) for _ in range(3)] == [1, 1, 1]
    assert [turns.next(1.1) for _ in range(3)] == [0, 1, 1]  # one call shows whether it is back
    turns.failed(0, 1.2)
    assert turns.next(2.5) == 1  # it is not: it rests for twice as long
    assert turns.next(3.3) == 0
    turns.answered(0, 3.4)
    assert [turns.next(3.4) for _ in range(3)] == [0, 0, 0]


def test_where_every_placement_has_failed_they_keep_their_turns() -> None:
    turns = Turns([0.5, 0.5])
    turns.failed(0, 0.0)
    turns.failed(1, 0.0)
    assert sorted(turns.next(0.1) for _ in range(4)) == [0, 0, 1, 1]


def test_a_placement_that_does_not_reply_is_not_asked_again_before_its_rest_is_over() -> None:
    turns = Turns([1.0])
    turns.late(0, now_s=1.0, asked_s=0.5)
    assert turns.next(1.5) is None
    assert [turns.next(2.1) for _ in range(2)] == [0, None]  # one call shows whether it is back
    turns.answered(0, 3.5, is_late=True)
    assert turns.next(2.3) == 0


def test_where_one_replica_of_several_hangs_the_placement_is_asked_on() -> None:
    turns = Turns([1.0])
    turns.answered(0, 0.7)
    turns.late(0, now_s=1.0, asked_s=0.5)
    assert turns.next(1.5) == 0


def test_a_member_that_hangs_everywhere_is_a_missing_vote_at_once() -> None:
    service = Service(CASCADE, TABLE, latency_s=0.05)
    service.faults["small"] = _hangs
    late, at_once = asyncio.run(_two_rounds(service))
    assert late > 0.045  # the promise
    assert at_once < 0.05
    assert sum(name == "small" for name, _ in service.batches) == 1


async def _two_rounds(service: Service) -> tuple[float, float]:
    """Seconds of a first request, and of one right after it."""
    queues, seconds = asyncio.ensure_future(service.core.run()), list[float]()
    for name in ("first", "second"):
        began_s = time.monotonic()
        await service.core.ask({name: np.array([0], dtype=np.float32)})
        seconds.append(time.monotonic() - began_s)
    await service.core.close()
    queues.cancel()
    return seconds[0], seconds[1]


@pytest.mark.parametrize("is_down", [False, True])
def test_batches_with_missing_votes_say_nothing_of_the_pace(is_down: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the service would refuse queries for a while after a member hung."""
    service = Service(CASCADE, TABLE, batch_size=2)
    told: list[bool] = []

    def ended(_now_s: float, _items: int, *, is_full: bool) -> None:
        told.append(is_full)

    monkeypatch.setattr(service.core.tiers[0]._pace, "ended", ended)
    if is_down:
        service.faults["small"] = _fails
    answers = TABLE.outputs(("middle", "other")).answers
    open_without = np.flatnonzero(answers[:, 0] == answers[:, 1])[:20]  # others leave before the vote is missing
    service.ask({f"q{row}": int(row) for row in open_without})
    assert len(told) == 10
    assert any(told) != is_down


def test_a_client_in_a_hurry_sends_nobody_to_the_standby() -> None:
    """It left before the reply came, which was in time by the promise."""
    service = Service(CASCADE, TABLE, latency_s=1.0)
    standby = placement("small", node_type="a100-node", traffic=0.0)
    service.core = service.core_of(CASCADE, [*map(placement, CASCADE.members), standby], latency_s=1.0)
    asked: list[str] = []

    async def by_place(where: Placement, batch: np.ndarray) -> Reply:
        asked.append(where.node_type)
        return await service.slow(0.05)(where, batch)

    service.faults["small"] = by_place

    async def run() -> None:
        queues = asyncio.ensure_future(service.core.run())
        await service.core.ask({"hurried": np.array([0], dtype=np.float32)}, timeout_s=0.01)
        await asyncio.sleep(0.1)
        await service.core.ask({"patient": np.array([0], dtype=np.float32)})
        await service.core.close()
        queues.cancel()

    asyncio.run(run())
    assert asked == ["t4-node", "t4-node"]
    assert service.failures == []
    patient = next(r for r in service.records if isinstance(r, Answer) and r.query_id == "patient")
    assert not patient.degraded


def test_calls_go_to_the_standby_while_a_placement_hangs() -> None:
    """Whoever asks first waits for the promised latency; then the standby answers, these queries and all others."""
    cascade, table = factories.cascade(first=("small",)), TABLE
    service = Service(cascade, table, latency_s=0.2)
    standby = placement("large", node_type="a100-node", traffic=0.0)
    service.core = service.core_of(cascade, [placement("small"), placement("large"), standby], latency_s=0.2)
    hang = service.slow(60.0)

    async def by_place(where: Placement, batch: np.ndarray) -> Reply:
        return await hang(where, batch) if where.node_type == "t4-node" else service.honest(where, batch)

    service.faults["large"] = by_place

    async def ask() -> list[Answer | Unanswered]:
        running = asyncio.ensure_future(service.core.run())
        found = []
        for start in range(0, len(table), 20):
            queries = {f"q{i}": np.array([float(i)]) for i in range(start, start + 20)}
            found += await service.core.ask(queries)
        running.cancel()
        await service.core.abandon()
        return found

    answers = asyncio.run(ask())
    assert all(isinstance(a, Answer) for a in answers)
    late = [isinstance(a, Answer) and a.status == "fallback" for a in answers]
    assert not any(late)
    seconds = [a.done_s - a.arrival_s for a in answers if isinstance(a, Answer)]
    assert max(seconds[:20]) > 0.2
    assert max(seconds[20:]) < 0.2


# --- Decided early, deadlines, bounds --------------------------------------------------------------------------------


def agreed(rows: int) -> PredictionTable:
    """Rows on which the members middle and small agree."""
    answers = TABLE.outputs(("middle", "small")).answers
    return TABLE.rows((answers[:, 0] == answers[:, 1]) & (np.arange(len(TABLE)) < rows))


def test_a_query_leaves_as_soon_as_outstanding_votes_cannot_change_it() -> None:
    table = agreed(20)
    service = Service(factories.cascade(rule="vote", quorum=2), table, latency_s=2.0)
    service.faults["other"] = service.slow(0.5)
    start = time.monotonic()

    async def run() -> list[Answer | Unanswered]:
        queues = asyncio.ensure_future(service.core.run())
        answers = await service.core.ask({str(row): np.array([row], dtype=np.float32) for row in range(4)})
        took_s.append(time.monotonic() - start)
        await asyncio.sleep(0.6)
        queues.cancel()
        return answers

    took_s: list[float] = []
    answers = asyncio.run(run())
    assert took_s[0] < 0.4
    assert all(isinstance(a, Answer) and a.tier == 0 and not a.degraded for a in answers)
    assert {r.member: r.status for r in service.runs} == {"middle": "ok", "small": "ok", "other": "ok"}


def test_a_call_that_could_not_start_in_time_is_saved_and_the_ledger_says_so() -> None:
    """Two calls of the slow member are under way; the others are decided before one of those ends."""
    table = agreed(120)
    service = Service(factories.cascade(rule="vote", quorum=2), table, batch_size=4, latency_s=2.0)
    service.faults["other"] = service.slow(0.2)

    async def run() -> None:
        queues = asyncio.ensure_future(service.core.run())
        items = {str(row): np.array([row], dtype=np.float32) for row in range(len(table))}
        await service.core.ask(items)
        await asyncio.sleep(0.5)
        queues.cancel()

    asyncio.run(run())
    of_other = [r for r in service.runs if r.member == "other"]
    saved = sum(r.items for r in of_other if r.status == "cancelled")
    made = sum(n for m, n in service.batches if m == "other")
    assert saved > 0
    assert saved + made == len(table)
    assert all(r.busy_s == 0 for r in of_other if r.status == "cancelled")


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    quorum=st.integers(2, 3),
    batch_size=st.integers(1, 9),
    delays_ms=st.tuples(*[st.integers(0, 6)] * 4),
    dispatch=st.sampled_from(["parallel", "staged"]),
)
def test_whatever_the_members_speeds_answers_are_those_of_the_evaluation_and_every_call_is_accounted_for_once(
    quorum: int, batch_size: int, delays_ms: tuple[int, ...], dispatch: str
) -> None:
    table = TABLE.rows(np.arange(len(TABLE)) < 30)
    base = factories.cascade(rule="vote", quorum=quorum)
    first = base.tiers[0].model_copy(update={"dispatch": dispatch})
    cascade = base.model_copy(update={"tiers": (first, *base.tiers[1:])})
    service = Service(cascade, table, batch_size=batch_size, latency_s=5.0)
    service.faults = {m: service.slow(d / 1e3) for m, d in zip(cascade.members, delays_ms, strict=True)}
    answers = service.ask({f"q{row}": row for row in range(len(table))})
    routing = route(cascade, table)
    assert [(a.answer, a.tier, a.degraded) for a in answers if isinstance(a, Answer)] == [
        (a, t, False) for a, t in zip(routing.answer.tolist(), routing.tier.tolist(), strict=True)
    ]
    accounted = [sum(r.items for r in service.runs if r.member == m) for m in cascade.members]
    assert accounted == routing.asked.sum(axis=0).tolist()
    assert len([r for r in service.records if isinstance(r, Answer)]) == len(table)


def test_a_deadline_is_split_over_the_tiers_and_kept() -> None:
    table = TABLE.rows(np.arange(len(TABLE)) < 4)
    service = Service(CASCADE, table, latency_s=10.0)
    service.faults = dict.fromkeys(CASCADE.members, _hangs)
    start = time.monotonic()

    async def run() -> list[Answer | Unanswered]:
        queues = asyncio.ensure_future(service.core.run())
        items = {str(row): np.array([row], dtype=np.float32) for row in range(4)}
        answers = await service.core.ask(items, timeout_s=0.2)
        took_s.append(time.monotonic() - start)
        await service.core.close()
        queues.cancel()
        return answers

    took_s: list[float] = []
    answers = asyncio.run(run())
    assert all(isinstance(a, Unanswered) for a in answers)
    assert 0.15 < took_s[0] < 0.5
    assert {m for m, _ in service.batches} == set(CASCADE.members), "the last tier had its part of the time"


def test_what_cannot_be_answered_within_the_promise_is_refused_before_any_work() -> None:
    # capacity 1,000 per second, batches of 2 ms: of the 10 ms one is for the query's own batch and two for the last tier's
    service = Service(CASCADE, TABLE, batch_size=2, latency_s=0.01)

    async def run() -> None:
        items = {str(row): np.array([row], dtype=np.float32) for row in range(10)}
        first = asyncio.ensure_future(service.core.ask(items))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refused:
            await service.core.ask({"late": np.array([11], dtype=np.float32)})
        assert refused.value.retry_after_s == pytest.approx(0.007)  # eleven where four may be
        first.cancel()

    asyncio.run(run())
    assert service.records == []


def test_the_pace_of_a_tier_is_seen_only_while_it_is_full() -> None:
    pace = Pace()
    assert pace.of(100.0) == 100.0
    for end in range(1, 60):  # four items every tenth of a second
        pace.ended(end / 10, 4, is_full=True)
    assert pace.of(100.0) == pytest.approx(40.0, rel=0.05)
    assert pace.of(45.0) == 45.0, "a little less than planned may be chance"
    for _ in range(12):  # it is not full any more: it may be as fast as planned again
        pace.ended(100.0, 1, is_full=False)
    assert pace.of(100.0) == 100.0


def test_batches_are_split_by_bytes() -> None:
    service = Service(CASCADE, TABLE, batch_size=8)
    service.core.batch_bytes = 3 * 4
    service.ask({f"q{row}": row for row in range(12)})
    assert max(n for _, n in service.batches) == 3


def test_a_call_that_fails_is_made_once_more_and_both_are_billed() -> None:
    table = TABLE.rows(np.arange(len(TABLE)) < 8)
    service = Service(CASCADE, table, latency_s=2.0)
    left = [1]

    async def fails_once(where: Placement, batch: np.ndarray) -> Reply:
        if left:
            left.pop()
            raise RuntimeError("the replica died")
        return service.honest(where, batch)

    service.faults["other"] = fails_once
    answers = service.ask({f"q{row}": row for row in range(8)})
    routing = route(CASCADE, table)
    assert [a.answer for a in answers if isinstance(a, Answer)] == routing.answer.tolist()
    assert sorted(r.status for r in service.runs if r.member == "other") == ["failed", "ok"]
