"""Runners: what they answer, what they refuse, and how a declared accelerator's speed is kept."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coe.errors import InvalidInput
from coe.files import write_predictions
from coe.runners.base import RUNNERS, Checked, Runner, fingerprint, make_runner
from coe.runners.paced import Paced
from coe.serving.labels import label_value, node_labels, replica_options, simulated_speed
from coe.table import PredictionTable
from coe.types import Member, Offer, Pool


@pytest.fixture(autouse=True)
def clean_imports() -> Iterator[None]:
    """A test's own modules and folders do not outlive it."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) and "pytest-" in str(sys.modules[name].__file__):
            del sys.modules[name]


def pool(*members: Member, classes: int = 3, input_shape: tuple[int, ...] = (4,)) -> Pool:
    return Pool(classes=tuple(f"c{i}" for i in range(classes)), input_shape=input_shape, members=members)


def write_models(folder: Path, code: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "my_models.py").write_text(textwrap.dedent(code))


UNIFORM = """
    import numpy as np
    def answer(batch, sharpness=0.0):
        probs = np.full((len(batch), 3), (1 - sharpness) / 3, dtype=np.float32)
        probs[:, 0] += sharpness
        return probs
"""


class Fixed:
    """Returns what it is given."""

    def __init__(self, outputs: Any) -> None:
        self.outputs = outputs

    def load(self) -> None: ...

    def close(self) -> None: ...

    def memory_gib(self) -> float:
        return 0.25

    def predict(self, batch: np.ndarray) -> np.ndarray:
        del batch
        return np.asarray(self.outputs)


# --- Checked outputs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([[0.5, 0.5, 0.0]], r"must return shape \(2, 3\).*got \(1, 3\)"),
        ([0.2, 0.8], r"must return shape \(2, 3\)"),
        ([[1, 0, 0], [0, 1, 0]], "must return floating point"),
        ([[1.0, 0.0, 0.0], [np.nan, 0.5, 0.5]], "must not return NaN.* in row 1 of 2"),
        ([[1.0, 0.0, 0.0], [np.inf, 0.5, 0.5]], "must not return NaN or infinity"),
        ([[1.0, 0.0, 0.0], [-0.5, 1.0, 0.5]], "must not return negative"),
        ([[3.0, 1.0, 0.2], [1.0, 0.0, 0.0]], "must return rows that sum to 1.*apply softmax"),
    ],
    ids=["one-row-short", "no-classes-axis", "whole-numbers", "nan", "infinity", "negative", "logits"],
)
def test_bad_outputs_are_refused_by_member(outputs: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=r"(?s)member 'm1': " + message):
        Checked(Fixed(outputs), "m1", 3).predict(np.zeros((2, 4)))


def test_good_outputs_pass_as_float32() -> None:
    outputs = Checked(Fixed(np.array([[0.2, 0.3, 0.5]])), "m1", 3).predict(np.zeros((1, 4)))
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, [[0.2, 0.3, 0.5]])


# --- Callable ---------------------------------------------------------------------------------------------------------


def test_a_function_beside_the_pool_file_is_a_member(tmp_path: Path) -> None:
    write_models(tmp_path, UNIFORM)
    member = Member(name="m", runner="callable", model="my_models:answer", options={"sharpness": 0.4})
    runner = make_runner(member, pool(member), tmp_path)
    runner.load()
    np.testing.assert_allclose(runner.predict(np.zeros((2, 4))), [[0.6, 0.2, 0.2]] * 2, rtol=1e-6)
    runner.close()


def test_two_pools_with_modules_of_the_same_name_do_not_mix(tmp_path: Path) -> None:
    member = Member(name="m", runner="callable", model="my_models:answer")
    answers = []
    for folder, sharp in (("a", 0.0), ("b", 0.9), ("a", 0.0)):
        write_models(tmp_path / folder, UNIFORM.replace("sharpness=0.0", f"sharpness={sharp}"))
        runner = make_runner(member, pool(member), tmp_path / folder)
        runner.load()
        answers.append(float(runner.predict(np.zeros((1, 4)))[0, 0]))
    assert answers == pytest.approx([1 / 3, 0.9 + 0.1 / 3, 1 / 3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runner": "tensorflow"}, "is not a known runner.*known: callable, .*table, torch"),
        ({"model": ""}, "member 'm': runner 'callable' needs `model`"),
        ({"model": "my_models:nothing"}, "has no 'nothing'"),
        ({"model": "not_there:answer"}, "cannot be imported"),
        ({"weights": "w.safetensors"}, "does not load weights"),
    ],
    ids=["unknown-runner", "no-model", "no-attribute", "no-module", "weights"],
)
def test_members_that_cannot_run_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_models(tmp_path, UNIFORM)
    keys: dict[str, Any] = {"name": "m", "runner": "callable", "model": "my_models:answer"}
    member = Member(**{**keys, **changes})
    with pytest.raises(InvalidInput, match=message):
        make_runner(member, pool(member), tmp_path).load()


def test_a_runner_by_dotted_path(tmp_path: Path) -> None:
    write_models(
        tmp_path,
        """
        import numpy as np
        class Mine:
            def __init__(self, member, pool, base_dir):
                self.classes = len(pool.classes)
            def load(self): pass
            def close(self): pass
            def memory_gib(self): return 2.0
            def predict(self, batch):
                return np.full((len(batch), self.classes), 1 / self.classes)
        """,
    )
    member = Member(name="m", runner="my_models:Mine")
    runner = make_runner(member, pool(member), tmp_path)
    assert runner.predict(np.zeros((2, 4))).shape == (2, 3)
    assert runner.memory_gib() == 2.0


# --- Table ------------------------------------------------------------------------------------------------------------


def table(probs: np.ndarray | None, answers: list[int]) -> PredictionTable:
    n = len(answers)
    return PredictionTable(
        members=("other", "m"),
        classes=("c0", "c1", "c2"),
        items=np.array([f"i{i}" for i in range(n)]),
        labels=np.zeros(n, dtype=np.int64),
        splits=np.array(["test"] * n),
        answers=np.stack([np.zeros(n, dtype=np.int64), np.array(answers)], axis=1),
        probs=probs,
    )


def table_runner(folder: Path, recorded: PredictionTable, **options: Any) -> Runner:
    write_predictions(folder / "p.npz", recorded)
    member = Member(name="m", runner="table", options={"predictions": "p.npz", **options})
    runner = make_runner(member, pool(member, input_shape=(1,)), folder)
    runner.load()
    return runner


def test_a_table_replays_answers_as_certainties(tmp_path: Path) -> None:
    runner = table_runner(tmp_path, table(None, [2, 0, 1]))
    rows = np.array([[1.0], [0.0], [1.0]], dtype=np.float32)
    np.testing.assert_array_equal(runner.predict(rows), [[1, 0, 0], [0, 0, 1], [1, 0, 0]])


def test_a_table_replays_probabilities_of_the_column_named(tmp_path: Path) -> None:
    probs = np.zeros((2, 2, 3), dtype=np.float32)
    probs[:, 0, 0] = 1
    probs[:, 1] = [[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]]
    recorded = table(probs, [2, 0])
    np.testing.assert_array_equal(table_runner(tmp_path, recorded).predict(np.array([[1], [0]])), probs[[1, 0], 1])
    other = table_runner(tmp_path, recorded, member="other")
    np.testing.assert_array_equal(other.predict(np.array([[1], [0]])), probs[[1, 0], 0])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([[3]], "row numbers must be whole and in 0..2, got 3"),
        ([[-1]], "row numbers must be whole"),
        ([[0.5]], "row numbers must be whole"),
        ([[np.nan]], "row numbers must be whole"),
        ([[0, 1]], "one row number per item"),
        ([[2]], "has no recorded answer for row 2"),
    ],
    ids=["beyond", "negative", "half", "nan", "two-numbers", "missing-vote"],
)
def test_rows_a_table_does_not_have_are_refused(tmp_path: Path, batch: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=f"member 'm': .*{message}"):
        table_runner(tmp_path, table(None, [2, 0, -1])).predict(np.array(batch))


def test_a_table_of_other_classes_is_refused(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.npz", table(None, [0]))
    member = Member(name="m", runner="table", options={"predictions": "p.npz"})
    with pytest.raises(InvalidInput, match="must be those of the pool"):
        make_runner(member, pool(member, classes=2), tmp_path).load()


@pytest.mark.parametrize("options", [{}, {"predictions": "p.npz", "colum": "x"}], ids=["none", "misspelt"])
def test_table_options_are_checked(tmp_path: Path, options: dict[str, Any]) -> None:
    member = Member(name="m", runner="table", options=options)
    with pytest.raises(InvalidInput, match="takes the options predictions"):
        make_runner(member, pool(member), tmp_path)


# --- Torch ------------------------------------------------------------------------------------------------------------

TORCH = """
    import torch
    def linear(inputs=4, classes=3):
        return torch.nn.Linear(inputs, classes)
    def images(classes):
        return torch.nn.Unflatten(1, (1, 4))
    def not_a_module():
        return 5
"""


def torch_member(folder: Path, **changes: Any) -> Member:
    """A linear model whose logits are the first three features, doubled."""
    torch = pytest.importorskip("torch", reason="the torch runner is an extra")
    from safetensors.torch import save_file

    write_models(folder, TORCH)
    save_file({"weight": 2 * torch.eye(3, 4), "bias": torch.zeros(3)}, folder / "w.safetensors")
    keys: dict[str, Any] = {"name": "m", "model": "my_models:linear", "weights": "w.safetensors"}
    return Member(**{**keys, **changes})


def test_a_torch_member_gives_softmax_of_its_logits(tmp_path: Path) -> None:
    member = torch_member(tmp_path)
    runner = make_runner(member, pool(member), tmp_path)
    runner.load()
    batch = np.array([[1.0, 0.0, 0.0, 9.0], [0.0, 0.0, 0.0, 0.0]])
    batch.flags.writeable = False
    expected = np.exp([2.0, 0.0, 0.0]) / np.exp([2.0, 0.0, 0.0]).sum()
    outputs = runner.predict(batch)
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, [expected, [1 / 3] * 3], rtol=1e-6)
    assert runner.memory_gib() == pytest.approx(15 * 4 / 2**30)
    runner.close()
    assert runner.memory_gib() == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "gone.safetensors"}, "the weights .*gone.safetensors do not exist"),
        ({"weights": "my_models.py"}, "are not a safetensors file"),
        ({"options": {"classes": 4}}, "do not fit my_models:linear, got .*size mismatch"),
        ({"options": {"layers": 4}}, "does not take its options"),
        ({"model": "my_models:not_a_module"}, "must return a torch.nn.Module, got int"),
    ],
    ids=["no-file", "not-safetensors", "other-shape", "unknown-option", "no-module"],
)
def test_torch_members_that_cannot_load_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    member = torch_member(tmp_path, **changes)
    with pytest.raises(InvalidInput, match=f"member 'm': .*{message}"):
        make_runner(member, pool(member), tmp_path).load()


def test_torch_outputs_that_are_not_logits_are_refused(tmp_path: Path) -> None:
    member = torch_member(tmp_path, model="my_models:images", weights=None, options={"classes": 3})
    runner = make_runner(member, pool(member), tmp_path)
    runner.load()
    with pytest.raises(InvalidInput, match=r"must return logits of shape \(items, classes\), got \(2, 1, 4\)"):
        runner.predict(np.zeros((2, 4)))


# --- Fingerprints -----------------------------------------------------------------------------------------------------


def test_a_fingerprint_changes_with_everything_that_decides_the_answers(tmp_path: Path) -> None:
    member = torch_member(tmp_path)
    seen = {"as it is": fingerprint(member, tmp_path)}
    assert fingerprint(member, tmp_path) == seen["as it is"], "and with nothing else"
    assert fingerprint(member.model_copy(update={"description": "new"}), tmp_path) == seen["as it is"]

    seen["options"] = fingerprint(member.model_copy(update={"options": {"classes": 5}}), tmp_path)
    seen["model"] = fingerprint(member.model_copy(update={"model": "my_models:images"}), tmp_path)
    seen["runner"] = fingerprint(member.model_copy(update={"runner": "callable"}), tmp_path)
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-1] + b"x")
    seen["weights"] = fingerprint(member, tmp_path)
    write_models(tmp_path, TORCH + "\n    # changed\n")
    seen["source"] = fingerprint(member, tmp_path)
    assert len(set(seen.values())) == len(seen)


def test_a_table_members_fingerprint_follows_its_predictions(tmp_path: Path) -> None:
    member = Member(name="m", runner="table", options={"predictions": "p.npz"})
    write_predictions(tmp_path / "p.npz", table(None, [2, 0, 1]))
    before = fingerprint(member, tmp_path)
    write_predictions(tmp_path / "p.npz", table(None, [2, 0, 0]))
    assert fingerprint(member, tmp_path) != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"weights": "gone"}, "gone cannot be read"), ({"model": "not_there:x"}, "not_there cannot be found")],
    ids=["weights", "module"],
)
def test_a_fingerprint_of_something_missing_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    member = torch_member(tmp_path, **changes)
    with pytest.raises(InvalidInput, match=f"member 'm': .*{message}"):
        fingerprint(member, tmp_path)


# --- Pacing -----------------------------------------------------------------------------------------------------------


class FakeMachine:
    """A clock, a CPU meter and a sleep that agree with each other; the runner uses CPU and waits for its turn."""

    def __init__(self, cpu_s: float, waited_s: float = 0.0) -> None:
        self.now_s, self.used_s = 100.0, 7.0
        self.slept: list[float] = []
        self.cpu_s, self.waited_s = cpu_s, waited_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds

    def paced(self, speed: float) -> Paced:
        machine = self

        class Busy(Fixed):
            def predict(self, batch: np.ndarray) -> np.ndarray:
                machine.used_s += machine.cpu_s
                machine.now_s += machine.cpu_s + machine.waited_s
                return super().predict(batch)

        clocks: dict[str, Any] = {"cpu_s": lambda: self.used_s, "clock_s": lambda: self.now_s, "sleep": self.sleep}
        return Paced(Busy([[0.5, 0.5]]), speed, **clocks)


@pytest.mark.parametrize(
    ("speed", "waited_s", "took_s"),
    [(0.1, 0.0, 0.2), (0.5, 0.0, 0.04), (1.0, 0.0, 0.02), (0.1, 0.15, 0.2), (0.5, 0.1, 0.12)],
    ids=["a-tenth", "half", "whole", "waiting-hides-in-the-pause", "a-busy-machine-is-late"],
)
def test_a_batch_takes_its_cpu_time_over_the_speed(speed: float, waited_s: float, took_s: float) -> None:
    machine = FakeMachine(cpu_s=0.02, waited_s=waited_s)
    outputs = machine.paced(speed).predict(np.zeros((1, 4)))
    assert machine.now_s - 100.0 == pytest.approx(took_s)
    np.testing.assert_array_equal(outputs, [[0.5, 0.5]])


def test_real_pacing_is_proportional() -> None:
    import time

    class Busy(Fixed):
        def predict(self, batch: np.ndarray) -> np.ndarray:
            due = time.thread_time() + 0.01
            while time.thread_time() < due:
                pass
            return super().predict(batch)

    took_s = {}
    for speed in (0.25, 0.5):
        started = time.perf_counter()
        Paced(Busy([[1.0]]), speed).predict(np.zeros((1, 1)))
        took_s[speed] = time.perf_counter() - started
    assert took_s[0.25] >= 0.04
    assert took_s[0.5] >= 0.02
    assert took_s[0.25] < 0.04 + 0.1, "generous: other work may hold the machine"


@pytest.mark.parametrize("speed", [0.0, -1.0, 1.5])
def test_impossible_speeds_are_refused(speed: float) -> None:
    with pytest.raises(ValueError, match="speed must be in"):
        Paced(Fixed([[1.0]]), speed)


def test_pacing_passes_the_rest_through() -> None:
    assert Paced(Fixed([[1.0]]), 0.5).memory_gib() == 0.25


# --- What the cluster is told -----------------------------------------------------------------------------------------


def offer(**changes: Any) -> Offer:
    keys: dict[str, Any] = {"node_type": "t4", "accelerator": "T4", "vcpus": 4, "memory_gib": 16, "usd_per_hour": 0.5}
    return Offer(**{**keys, "source": "test", "date": "2026-08-01", **changes})


def test_replicas_ask_for_their_share_and_their_node_type() -> None:
    selector = {"coe.dev/node-type": "t4"}
    assert replica_options(offer(), 0.25) == {"num_cpus": 0, "num_gpus": 0.25, "label_selector": selector}
    cpu_only = offer(accelerators_per_node=0)
    assert replica_options(cpu_only, 0.25) == {"num_cpus": 1.0, "num_gpus": 0, "label_selector": selector}
    assert "ray.io/accelerator-type" not in node_labels(cpu_only)


@pytest.mark.parametrize("name", ["a/b", "-a", "a-", "x" * 64, ""])
def test_node_types_that_ray_cannot_label_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="rename it"):
        label_value(name)


def test_speed_on_a_simulated_node() -> None:
    assert simulated_speed(0.5, {"COE_CPU_SHARE": "0.2"}) == pytest.approx(0.1)
    assert simulated_speed(0.5, {}) is None
    for bad in ("0", "2", "fast", "nan"):
        with pytest.raises(InvalidInput, match="COE_CPU_SHARE"):
            simulated_speed(0.5, {"COE_CPU_SHARE": bad})


def test_every_known_runner_is_imported_only_when_asked_for() -> None:
    assert sorted(RUNNERS) == ["callable", "onnx", "openai", "table", "torch"]
