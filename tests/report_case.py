"""A plan and ten seconds of its ledger, small enough to be worked out by hand.

Two tiers: `small` and `other` on a t4-node answer where both agree, `large` on an a100-node answers the rest. Prices are
chosen so that a second costs a round number:

    node       $/hour   $/second   nodes
    t4-node      0.72     0.0002       1     both small members own half of its accelerator
    a100-node    3.60     0.0010       1     large owns all of it
    cpu-node     0.36     0.0001       1     the router

The window is the client's run, 1000 s to 1010 s after `EPOCH_S`.
"""

from __future__ import annotations

import numpy as np

from coe.records import Answer, BatchRun, Bench, BenchAnswer, NodeSpan, Record
from coe.table import PredictionTable
from coe.types import (
    Baseline,
    Cascade,
    CascadeStats,
    Certificate,
    CostLine,
    Placement,
    Plan,
    PlannedNodes,
    PredictedCost,
    RouterPlacement,
    SolverReport,
    Tier,
)
from tests import factories

EPOCH_S = 1_793_544_000.0  # 2026-11-01 14:40:00 UTC
START_S, END_S = EPOCH_S + 1000, EPOCH_S + 1010
PRICES = {"t4-node": 0.72, "a100-node": 3.6, "cpu-node": 0.36}
MEMBERS = ("small", "other", "large")
ITEMS = tuple(f"item-{i:02d}" for i in range(10))

LABELS = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
ANSWERS = {
    "small": [0, 1, 2, 0, 1, 2, 0, 0, 0, 1],
    "other": [0, 1, 2, 0, 1, 2, 1, 1, 1, 1],
    "large": [0, 1, 2, 0, 1, 2, 0, 1, 1, 0],
}
# small and other agree on items 0 to 5 (right) and on item 9 (wrong, and large is right); tier 2 gets items 6, 7 and 8
# and is wrong on item 8. So 8 of 10 answers are right, large alone has 9, and the cascade loses one item to large.
SERVED = [0, 1, 2, 0, 1, 2, 0, 1, 1, 1]
TIERS = [0, 0, 0, 0, 0, 0, 1, 1, 1, 0]


def plan(certified: bool = True, baseline: bool = True) -> Plan:
    """The plan above, for one query per second within half a second."""
    cascade = Cascade(tiers=(Tier(members=("small", "other"), quorum=2), Tier(members=("large",))))
    if certified:
        cascade = cascade.model_copy(update={"certificate": _certificate(cascade)})
    cost = PredictedCost.of(1.044, 4.68, 1.0, 0.9)
    return Plan(
        name="tiny",
        cascade=cascade,
        workload=factories.workload(rate_per_s=1.0, max_accuracy_loss=0.05),
        stats=CascadeStats(
            items=100,
            accuracy=0.9,
            accuracy_low=0.82,
            accuracy_high=0.95,
            reach=(1.0, 0.25),
            accepted=(0.75, 0.25),
            accuracy_accepted=(0.92, 0.84),
            calls={"small": 1.0, "other": 1.0, "large": 0.25},
        ),
        pool=factories.pool(MEMBERS, classes=3),
        placements=(
            _placement("small", "t4-node", 0.5, 0.4),
            _placement("other", "t4-node", 0.5, 0.5),
            _placement("large", "a100-node", 1.0, 0.8),
        ),
        router=RouterPlacement(node_type="cpu-node"),
        nodes=tuple(
            PlannedNodes(
                node_type=node_type,
                count=1,
                usd_per_hour=usd_per_hour,
                market="on_demand",
                source="a price list for tests",
                date=factories.DAY,
            )
            for node_type, usd_per_hour in PRICES.items()
        ),
        offers=(
            factories.offer("t4-node", "T4", PRICES["t4-node"], region="aws/us-east-1"),
            factories.offer("a100-node", "A100", PRICES["a100-node"], region="aws/us-east-1", date="2026-10-01"),
            factories.offer("cpu-node", "CPU-node", PRICES["cpu-node"], accelerators_per_node=0),
        ),
        latency_bound_s=0.45,
        tier_latency_s=(0.15, 0.3),
        cost=cost,
        usage_lines=(CostLine(name="all", quantity=1, unit="h", unit_price_usd=1.044, usd=1.044),),
        allocation_lines=(CostLine(name="all", quantity=1, unit="h", unit_price_usd=4.68, usd=4.68),),
        # large alone: two a100-nodes and the router, 7.56 $/h, of which 2.88 $/h busy: 0.8 s of every query
        baseline=Baseline(
            member="large",
            node_type="a100-node",
            nodes=2,
            accuracy=0.95,
            cost=PredictedCost.of(2.88, 7.56, 1.0, 0.95),
        )
        if baseline
        else None,
        solver=SolverReport(status="proved", usd_per_hour=4.68, bound_usd_per_hour=4.68, candidates=3),
        inputs={},
    )


def _placement(member: str, node_type: str, share: float, busy_s: float) -> Placement:
    return Placement(
        member=member,
        node_type=node_type,
        replicas=1,
        share=share,
        batch_size=4,
        traffic=1.0,
        expected_batch=2.0,
        expected_busy_s=busy_s,
        utilisation=busy_s,
    )


def _certificate(cascade: Cascade) -> Certificate:
    return Certificate(
        reference="large",
        epsilon=0.05,
        delta=0.05,
        items=200,
        losses=4,
        upper_bound=0.045,
        method="fixed-sequence Learn-then-Test, exact binomial",
        data_fingerprint="data",
        cascade_fingerprint=cascade.tiers_fingerprint(),
    )


def records() -> tuple[Record, ...]:
    """Node time and calls around and inside the window, and the ten answers."""
    t = START_S
    spans = [NodeSpan(n, 1, usd, t - 5, t + 15) for n, usd in PRICES.items()]
    runs = [
        # small: 1 s of a 2 s call inside the window (its first half lies before), then 4 x 0.5 s; 1 + 4 x 2 items
        BatchRun(0, "small", "t4-node", 0.5, 2, t - 1, 2.0),
        *(BatchRun(0, "small", "t4-node", 0.5, 2, t + 2 * i, 0.5) for i in range(1, 5)),
        # other: 4 x 1 s, the last one late; 10 items
        *(BatchRun(0, "other", "t4-node", 0.5, n, t + 2 * i, 1.0) for i, n in enumerate((3, 3, 2))),
        BatchRun(0, "other", "t4-node", 0.5, 2, t + 8, 1.0, "late"),
        # large: 3 s, then 2 s of which the last second lies after the window; 2 + 1/2 x 2 items
        BatchRun(1, "large", "a100-node", 1.0, 2, t + 3, 3.0),
        BatchRun(1, "large", "a100-node", 1.0, 2, t + 9, 2.0),
        # before the window
        BatchRun(1, "large", "a100-node", 1.0, 4, t - 4, 3.0),
    ]
    answers = [
        Answer(item, t + i, t + i + 0.25, tier, answer, 2.0, False)
        for i, (item, tier, answer) in enumerate(zip(ITEMS, TIERS, SERVED, strict=True))
    ]
    return (*spans, *runs, Answer("earlier", t - 9, t - 8.75, 0, 1, 2.0, False), *answers)


def bench() -> Bench:
    """The client's view: query i is due at i and takes 0.3 s, the last one 0.45 s."""
    took_s = [0.3] * 9 + [0.45]
    return Bench(
        url="http://127.0.0.1:8700",
        data="tiny.npz: test",
        rate_per_s=1.0,
        seed=0,
        started_s=START_S,
        ended_s=END_S,
        answers=tuple(
            BenchAnswer(
                item=item,
                answer=answer,
                label=label,
                tier=tier,
                degraded=False,
                due_s=START_S + i,
                done_s=START_S + i + took_s[i],
                http_status=200,
            )
            for i, (item, answer, label, tier) in enumerate(zip(ITEMS, SERVED, LABELS, TIERS, strict=True))
        ),
    )


def table() -> PredictionTable:
    """What every member says about the ten items; answers only."""
    return PredictionTable(
        members=MEMBERS,
        classes=tuple(f"class-{c}" for c in range(3)),
        items=np.array(ITEMS),
        labels=np.array(LABELS, dtype=np.int64),
        splits=np.array(["test"] * len(ITEMS)),
        answers=np.array([ANSWERS[m] for m in MEMBERS], dtype=np.int64).T.copy(),
    )
