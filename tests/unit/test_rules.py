"""Every rule against its contract, its definition written out by hand, and the bounds it owes to half-known outputs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.cascade.agreement import both
from coe.cascade.beliefs import tempered, truncated
from coe.cascade.contract import check_rule
from coe.cascade.decide import decide
from coe.cascade.evaluate import asked_members, evaluate, route
from coe.cascade.rules import RULES, rule, rule_of
from coe.cascade.similarity import jaccard
from coe.errors import InvalidInput
from coe.table import Outputs
from coe.types import ABSTAINED, MISSING_VOTE, Cascade, Tier
from tests import factories

WHITE_BOX = ("score", "mean", "both", "margin", "entropy", "jensen_shannon")


def outputs_of(seed: int, items: int = 40, members: int = 3, classes: int = 6, concentration: float = 0.4) -> Outputs:
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(classes, concentration), size=(items, members)).astype(np.float32)
    return Outputs(probs.argmax(axis=2).astype(np.int64), probs, classes=classes, texts=tuple("abcdefgh"[:classes]))


@pytest.mark.parametrize("name", sorted(RULES))
@pytest.mark.parametrize("seed", [0, 1])
def test_every_rule_keeps_the_contract(name: str, seed: int) -> None:
    check_rule(RULES[name], seed)


@pytest.mark.parametrize("quorum", [2, 3])
def test_both_keeps_the_contract_at_any_quorum(quorum: int) -> None:
    check_rule(both(quorum))


@pytest.mark.parametrize("name", WHITE_BOX)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 6), members=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_what_is_not_listed_can_only_lower_the_score(name: str, seed: int, k: int, members: int) -> None:
    dense = outputs_of(seed, members=members)
    whole, listed = RULES[name](dense), RULES[name](truncated(dense, k))
    same = whole.answer == listed.answer  # a tie of votes may go another way when less is known
    assert (listed.score[same] <= whole.score[same] + 1e-6).all()
    if k == 6:
        assert same.all()
        np.testing.assert_allclose(listed.score, whole.score, atol=1e-6)


def test_entropy_margin_and_divergence_by_hand() -> None:
    probs = np.array([[[0.7, 0.2, 0.1], [0.5, 0.1, 0.4]]], dtype=np.float32)
    outputs = Outputs(probs.argmax(axis=2).astype(np.int64), probs)

    def h(*p: float) -> float:
        return -sum(x * math.log(x) for x in p if x > 0)

    mean = (0.6, 0.15, 0.25)
    assert RULES["entropy"](outputs).score[0] == pytest.approx(1 - h(*mean) / math.log(3), abs=1e-6)
    assert RULES["margin"](outputs).score[0] == pytest.approx(0.35, abs=1e-6)
    js = h(*mean) - (h(0.7, 0.2, 0.1) + h(0.5, 0.1, 0.4)) / 2
    assert RULES["jensen_shannon"](outputs).score[0] == pytest.approx(1 - js / math.log(2), abs=1e-6)


def test_entropy_of_votes_by_hand() -> None:
    answers = np.array([[1, 1, 1, 1], [1, 1, 2, 2], [0, 1, 2, 3], [4, 4, 4, ABSTAINED]])
    shares = [[4], [2, 2], [1, 1, 1, 1], [3, 1]]
    expected = [1 + sum(v / 4 * math.log(v / 4) for v in s) / math.log(4) for s in shares]
    np.testing.assert_allclose(RULES["vote_entropy"](Outputs(answers)).score, expected, atol=1e-12)


def test_an_abstention_votes_for_nobody_and_is_not_missing() -> None:
    answers = np.array([[ABSTAINED, ABSTAINED, 3], [ABSTAINED, ABSTAINED, ABSTAINED], [ABSTAINED, MISSING_VOTE, 3]])
    scored = RULES["vote"](Outputs(answers))
    assert scored.answer.tolist() == [3, ABSTAINED, 3]
    assert scored.score.tolist() == [1, 0, 1]
    # the missing member is listed before the vote for 3, so its vote for another class would win the tie
    assert scored.certain.tolist() == [True, True, False]


@pytest.mark.parametrize("quorum", [2, 3])
def test_both_asks_for_votes_and_score(quorum: int) -> None:
    outputs = outputs_of(3, items=300)
    tier = Tier(members=("a", "b", "c"), rule="both", quorum=quorum, threshold=0.5)
    votes, scores = rule("vote")(outputs), rule("score")(outputs)
    votes_for = (outputs.answers == scores.answer[:, None]).sum(axis=1)
    expected = (votes_for >= quorum) & (scores.score >= 0.5)
    assert (decide(tier, outputs).accepted == expected).all()
    assert 0 < expected.sum() < (votes.score >= 2).sum()


@given(
    seed=st.integers(0, 10_000),
    name=st.sampled_from(sorted(RULES)),
    bar=st.floats(0.05, 0.99),
    k=st.integers(1, 4),
    carried=st.integers(0, 3),
    last=st.booleans(),
    missing=st.sampled_from([0.0, 0.2]),
)
@settings(max_examples=300, deadline=None)
def test_staged_dispatch_decides_what_parallel_dispatch_decides(
    seed: int, name: str, bar: float, k: int, carried: int, last: bool, missing: float
) -> None:
    outputs = outputs_of(seed, items=30, members=k + carried, classes=3)
    rng = np.random.default_rng(seed)
    answers = outputs.answers.copy()
    answers[rng.random(answers.shape) < missing] = MISSING_VOTE
    outputs = Outputs(answers, outputs.probs, texts=outputs.texts)
    members = tuple("abcd"[:k])
    quorum = {"quorum": 2} if name in ("vote", "both") else {}
    threshold = {"threshold": bar} if name != "vote" else {}
    gate = {} if last or (quorum and k + carried < 2) else {**quorum, **threshold}
    tier = Tier.model_validate(
        {"members": members, "rule": name, "dispatch": "staged", "carry": int(carried > 0)} | gate
    )
    asked = asked_members(tier, outputs)
    assert asked[:, 0].all()
    unasked = np.concatenate([~asked, np.zeros((30, carried), dtype=np.bool_)], axis=1)
    heard = Outputs(np.where(unasked, MISSING_VOTE, outputs.answers), outputs.probs, texts=outputs.texts)
    full, part = decide(tier, outputs), decide(tier, heard)
    skipped = unasked.any(axis=1)
    assert (part.accepted == full.accepted)[~skipped].all()
    # where somebody was not asked the outcome stands: acceptance is the same, and so is an accepted answer
    assert (part.accepted == full.accepted)[skipped].all()
    both_accept = full.accepted & part.accepted
    assert (part.answer == full.answer)[both_accept].all()


def test_staging_saves_calls_and_changes_nothing_else() -> None:
    table = factories.table(n=2000)
    tiers = (
        Tier(members=("small", "other", "middle"), rule="vote", quorum=3),
        Tier(members=("large",)),
    )
    parallel = Cascade(tiers=tiers)
    staged = Cascade(tiers=(tiers[0].model_copy(update={"dispatch": "staged"}), tiers[1]))
    one, other = evaluate(parallel, table), evaluate(staged, table)
    assert (route(parallel, table).answer == route(staged, table).answer).all()
    assert (one.reach, one.accuracy) == (other.reach, other.accuracy)
    agree = (table.outputs(("small", "other")).answers @ [1, -1] == 0).mean()
    assert other.calls == pytest.approx(one.calls | {"middle": agree})


def test_a_member_that_was_never_asked_carries_no_vote() -> None:
    table = factories.table(n=2000)
    first = Tier(members=("small", "other", "middle"), rule="vote", quorum=3, dispatch="staged")
    staged = Cascade(tiers=(first, Tier(members=("large",), carry=1)))
    routed = route(staged, table)
    s, o, m, large = table.answers.T
    for item in np.flatnonzero(routed.tier == 1).tolist():
        votes = [large[item], s[item], o[item]] + ([m[item]] if s[item] == o[item] else [])
        most = max(votes.count(v) for v in votes)
        assert routed.answer[item] == next(v for v in votes if votes.count(v) == most)
    assert not routed.degraded.any()


def test_carried_votes_count_after_those_of_the_tier_itself() -> None:
    cascade = Cascade(
        tiers=(
            Tier(members=("a", "b"), quorum=2),
            Tier(members=("c",), rule="vote", quorum=2, carry=1),
            Tier(members=("d",), rule="score", carry=2),
        )
    )
    assert [cascade.voters(t) for t in range(3)] == [("a", "b"), ("c", "a", "b"), ("d", "c", "a", "b")]
    table = factories.table(n=400, members=("a", "b", "c", "d"), accuracy={"a": 0.7, "b": 0.75, "c": 0.8, "d": 0.9})
    routed = route(cascade, table)
    for item in range(len(table)):
        a, b, c, d = table.answers[item].tolist()
        if a == b:
            expected = (0, a)
        elif c in (a, b):
            expected = (1, c)
        else:
            given = table.probs[item].astype(np.float64)
            counts = {x: [a, b, c, d].count(x) for x in (a, b, c, d)}
            expected = (2, max(counts, key=lambda x: (counts[x], given[:, x].mean())))
        assert (routed.tier[item], routed.answer[item]) == expected


@given(seed=st.integers(0, 1000), temperature=st.floats(0.3, 4.0), k=st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_temperature_is_softmax_of_scaled_logits(seed: int, temperature: float, k: int) -> None:
    outputs = outputs_of(seed, members=2, concentration=0.8)
    logits = np.log(np.maximum(outputs.probs, 1e-30)) / temperature
    exact = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    np.testing.assert_allclose(tempered(outputs, (temperature, temperature)).probs, exact, atol=1e-5)
    half_known = tempered(truncated(outputs, k), (temperature, temperature))
    assert half_known.top is not None
    if temperature <= 2:  # beyond, the rounding of what the list leaves is blown up
        assert (half_known.probs <= np.take_along_axis(exact, half_known.top.astype(np.int64), axis=2) + 1e-3).all()


def test_words_overlap_whatever_their_endings() -> None:
    assert jaccard("The dogs are barking", "the dog is barking") == pytest.approx(3 / 5)
    assert jaccard("", "") == 1
    assert jaccard("yes", "no") == 0
    texts = ("a quick brown fox", "the quick brown foxes", "a slow worm")
    scored = rule("similarity")(Outputs(np.array([[0, 1, 2], [2, 2, 2], [0, ABSTAINED, 0]]), texts=texts))
    assert scored.answer.tolist() == [0, 2, 0]
    assert scored.score[1] == 1
    assert scored.score[2] == pytest.approx(1 / 3)
    pairs = [jaccard(a, b) for a, b in itertools.combinations(texts, 2)]
    assert scored.score[0] == pytest.approx(sum(pairs) / 3)


def test_somebody_elses_similarity_by_dotted_path() -> None:
    exact = rule("similarity:operator:eq")
    outputs = Outputs(np.array([[0, 0, 1]]), texts=("x", "y"))
    assert exact(outputs).score[0] == pytest.approx(1 / 3)
    with pytest.raises(InvalidInput, match="needs the texts"):
        rule("similarity")(Outputs(np.array([[0, 0]])))


def test_a_tier_of_rule_both_keeps_its_quorum() -> None:
    with pytest.raises(ValueError, match="takes a quorum"):
        Tier(members=("a", "b"), rule="both", threshold=0.4)
    assert rule_of(Tier(members=("a", "b"), rule="both", quorum=2, threshold=0.4)) is not RULES["both"]
