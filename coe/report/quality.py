"""How right the answers were: accuracy beside single models, the certificate's claim, live answers against offline ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coe.cascade.evaluate import CONFIDENCE, accuracy_interval, losses, route
from coe.cascade.paired import excess_upper_bound
from coe.report import words
from coe.report.nouns import (
    AccuracyRow,
    Loss,
    Mismatch,
    Role,
)
from coe.report.queries import Asked
from coe.table import PredictionTable
from coe.types import Certificate, Claim, IntArray, Plan

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
    answers, labels = asked.answers[judged], asked.labels[judged]
    claim, n = certificate.claim, int(judged.sum())
    lost = int((answers != recorded).sum() if claim == "disagreement" else losses(answers, recorded, labels).sum())
    gained = int(losses(recorded, answers, labels).sum()) if claim == "excess" else 0
    low, high = _rate_interval(claim, lost, gained, n)
    rate = (lost - gained) / n
    reached = "not contradicted" if low <= certificate.epsilon else "contradicted"
    return Loss(
        reference=certificate.reference,
        epsilon=certificate.epsilon,
        delta=certificate.delta,
        items=n,
        claim=claim,
        losses=lost,
        gains=gained,
        rate=rate,
        low=low,
        high=high,
        verdict="held" if rate <= certificate.epsilon else reached,
    )


def _rate_interval(claim: Claim, lost: int, gained: int, n: int) -> tuple[float, float]:
    """Exact 95% interval of what is claimed."""
    if claim != "excess":
        return accuracy_interval(lost, n)
    tail = (1 - CONFIDENCE) / 2
    return -excess_upper_bound(gained, lost, n, tail), excess_upper_bound(lost, gained, n, tail)


def claimed(certificate: Certificate) -> str:
    """What a certificate claims, without its confidence."""
    reference, epsilon = certificate.reference, certificate.epsilon
    if certificate.claim == "excess":
        return f"at most {words.points(epsilon)} less accurate than {reference}"
    if certificate.claim == "disagreement":
        return f"another answer than {reference} on at most {words.percent(epsilon)}"
    return f"wrong where {reference} is right on at most {words.percent(epsilon)}"


def observed_in_words(loss: Loss) -> str:
    """What came of the claim among the queries served."""
    if loss.claim == "excess":
        change = f"{words.points(abs(loss.rate))} {'below' if loss.rate > 0 else 'above'}"
        return f"{loss.losses} lost, {loss.gains} gained of {loss.items}, {change}: {loss.verdict}"
    return f"{loss.losses} of {loss.items}, {words.percent(loss.rate, 2)}: {loss.verdict}"


def claim_in_words(plan: Plan) -> str:
    """What the plan's certificate claims, and on what evidence."""
    claim = plan.cascade.certificate
    if claim is None:
        return "none: no certified claim about accuracy is made"
    counts = f"{claim.losses} of {claim.items} {claim.split} items"
    if claim.claim == "excess":
        counts = f"{claim.losses} lost and {claim.gains} gained of {claim.items} {claim.split} items"
    of_queries = "" if claim.claim == "excess" else " of queries"
    return (
        f"with {words.percent(1 - claim.delta, 0)} confidence, {claimed(claim)}{of_queries} ({counts}, upper bound "
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
