"""Certificates: finite-sample claims about how much accuracy a cascade can lose against a reference.

Three claims, each implied by the next. `excess`: the accuracy lost on balance, 1[cascade wrong] - 1[reference wrong] on
average, with the exact test of `paired`. `loss`: the share of queries that the cascade gets wrong and the reference right; being
0/1 it has an exact binomial test: "the loss rate is above epsilon" is rejected where P(Bin(n, epsilon) <= losses) <= delta.
`disagreement`: the share on which the two answer differently, with the same test and without labels.

Along a path of cascades from strictest to loosest, fixed in advance on other data, testing stops at the first that fails
and the last one certified is used; so the claim needs no correction for the number tested (fixed-sequence
Learn-then-Test, Angelopoulos et al. 2021, arXiv 2110.01052).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, binom

from coe.cascade.evaluate import losses, route
from coe.cascade.paired import excess_p_value, excess_upper_bound
from coe.errors import CannotCertify, InvalidInput, Problem, Stale
from coe.table import PredictionTable
from coe.types import MISSING_VOTE, Cascade, Certificate, Claim, IntArray

METHODS: dict[Claim, str] = {
    "excess": "fixed-sequence Learn-then-Test, exact paired (Berger-Boos)",
    "loss": "fixed-sequence Learn-then-Test, exact binomial",
    "disagreement": "fixed-sequence Learn-then-Test, exact binomial, label-free",
}
_MOST_LABELS = 1_000_000


def p_value(observed: int, items: int, epsilon: float) -> float:
    """P(Bin(items, epsilon) <= observed): how surprising so few losses would be if the rate were epsilon."""
    return float(binom.cdf(observed, items, epsilon))


def loss_upper_bound(observed: int, items: int, delta: float) -> float:
    """Exact one-sided (1-delta) upper confidence bound of the loss rate (Clopper and Pearson 1934)."""
    return 1.0 if observed >= items else float(beta.ppf(1 - delta, observed + 1, items - observed))


@dataclass(frozen=True)
class Observed:
    """What a claim is judged by: items lost to the reference, items gained on it, of how many."""

    claim: Claim
    losses: int
    gains: int
    items: int

    @classmethod
    def of(cls, answer: IntArray, table: PredictionTable, reference: str, claim: Claim) -> Observed:
        """Count the answers (items,) of a cascade against those of the reference."""
        yardstick = reference_answers(table, reference)
        if claim == "disagreement":
            return cls(claim, int((answer != yardstick).sum()), 0, len(table))
        lost = int(losses(answer, yardstick, table.labels).sum())
        gained = int(losses(yardstick, answer, table.labels).sum())
        return cls(claim, lost, gained, len(table))

    def p_value(self, epsilon: float) -> float:
        """Of the test that what is claimed is above epsilon."""
        if self.claim == "excess":
            return excess_p_value(self.losses, self.gains, self.items, epsilon)
        return p_value(self.losses, self.items, epsilon)

    def upper_bound(self, delta: float) -> float:
        """One-sided (1-delta) upper confidence bound of what is claimed."""
        if self.claim == "excess":
            return excess_upper_bound(self.losses, self.gains, self.items, delta)
        return loss_upper_bound(self.losses, self.items, delta)

    @property
    def rate(self) -> float:
        """What is claimed, on this sample."""
        return (self.losses - (self.gains if self.claim == "excess" else 0)) / self.items


def certify_path(
    path: Sequence[Cascade],
    table: PredictionTable,
    reference: str,
    epsilon: float,
    delta: float,
    claim: Claim = "loss",
) -> Cascade:
    """The loosest cascade of `path` (strictest first) that can be certified on `table`, with its certificate.

    `table` must hold none of the items on which the path was chosen. Raises `CannotCertify` where even the strictest
    cascade fails, and says how many labels would be enough.
    """
    passed: tuple[Cascade, Observed] | None = None
    observed: Observed | None = None
    for cascade in path:
        observed = Observed.of(route(cascade, table).answer, table, reference, claim)
        if observed.rate > epsilon or observed.p_value(epsilon) > delta:  # such a rate never passes, and costs no test
            break
        passed = cascade, observed
    if observed is None:
        raise InvalidInput(Problem("path", "holds no cascade to certify"))
    if passed is None:
        raise CannotCertify(_refusal(observed, epsilon, delta))
    certified, found = passed
    certificate = _certificate(certified, table, reference, epsilon, delta, found)
    return certified.model_copy(update={"certificate": certificate})


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
    cascade: Cascade, table: PredictionTable, reference: str, epsilon: float, delta: float, observed: Observed
) -> Certificate:
    return Certificate(
        claim=observed.claim,
        reference=reference,
        epsilon=epsilon,
        delta=delta,
        items=observed.items,
        losses=observed.losses,
        gains=observed.gains,
        upper_bound=min(observed.upper_bound(delta), epsilon),
        method=METHODS[observed.claim],
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
    stated = Observed(certificate.claim, certificate.losses, certificate.gains, certificate.items)
    if stated.p_value(certificate.epsilon) > certificate.delta:
        found = _counted(stated)
        rule = f"its certificate must support a loss of at most {certificate.epsilon:.2%}"
        raise InvalidInput(Problem(f"cascade '{cascade.name}'", rule, found, remedy))
    if table is not None:
        _check_data(cascade, certificate, table.split(certificate.split), remedy)
    return certificate


def _check_data(cascade: Cascade, certificate: Certificate, sample: PredictionTable, remedy: str) -> None:
    """The predictions must be those certified on, and show the numbers that the certificate states."""
    where = f"cascade '{cascade.name}'"
    if data_fingerprint(cascade, sample, certificate.reference) != certificate.data_fingerprint:
        raise Stale(Problem(where, "the predictions changed after it was certified on them", remedy=remedy))
    stated = Observed(certificate.claim, certificate.losses, certificate.gains, certificate.items)
    found = Observed.of(route(cascade, sample).answer, sample, certificate.reference, certificate.claim)
    if found != stated:
        raise InvalidInput(Problem(where, f"its certificate states {_counted(stated)}", _counted(found), remedy))


def _counted(observed: Observed) -> str:
    """For messages: 6 losses and 4 gains among 600 items."""
    gains = f" and {observed.gains} gains" if observed.claim == "excess" else ""
    return f"{observed.losses} losses{gains} among {observed.items} items"


def labels_enough(observed: Observed, epsilon: float, delta: float) -> int | None:
    """A number of labels with which rates like those observed would be certified at epsilon: the least on a grid in steps of
    2% (10% for `excess`, whose test takes longer).

    None where no number would do, or only more than a million.
    """
    if observed.rate >= epsilon:
        return None
    n = math.ceil(math.log(delta) / math.log1p(-epsilon))
    step = 1.1 if observed.claim == "excess" else 1.02
    while n <= _MOST_LABELS:
        scale = n / observed.items
        expected = Observed(observed.claim, math.ceil(observed.losses * scale), math.floor(observed.gains * scale), n)
        if expected.p_value(epsilon) <= delta:
            return n
        n = math.ceil(n * step)
    return None


_REFUSED: dict[Claim, str] = {
    "excess": "lost {losses} of {items} certification items that the reference had right and gained {gains}",
    "loss": "lost {losses} of {items} certification items that the reference had right",
    "disagreement": "answered {losses} of {items} certification items differently from the reference",
}


def _refusal(observed: Observed, epsilon: float, delta: float) -> str:
    """Why nothing was certified, and what would help."""
    counts = _REFUSED[observed.claim].format(losses=observed.losses, gains=observed.gains, items=observed.items)
    what = "disagreement" if observed.claim == "disagreement" else "loss"
    text = f"the strictest setting {counts}; a {what} of at most {epsilon:.2%} cannot be claimed at {1 - delta:.0%} confidence"
    enough = labels_enough(observed, epsilon, delta)
    if enough is None:
        return f"{text}. More labels will not help at this loss rate: allow a larger loss or choose stronger members"
    return f"{text}. About {enough} labels would be enough at this loss rate, or allow a larger loss"
