"""Audits in the router, on a virtual clock: what they ask, what they leave alone, what they cost, and what is written down."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import pytest

from coe.cascade.evaluate import route
from coe.records import Answer, Audit, BatchRun, Record
from coe.report.audits import AuditSums
from coe.router.audits import Auditor
from coe.router.core import RouterCore
from coe.router.queries import Reply
from coe.router.tightening import tightened
from coe.simulator.virtual import run_virtually
from coe.table import PredictionTable
from coe.types import Audits, Cascade, Placement, Plan, Tier
from tests import factories
from tests import report_case as case

TABLE = factories.table(300, members=("small", "other", "large"), classes=3)
SERVICE_S = {"small": 0.01, "other": 0.012, "large": 0.05}
ALL = Audits(share=1.0, usd_per_hour=1000.0, alarm_above=0.05)
Member = Callable[[Placement, np.ndarray], Awaitable[Reply]]


def plan(replicas: int = 2, cascade: Cascade | None = None) -> Plan:
    """`case.plan` with so many replicas of the last tier's member."""
    base = case.plan(certified=False)
    placements = tuple(
        p.model_copy(
            update={"replicas": replicas if p.member == "large" else 4, "expected_busy_s": SERVICE_S[p.member]}
        )
        for p in base.placements
    )
    return base.model_copy(update={"placements": placements, "cascade": cascade or base.cascade})


class Router:
    """A core on a virtual clock over a table whose row numbers are the items; a member's replicas work on one batch at a time."""

    def __init__(self, served: Plan, audits: Audits | None, table: PredictionTable = TABLE, seed: int = 0) -> None:
        self.plan, self._audits, self._table, self._seed = served, audits, table, seed
        self.records: list[Record] = []
        self.asked: list[tuple[str, int]] = []
        self.faults: dict[str, Member] = {}

    def serve(
        self, arrivals_s: Sequence[float], *, linger_s: float = 5.0, step: int = 0, is_idle: bool = True
    ) -> dict[str, Answer]:
        """Ask about row after row at these times, wait for `linger_s` more, and close. step: of stricter gates.
        is_idle: whether everything has ended by then."""

        async def run() -> dict[str, Answer]:
            loop = asyncio.get_running_loop()
            self._free = {p.deployment: asyncio.Semaphore(p.replicas) for p in self.plan.placements}
            rng = np.random.default_rng(self._seed)
            auditor = None if self._audits is None else Auditor(self._audits, self.plan, rng, 0.0)
            self.core = RouterCore(
                self.plan.cascade,
                self.plan.placements,
                self._table.classes,
                wait_s=0.002,
                latency_s=5.0,
                call=self._call,
                clock=loop.time,
                record=self.records.append,
                auditor=auditor,
            )
            self.core.follow(tightened(self.plan.cascade, step))
            queues = asyncio.ensure_future(self.core.run())
            answers = await asyncio.gather(*(self._one(row, at) for row, at in enumerate(arrivals_s)))
            await asyncio.sleep(linger_s)
            assert self.core.is_idle is is_idle
            await self.core.close()
            queues.cancel()
            return {a.query_id: a for a in answers}

        return run_virtually(run())

    async def _one(self, row: int, at_s: float) -> Answer:
        await asyncio.sleep(at_s)
        (answer,) = await self.core.ask({f"q{row}": np.array([row])})
        assert isinstance(answer, Answer)
        return answer

    async def _call(self, where: Placement, batch: np.ndarray) -> Reply:
        self.asked.append((where.member, len(batch)))
        if where.member in self.faults:
            return await self.faults[where.member](where, batch)
        async with self._free[where.deployment]:
            await asyncio.sleep(SERVICE_S[where.member])
        assert self._table.probs is not None
        probs = self._table.probs[batch[:, 0], self._table.members.index(where.member)]
        return Reply(probs, SERVICE_S[where.member])

    @property
    def audits(self) -> list[Audit]:
        return [r for r in self.records if isinstance(r, Audit)]

    def outcomes(self) -> dict[str, int]:
        outcomes = [a.outcome for a in self.audits]
        return {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}

    @property
    def runs(self) -> list[BatchRun]:
        return [r for r in self.records if isinstance(r, BatchRun)]


SPARSE = [0.3 * n for n in range(len(TABLE))]


def test_every_early_answer_is_compared_with_what_the_last_tier_says() -> None:
    router = Router(plan(), ALL)
    router.serve(SPARSE)
    routing = route(router.plan.cascade, TABLE)
    large = TABLE.answers[:, TABLE.members.index("large")]
    early = np.flatnonzero(routing.tier == 0)
    wanted = {
        f"q{row}": (
            int(routing.answer[row]),
            int(large[row]),
            "same" if routing.answer[row] == large[row] else "differs",
        )
        for row in early
    }
    assert {a.query_id: (a.answer, a.last, a.outcome) for a in router.audits} == wanted
    assert router.outcomes()["differs"] > 3
    assert all(a.done_s > a.asked_s for a in router.audits)


def test_answers_and_their_times_are_those_without_audits_while_replicas_are_to_spare() -> None:
    rng = np.random.default_rng(1)
    arrivals = np.cumsum(rng.exponential(0.05, len(TABLE))).tolist()
    with_audits, without = Router(plan(replicas=8), ALL), Router(plan(replicas=8), None)
    assert with_audits.serve(arrivals) == without.serve(arrivals)
    assert with_audits.outcomes()["same"] > 100


@pytest.mark.parametrize("gap_s", [0.3, 0.03, 0.01], ids=["idle", "half busy", "overfull"])
def test_early_answers_never_wait_and_later_ones_for_one_batch_at_most(gap_s: float) -> None:
    """One replica in the last tier: the worst case, where an audit may have just begun."""
    rng = np.random.default_rng(2)
    arrivals = np.cumsum(rng.exponential(gap_s, len(TABLE))).tolist()
    with_audits, without = Router(plan(replicas=1), ALL), Router(plan(replicas=1), None)
    mine, theirs = with_audits.serve(arrivals), without.serve(arrivals)
    for query, answer in mine.items():
        if answer.tier == 0:
            assert answer == theirs[query]
    later = [mine[q].done_s - theirs[q].done_s for q in mine if mine[q].tier == 1]
    assert np.mean(later) <= SERVICE_S["large"]
    if gap_s == 0.01:
        assert with_audits.outcomes()["busy"] > 50, "they give way"


def test_audits_wait_while_the_last_tier_is_busy() -> None:
    """A hundred queries at once: one batch of audits before the first of them escalates, and the next when all are done."""
    router = Router(plan(replicas=1), ALL)
    router.serve([0.001 * n for n in range(100)], linger_s=10.0)
    first, *began = sorted({r.start_s for r in router.runs if r.audit})
    escalated = [r for r in router.runs if r.member == "large" and not r.audit]
    assert first < min(r.start_s for r in escalated)
    assert began
    assert min(began) >= max(r.start_s + r.busy_s for r in escalated) - 1e-9


def test_calls_of_audits_are_billed_and_marked() -> None:
    router = Router(plan(), ALL)
    router.serve(SPARSE)
    marked = [r for r in router.runs if r.audit]
    assert {r.member for r in marked} == {"large"}
    assert all(r.busy_s == SERVICE_S["large"] and r.status == "ok" for r in marked)
    assert sum(r.items for r in marked) == len(router.audits)
    assert sum(r.items for r in router.runs if r.member == "large") == len(TABLE), "each item once, early or late"
    assert sorted((r.member, r.items) for r in router.runs if r.status == "ok") == sorted(router.asked)
    assert max(r.items for r in marked) == 4, "they fill batches"
    queries = [r.query_id for r in router.records if isinstance(r, Answer)]
    assert len(queries) == len(set(queries)) == len(TABLE)


def test_the_budget_holds_what_calls_took_included() -> None:
    """An audit costs 0.05 s x 3.60 $/h, 0.00005; what comes in pays for one in ten seconds, and the purse holds one minute's."""
    budget = ALL.model_copy(update={"usd_per_hour": 0.018})
    router = Router(plan(), budget)
    router.serve(SPARSE)
    spent = sum(r.busy_s * 3.6 / 3600 for r in router.runs if r.audit)
    seconds = SPARSE[-1] + 5
    assert spent <= 0.018 * seconds / 3600
    assert spent >= 0.5 * 0.018 * seconds / 3600
    outcomes = router.outcomes()
    assert outcomes["unpaid"] > 100
    assert outcomes["unpaid"] + outcomes["same"] + outcomes.get("differs", 0) == len(router.audits)


def test_the_share_is_chosen_and_the_rest_is_left_alone() -> None:
    router = Router(plan(), ALL.model_copy(update={"share": 0.2}))
    answers = router.serve(SPARSE)
    early = sum(a.tier == 0 for a in answers.values())
    assert 0.1 * early < len(router.audits) < 0.3 * early


def test_a_batch_of_audits_takes_at_most_half_of_the_promise() -> None:
    """A full batch of 8 is planned to take 6 s, and 5 s are promised; a batch of 2 takes 1.2 s, and each item more 0.8."""
    served = plan()
    slow = {"batch_size": 8, "expected_batch": 2.0, "expected_busy_s": 0.6, "full_batch_s": 6.0}
    placements = tuple(p.model_copy(update=slow) if p.member == "large" else p for p in served.placements)
    router = Router(served.model_copy(update={"placements": placements}), ALL)
    router.serve(SPARSE)
    assert max(r.items for r in router.runs if r.audit) == 3
    assert router.outcomes().keys() == {"same", "differs"}


async def _fails(_where: Placement, _batch: np.ndarray) -> Reply:
    raise RuntimeError("the replica died")


def test_a_last_tier_that_fails_fails_its_audits_and_no_query_that_was_answered() -> None:
    router = Router(plan(), ALL)
    router.faults["large"] = _fails
    answers = router.serve(SPARSE[:40])
    early = [a for a in answers.values() if a.status == "ok"]
    assert early
    assert router.outcomes() == {"failed": len(early)}
    assert all(a.last == -1 for a in router.audits)


def test_what_waits_or_is_under_way_is_dropped_and_counted_on_closing() -> None:
    async def hangs(_where: Placement, batch: np.ndarray) -> Reply:
        await asyncio.sleep(3600)
        return Reply(np.full((len(batch), 3), 1 / 3), 1.0)

    agreed = TABLE.rows(route(plan().cascade, TABLE).tier == 0)
    router = Router(plan(), ALL, agreed)
    router.faults["large"] = hangs
    answers = router.serve([0.0] * 11, linger_s=0.5, is_idle=False)
    assert {a.tier for a in answers.values()} == {0}
    assert router.outcomes() == {"dropped": 11}
    (call,) = [r for r in router.runs if r.audit]
    assert (call.items, call.status) == (4, "cancelled")
    assert call.busy_s > 0, "billed for as long as it was under way"


def test_hung_audits_end_like_late_queries_and_others_follow() -> None:
    """A call that hangs is late after twice the promise; while its placement rests, audits fail at once, and then they go on."""
    hung: list[float] = []

    async def hangs_once(_where: Placement, batch: np.ndarray) -> Reply:
        if not hung:
            hung.append(asyncio.get_running_loop().time())
            await asyncio.sleep(3600)
        return Reply(np.full((len(batch), 3), 1 / 3, dtype=np.float32), 0.05)

    agreed = TABLE.rows(route(plan().cascade, TABLE).tier == 0)
    router = Router(plan(), ALL, agreed)
    router.faults["large"] = hangs_once
    router.serve([0.0] * 11 + [30.0] * 5, linger_s=60.0, is_idle=False)
    assert [a.outcome == "failed" for a in router.audits] == [True] * 11 + [False] * 5
    assert "dropped" not in router.outcomes()


@pytest.mark.parametrize("step", [0, 1, 2])
def test_stricter_gates_decide_as_evaluated(step: int) -> None:
    cascade = Cascade(tiers=(Tier(members=("small", "other"), rule="mean", threshold=0.6), Tier(members=("large",))))
    gates = tightened(cascade, step)
    router = Router(plan(cascade=cascade), ALL)
    answers = router.serve(SPARSE, step=step)
    if gates.are_closed:
        assert {a.tier for a in answers.values()} == {1}
        assert not router.audits
        large = TABLE.answers[:, TABLE.members.index("large")]
        assert [answers[f"q{row}"].answer for row in range(len(TABLE))] == large.tolist()
        return
    routing = route(cascade.model_copy(update={"tiers": gates.tiers}), TABLE)
    assert [answers[f"q{row}"].tier for row in range(len(TABLE))] == routing.tier.tolist()
    assert [answers[f"q{row}"].answer for row in range(len(TABLE))] == routing.answer.tolist()


def test_an_audit_asks_the_last_tiers_own_members_whatever_it_carries() -> None:
    cascade = Cascade(
        tiers=(Tier(members=("small", "other"), quorum=2), Tier(members=("large",), rule="mean", carry=1))
    )
    router = Router(plan(cascade=cascade), ALL)
    router.serve(SPARSE)
    large = TABLE.answers[:, TABLE.members.index("large")]
    assert len(router.audits) > 50
    assert all(a.last == large[int(a.query_id[1:])] for a in router.audits)


def test_the_figures_are_those_of_the_table() -> None:
    """Every early answer is audited, so the rate as seen is the share of all items that the last tier answers differently."""
    router = Router(plan(), ALL)
    router.serve(SPARSE)
    sums = AuditSums(router.plan.cascade)
    sums.add(Auditor(ALL, router.plan, np.random.default_rng(0), 0.0).began(0.0))
    for record in router.records:
        sums.add(record)
    found = sums.figures(0.0)
    routing = route(router.plan.cascade, TABLE)
    assert found is not None
    assert found.early == (routing.tier == 0).mean()
    large = TABLE.answers[:, TABLE.members.index("large")]
    assert found.rate == pytest.approx((routing.answer != large).mean())
    assert found.low <= found.rate <= found.high
