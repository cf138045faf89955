"""Routing, search and calibration against plain Python that shares no code with them: no `decide`, no rules, no sweeps.

Probabilities are eighths, so that tied scores are common and every sum is exact; votes are missing at random.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from coe.cascade.calibrate import calibrate, path
from coe.cascade.evaluate import losses, route
from coe.cascade.search import search
from coe.cascade.space import Space
from coe.cost.calls import constant
from coe.errors import CannotCertify, InvalidInput
from coe.table import PredictionTable
from coe.types import Cascade, Tier
from tests import factories

MEMBERS = ("small", "other", "middle", "large")
COST = {"small": 0.1, "other": 0.13, "middle": 0.17, "large": 2.0}
PRICES = constant(COST, "usd", "prices of a test")
PLAIN = Space(last_members=1, carry=(False,))


def eighths(n: int, classes: int, seed: int, missing: float = 0.0) -> PredictionTable:
    """A table of `factories` with probabilities rounded to eighths; only `large`, the reference, lacks no vote."""
    table = factories.table(n=n, members=MEMBERS, classes=classes, seed=seed)
    assert table.probs is not None
    counts = np.floor(table.probs * 8).astype(np.int64)
    top = table.probs.argmax(axis=2)[..., None]
    np.put_along_axis(counts, top, np.take_along_axis(counts, top, 2) + 8 - counts.sum(axis=2, keepdims=True), 2)
    answers = counts.argmax(axis=2)
    holes = np.random.default_rng(seed + 1).random(answers.shape) < missing
    holes[:, MEMBERS.index("large")] = False
    answers[holes] = -1
    return replace(table, answers=answers, probs=(counts / 8).astype(np.float32))


def shuffled(table: PredictionTable, order: np.ndarray) -> PredictionTable:
    """The same items in another order."""
    assert table.probs is not None
    return replace(
        table,
        items=table.items[order],
        labels=table.labels[order],
        splits=table.splits[order],
        answers=table.answers[order],
        probs=table.probs[order],
    )


# --- The definitions, item by item ---


def p_value(lost: int, items: int, epsilon: float) -> float:
    """Of the exact test whether the loss rate is below epsilon."""
    return float(binomtest(lost, items, epsilon, alternative="less").pvalue)


def plurality(votes: Sequence[int]) -> list[int]:
    """The classes with most votes, in the order of their first voter."""
    counts = Counter(v for v in votes if v != -1)
    return [c for c in counts if counts[c] == max(counts.values())]


def settled(rule: str, votes: Sequence[int], answer: int, classes: int) -> bool:
    """True where every way to cast the missing votes leaves the answer; for `score` it must also win without a tie."""
    holes = [i for i, v in enumerate(votes) if v == -1]
    if not holes:
        return True
    for filling in itertools.product(range(classes), repeat=len(holes)):
        full = list(votes)
        for hole, value in zip(holes, filling, strict=True):
            full[hole] = value
        winners = plurality(full)
        if winners[0] != answer or (rule == "score" and len(winners) > 1):
            return False
    return True


def judged(rule: str, members: Sequence[str], table: PredictionTable, row: int) -> tuple[int, float, bool]:
    """Answer, score and whether missing votes leave the answer standing, of one item."""
    assert table.probs is not None
    cols = [table.members.index(m) for m in members]
    votes = [int(table.answers[row, c]) for c in cols]
    leading = plurality(votes)
    if not leading:
        return -1, 0.0, False
    mean = {
        k: sum(float(table.probs[row, c, k]) for c, v in zip(cols, votes, strict=True) if v != -1) / len(cols)
        for k in leading
    }
    answer = (
        leading[0] if rule == "vote" else max(sorted(leading), key=lambda k: mean[k])
    )  # `max` keeps the lowest of equals
    score = float(votes.count(answer)) if rule == "vote" else mean[answer]
    return answer, score, settled(rule, votes, answer, len(table.classes))


def walked(cascade: Cascade, table: PredictionTable, row: int) -> tuple[int, int]:
    """Answer and tier of one item."""
    for number, tier in enumerate(cascade.tiers[:-1]):
        answer, score, stands = judged(tier.rule, tier.members, table, row)
        if stands and score >= tier.bar:
            return answer, number
    last = cascade.tiers[-1]
    return judged(last.rule, last.members, table, row)[0], len(cascade.tiers) - 1


# --- Routing ---


@st.composite
def gated(draw: st.DrawFn, members: tuple[str, ...]) -> Tier:
    if len(members) > 1 and draw(st.booleans()):
        return Tier(members=members, quorum=draw(st.integers(2, len(members))))
    bar = draw(st.integers(1, 24)) / 24  # thresholds that scores hit exactly
    return Tier(members=members, rule="score", threshold=bar)


@st.composite
def cascades(draw: st.DrawFn) -> Cascade:
    order = draw(st.permutations(MEMBERS))
    cuts = sorted(draw(st.sets(st.integers(1, 3), max_size=2)))
    parts = [tuple(order[a:b]) for a, b in itertools.pairwise([0, *cuts, 4])]
    rule = draw(st.sampled_from(["vote", "score"]))
    return Cascade(tiers=(*(draw(gated(part)) for part in parts[:-1]), Tier(members=parts[-1], rule=rule)))


@settings(max_examples=60)
@given(cascades(), st.integers(0, 10**6), st.sampled_from([0.0, 0.2, 0.6]), st.sampled_from([2, 3, 5]))
def test_routing_is_the_walk(cascade: Cascade, seed: int, missing: float, classes: int) -> None:
    table = eighths(40, classes, seed, missing)
    routing = route(cascade, table)
    expected = [walked(cascade, table, row) for row in range(len(table))]
    assert list(zip(routing.answer.tolist(), routing.tier.tolist(), strict=True)) == expected


@settings(max_examples=30)
@given(cascades(), st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_the_order_of_items_does_not_matter(cascade: Cascade, seed: int, random: object) -> None:
    table = eighths(60, 5, seed, 0.2)
    order = np.arange(len(table))
    random.shuffle(order)  # type: ignore[attr-defined]
    routing, other = route(cascade, table), route(cascade, shuffled(table, order))
    for name in ("answer", "tier", "degraded"):
        assert (getattr(routing, name)[order] == getattr(other, name)).all()


@settings(max_examples=60)
@given(cascades(), st.integers(0, 10**6), st.sampled_from([0.0, 0.3]))
def test_the_risk_of_many_tiers_is_that_of_the_last_and_what_each_gate_adds(
    cascade: Cascade, seed: int, missing: float
) -> None:
    """R(cascade) = R(last) + sum over gates of [P(accepted, tier wrong) - P(accepted, last wrong)], in counts of items."""
    table = eighths(80, 4, seed, missing)
    routing = route(cascade, table)
    last_tier = cascade.tiers[-1]
    last = np.array([judged(last_tier.rule, last_tier.members, table, row)[0] for row in range(len(table))])
    wrong, last_wrong = routing.answer != table.labels, last != table.labels
    at_gate = [routing.tier == number for number in range(len(cascade.tiers) - 1)]
    added = sum(int((at & wrong).sum()) - int((at & last_wrong).sum()) for at in at_gate)
    unsafe = sum(int((at & wrong).sum()) for at in at_gate)
    assert int(wrong.sum()) == int(last_wrong.sum()) + added
    assert int(wrong.sum()) <= int(last_wrong.sum()) + unsafe
    # the loss that is certified is between the net loss and what the gates let through
    lost = int(losses(routing.answer, last, table.labels).sum())
    assert added <= lost <= unsafe


# --- Search ---


def every_pair(sample: PredictionTable, most_members: int) -> list[tuple[float, int, int]]:
    """Dollars per 1,000, number right and number lost of every single model and every two-tier cascade that defers."""
    n, labels = len(sample), sample.labels.tolist()
    said = {m: sample.answers[:, i].tolist() for i, m in enumerate(sample.members)}
    reference = said["large"]

    def entry(usd: float, answers: Sequence[int]) -> tuple[float, int, int]:
        right = sum(a == y for a, y in zip(answers, labels, strict=True))
        lost = sum(a != y and r == y for a, r, y in zip(answers, reference, labels, strict=True))
        return round(1000 * usd, 6), right, lost

    found = [entry(COST[m], said[m]) for m in sample.members]
    ranked = sorted(sample.members, key=lambda m: -sum(a == y for a, y in zip(said[m], labels, strict=True)))
    for size in range(1, most_members + 1):
        for first in itertools.combinations(ranked, size):
            for rule in ("vote", "score")[size == 1 :]:
                seen = [judged(rule, first, sample, row) for row in range(n)]
                for bar in {score for _, score, stands in seen if stands and (rule == "score" or score >= 2)}:
                    accepted = [stands and score >= bar for _, score, stands in seen]
                    if all(accepted) or (rule == "vote" and bar <= -(-size // len(sample.classes))):
                        continue
                    for last in set(sample.members) - set(first):
                        both = zip(accepted, seen, said[last], strict=True)
                        answers = [own[0] if stays else other for stays, own, other in both]
                        deferred = 1 - sum(accepted) / n
                        found.append(entry(sum(COST[m] for m in first) + deferred * COST[last], answers))
    return found


@pytest.mark.parametrize("missing", [0.0, 0.35], ids=["all votes", "missing votes"])
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_search_finds_the_whole_front_and_the_cheapest_that_may_be_chosen(
    seed: int, classes: int, missing: float
) -> None:
    table = eighths(240, classes, seed, missing)
    sample = table.split("calibration")
    everything = every_pair(sample, 3)
    best_right = itertools.accumulate((right for _, right, _ in sorted(everything, key=lambda e: (e[0], -e[1]))), max)
    front: dict[int, float] = {}
    for (usd, _, _), right in zip(sorted(everything, key=lambda e: (e[0], -e[1])), best_right, strict=True):
        front.setdefault(right, usd)
    for epsilon in (0.05, 0.12, 0.3):
        found = search(table, PRICES, "large", epsilon, 0.1, PLAIN, claim="loss")
        assert {round(p.stats.accuracy * len(sample)): round(p.cost_per_1k, 6) for p in found.points} == front
        assert found.evaluated == len(everything)
        allowed = [usd for usd, _, lost in everything if p_value(lost, len(sample), epsilon) <= 0.1]
        assert (None if found.chosen is None else round(found.chosen.cost_per_1k, 6)) == min(allowed, default=None)


def test_the_front_says_what_its_cascades_do() -> None:
    table = eighths(240, 5, 9, 0.3)
    sample = table.split("calibration")
    found = search(table, PRICES, "large", 0.1, 0.1, PLAIN, claim="loss")
    for point in found.points:
        walks = [walked(point.cascade, sample, row) for row in range(len(sample))]
        dollars = [sum(COST[m] for t in point.cascade.tiers[: at + 1] for m in t.members) for _, at in walks]
        assert point.cost_per_1k == pytest.approx(1000 * np.mean(dollars))
        assert point.stats.accuracy == pytest.approx(np.mean(np.array([a for a, _ in walks]) == sample.labels))


# --- Calibration ---


@pytest.mark.parametrize("missing", [0.0, 0.2], ids=["all votes", "missing votes"])
@pytest.mark.parametrize("rule", ["score", "vote"])
@pytest.mark.parametrize("seed", range(3))
def test_the_certificate_counts_what_the_walk_counts(seed: int, rule: str, missing: float) -> None:
    table = eighths(1600, 5, seed, missing)
    shape = factories.cascade(("middle", "other", "small"), rule=rule)
    certified = calibrate(shape, table, "large", 0.05, 0.05, "loss")
    certificate = certified.certificate
    assert certificate is not None
    held_out = table.split("certification")
    reference = held_out.answers[:, MEMBERS.index("large")].tolist()
    labels = held_out.labels.tolist()

    def lost(cascade: Cascade) -> int:
        answers = [walked(cascade, held_out, row)[0] for row in range(len(held_out))]
        return sum(a != y and r == y for a, r, y in zip(answers, reference, labels, strict=True))

    assert certificate.losses == lost(certified)
    assert p_value(certificate.losses, certificate.items, 0.05) <= 0.05
    steps = [step.tiers for step in path(shape, table.split("calibration"))]
    following = steps[steps.index(certified.tiers) + 1 :]
    if following:  # the next looser gate is refused, or the path would have gone on
        more = lost(Cascade(tiers=following[0]))
        assert p_value(more, certificate.items, 0.05) > 0.05


@pytest.mark.parametrize("rule", ["score", "vote"])
def test_calibrated_cascades_break_their_promise_in_at_most_delta_of_all_samples(rule: str) -> None:
    """The whole verb, choice of the path included, on fresh samples of a population that stands for the truth."""
    population = eighths(20_000, 5, 77)
    reference = population.answers[:, MEMBERS.index("large")]
    shape = factories.cascade(("middle", "other"), rule=rule)
    epsilon, delta, trials = 0.05, 0.2, 250
    truth: dict[tuple[Tier, ...], float] = {}
    rng = np.random.default_rng(78)
    broken = certified = 0
    sizes = {"calibration": 30, "certification": 200}
    splits = np.repeat(list(sizes), list(sizes.values()))
    for _ in range(trials):
        rows = rng.choice(len(population), len(splits), replace=False)
        sample = replace(shuffled(population, rows), splits=splits)
        try:
            tiers = calibrate(shape, sample, "large", epsilon, delta, "loss").tiers
        except CannotCertify:
            continue
        certified += 1
        if tiers not in truth:
            answers = route(Cascade(tiers=tiers), population).answer
            truth[tiers] = float(losses(answers, reference, population.labels).mean())
        broken += truth[tiers] > epsilon
    assert certified > trials / 4
    assert broken <= binom.ppf(0.999, trials, delta), "more than chance explains"


def test_a_reference_that_did_not_answer_is_no_yardstick() -> None:
    """An item without its answer could never be a loss, so the claim would come too cheap."""
    table = eighths(400, 5, 3)
    answers = table.answers.copy()
    answers[250, MEMBERS.index("large")] = -1
    gappy = replace(table, answers=answers)
    with pytest.raises(InvalidInput, match="'large'.*an answer for every item.*none for 1 of 100.*item-00250"):
        calibrate(factories.cascade(), gappy, "large", 0.1, 0.1, "loss")
