"""What gates look at, worked out by hand and with half-known probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.cascade.beliefs import truncated
from coe.errors import InvalidInput
from coe.learned.features import FEATURES, PAPER, SUMMARY, default_features, matrix
from coe.table import Outputs
from coe.types import ABSTAINED, MISSING_VOTE


def outputs(*members: list[float], answers: list[int] | None = None) -> Outputs:
    """One item; each member's distribution."""
    probs = np.array([members], dtype=np.float32)
    voted = probs.argmax(axis=2) if answers is None else np.array([answers])
    return Outputs(voted.astype(np.int64), probs)


def value(said: Outputs, feature: str) -> float:
    return float(matrix(said, [feature])[0, 0])


def test_features_of_two_members_by_hand() -> None:
    said = outputs([0.6, 0.3, 0.1], [0.2, 0.7, 0.1])  # mean 0.4, 0.5, 0.1; a tie in votes goes to class 0
    assert value(said, "max_prob") == pytest.approx(0.5)
    assert value(said, "margin") == pytest.approx(0.1)
    assert value(said, "log_odds") == pytest.approx(0.0, abs=1e-6)
    assert value(said, "lowest") == pytest.approx(0.2)
    assert value(said, "vote_share") == 0.5

    def entropy(*p: float) -> float:
        return -sum(x * np.log(x) for x in p) / np.log(3)

    assert value(said, "entropy") == pytest.approx(entropy(0.4, 0.5, 0.1))
    own = (entropy(0.6, 0.3, 0.1) + entropy(0.2, 0.7, 0.1)) / 2
    assert value(said, "disagreement") == pytest.approx(entropy(0.4, 0.5, 0.1) - own)
    assert matrix(said, ["probs"])[0] == pytest.approx([0.4, 0.5, 0.1])
    assert matrix(said, ["top"])[0] == pytest.approx([0.5, 0.4, 0.1, 0, 0])


@pytest.mark.parametrize("silent", [MISSING_VOTE, ABSTAINED])
def test_a_member_that_did_not_vote_is_not_looked_at(silent: int) -> None:
    beside = outputs([0.6, 0.3, 0.1], [np.nan, np.nan, np.nan], answers=[0, silent])
    alone = outputs([0.6, 0.3, 0.1])
    names = [name for name in FEATURES if name not in ("vote_share", "each", "said")]  # those count the silent too
    assert matrix(beside, names) == pytest.approx(matrix(alone, names))
    assert value(beside, "vote_share") == 0.5


def test_an_item_on_which_nobody_voted_looks_uniform() -> None:
    said = outputs([0.6, 0.4], answers=[MISSING_VOTE])
    assert value(said, "entropy") == pytest.approx(1)
    assert value(said, "max_prob") == 0.5
    assert value(said, "disagreement") == 0
    assert value(said, "vote_share") == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(2, 6))
def test_lists_of_all_classes_give_the_same_features_as_dense_probabilities(
    seed: int, members: int, classes: int
) -> None:
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(classes, 0.4), size=(7, members)).astype(np.float32)
    answers = probs.argmax(axis=2).astype(np.int64)
    answers[rng.random(answers.shape) < 0.2] = ABSTAINED
    answers[(answers < 0).all(axis=1), 0] = 0
    dense = Outputs(answers, probs)
    names = [*SUMMARY, "top"]
    assert matrix(truncated(dense, classes), names) == pytest.approx(matrix(dense, names), abs=1e-5)


def test_lists_of_two_members_are_merged_class_by_class() -> None:
    said = Outputs(
        answers=np.array([[7, 3]]),
        probs=np.array([[[0.6, 0.3], [0.5, 0.4]]], dtype=np.float32),
        top=np.array([[[7, 3], [3, 9]]], dtype=np.int32),
        classes=10,
    )
    # means: class 3 (0.3 + 0.5) / 2, class 7 0.3, class 9 0.2; the rest, 0.1, is spread over seven classes
    assert matrix(said, ["top"])[0] == pytest.approx([0.4, 0.3, 0.2, 0, 0], abs=1e-6)
    mean = np.array([0.4, 0.3, 0.2, *[0.1 / 7] * 7])
    assert value(said, "entropy") == pytest.approx(-(mean * np.log(mean)).sum() / np.log(10), abs=1e-6)


def test_answers_alone_have_a_vote_share_and_nothing_else() -> None:
    said = Outputs(np.array([[1, 1, 0]]))
    assert default_features(said) == ("vote_share",)
    assert value(said, "vote_share") == pytest.approx(2 / 3)
    for name in set(FEATURES) - {"vote_share"}:
        with pytest.raises(InvalidInput, match="only answer"):
            matrix(said, [name])


def test_refusals_say_which_feature() -> None:
    said = outputs([0.6, 0.4])
    with pytest.raises(InvalidInput, match="feature 'hunch'.*known: .*entropy"):
        matrix(said, ["hunch"])
    with pytest.raises(InvalidInput, match="feature 'tests.unit.test_learned_features:_nan'.*NaN"):
        matrix(said, ["tests.unit.test_learned_features:_nan"])
    with pytest.raises(InvalidInput, match="must have 1 rows"):
        matrix(said, ["tests.unit.test_learned_features:_short"])
    with pytest.raises(InvalidInput, match="every class.*feature 'top'"):
        matrix(truncated(said, 1), PAPER)


def _nan(_view: object) -> np.ndarray:
    return np.array([np.nan])


def _short(_view: object) -> np.ndarray:
    return np.zeros(3)


def test_what_each_member_said_has_a_column_of_its_own() -> None:
    found = matrix(outputs([0.6, 0.3, 0.1], [0.2, 0.7, 0.1], answers=[0, 1]), ["said"])
    assert found.tolist() == [[1, 0, 0, 0, 1, 0]]
    beside = matrix(outputs([0.6, 0.4], [0.3, 0.7], answers=[0, MISSING_VOTE]), ["each"])
    assert beside[0, [1, 3, 5]].tolist() == [0, 0, 0]
    assert beside[0, 4] == 1
