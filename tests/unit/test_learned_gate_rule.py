"""Gates as rules: the contract of every rule, files that cannot be mistaken, and the way through decide and calibrate."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coe import files
from coe.cascade.calibrate import calibrate
from coe.cascade.certify import verify_certificate
from coe.cascade.contract import check_rule
from coe.cascade.decide import decide
from coe.cascade.evaluate import evaluate
from coe.cascade.rules import rule
from coe.errors import InvalidInput, Stale
from coe.learned.gate_rule import Gate, form, load, read, save, sigmoid
from coe.table import Outputs
from coe.types import MISSING_VOTE, Cascade, Tier
from tests import factories

pytest.importorskip("safetensors")


def gate(features: tuple[str, ...] = ("max_prob", "margin", "vote_share"), seed: int = 0, **changes: Any) -> Gate:
    """A gate with random weights that fits any tier."""
    rng = np.random.default_rng(seed)
    width = len(features)
    layers = ((rng.normal(size=(4, width)), rng.normal(size=4)), (rng.normal(size=(1, 4)), rng.normal(size=1)))
    return Gate(features, rng.normal(size=width), np.full(width, 0.5), layers, **changes)


@pytest.mark.parametrize("features", [("max_prob",), ("entropy", "disagreement", "lowest", "log_odds", "top")])
def test_a_gate_keeps_the_contract_of_rules(features: tuple[str, ...]) -> None:
    width = sum(5 if f == "top" else 1 for f in features)
    rng = np.random.default_rng(1)
    check_rule(Gate(features, np.zeros(width), np.ones(width), ((rng.normal(size=(1, width)), np.zeros(1)),)))


def test_the_network_by_hand() -> None:
    small = Gate(("max_prob",), np.array([0.5]), np.array([0.25]), ((np.array([[2.0]]), np.array([-1.0])),))
    said = Outputs(np.array([[0]]), np.array([[[0.75, 0.25]]], dtype=np.float32))
    assert small.log_odds(said)[0] == 2 * (0.75 - 0.5) / 0.25 - 1
    assert small(said).score[0] == pytest.approx(1 / (1 + np.exp(-1)))
    hidden = (np.array([[2.0]]), np.array([-1.0])), (np.array([[3.0]]), np.array([0.5]))
    deep = Gate(("max_prob",), np.array([0.5]), np.array([0.25]), hidden)
    assert deep.log_odds(said)[0] == pytest.approx(3 * np.tanh(1.0) + 0.5)


def test_sigmoid_neither_overflows_nor_loses_its_tails() -> None:
    with np.errstate(all="raise", under="ignore"):
        assert sigmoid(np.array([-1000.0, 0.0, 1000.0])).tolist() == [0, 0.5, 1]


def test_an_item_with_a_missing_vote_is_never_accepted(tmp_path: Path) -> None:
    table = factories.table(n=300, missing=0.2)
    name = save(tmp_path / "g.safetensors", gate())
    tier = Tier(members=("small", "middle"), rule=name, threshold=1e-9)
    outputs = table.outputs(tier.members)
    decision = decide(tier, outputs)
    whole = (outputs.answers != MISSING_VOTE).all(axis=1)
    assert whole.any()
    assert (~whole).any()
    assert (decision.accepted == whole).all()
    assert (decision.settled == whole).all()


def test_saved_and_loaded_gates_decide_alike_and_the_file_is_the_same_each_time(tmp_path: Path) -> None:
    original = gate(members=2, classes=5, method="idk cost_aware", trade=0.25)
    first, second = (save(tmp_path / f"{n}.safetensors", original) for n in "ab")
    assert first.rpartition("#")[2] == second.rpartition("#")[2]
    again = read(tmp_path / "a.safetensors")
    assert (again.features, again.members, again.classes, again.method, again.trade) == (
        original.features, 2, 5, "idk cost_aware", 0.25,
    )  # fmt: skip
    outputs = factories.table(n=50).outputs(("small", "middle"))
    assert (rule(first)(outputs).score == original(outputs).score).all()


def test_a_changed_file_is_refused_and_a_restored_one_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    name = save(path, gate(seed=1))
    kept = path.read_bytes()
    outputs = factories.table(n=5).outputs(("small",))
    before = rule(name)(outputs).score
    save(path, gate(seed=2))
    with pytest.raises(Stale, match=r"g\.safetensors: must be the file whose SHA-256 starts with .*certify"):
        rule(name)
    tampered = bytearray(kept)
    tampered[-1] ^= 1
    path.write_bytes(tampered)
    os.utime(path, ns=(1, 1))
    with pytest.raises(Stale):
        rule(name)
    path.write_bytes(kept)
    assert (rule(name)(outputs).score == before).all()


def test_a_gate_without_digest_is_refused_with_the_name_to_write(tmp_path: Path) -> None:
    name = save(tmp_path / "g.safetensors", gate())
    with pytest.raises(InvalidInput) as caught:
        rule(name.partition("#")[0])
    assert name in str(caught.value)


def test_what_is_no_gate_file_is_refused(tmp_path: Path) -> None:
    import safetensors.numpy

    with pytest.raises(InvalidInput, match=r"gate 'nowhere\.safetensors'.*working directory"):
        load("nowhere.safetensors#0")
    path = tmp_path / "other.safetensors"
    path.write_bytes(b"hello")
    with pytest.raises(InvalidInput, match=r"other\.safetensors: is not a safetensors file"):
        read(path)
    safetensors.numpy.save_file({"a": np.zeros(2)}, path)
    with pytest.raises(InvalidInput, match="must be a gate of ours, version 1, got features"):
        read(path)
    for about in ("[]", '"text"', "{"):
        path.write_bytes(safetensors.numpy.save({"a": np.zeros(2)}, metadata={"coe": about}))
        with pytest.raises(InvalidInput, match="must be a gate of ours"):
            read(path)
    save(path, gate())
    tensors = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, "np") as opened:
        metadata = opened.metadata()
    for change, rule_broken in (
        ({"mean": None}, "mean"),
        ({"weight1": np.zeros((1, 7))}, "does not take 4 inputs"),
        ({"weight0": np.full((4, 3), np.nan)}, "finite"),
        ({"scale": np.zeros(3)}, "scale positive"),
        ({"weight1": None}, "one output"),
    ):
        changed = {k: v for k, v in {**tensors, **change}.items() if v is not None}
        path.write_bytes(safetensors.numpy.save(changed, metadata=metadata))
        with pytest.raises(InvalidInput, match=f"is not a whole gate.*{rule_broken}"):
            read(path)


def test_a_gate_refuses_a_tier_of_another_form() -> None:
    table = factories.table(n=10)
    strict = gate(("vote_share",), members=2, classes=5, where="gate g")
    assert form(table.outputs(("small",))) == (5, None)
    strict(table.outputs(("small", "middle")))
    with pytest.raises(InvalidInput, match="gate g: was trained on the outputs of 2 members, got 1"):
        strict(table.outputs(("small",)))
    with pytest.raises(InvalidInput, match="trained on all of 5 classes, got answers without probabilities"):
        strict(factories.table(n=10, probs=False).outputs(("small", "middle")))
    with pytest.raises(InvalidInput, match="trained on all of 5 classes, got all of 4 classes"):
        strict(factories.table(n=10, classes=4).outputs(("small", "middle")))
    listed = gate(("vote_share",), classes=5, top_k=2)
    with pytest.raises(InvalidInput, match="trained on the 2 most probable of 5 classes, got all of 5 classes"):
        listed(table.outputs(("small",)))


def test_a_file_is_found_on_the_import_path_and_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gates").mkdir()
    monkeypatch.chdir(tmp_path)
    name = save("gates/g.safetensors", gate())
    assert name.startswith("gate:gates/g.safetensors#")
    rule(name)
    monkeypatch.chdir("/")
    with pytest.raises(InvalidInput, match="working directory"):
        rule(name)
    monkeypatch.syspath_prepend(str(tmp_path))
    rule(name)


def test_gates_are_calibrated_and_certified_as_any_rule(tmp_path: Path) -> None:
    sure = Gate(("max_prob",), np.array([0.5]), np.array([0.2]), ((np.array([[1.0]]), np.zeros(1)),))
    table = factories.table(n=4000)
    shape = factories.cascade(("small",), rule=save(tmp_path / "g.safetensors", sure), threshold=0.5)
    path = tmp_path / "cascade.yaml"
    files.write(path, shape)
    shape = files.read(path, Cascade)
    certified = calibrate(shape, table, "large", epsilon=0.05, delta=0.05, claim="loss")
    # a rising function of the maximum probability has the path of the rule `score`, so the same routes
    same = calibrate(factories.cascade(("small",)), table, "large", epsilon=0.05, delta=0.05, claim="loss")
    assert evaluate(certified, table) == evaluate(same, table)
    assert certified.certificate is not None
    assert same.certificate is not None
    assert certified.certificate.losses == same.certificate.losses
    verify_certificate(certified, table)


def test_the_rule_needs_neither_torch_nor_pickle(tmp_path: Path) -> None:
    name = save(tmp_path / "g.safetensors", gate(("max_prob",)))
    script = (
        "import sys, numpy as np\n"
        "sys.modules['torch'] = None\n"
        "from coe.cascade.rules import rule\n"
        "from coe.table import Outputs\n"
        f"print(rule({name!r})(Outputs(np.array([[1]]), np.array([[[.2, .8]]], dtype=np.float32))).answer)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[1]"
