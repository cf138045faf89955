"""Pessimistic and tuned thresholds against the definition, over random lookups with ties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.freeze.thresholds import ALWAYS, hit_curve, pessimistic, tuned

Lookups = tuple[np.ndarray, np.ndarray]


@st.composite
def lookups(draw: st.DrawFn) -> Lookups:
    """Confidences of few distinct values, so that ties are common, and whether each lookup is right."""
    n = draw(st.integers(1, 40))
    confidence = draw(st.lists(st.sampled_from([0.1, 0.5, 1.0, 2.0, 3.5, 9.0]), min_size=n, max_size=n))
    right = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    return np.array(confidence), np.array(right)


def errors(confidence: np.ndarray, right: np.ndarray, threshold: float) -> int:
    return int(((confidence > threshold) & ~right).sum())


@given(lookups())
def test_no_hit_is_wrong_under_the_pessimistic_threshold_and_none_lower_would_do(sample: Lookups) -> None:
    confidence, right = sample
    threshold = pessimistic(confidence, right)
    assert errors(confidence, right, threshold) == 0
    if not right.all():
        assert errors(confidence, right, np.nextafter(threshold, 0)) > 0


def test_all_lookups_hit_where_none_is_wrong() -> None:
    assert pessimistic(np.array([0.2, 3.0]), np.array([True, True])) == ALWAYS


@given(lookups(), st.sampled_from([0.0, 0.05, 0.1, 0.3, 1.0]))
def test_the_tuned_threshold_has_the_most_hits_within_its_budget(sample: Lookups, budget: float) -> None:
    confidence, right = sample
    n = len(right)
    threshold = tuned(confidence, right, budget)
    hits = int((confidence > threshold).sum())
    assert errors(confidence, right, threshold) <= budget * n + 1e-9
    every = [ALWAYS, *confidence.tolist()]
    allowed = [int((confidence > t).sum()) for t in every if errors(confidence, right, t) <= budget * n + 1e-9]
    assert hits == max(allowed)


@given(lookups())
def test_a_budget_of_nothing_is_the_pessimistic_threshold(sample: Lookups) -> None:
    assert tuned(*sample, 0.0) == pessimistic(*sample)


@given(lookups())
def test_the_curve_is_what_counting_says(sample: Lookups) -> None:
    confidence, right = sample
    curve = hit_curve(confidence, right)
    for threshold, share, accuracy in zip(curve.threshold, curve.hit_share, curve.hit_accuracy, strict=True):
        hit = confidence > threshold
        assert share == pytest.approx(hit.mean())
        assert accuracy == pytest.approx(right[hit].mean() if hit.any() else 1.0)
    assert (curve.hit_share[0], curve.hit_share[-1]) == (0, 1)
