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
from coe.report.queries import Asked, Block
from coe.table import PredictionTable
from coe.types import BoolArray, Certificate, Claim, IntArray, Plan

EXAMPLES = 5


def accuracy_rows(plan: Plan, asked: Asked, table: PredictionTable | None) -> tuple[AccuracyRow, ...]:
    """The cascade as served; beside it the best single model and the reference on the same queries."""
    n = asked.count(lambda b: b.judged)
    rows = []
    if n:
        right = asked.count(lambda b: b.judged & b.correct)
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
    replayed = table if asked.are_recorded() else None
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
    column = table.columns([member])[0]
    n = asked.count(lambda b: b.judged)
    right = asked.count(lambda b: b.judged & (_recorded(column, b, table) == b.labels))
    low, high = accuracy_interval(right, n)
    return AccuracyRow(
        name=member,
        role=role,
        accuracy=right / n,
        low=low,
        high=high,
        items=n,
        source="recorded answers to the same queries",
    )


def _recorded(column: int, block: Block, table: PredictionTable) -> IntArray:
    """(queries,) answers of a member; of queries that are in the table."""
    recorded: IntArray = table.answers[np.maximum(block.rows, 0), column]
    return recorded


def row_of(rows: Sequence[AccuracyRow], role: Role) -> AccuracyRow | None:
    return next((row for row in rows if row.role == role), None)


def loss_of(plan: Plan, asked: Asked, table: PredictionTable | None) -> Loss | None:
    """How often the cascade was wrong where the certificate's reference is right."""
    certificate = plan.cascade.certificate
    if certificate is None or table is None or not asked.are_recorded() or certificate.reference not in table.members:
        return None
    column, claim = table.columns([certificate.reference])[0], certificate.claim
    n = asked.count(lambda b: b.judged)
    lost = asked.count(lambda b: b.judged & _is_lost(claim, b, _recorded(column, b, table)))
    gained = (
        asked.count(lambda b: b.judged & losses(_recorded(column, b, table), b.answers, b.labels))
        if claim == "excess"
        else 0
    )
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


def _is_lost(claim: Claim, block: Block, recorded: IntArray) -> BoolArray:
    """(queries,): where the cascade does what is claimed to be rare."""
    if claim == "disagreement":
        return np.asarray(block.answers != recorded, dtype=np.bool_)
    return losses(block.answers, recorded, block.labels)


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
    if table is None:
        return None
    offline = route(plan.cascade, table)
    compared = answers = tiers = 0
    examples: list[str] = []
    for block in asked.blocks():
        which = block.answered & ~block.degraded & (block.rows >= 0)
        rows = block.rows[which]
        other_answer = offline.answer[rows] != block.answers[which]
        other_tier = offline.tier[rows] != block.tiers[which]
        compared, answers, tiers = compared + len(rows), answers + other_answer.sum(), tiers + other_tier.sum()
        examples += table.items[rows[other_answer | other_tier][: EXAMPLES - len(examples)]].tolist()
    if not compared:
        return None
    return Mismatch(compared=compared, answers=int(answers), tiers=int(tiers), examples=tuple(examples))
