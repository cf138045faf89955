"""The test for the excess error, against enumeration, against the binomial it contains, and against its own claim."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multinomial

from coe.cascade.certify import loss_upper_bound
from coe.cascade.paired import NUISANCE_ERROR, _interval, _lower_tail, excess_p_value, excess_upper_bound


@given(n=st.integers(1, 14), observed=st.integers(-14, 14), epsilon=st.floats(-0.3, 0.5), share=st.floats(0.0, 1.0))
@settings(max_examples=80, deadline=None)
def test_the_tail_is_that_of_the_multinomial(n: int, observed: int, epsilon: float, share: float) -> None:
    gain = max(0.0, -epsilon) + share * ((1 - epsilon) / 2 - max(0.0, -epsilon))
    p = np.clip([gain + epsilon, gain, 1 - 2 * gain - epsilon], 0, 1)
    pairs = [(a, b) for a in range(n + 1) for b in range(n + 1 - a) if a - b <= observed]
    exact = sum(multinomial.pmf((a, b, n - a - b), n, p / p.sum()) for a, b in pairs)
    assert _lower_tail(observed, n, epsilon, np.array([gain]))[0] == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("n", [30, 100])
@pytest.mark.parametrize(("lost", "gained"), [(0.02, 0.0), (0.05, 0.03), (0.08, 0.08), (0.1, 0.05)])
def test_the_test_rejects_a_true_excess_no_oftener_than_it_may(n: int, lost: float, gained: float) -> None:
    """The exact probability, over all samples, that the bound lies below the truth."""
    delta, truth = 0.1, lost - gained
    wrong = 0.0
    most = int(n * (lost + gained) + 6 * np.sqrt(n * (lost + gained)) + 6)
    cells = [(a, b) for a in range(min(most, n) + 1) for b in range(min(most, n) + 1 - a) if a + b <= n]
    weights = multinomial.pmf([(a, b, n - a - b) for a, b in cells], n, (lost, gained, 1 - lost - gained))
    for (a, b), weight in zip(cells, weights, strict=True):
        # only samples that look better than the truth can mislead
        if weight > 1e-7 and (a - b) / n < truth and excess_p_value(a, b, n, truth) <= delta:
            wrong += weight
    assert wrong <= delta


def test_the_bound_shrinks_with_the_sample_and_is_near_the_normal_one() -> None:
    bounds = [excess_upper_bound(3 * n // 100, 2 * n // 100, n, 0.05) for n in (100, 400, 1600, 6400)]
    assert bounds == sorted(bounds, reverse=True)
    n = 6400
    normal = 0.01 + 1.645 * np.sqrt((0.05 - 0.01**2) / n)
    assert normal < bounds[-1] < normal * 1.1


def test_gains_make_up_for_losses_only_under_this_claim() -> None:
    assert excess_upper_bound(40, 40, 2000, 0.05) < loss_upper_bound(40, 2000, 0.05) / 2


@given(lost=st.integers(0, 30), gained=st.integers(0, 30), more=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_more_losses_and_fewer_gains_never_look_safer(lost: int, gained: int, more: int) -> None:
    n, epsilon = 300, 0.04
    assert excess_p_value(lost + more, gained, n, epsilon) >= excess_p_value(lost, gained, n, epsilon) - 2e-3


def test_impossible_excesses_are_ruled_out_and_the_interval_is_exact() -> None:
    assert excess_p_value(0, 0, 1000, 0.5) == NUISANCE_ERROR
    assert excess_p_value(0, 0, 1000, -0.5) == 1.0
    low, high = _interval(0, 100)
    assert low == 0
    assert (1 - high) ** 100 == pytest.approx(NUISANCE_ERROR / 2, rel=1e-6)
    with pytest.raises(ValueError, match="delta must be above"):
        excess_upper_bound(0, 0, 10, 1e-4)
