"""Certificates: finite-sample claims about how much accuracy a cascade can lose against a reference.

The loss of an item is 1 where the cascade is wrong and the reference is right, so its mean bounds the accuracy lost. Being
0/1 it has an exact binomial test: "the loss rate is above epsilon" is rejected where P(Bin(n, epsilon) <= losses) <= delta.
Along a path of cascades from strictest to loosest, fixed in advance on other data, testing stops at the first that fails
and the last one certified is used; so the claim needs no correction for the number tested (fixed-sequence
Learn-then-Test, Angelopoulos et al. 2021, arXiv 2110.01052).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import beta, binom

from coe.cascade.evaluate import losses, route
from coe.errors import CannotCertify, InvalidInput, Problem, Stale
from coe.table import PredictionTable
from coe.types import MISSING_VOTE, Cascade, Certificate, IntArray

METHOD = "fixed-sequence Learn-then-Test, exact binomial"
_MOST_LABELS = 1_000_000


def p_value(observed: int, items: int, epsilon: float) -> float:
    """P(Bin(items, epsilon) <= observed): how surprising so few losses would be if the rate were epsilon."""
    return float(binom.cdf(observed, items, epsilon))


def loss_upper_bound(observed: int, items: int, delta: float) -> float:
    """Exact one-sided (1-delta) upper confidence bound of the loss rate (Clopper and Pearson 1934)."""
    return 1.0 if observed >= items else float(beta.ppf(1 - delta, observed + 1, items - observed))


def certify_path(
    path: Sequence[Cascade], table: PredictionTable, reference: str, epsilon: float, delta: float
) -> Cascade:
    """The loosest cascade of `path` (strictest first) that can be certified on `table`, with its certificate.

    `table` must hold none of the items on which the path was chosen. Raises `CannotCertify` where even the strictest
    cascade fails, and says how many labels would be enough.
    """
    yardstick = reference_answers(table, reference)
    certified: Cascade | None = None
    observed = 0
    for cascade in path:
        observed = int(losses(route(cascade, table).answer, yardstick, table.labels).sum())
        if p_value(observed, len(table), epsilon) > delta:
            break
        certified = cascade.model_copy(
            update={"certificate": _certificate(cascade, table, reference, epsilon, delta, observed)}
        )
    if certified is None:
        raise CannotCertify(_refusal(observed, len(table), epsilon, delta))
    return certified


def reference_answers(table: PredictionTable, reference: str) -> IntArray:
    """Answers of the reference member, shape (items,).

    Raises `InvalidInput` where it is unknown or lacks answers: an item it did not answer would never count as a loss.
    """
    if reference not in table.members:
        known = ", ".join(table.members)
        raise InvalidInput(Problem("reference", f"'{reference}' is not in the predictions", remedy=f"known: {known}"))
    column: IntArray = table.answers[:, table.members.index(reference)]
    silent = np.flatnonzero(column == MISSING_VOTE)
    if len(silent):
        found = f"none for {len(silent)} of {len(table)}, the first is item '{table.items[silent[0]]}'"
        remedy = "run `coe predict` for it, or leave these items out"
        raise InvalidInput(Problem(f"reference '{reference}'", "must have an answer for every item", found, remedy))
    return column


def _certificate(
    cascade: Cascade, table: PredictionTable, reference: str, epsilon: float, delta: float, observed: int
) -> Certificate:
    return Certificate(
        reference=reference,
        epsilon=epsilon,
        delta=delta,
        items=len(table),
        losses=observed,
        upper_bound=loss_upper_bound(observed, len(table), delta),
        method=METHOD,
        split=str(table.splits[0]),
        data_fingerprint=data_fingerprint(cascade, table, reference),
        cascade_fingerprint=cascade.tiers_fingerprint(),
    )


def data_fingerprint(cascade: Cascade, certification: PredictionTable, reference: str) -> str:
    """SHA-256 of what the certificate rests on: the items, labels and outputs of the cascade's members and reference."""
    return certification.fingerprint(list(dict.fromkeys((*cascade.members, reference))))


def verify_certificate(cascade: Cascade, table: PredictionTable | None = None) -> Certificate:
    """The certificate, after checking that it belongs to these tiers and, where given, to these predictions.

    Raises `InvalidInput` where there is none or its own numbers do not support its claim, `Stale` where tiers or
    predictions have changed since.
    """
    certificate = cascade.certificate
    if certificate is None:
        remedy = "run `coe calibrate`, or say --uncertified to go without"
        raise InvalidInput(Problem(f"cascade '{cascade.name}'", "has no certificate", remedy=remedy))
    remedy = "run `coe calibrate` again"
    if certificate.cascade_fingerprint != cascade.tiers_fingerprint():
        raise Stale(Problem(f"cascade '{cascade.name}'", "its tiers changed after they were certified", remedy=remedy))
    if p_value(certificate.losses, certificate.items, certificate.epsilon) > certificate.delta:
        found = f"{certificate.losses} losses among {certificate.items} items"
        claim = f"its certificate must support a loss of at most {certificate.epsilon:.2%}"
        raise InvalidInput(Problem(f"cascade '{cascade.name}'", claim, found, remedy))
    if table is not None:
        _check_data(cascade, certificate, table.split(certificate.split), remedy)
    return certificate


def _check_data(cascade: Cascade, certificate: Certificate, sample: PredictionTable, remedy: str) -> None:
    """The predictions must be those certified on, and show the numbers that the certificate states."""
    where = f"cascade '{cascade.name}'"
    if data_fingerprint(cascade, sample, certificate.reference) != certificate.data_fingerprint:
        raise Stale(Problem(where, "the predictions changed after it was certified on them", remedy=remedy))
    lost = losses(route(cascade, sample).answer, reference_answers(sample, certificate.reference), sample.labels)
    if (int(lost.sum()), len(lost)) != (certificate.losses, certificate.items):
        stated = f"{certificate.losses} losses among {certificate.items} items"
        found = f"{int(lost.sum())} among {len(lost)}"
        raise InvalidInput(Problem(where, f"its certificate states {stated}", found, remedy))


def labels_enough(loss_rate: float, epsilon: float, delta: float) -> int | None:
    """A number of labels with which `loss_rate` would be certified at epsilon: the least on a grid in steps of 2%.

    None where no number would do, or only more than a million.
    """
    if loss_rate >= epsilon:
        return None
    n = math.ceil(math.log(delta) / math.log1p(-epsilon))
    while n <= _MOST_LABELS and p_value(math.ceil(loss_rate * n), n, epsilon) > delta:
        n = math.ceil(n * 1.02)
    return n if n <= _MOST_LABELS else None


def _refusal(observed: int, items: int, epsilon: float, delta: float) -> str:
    """Why nothing was certified, and what would help."""
    text = (
        f"the strictest setting lost {observed} of {items} certification items that the reference had right; "
        f"a loss of at most {epsilon:.2%} cannot be claimed at {1 - delta:.0%} confidence"
    )
    enough = labels_enough(observed / items, epsilon, delta)
    if enough is None:
        return f"{text}. More labels will not help at this loss rate: allow a larger loss or choose stronger members"
    return f"{text}. About {enough} labels would be enough at this loss rate, or allow a larger loss"
