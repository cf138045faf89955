"""Logistic gates against scikit-learn, and the search over them against its own promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from coe.cascade.calibrate import calibrate_front
from coe.cascade.certify import verify_certificate
from coe.cascade.evaluate import evaluate
from coe.cascade.search import search
from coe.cascade.space import Space
from coe.cost.calls import constant
from coe.errors import InvalidInput
from coe.learned.features import matrix
from coe.learned.gate_rule import Gate, save, sigmoid
from coe.learned.logistic import FEATURES, RIDGE, crossfitted, logistic_gate
from coe.learned.searching import learned_front
from tests import factories

COST = {"small": 0.1, "middle": 0.16, "other": 0.12, "large": 2.0}


def test_newton_finds_what_scikit_learn_finds() -> None:
    table = factories.table(n=600, seed=2)
    outputs = table.outputs(("small", "other"))
    right = table.answers[:, 0] == table.labels
    gate = logistic_gate(outputs, right)
    x = (matrix(outputs, (*FEATURES, "said")) - gate.mean) / gate.scale
    theirs = LogisticRegression(C=1 / RIDGE, tol=1e-8, max_iter=5000).fit(x, right)
    np.testing.assert_allclose(sigmoid(gate.log_odds(outputs)), theirs.predict_proba(x)[:, 1], atol=2e-3)


def test_cross_fitted_scores_have_not_seen_their_item() -> None:
    table = factories.table(n=400, seed=2)
    outputs, fold = table.outputs(("small",)), np.arange(400) % 2
    right = table.answers[:, 0] == table.labels
    scores = crossfitted(outputs, right, fold)
    flipped = right.copy()
    flipped[fold == 0] ^= True
    other = crossfitted(outputs, flipped, fold)
    np.testing.assert_array_equal(scores[fold == 0], other[fold == 0])
    assert not np.allclose(scores[fold == 1], other[fold == 1])


def test_learned_cascades_join_the_front_and_are_certified_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = factories.table(n=4000, seed=6)
    sample, costs = table.split("calibration"), constant(COST)

    def keep(name: str, gate: Gate) -> str:
        return save(f"{name}.safetensors", gate)

    found = learned_front(sample, costs, "large", keep)
    assert found
    assert {len(c.tiers) for c in found} <= {2, 3}
    stats = [evaluate(c, sample) for c in found]
    cost = [sum(COST[m] * calls for m, calls in s.calls.items()) for s in stats]
    accuracy = [s.accuracy for s in stats]
    # chosen on cross-fitted scores, so in the sample itself the order may slip a little, not a lot
    assert np.corrcoef(cost, accuracy)[0, 1] > 0.5
    front = search(table, costs, "large", 0.03, 0.05, Space(first_members=2, last_members=1), extra=found)
    assert "of other origin" in front.method
    certified = calibrate_front(front, table, "large", 0.03, 0.05)
    verify_certificate(certified, table)
    assert certified.certificate is not None
    assert certified.certificate.claim == "excess"


def test_answers_alone_give_a_gate_nothing_to_look_at() -> None:
    with pytest.raises(InvalidInput, match="need probabilities"):
        learned_front(factories.table(probs=False), constant(COST), "large", lambda name, _: name)
