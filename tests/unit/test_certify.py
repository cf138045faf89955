"""Certificates: exact numbers, stopping, staleness, and coverage over many samples."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from coe.cascade.calibrate import calibrate, gates_of, path, refuse_overlap, thresholds
from coe.cascade.certify import (
    Observed,
    certify_path,
    labels_enough,
    loss_upper_bound,
    p_value,
    verify_certificate,
)
from coe.cascade.evaluate import losses, route
from coe.errors import CannotCertify, InvalidInput, Stale
from coe.table import PredictionTable
from coe.types import Cascade, Tier
from tests import factories

EPSILON, DELTA = 0.03, 0.05


@pytest.mark.parametrize(("observed", "items"), [(0, 100), (3, 450), (20, 200), (7, 7)])
def test_bound_and_p_value_are_the_exact_ones(observed: int, items: int) -> None:
    test = binomtest(observed, items, p=EPSILON, alternative="less")
    assert p_value(observed, items, EPSILON) == pytest.approx(test.pvalue)
    high = test.proportion_ci(1 - DELTA, method="exact").high
    assert loss_upper_bound(observed, items, DELTA) == pytest.approx(high)


@pytest.mark.parametrize("observed", range(8))
def test_certified_means_that_the_upper_bound_is_within_epsilon(observed: int) -> None:
    assert (p_value(observed, 300, EPSILON) <= DELTA) == (loss_upper_bound(observed, 300, DELTA) <= EPSILON)


def test_299_labels_without_loss_certify_one_per_cent() -> None:
    assert labels_enough(Observed("loss", 0, 0, 100), 0.01, 0.05) == 299
    assert labels_enough(Observed("loss", 2, 0, 100), 0.01, 0.05) is None
    n = labels_enough(Observed("loss", 1, 0, 200), 0.01, 0.05)
    assert n is not None
    assert p_value(int(np.ceil(0.005 * n)), n, 0.01) <= 0.05


def test_the_path_only_loosens() -> None:
    table = factories.table(n=2000)
    steps = path(factories.cascade(), table.split("calibration"))
    assert len(steps) > 50
    accepted = [route(c, table).tier == 0 for c in steps]
    for strict, loose in itertools.pairwise(accepted):
        assert not (strict & ~loose).any()


def test_two_gates_loosen_together() -> None:
    cascade = Cascade(
        tiers=(
            Tier(members=("small", "other"), rule="score", threshold=0.5),
            Tier(members=("middle",), rule="score", threshold=0.5),
            Tier(members=("large",)),
        )
    )
    steps = path(cascade, factories.table(n=2000).split("calibration"))
    for gate in (0, 1):
        bars = [c.tiers[gate].bar for c in steps]
        assert bars == sorted(bars, reverse=True)
        assert bars[0] > bars[-1]


def test_thresholds_lie_between_neighbouring_scores() -> None:
    assert thresholds(np.array([0.9, 0.5, 0.9, 0.7])) == pytest.approx([0.8, 0.6])
    assert len(thresholds(np.linspace(0, 1, 10_000))) == 400


def test_votes_have_their_quorums_as_gates() -> None:
    gated = Cascade(tiers=(Tier(members=("small", "other", "middle"), quorum=2), Tier(members=("large",))))
    gates = gates_of(gated, 0, factories.table())
    assert [g.quorum for g in gates] == [3, 2]


def test_the_loosest_certifiable_step_is_taken() -> None:
    table = factories.table(n=4000)
    certified = calibrate(factories.cascade(), table, "large", EPSILON, DELTA, "loss")
    certificate = certified.certificate
    assert certificate is not None
    assert certificate.upper_bound <= EPSILON
    held_out = table.split("certification")
    yardstick = held_out.answers[:, held_out.members.index("large")]
    steps = path(factories.cascade(), table.split("calibration"))
    counts = [int(losses(route(c, held_out).answer, yardstick, held_out.labels).sum()) for c in steps]
    fine = [binom.cdf(k, len(held_out), EPSILON) <= DELTA for k in counts]
    last = fine.index(False) - 1
    assert certified.tiers == steps[last].tiers
    assert certificate.losses == counts[last]


def test_a_single_model_is_certified_as_it_is() -> None:
    single = Cascade(tiers=(Tier(members=("large",)),))
    certified = calibrate(single, factories.table(n=2000), "large", EPSILON, DELTA, "loss")
    assert certified.certificate is not None
    assert certified.certificate.losses == 0


def test_too_few_labels_are_said_to_be_too_few() -> None:
    with pytest.raises(CannotCertify, match=r"of 25 certification items.*About \d+ labels would be enough") as caught:
        calibrate(factories.cascade(), factories.table(n=100, seed=5), "large", EPSILON, DELTA, "loss")
    assert caught.value.exit_code == 5


def test_a_weak_last_tier_is_refused_for_good() -> None:
    weak = factories.cascade(first=("middle",), last=("small",))
    with pytest.raises(CannotCertify, match="More labels will not help"):
        calibrate(weak, factories.table(n=2000), "large", EPSILON, DELTA, "loss")


def test_certificates_notice_changes() -> None:
    table = factories.table(n=2000)
    certified = calibrate(factories.cascade(), table, "large", EPSILON, DELTA, "loss")
    assert verify_certificate(certified, table) == certified.certificate
    looser = certified.model_copy(update={"tiers": factories.cascade(threshold=0.5).tiers})
    with pytest.raises(Stale, match="tiers changed"):
        verify_certificate(looser)
    with pytest.raises(Stale, match="predictions changed"):
        verify_certificate(certified, factories.table(n=2000, seed=1))
    with pytest.raises(InvalidInput, match="no certificate.*coe calibrate"):
        verify_certificate(factories.cascade())


def test_other_members_of_the_pool_may_change_without_making_a_certificate_stale() -> None:
    table = factories.table(n=2000)
    certified = calibrate(factories.cascade(first=("middle",)), table, "large", EPSILON, DELTA, "loss")
    answers, probs = table.answers.copy(), table.probs.copy() if table.probs is not None else None
    column = table.members.index("small")
    answers[:, column] = 0
    changed = PredictionTable(
        table.members, table.classes, table.items.copy(), table.labels.copy(), table.splits.copy(), answers, probs
    )
    verify_certificate(certified, changed)


def test_splits_must_not_share_items() -> None:
    table = factories.table()
    with pytest.raises(InvalidInput, match="must not share items.*item-"):
        refuse_overlap(table.split("calibration"), table.split("calibration"))


def test_a_calibration_split_of_one_class_is_refused() -> None:
    table = factories.table()
    labels = table.labels.copy()
    labels[table.splits == "calibration"] = 2
    one_class = PredictionTable(
        table.members, table.classes, table.items.copy(), labels, table.splits.copy(), table.answers.copy()
    )
    with pytest.raises(InvalidInput, match="at least two classes, got only 'class-2'"):
        calibrate(factories.cascade(rule="vote"), one_class, "large", EPSILON, DELTA, "loss")


def test_an_empty_split_is_refused() -> None:
    table = factories.table()
    with pytest.raises(InvalidInput, match="'calibration' has no items; splits there"):
        calibrate(factories.cascade(), table.rows(table.splits != "calibration"), "large", EPSILON, DELTA, "loss")


@pytest.mark.parametrize("items", [100, 400])
def test_the_claim_fails_in_at_most_delta_of_all_samples(items: int) -> None:
    """Coverage: the population loss is known, so every resample's claim can be checked."""
    population = factories.table(n=40_000, seed=11)
    steps = path(factories.cascade(), factories.table(n=800, seed=12).split("calibration"))[::4]
    yardstick = population.answers[:, population.members.index("large")]
    rates = [losses(route(c, population).answer, yardstick, population.labels) for c in steps]
    truth = np.array([r.mean() for r in rates])
    rng = np.random.default_rng(13)
    delta, epsilon, failures, trials = 0.1, 0.04, 0, 1500
    for _ in range(trials):
        sample = rng.integers(0, len(population), items)
        certified = -1
        for step, r in enumerate(rates):
            if p_value(int(r[sample].sum()), items, epsilon) > delta:
                break
            certified = step
        failures += certified >= 0 and truth[certified] > epsilon
    # a one-sided 99.9% allowance for the noise of the trials themselves
    assert failures <= binom.ppf(0.999, trials, delta)
    assert (truth > epsilon).any(), "the path must reach gates that break the claim, or the test proves nothing"


def test_an_unknown_reference_is_named() -> None:
    with pytest.raises(InvalidInput, match="'giant' is not in the predictions; known: small"):
        certify_path([factories.cascade()], factories.table().split("certification"), "giant", EPSILON, DELTA)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ({"epsilon": 0.001}, "must support a loss of at most 0.10%, got .* losses among 500 items"),
        ({"delta": 1e-9}, "must support a loss of at most 3.00%"),
        ({"losses": 0}, "its certificate states 0 losses among 500 items, got [1-9]"),
        ({"items": 5000}, "its certificate states .* losses among 5000 items, got .* among 500"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_edited_certificate_is_refused(edit: dict[str, float], reason: str) -> None:
    table = factories.table(n=2000)
    certified = calibrate(factories.cascade(), table, "large", EPSILON, DELTA, "loss")
    assert certified.certificate is not None
    edited = certified.model_copy(update={"certificate": certified.certificate.model_copy(update=edit)})
    with pytest.raises(InvalidInput, match=reason):
        verify_certificate(edited, table)


def test_gains_make_the_claim_of_excess_the_stronger_tool() -> None:
    table = factories.table(n=4000, seed=4)
    excess = calibrate(factories.cascade(), table, "large", 0.05, DELTA, "excess")
    loss = calibrate(factories.cascade(), table, "large", 0.05, DELTA, "loss")
    assert excess.certificate is not None
    assert (excess.certificate.claim, excess.certificate.gains > 0) == ("excess", True)
    assert excess.tiers[0].bar <= loss.tiers[0].bar
    verify_certificate(excess, table)
    forged = excess.certificate.model_copy(update={"gains": excess.certificate.gains + 40})
    with pytest.raises(InvalidInput, match="states"):
        verify_certificate(excess.model_copy(update={"certificate": forged}), table)


def test_without_labels_the_claim_is_about_disagreement() -> None:
    table = factories.table(n=8000, seed=4, accuracy={"small": 0.93, "middle": 0.94, "other": 0.94, "large": 0.96})
    unlabelled = replace(table, labels=np.random.default_rng(0).integers(0, 5, len(table)))
    one, other = (calibrate(factories.cascade(), t, "large", 0.08, DELTA, "disagreement") for t in (table, unlabelled))
    assert one.tiers == other.tiers, "labels do not matter"
    assert one.certificate is not None
    sample = table.split("certification")
    differ = route(one, sample).answer != sample.answers[:, sample.members.index("large")]
    assert one.certificate.losses == differ.sum()
