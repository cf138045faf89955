"""A contract test for deferral rules: run it on your own rule before you serve with it.

from coe.cascade.contract import check_rule
check_rule(my_package.rules.entropy)
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from coe.cascade.rules import Rule, Scored
from coe.table import Outputs
from coe.types import ABSTAINED, MISSING_VOTE

ROUNDS = 60
_COMPLETIONS = 12
_TEXTS = ("the white house", "a white house", "white houses", "Paris, France", "France")


def check_rule(rule: Rule, seed: int = 0) -> None:
    """Raise AssertionError that says which clause of the contract `rule` breaks.

    Clauses: shapes and types; a batch is scored as its items are; the input is left alone; the answer is a class that
    some member voted for; a missing vote can neither raise the score above `highest`, nor lower it, nor change an answer
    called certain.
    """
    rng = np.random.default_rng(seed)
    for _ in range(ROUNDS):
        outputs = _random_outputs(rng)
        kept = outputs.answers.copy()
        scored = rule(outputs)
        assert (outputs.answers == kept).all(), "the rule must not change its input"
        _check_shapes(scored, len(kept))
        _check_items_alone(rule, outputs, scored)
        for i, row in enumerate(kept):
            voted = {a for a in row.tolist() if a >= 0}
            allowed = voted or {MISSING_VOTE if MISSING_VOTE in row else ABSTAINED}
            assert int(scored.answer[i]) in allowed, f"the answer must be one that a member gave, {sorted(allowed)}"
        _check_missing_votes(rule, outputs, scored, rng)


def _random_outputs(rng: np.random.Generator) -> Outputs:
    items, members, classes = int(rng.integers(1, 9)), int(rng.integers(1, 5)), int(rng.integers(2, 5))
    probs = rng.dirichlet(np.full(classes, 0.5), size=(items, members)).astype(np.float32)
    answers = probs.argmax(axis=2).astype(np.int64)
    answers[rng.random(answers.shape) < 0.1] = ABSTAINED
    answers[rng.random(answers.shape) < 0.2] = MISSING_VOTE
    return Outputs(answers, probs, texts=_TEXTS[:classes])


def _check_shapes(scored: Scored, items: int) -> None:
    for name, array in (("answer", scored.answer), ("score", scored.score), ("certain", scored.certain)):
        assert array.shape == (items,), f"{name} must have shape ({items},), got {array.shape}"
    assert scored.certain.dtype == np.bool_, "certain must be boolean"
    assert not np.isnan(scored.score).any(), "a score must not be NaN"


def _check_items_alone(rule: Rule, outputs: Outputs, scored: Scored) -> None:
    assert outputs.probs is not None
    for i in range(len(outputs.answers)):
        alone = rule(outputs.rows(np.array([i])))
        one, within = (
            (int(s.answer[k]), bool(s.certain[k]), round(float(s.score[k]), 6)) for s, k in ((alone, 0), (scored, i))
        )
        assert one == within, f"an item must be scored alone as it is within a batch: {one} is not {within}"


def _check_missing_votes(rule: Rule, outputs: Outputs, scored: Scored, rng: np.random.Generator) -> None:
    """Fill the missing votes at random and compare."""
    assert outputs.probs is not None
    holes = outputs.answers == MISSING_VOTE
    assert scored.certain[~holes.any(axis=1)].all(), "without a missing vote every answer is certain"
    for _ in range(_COMPLETIONS):
        probs, answers = outputs.probs.copy(), outputs.answers.copy()
        classes = probs.shape[2]
        probs[holes] = rng.dirichlet(np.full(classes, 0.2), size=int(holes.sum())).astype(np.float32)
        answers[holes] = probs[holes].argmax(axis=1)
        full = rule(replace(outputs, answers=answers, probs=probs))
        if scored.highest is not None:
            assert (full.score <= scored.highest + 1e-9).all(), "a missing vote raised the score above `highest`"
        sure = scored.certain & (scored.answer != MISSING_VOTE)
        assert (full.answer[sure] == scored.answer[sure]).all(), "a missing vote changed an answer called certain"
        lower = full.score[sure] >= scored.score[sure] - 1e-9
        assert lower.all(), "with a missing vote the score must be the lowest that any vote there could give"
