"""`decide` and the rules: laws, ties, missing votes, and agreement with item-by-item reading of the definitions."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from coe.cascade.contract import check_rule
from coe.cascade.decide import decide
from coe.cascade.rules import RULES, score, vote
from coe.errors import InvalidInput
from coe.table import Decision, Outputs
from coe.types import Tier

NAMES = "abcdef"


def tier(members: int, rule: str = "vote", quorum: int | None = None, threshold: float | None = None) -> Tier:
    return Tier(members=tuple(NAMES[:members]), rule=rule, quorum=quorum, threshold=threshold)


def one(answers: list[int], probs: list[list[float]] | None = None) -> Outputs:
    """A batch of one item."""
    dense = None if probs is None else np.array([probs], dtype=np.float32)
    return Outputs(np.array([answers], dtype=np.int64), dense)


@st.composite
def batches(draw: st.DrawFn, missing: bool = False, most_members: int = 5) -> Outputs:
    members = draw(st.integers(1, most_members))
    items = draw(st.integers(1, 12))
    classes = draw(st.integers(2, 4))
    shape = (items, members, classes)
    raw = draw(hnp.arrays(np.float64, shape, elements=st.integers(1, 6).map(float)))
    probs = (raw / raw.sum(axis=2, keepdims=True)).astype(np.float32)
    answers = probs.argmax(axis=2).astype(np.int64)
    if missing:
        answers[draw(hnp.arrays(np.bool_, answers.shape))] = -1
    return Outputs(answers, probs)


def rows(decision: Decision) -> list[tuple[object, ...]]:
    parts = (decision.answer, decision.accepted, decision.score, decision.degraded)
    return list(zip(*(p.tolist() for p in parts), strict=True))


# --- Definitions, read item by item ---


def vote_of_item(answers: list[int]) -> tuple[int, int]:
    """Plurality by hand: most votes, then the earliest listed voter."""
    counts = Counter(a for a in answers if a != -1)
    if not counts:
        return -1, 0
    most = max(counts.values())
    answer = next(a for a in answers if a != -1 and counts[a] == most)
    return answer, most


@given(batches(missing=True))
def test_vote_is_plurality_with_ties_to_the_earliest_voter(outputs: Outputs) -> None:
    scored = vote(outputs)
    expected = [vote_of_item(row) for row in outputs.answers.tolist()]
    assert list(zip(scored.answer.tolist(), scored.score.astype(int).tolist(), strict=True)) == expected


@given(batches())
def test_score_is_the_mean_probability_of_the_plurality_class(outputs: Outputs) -> None:
    assert outputs.probs is not None
    scored = score(outputs)
    for i, row in enumerate(outputs.answers.tolist()):
        counts = Counter(row)
        means = {c: np.mean([float(outputs.probs[i, m, c]) for m in range(len(row))]) for c in counts}
        leading = [c for c in counts if counts[c] == max(counts.values())]
        assert scored.score[i] == pytest.approx(max(means[c] for c in leading), abs=1e-12)
        assert means[scored.answer[i]] == pytest.approx(scored.score[i], abs=1e-12)
        assert counts[scored.answer[i]] == max(counts.values())


def test_ties_by_hand() -> None:
    assert vote(one([2, 1, 1, 2])).answer[0] == 2  # two each; the first member voted 2
    assert vote(one([-1, 1, 2])).answer[0] == 1  # the first vote that was cast
    even = one([0, 1], [[0.6, 0.4], [0.1, 0.9]])
    assert score(even).answer[0] == 1  # one each; class 1 has mean 0.65, class 0 0.35
    same = one([1, 0], [[0.4, 0.6], [0.6, 0.4]])
    assert score(same).answer[0] == 0  # equal means: the lower class


def test_two_of_three_is_two_votes() -> None:
    outputs = one([4, 4, 1])
    assert decide(tier(3, quorum=2), outputs).accepted[0]
    assert not decide(tier(3, quorum=3), outputs).accepted[0]


# --- Laws ---


@given(batches(missing=True), st.sampled_from(["vote", "score"]))
def test_a_batch_is_decided_as_its_items_are(outputs: Outputs, rule: str) -> None:
    members = outputs.answers.shape[1]
    gate = (
        tier(members, rule, quorum=2 if members > 1 else None) if rule == "vote" else tier(members, rule, threshold=0.6)
    )
    assert outputs.probs is not None
    whole = rows(decide(gate, outputs))
    single = [
        rows(decide(gate, Outputs(outputs.answers[i : i + 1], outputs.probs[i : i + 1])))[0]
        for i in range(len(outputs.answers))
    ]
    assert whole == single


@given(batches(), st.data())
def test_a_stricter_gate_accepts_no_more(outputs: Outputs, data: st.DataObject) -> None:
    members = outputs.answers.shape[1]
    low, high = sorted(data.draw(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=2)))
    loose, strict = (decide(tier(members, "score", threshold=t), outputs) for t in (low, high))
    assert not (strict.accepted & ~loose.accepted).any()
    assert (strict.answer == loose.answer).all()


@given(batches(missing=True))
def test_a_tier_without_a_gate_answers_what_anybody_answered(outputs: Outputs) -> None:
    decision = decide(tier(outputs.answers.shape[1]), outputs)
    anybody = (outputs.answers != -1).any(axis=1)
    assert (decision.accepted == anybody).all()
    assert (decision.degraded == (outputs.answers == -1).any(axis=1)).all()


# --- Missing votes ---


@pytest.mark.parametrize("members", [2, 3, 4])
def test_votes_that_are_missing_decide_nothing_and_block_nothing_else(members: int) -> None:
    """For `vote` exactly: accepted if and only if every completion is accepted with the same answer."""
    for answers in itertools.product(range(-1, 3), repeat=members):
        holes = [i for i, a in enumerate(answers) if a == -1]
        for quorum in range(2, members + 1):
            gate = tier(members, quorum=quorum)
            outcomes = set()
            for filling in itertools.product(range(6), repeat=len(holes)):  # three classes seen, three fresh ones
                full = list(answers)
                for hole, value in zip(holes, filling, strict=True):
                    full[hole] = value
                decision = decide(gate, one(full))
                outcomes.add((int(decision.answer[0]), bool(decision.accepted[0])))
            now = decide(gate, one(list(answers)))
            certain = len(outcomes) == 1 and next(iter(outcomes))[1]
            assert bool(now.accepted[0]) == certain, (answers, quorum)
            if certain:
                assert int(now.answer[0]) == next(iter(outcomes))[0]


@settings(max_examples=200)
@given(batches(missing=True, most_members=3), st.floats(0.05, 1.0), st.integers(0, 2**31))
def test_a_score_accepted_with_missing_votes_is_accepted_in_every_completion(
    outputs: Outputs, threshold: float, seed: int
) -> None:
    assert outputs.probs is not None
    members, classes = outputs.probs.shape[1:]
    gate = tier(members, "score", threshold=threshold)
    now = decide(gate, outputs)
    rng = np.random.default_rng(seed)
    for _ in range(20):
        probs, answers = outputs.probs.copy(), outputs.answers.copy()
        holes = answers == -1
        sharp = rng.choice([0.2, 1.0, 8.0])
        probs[holes] = rng.dirichlet(np.full(classes, 1 / sharp), size=int(holes.sum())).astype(np.float32)
        answers[holes] = probs[holes].argmax(axis=1)
        full = decide(gate, Outputs(answers, probs))
        assert (full.accepted[now.accepted]).all()
        assert (full.answer[now.accepted] == now.answer[now.accepted]).all()


def test_nobody_answered() -> None:
    decision = decide(tier(2, quorum=2), one([-1, -1]))
    assert rows(decision) == [(-1, False, 0.0, True)]


def test_a_score_is_at_most_one_even_where_probabilities_add_up_to_a_hair_more() -> None:
    """A threshold above 1 is refused, so a score above it would be one that no gate can name."""
    sure = one([1, 1], [[0.0, 1.0005], [0.0, 1.0005]])
    assert score(sure).score[0] == 1.0
    assert decide(tier(2, "score", threshold=1.0), sure).accepted[0]


# --- Refusals ---


def test_outputs_of_other_members_are_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="2 members for a tier of 3"):
        decide(tier(3, quorum=2), one([0, 1]))


def test_score_needs_probabilities() -> None:
    with pytest.raises(InvalidInput, match="needs probabilities"):
        decide(tier(2, "score", threshold=0.5), one([0, 0]))


def test_an_unknown_rule_names_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match="known: both, entropy, "):
        decide(Tier(members=("a", "b"), rule="agree", threshold=0.5), one([0, 0]))


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_rule_keeps_the_contract(name: str) -> None:
    check_rule(RULES[name])


def test_the_contract_catches_a_rule_that_ignores_missing_votes() -> None:
    from coe.cascade.rules import Scored

    def careless(outputs: Outputs) -> Scored:
        scored = vote(outputs)
        return Scored(scored.answer, scored.score, np.ones(len(scored.answer), dtype=np.bool_))

    with pytest.raises(AssertionError, match="missing"):
        check_rule(careless)


def test_a_rule_of_somebody_else_is_named_by_dotted_path() -> None:
    outputs = one([1, 1], [[0.2, 0.8], [0.1, 0.9]])
    own = Tier(members=("a", "b"), rule="coe.cascade.rules:score", threshold=0.84)
    assert decide(own, outputs).accepted[0]
    assert decide(own, outputs).score[0] == pytest.approx(0.85, abs=1e-6)
