"""How right the answers were: accuracy beside single models, the certificate's claim, live answers against offline ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coe.cascade.evaluate import accuracy_interval, losses, route
from coe.report import words
from coe.report.nouns import (
    AccuracyRow,
    Loss,
    Mismatch,
    Role,
)
from coe.report.queries import Asked
from coe.table import PredictionTable
from coe.types import IntArray, Plan

EXAMPLES = 5


def accuracy_rows(plan: Plan, asked: Asked, table: PredictionTable | None) -> tuple[AccuracyRow, ...]:
    """The cascade as served; beside it the best single model and the reference on the same queries."""
    judged = asked.judged
    n = int(judged.sum())
    rows = []
    if n:
        right = int(asked.correct[judged].sum())
        low, high = accuracy_interval(right, n)
        rows.append(
            AccuracyRow(
                name="cascade",
                role="cascade",
                accuracy=right / n,
                low=low,
                high=high,
                items=n,
                source="as served",
            )
        )
    replayed = table if n and (asked.rows[judged] >= 0).all() else None
    if plan.baseline is not None:
        baseline = plan.baseline.member
        if replayed is not None and baseline in replayed.members:
            rows.append(_replayed(baseline, "best single model", asked, replayed))
        elif n:
            source = "plan, certification split"
            rows.append(
                AccuracyRow(
                    name=baseline,
                    role="best single model",
                    accuracy=plan.baseline.accuracy,
                    low=None,
                    high=None,
                    items=0,
                    source=source,
                )
            )
    reference = plan.workload.reference
    if replayed is not None and reference in replayed.members:
        rows.append(_replayed(reference, "reference", asked, replayed))
    return tuple(rows)


def _replayed(member: str, role: Role, asked: Asked, table: PredictionTable) -> AccuracyRow:
    """A single model's recorded answers to the judged queries."""
    right = _recorded(member, asked, table) == asked.labels[asked.judged]
    low, high = accuracy_interval(int(right.sum()), len(right))
    return AccuracyRow(
        name=member,
        role=role,
        accuracy=float(right.mean()),
        low=low,
        high=high,
        items=len(right),
        source="recorded answers to the same queries",
    )


def _recorded(member: str, asked: Asked, table: PredictionTable) -> IntArray:
    """Answers of a member to the judged queries."""
    recorded: IntArray = table.answers[asked.rows[asked.judged], table.columns([member])[0]]
    return recorded


def row_of(rows: Sequence[AccuracyRow], role: Role) -> AccuracyRow | None:
    return next((row for row in rows if row.role == role), None)


def loss_of(plan: Plan, asked: Asked, table: PredictionTable | None) -> Loss | None:
    """How often the cascade was wrong where the certificate's reference is right."""
    certificate, judged = plan.cascade.certificate, asked.judged
    if certificate is None or table is None or not judged.any() or not (asked.rows[judged] >= 0).all():
        return None
    if certificate.reference not in table.members:
        return None
    recorded = _recorded(certificate.reference, asked, table)
    lost = losses(asked.answers[judged], recorded, asked.labels[judged])
    n, observed = len(lost), int(lost.sum())
    low, high = accuracy_interval(observed, n)
    reached = "not contradicted" if low <= certificate.epsilon else "contradicted"
    return Loss(
        reference=certificate.reference,
        epsilon=certificate.epsilon,
        delta=certificate.delta,
        items=n,
        losses=observed,
        rate=observed / n,
        low=low,
        high=high,
        verdict="held" if observed / n <= certificate.epsilon else reached,
    )


def claim_in_words(plan: Plan) -> str:
    """What the plan's certificate claims."""
    claim = plan.cascade.certificate
    if claim is None:
        return "none: no certified claim about accuracy is made"
    return (
        f"with {words.percent(1 - claim.delta, 0)} confidence, wrong where {claim.reference} is right on at most "
        f"{words.percent(claim.epsilon)} of queries ({claim.losses} of {claim.items} {claim.split} items, upper bound "
        f"{words.percent(claim.upper_bound, 2)}; {claim.method})"
    )


def mismatch_of(plan: Plan, asked: Asked, table: PredictionTable | None) -> Mismatch | None:
    """Live answers that differ from the offline cascade on the same items. Degraded and failed ones are left out."""
    compared = asked.answered & ~asked.degraded & (asked.rows >= 0)
    if table is None or not compared.any():
        return None
    offline = route(plan.cascade, table)
    rows = asked.rows[compared]
    other_answer = offline.answer[rows] != asked.answers[compared]
    other_tier = offline.tier[rows] != asked.tiers[compared]
    which = np.flatnonzero(compared)[other_answer | other_tier][:EXAMPLES]
    return Mismatch(
        compared=int(compared.sum()),
        answers=int(other_answer.sum()),
        tiers=int(other_tier.sum()),
        examples=tuple(asked.items[i] for i in which),
    )
