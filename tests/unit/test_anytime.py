"""Bounds that may be looked at all the time: against plain sums, against simulated streams, and against what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import beta

from coe.cascade.anytime import ANY, RARE, Bounds, Prior, log_evidence, lower_bound, upper_bound
from coe.cascade.certify import loss_upper_bound

rates = st.floats(0.001, 0.999)


def integrated(hits: int, draws: int, m: float, prior: Prior) -> float:
    """The evidence from its definition: the stake on every p > m, and what is kept."""

    def won(p: float) -> float:
        return (p / m) ** hits * ((1 - p) / (1 - m)) ** (draws - hits) * float(beta.pdf(p, *prior))

    return float(beta.cdf(m, *prior)) + quad(won, m, 1, limit=200)[0]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.floats(0.02, 0.9), st.sampled_from([RARE, ANY]))
def test_the_evidence_is_the_integral_of_its_bets(hits: int, misses: int, m: float, prior: Prior) -> None:
    found = float(np.exp(log_evidence(hits, hits + misses, m, prior)))
    assert found == pytest.approx(integrated(hits, hits + misses, m, prior), rel=1e-5)


@given(st.integers(0, 500), st.integers(0, 500), rates, st.floats(0, 1))
def test_the_bet_is_fair_or_worse_while_the_claim_is_true(hits: int, misses: int, m: float, part: float) -> None:
    """One more draw whose chance of a hit is at most m does not add to the evidence in the mean."""
    chance, draws = part * m, hits + misses
    now, after_hit, after_miss = log_evidence(
        np.array([hits, hits + 1.0, hits]), np.array([draws, draws + 1.0, draws + 1.0]), np.array([m, m, m])
    )
    mean = np.logaddexp(after_hit + (math.log(chance) if chance else -math.inf), after_miss + math.log1p(-chance))
    assert mean <= now + 1e-9


@given(st.integers(1, 2000), st.data(), rates, rates)
def test_the_evidence_falls_towards_the_mean(draws: int, data: st.DataObject, m: float, n: float) -> None:
    hits = data.draw(st.integers(1, draws))
    m, n = sorted((m, n))
    assume(m < n < hits / draws)
    both = log_evidence(np.full(2, float(hits)), np.full(2, float(draws)), np.array([m, n]))
    assert both[0] >= both[1] - 1e-9


@given(st.integers(1, 3000), st.data(), st.sampled_from([0.01, 0.05, 0.2]))
def test_bounds_lie_around_the_mean_and_are_wider_than_those_for_one_look(
    draws: int, data: st.DataObject, delta: float
) -> None:
    hits = data.draw(st.integers(0, draws))
    low, high = lower_bound(hits, draws, delta), upper_bound(hits, draws, delta)
    assert 0 <= low <= hits / draws <= high <= 1
    assert high >= loss_upper_bound(hits, draws, delta) - 1e-9
    assert lower_bound(hits, draws, delta / 2) <= low


def streams(rate: float, runs: int, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hits so far, (runs, draws), and draws so far."""
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.random((runs, draws)) < rate, axis=1).astype(float), np.arange(1.0, draws + 1)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
def test_wrong_at_any_time_in_at_most_delta_of_streams(rate: float) -> None:
    """400 streams of 2,000 draws, looked at after each: both bounds, against the exact binomial error of the simulation."""
    hits, draws = streams(rate, 400, 2000, seed=3)
    too_high = log_evidence(hits, draws, rate) >= math.log(1 / 0.1)
    too_low = log_evidence(draws - hits, draws, 1 - rate) >= math.log(1 / 0.1)
    for wrong in (too_high.any(axis=1).sum(), too_low.any(axis=1).sum()):
        assert wrong <= 40 + 3 * math.sqrt(400 * 0.1 * 0.9)


def test_a_bound_for_one_look_would_be_wrong_far_more_often() -> None:
    """Why all this: the same streams, with the exact binomial bound looked at after every draw."""
    hits, draws = streams(0.05, 100, 2000, seed=4)
    low = np.where(hits > 0, beta.ppf(0.1, np.maximum(hits, 1), draws - hits + 1), 0.0)
    assert (low > 0.05).any(axis=1).mean() > 0.3
    assert (log_evidence(hits, draws, 0.05) >= math.log(10)).any(axis=1).mean() < 0.15


def test_chances_that_change_but_are_never_above_the_claim_rarely_break_it() -> None:
    rng = np.random.default_rng(5)
    chances = 0.05 * (0.5 + 0.5 * np.sin(np.arange(2000) / 300.0))
    hits = np.cumsum(rng.random((200, 2000)) < chances, axis=1).astype(float)
    wrong = (log_evidence(hits, np.arange(1.0, 2001), 0.05) >= math.log(10)).any(axis=1)
    assert wrong.mean() < 0.1


@pytest.mark.parametrize(("promised", "enough"), [(0.01, 3000), (0.05, 600)])
def test_twice_the_promised_rate_is_shown_soon(promised: float, enough: int) -> None:
    hits, draws = streams(2 * promised, 300, enough, seed=6)
    shown = (log_evidence(hits, draws, promised) >= math.log(20)).any(axis=1)
    assert shown.mean() > 0.9


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_bounds_only_tighten(seen: list[bool]) -> None:
    bounds, before = Bounds(0.05), Bounds(0.05)
    for n in range(1, len(seen) + 1):
        bounds = before.after(sum(seen[:n]), n)
        assert before.low <= bounds.low <= bounds.high <= before.high or bounds.low > bounds.high
        assert bounds.low == pytest.approx(max(before.low, lower_bound(sum(seen[:n]), n, 0.05)), abs=1e-5)
        before = bounds
