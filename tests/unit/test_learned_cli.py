"""`coe train-gate` from outside: gates that calibrate and certify, and refusals before any work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coe import files
from coe.cascade.evaluate import evaluate
from coe.cli.main import run
from coe.learned.gate_rule import hashes, read, seen_in
from coe.table import PredictionTable
from coe.types import Cascade
from tests import factories

pytest.importorskip("torch")

COSTS = "small=1,large=12.5"
METHODS = ("idk-cost-aware", "idk-cross-entropy", "policy-exact", "policy-reinforce")


pytestmark = pytest.mark.usefixtures("_folder")


@pytest.fixture
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cascade of two tiers and predictions with all splits, in the working directory."""
    monkeypatch.chdir(tmp_path)
    files.write("cascade.yaml", factories.cascade(("small",)))
    files.write_predictions("predictions.npz", factories.table(n=2000))


def train(*more: str) -> int:
    return run(
        ["train-gate", "cascade.yaml", "--predictions", "predictions.npz", "-o", "gated", "--steps", "60", *more]
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_cascade_that_is_evaluated_and_certified(
    method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--method", method, "--costs", COSTS, "--trade", "0.2") == 0
    told = capsys.readouterr().err
    assert "on the 500 training items: accuracy" in told
    assert "on 500 calibration items" in told
    gated = files.read("gated/cascade.yaml", Cascade)
    assert gated.tiers[0].rule.startswith("gate:gated/gate-1.safetensors#")
    table = factories.table(n=2000)
    stats = evaluate(gated, table.split("test"))
    alone = float((table.split("test").answers[:, table.members.index("small")] == table.split("test").labels).mean())
    if method == "idk-cross-entropy":  # at 0.5 it passes on what is more likely wrong than right: hardly anything here
        assert stats.accuracy >= alone
    else:
        assert 0 < stats.reach[1] < 1
        assert stats.accuracy > alone
    calibrate = ["calibrate", "gated/cascade.yaml", "--predictions", "predictions.npz", "--reference", "large"]
    assert run([*calibrate, "--epsilon", "0.1", "--claim", "loss", "-o", "certified.yaml"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert files.read("certified.yaml", Cascade).certificate is not None


def test_the_same_seed_gives_the_same_file_and_costs_may_come_from_prices() -> None:
    files.write("profiles.yaml", factories.profiles())
    files.write("prices.yaml", factories.prices())
    rules = []
    for seed in ("0", "0", "1"):
        assert train("--profiles", "profiles.yaml", "--prices", "prices.yaml", "--seed", seed) == 0
        rules.append(files.read("gated/cascade.yaml", Cascade).tiers[0].rule)
    assert rules[0] == rules[1] != rules[2]
    assert read("gated/gate-1.safetensors").method == "idk cost_aware"


def without_train() -> PredictionTable:
    table = factories.table(n=2000)
    return table.rows(table.splits != "train")


def test_without_training_items_it_asks_before_it_takes_others_and_calibrate_warns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    files.write_predictions("predictions.npz", without_train())
    assert train("--costs", COSTS) == 2
    assert "no items in the split 'train'; record predictions of training items, or say --split calibration" in (
        capsys.readouterr().err
    )
    assert not Path("gated").exists()
    assert train("--costs", COSTS, "--split", "calibration") == 0
    capsys.readouterr()
    calibrate = ["calibrate", "gated/cascade.yaml", "--predictions", "predictions.npz", "--reference", "large"]
    assert run([*calibrate, "--epsilon", "0.1", "--claim", "loss"]) == 0
    assert "warning: predictions.npz: the gates were trained on 500 items of the calibration split" in (
        capsys.readouterr().err
    )


def test_items_seen_in_training_are_known_again_and_cannot_certify(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--costs", COSTS) == 0
    table = factories.table(n=2000)
    gated = files.read("gated/cascade.yaml", Cascade)
    assert seen_in(gated, table) == 500
    assert seen_in(gated, table.split("test")) == 0
    assert seen_in(factories.cascade(), table) == 0
    moved = np.where(table.splits == "train", "certification", table.splits)
    files.write_predictions("moved.npz", PredictionTable(**{**vars(table), "splits": moved}))
    calibrate = ["calibrate", "gated/cascade.yaml", "--predictions", "moved.npz", "--reference", "large"]
    assert run([*calibrate, "--epsilon", "0.1", "--claim", "loss"]) == 2
    assert "must not be certified on items that they were trained on, got 500 such items" in capsys.readouterr().err
    assert len(np.unique(hashes(table.items))) == 2000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "method idk-cost-aware weighs accuracy against cost and needs costs"),
        (("--costs", "small=1"), "lack the members large"),
        (("--costs", "small=1,large"), "must look like small=1,large=12.5, got large"),
        (("--costs", "small=1,huge=3"), "'huge' is a member of no tier"),
        (("--costs", COSTS, "--profiles", "p.yaml"), "give either --costs, or --profiles and --prices"),
        (("--costs", COSTS, "--features", "hunch"), "feature 'hunch'"),
        (("--costs", COSTS, "-o", "cascade.yaml"), "is a file; name a folder"),
        (("--costs", COSTS, "-o", "."), "would be overwritten by its own gates"),
        (("--costs", COSTS, "-o", "nowhere/gated"), "the folder nowhere does not exist"),
        (("--costs", COSTS, "--split", "certification"), "certification"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_refusals(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(*arguments) == 2
    assert message in capsys.readouterr().err


def test_answers_alone_suffice_for_gates_but_not_for_the_log_loss(capsys: pytest.CaptureFixture[str]) -> None:
    first = ("small", "middle", "other")
    files.write("cascade.yaml", factories.cascade(first, rule="vote", quorum=3))
    files.write_predictions("predictions.npz", factories.table(n=800, probs=False))
    costs = ("--costs", "small=1,middle=1,other=1,large=20")
    assert train(*costs) == 0
    gated = files.read("gated/cascade.yaml", Cascade)
    assert 0 < evaluate(gated, factories.table(n=800, probs=False)).reach[1] < 1
    assert train(*costs, "--method", "policy-exact") == 2
    assert "take loss 'zero_one'" in capsys.readouterr().err
    assert train(*costs, "--method", "policy-exact", "--loss", "zero-one") == 0
