"""The ONNX runner: the graph's own answers, on graphs built by hand and exported from scikit-learn; what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coe.errors import InvalidInput
from coe.profiler.predict import DataSet, predict
from coe.runners.base import fingerprint, make_runner
from coe.types import Member, Pool

onnx = pytest.importorskip("onnx", reason="needs pip install 'coe[onnx]' and onnx")
pytest.importorskip("onnxruntime", reason="needs pip install 'coe[onnx]'")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(4, 3)).astype(np.float32)
BIAS = RNG.normal(size=3).astype(np.float32)
X = RNG.normal(size=(9, 4)).astype(np.float32)


def graph(
    path: Path,
    *,
    softmax: bool = False,
    batch: Any = "batch",
    item: tuple[Any, ...] = (4,),
    dtype: int = TensorProto.FLOAT,
    second_output: bool = False,
    external: bool = False,
) -> Path:
    """logits = x @ WEIGHTS + BIAS, x cast from `dtype`; with softmax on top, or both as outputs."""
    nodes = [
        helper.make_node("Cast", ["x"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["numbers", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["logits"]),
    ]
    names = ["logits"]
    if softmax or second_output:
        nodes.append(helper.make_node("Softmax", ["logits"], ["probs"], axis=1))
        names = ["logits", "probs"] if second_output else ["probs"]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "linear",
            [helper.make_tensor_value_info("x", dtype, [batch, *item])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3]) for name in names],
            [numpy_helper.from_array(WEIGHTS, "w"), numpy_helper.from_array(BIAS, "b")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    data = {"save_as_external_data": True, "location": f"{path.name}.data", "size_threshold": 0} if external else {}
    onnx.save(model, str(path), **data)
    return path


def pool(options: dict[str, Any] | None = None, **changes: Any) -> Pool:
    member = Member(name="m", runner="onnx", weights="m.onnx", options=options or {})
    fields = {"classes": ("a", "b", "c"), "input_shape": (4,), "members": (member,)}
    return Pool(**{**fields, **changes})


def answers(of: Pool, folder: Path, batch: np.ndarray) -> np.ndarray:
    runner = make_runner(of.members[0], of, folder)
    runner.load()
    try:
        return runner.predict(batch)
    finally:
        runner.close()


def expected(batch: np.ndarray) -> np.ndarray:
    logits = batch.astype(np.float64) @ WEIGHTS + BIAS
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_logits_become_probabilities(tmp_path: Path) -> None:
    graph(tmp_path / "m.onnx")
    assert answers(pool(), tmp_path, X) == pytest.approx(expected(X), abs=1e-6)
    assert answers(pool(), tmp_path, X[:1]) == pytest.approx(expected(X[:1]), abs=1e-6)


def test_probabilities_of_the_graph_are_taken_as_they_are(tmp_path: Path) -> None:
    graph(tmp_path / "m.onnx", softmax=True)
    assert answers(pool({"output": "probabilities"}), tmp_path, X) == pytest.approx(expected(X), abs=1e-6)


def test_one_of_several_outputs_is_chosen_by_name(tmp_path: Path) -> None:
    graph(tmp_path / "m.onnx", second_output=True)
    chosen = pool({"output": "probabilities", "output_name": "probs"})
    assert answers(chosen, tmp_path, X) == pytest.approx(answers(pool({"output_name": "logits"}), tmp_path, X))


def test_huge_logits_are_certainties_and_not_nan(tmp_path: Path) -> None:
    graph(tmp_path / "m.onnx")
    found = answers(pool(), tmp_path, X * 1e4)
    assert (found.max(axis=1) == 1).all()


@pytest.mark.parametrize("dtype", [TensorProto.INT64, TensorProto.UINT8, TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_items_are_fed_in_the_graphs_own_type(tmp_path: Path, dtype: int) -> None:
    graph(tmp_path / "m.onnx", dtype=dtype)
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert answers(pool(), tmp_path, whole) == pytest.approx(expected(whole), abs=1e-5)


@pytest.mark.parametrize(("value", "found"), [(0.5, "0.5"), (300.0, "300.0"), (-1.0, "-1.0"), (np.nan, "nan")])
def test_numbers_that_the_graph_cannot_hold_are_not_rounded(tmp_path: Path, value: float, found: str) -> None:
    graph(tmp_path / "m.onnx", dtype=TensorProto.UINT8)
    batch = np.zeros((2, 4), dtype=np.float32)
    batch[1, 2] = value
    with pytest.raises(InvalidInput, match=rf"member 'm': the graph takes whole numbers in 0..255, got {found}"):
        answers(pool(), tmp_path, batch)


@pytest.mark.parametrize(
    ("made", "changes", "message"),
    [
        ({"batch": 8}, {}, r"must take batches of any size, got \[8, 4\]; export it with a dynamic batch axis"),
        ({}, {"input_shape": (5,)}, r"must have the shape \['batch', 5\], the pool's input_shape, got \['batch', 4\]"),
        ({}, {"input_shape": (2, 2)}, r"must have the shape \['batch', 2, 2\]"),
        (
            {},
            {"classes": ("a", "b")},
            r"output 'logits' must have the shape \['batch', 2\]: classes, got \['batch', 3\]",
        ),
        ({"second_output": True}, {}, "several outputs: name one in the option output_name, got logits, probs"),
        ({"dtype": TensorProto.BOOL}, {}, r"must be of a type among .*, got tensor\(bool\)"),
        (
            {"item": (1,)},
            {"input_shape": (1,), "input_dtype": "text"},
            "is tensor.float., and the pool's items are text",
        ),
    ],
)
def test_a_graph_that_does_not_fit_the_pool_is_refused(
    tmp_path: Path, made: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    graph(tmp_path / "m.onnx", **made) if "item" not in made else ragged(tmp_path / "m.onnx")
    with pytest.raises(InvalidInput, match=message):
        answers(pool(**changes), tmp_path, X)


def ragged(path: Path) -> None:
    """One number per item, spread over three classes."""
    node = helper.make_node("Tile", ["x", "times"], ["logits"])
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])]
    times = numpy_helper.from_array(np.array([1, 3], dtype=np.int64), "times")
    built = helper.make_graph([node], "tile", inputs, outputs, [times])
    onnx.save(helper.make_model(built, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": None}, "takes its graph from `weights`, an .onnx file, got no weights"),
        ({"weights": "gone.onnx"}, "gone.onnx do not exist"),
        ({"weights": "broken.onnx"}, "broken.onnx are no graph that ONNX Runtime runs"),
        ({"model": "a:b"}, "got model 'a:b'"),
        ({"options": {"threads": 4}}, "takes the options output and output_name, got threads"),
        ({"options": {"output": "votes"}}, "output must be logits or probabilities, got votes"),
        ({"options": {"output_name": "y"}}, "the graph has no output 'y', got logits"),
    ],
)
def test_members_that_cannot_load_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    graph(tmp_path / "m.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    given = pool()
    member = given.members[0].model_copy(update=changes)
    with pytest.raises(InvalidInput, match=f"member 'm'.*{message}"):
        answers(given.model_copy(update={"members": (member,)}), tmp_path, X)


def test_logits_said_to_be_probabilities_are_refused(tmp_path: Path) -> None:
    graph(tmp_path / "m.onnx")
    with pytest.raises(InvalidInput, match="member 'm': must not return negative probabilities|sum to 1"):
        answers(pool({"output": "probabilities"}), tmp_path, X)


def test_the_fingerprint_covers_the_graph_and_its_external_data(tmp_path: Path) -> None:
    member = pool().members[0]
    graph(tmp_path / "m.onnx")
    seen = {fingerprint(member, tmp_path)}
    graph(tmp_path / "m.onnx", softmax=True)
    seen.add(fingerprint(member, tmp_path))
    graph(tmp_path / "m.onnx", external=True)
    seen.add(fingerprint(member, tmp_path))
    data = tmp_path / "m.onnx.data"
    runner = make_runner(member, pool(), tmp_path)
    runner.load()
    assert runner.predict(X) == pytest.approx(expected(X), abs=1e-6)
    assert runner.memory_gib() * 2**30 == (tmp_path / "m.onnx").stat().st_size + data.stat().st_size
    data.write_bytes(bytes(data.stat().st_size))
    seen.add(fingerprint(member, tmp_path))
    assert len(seen) == 4


def test_scikit_learn_models_predict_as_before_the_export(tmp_path: Path) -> None:
    to_onnx = pytest.importorskip("skl2onnx", reason="needs skl2onnx").to_onnx
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    x, y = load_iris(return_X_y=True)
    x = x.astype(np.float32)
    fitted = LogisticRegression(max_iter=500).fit(x, y)
    for zipmap, file in ((False, "m.onnx"), (True, "maps.onnx")):
        exported = to_onnx(fitted, x[:1], options={"zipmap": zipmap})
        (tmp_path / file).write_bytes(exported.SerializeToString())
    options = {"output": "probabilities", "output_name": "probabilities"}
    given = pool(options)
    data = DataSet(x, y.astype(np.int64), np.array([f"i{i}" for i in range(len(x))]), np.full(len(x), "test"))
    table = predict(given, tmp_path, data)
    assert table.probs is not None
    assert table.probs[:, 0] == pytest.approx(fitted.predict_proba(x), abs=1e-5)
    assert (table.answers[:, 0] == fitted.predict(x)).all()
    maps = given.members[0].model_copy(
        update={"weights": "maps.onnx", "options": {"output_name": "output_probability"}}
    )
    with pytest.raises(InvalidInput, match="must be a tensor.*zipmap"):
        answers(given.model_copy(update={"members": (maps,)}), tmp_path, x)


def test_a_graph_may_read_text(tmp_path: Path) -> None:
    """Two known words and everything else, from strings to logits inside the graph."""
    nodes = [
        helper.make_node(
            "LabelEncoder",
            ["x"],
            ["number"],
            domain="ai.onnx.ml",
            keys_strings=["good", "bad"],
            values_floats=[1.0, -1.0],
            default_float=0.0,
        ),
        helper.make_node("MatMul", ["number", "w"], ["logits"]),
    ]
    built = helper.make_graph(
        nodes,
        "words",
        [helper.make_tensor_value_info("x", TensorProto.STRING, ["batch", 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.array([[20, -20, 0]], dtype=np.float32), "w")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 2)]
    onnx.save(helper.make_model(built, opset_imports=opsets, ir_version=9), str(tmp_path / "m.onnx"))
    given = pool(input_shape=(1,), input_dtype="text")
    found = answers(given, tmp_path, np.array([["good"], ["bad"], ["größe"]]))
    assert found == pytest.approx(np.array([[1, 0, 0], [0, 1, 0], [1 / 3] * 3]), abs=1e-6)
    with pytest.raises(InvalidInput, match="the graph takes text, got float32"):
        answers(given, tmp_path, np.zeros((1, 1), dtype=np.float32))
    with pytest.raises(InvalidInput, match="is tensor.string., and the pool's items are float32"):
        answers(pool(input_shape=(1,)), tmp_path, np.zeros((1, 1), dtype=np.float32))
