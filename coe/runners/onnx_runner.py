"""A member that is an ONNX graph, run by ONNX Runtime: one input (n, *input_shape), one output (n, classes).

    runner: onnx
    weights: model.onnx                # relative to the pool file; external data lies beside it, as exporters write it
    options: {output: probabilities}   # of the graph: logits (the default) or probabilities
             # output_name: which of several outputs it is

It runs on the GPU where ONNX Runtime has one, and otherwise on one CPU thread, so that a replica uses what it was given and
no more. Whether graph and pool fit together is checked when it is loaded, before the first item.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.errors import InvalidInput, Problem, Unavailable
from coe.runners.base import Batch, resolved, weight_files
from coe.types import Member, Pool, Probabilities

try:
    import onnxruntime as ort  # type: ignore[import-untyped,import-not-found,unused-ignore]
except ImportError as error:
    raise Unavailable(f"runner 'onnx' needs onnxruntime ({error}): pip install 'coe[onnx]'") from error

GIB = 2**30
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
OUTPUTS = ("logits", "probabilities")
OPTIONS = {"output", "output_name"}

_DTYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(string)": np.str_,
}


class OnnxRunner:
    """Loads the graph that `weights` names, and turns its output into probabilities."""

    def __init__(self, member: Member, pool: Pool, base_dir: Path) -> None:
        self._where = f"member '{member.name}'"
        unknown = sorted(set(member.options) - OPTIONS)
        if unknown:
            raise self._invalid("runner 'onnx' takes the options output and output_name", ", ".join(unknown))
        self._output = member.options.get("output", "logits")
        if self._output not in OUTPUTS:
            raise self._invalid("option output must be logits or probabilities", str(self._output))
        if member.weights is None or member.model:
            found = f"model '{member.model}'" if member.model else "no weights"
            raise self._invalid("runner 'onnx' takes its graph from `weights`, an .onnx file", found)
        self._output_name = member.options.get("output_name")
        self._pool = pool
        self._member = member
        self._base_dir = base_dir
        self._path = resolved(member.weights, base_dir)
        self._session: Any = None
        self._input = ""
        self._dtype: Any = np.float32

    def load(self) -> None:
        """Read the graph; `InvalidInput` where it and the pool do not fit together."""
        if not self._path.is_file():
            raise self._invalid(f"the weights {self._path} do not exist", remedy="export the model, or fix the path")
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors: they reach us as exceptions, and warnings are about graph optimisation
        there = [p for p in PROVIDERS if p in ort.get_available_providers()]
        try:
            session = ort.InferenceSession(str(self._path), options, providers=there)
        except Exception as error:  # its exceptions share no base class but this
            raise self._invalid(
                f"the weights {self._path} are no graph that ONNX Runtime runs", _line(error)
            ) from error
        self._check_input(session.get_inputs())
        self._output_name = self._checked_output(session.get_outputs())
        self._session = session

    def _check_input(self, inputs: Sequence[Any]) -> None:
        """Keep the name and dtype of the only input, whose batch axis must be free and whose other axes are the pool's."""
        if len(inputs) != 1:
            names = ", ".join(i.name for i in inputs) or "none"
            raise self._invalid("the graph must have one input, the batch", names)
        found, expected = inputs[0], self._pool.input_shape
        if found.type not in _DTYPES:
            raise self._invalid(f"input '{found.name}' must be of a type among {', '.join(_DTYPES)}", found.type)
        self._input, self._dtype = found.name, _DTYPES[found.type]
        shape = list(found.shape or ())
        if shape and isinstance(shape[0], int):
            remedy = "export it with a dynamic batch axis"
            raise self._invalid(f"input '{found.name}' must take batches of any size", str(shape), remedy)
        if len(shape) != 1 + len(expected) or not all(_agrees(a, b) for a, b in zip(shape[1:], expected, strict=True)):
            rule = f"input '{found.name}' must have the shape {['batch', *expected]}, the pool's input_shape"
            raise self._invalid(rule, str(shape))
        if (self._dtype is np.str_) != self._pool.is_text:
            rule = f"input '{found.name}' is {found.type}, and the pool's items are {self._pool.input_dtype}"
            raise self._invalid(rule, remedy="they must both be text, or both be numbers")

    def _checked_output(self, outputs: Sequence[Any]) -> str:
        """The name of the output to use; it must hold one number per class."""
        names = [o.name for o in outputs]
        wanted = self._output_name or (names[0] if len(names) == 1 else None)
        if wanted is None:
            rule = "the graph has several outputs: name one in the option output_name"
            raise self._invalid(rule, ", ".join(names))
        if wanted not in names:
            raise self._invalid(f"the graph has no output '{wanted}'", ", ".join(names))
        found = outputs[names.index(wanted)]
        if not found.type.startswith("tensor("):
            remedy = "from scikit-learn, export with options={'zipmap': False}"
            raise self._invalid(f"output '{wanted}' must be a tensor", found.type, remedy)
        if _DTYPES.get(found.type) not in (np.float16, np.float32, np.float64):
            raise self._invalid(f"output '{wanted}' must hold floating point numbers", found.type)
        shape, classes = list(found.shape or ()), len(self._pool.classes)
        if shape and (len(shape) != 2 or not _agrees(shape[1], classes)):
            raise self._invalid(f"output '{wanted}' must have the shape ['batch', {classes}]: classes", str(shape))
        return str(wanted)

    def predict(self, batch: Batch) -> Probabilities:
        """The graph's probabilities, or the softmax of its logits."""
        assert self._session is not None, "load() comes first"
        try:
            (found,) = self._session.run([self._output_name], {self._input: self._fed(np.asarray(batch))})
        except InvalidInput:
            raise
        except Exception as error:
            raise self._invalid("the graph failed", _line(error)) from error
        values = np.asarray(found, dtype=np.float32)
        if values.ndim != 2:
            raise self._invalid("the graph must give the shape (items, classes)", str(values.shape))
        return values if self._output == "probabilities" else softmax(values)

    def _fed(self, items: NDArray[Any]) -> NDArray[Any]:
        """Items in the graph's own type; numbers that it cannot hold are refused, not rounded."""
        if self._dtype is np.str_:
            if items.dtype.kind != "U":
                raise self._invalid("the graph takes text", str(items.dtype))
            return items.astype(object)
        if items.dtype.kind not in "fiub":
            raise self._invalid("the graph takes numbers", str(items.dtype))
        if np.issubdtype(self._dtype, np.integer) and items.dtype != self._dtype:
            limits = np.iinfo(self._dtype)
            bad = ~np.isfinite(items) | (items != np.floor(items)) | (items < limits.min) | (items > limits.max)
            if bad.any():
                rule = f"the graph takes whole numbers in {limits.min}..{limits.max}"
                raise self._invalid(rule, str(items[bad][0]))
        return np.ascontiguousarray(items, dtype=self._dtype)

    def _invalid(self, rule: str, found: str = "", remedy: str = "") -> InvalidInput:
        return InvalidInput(Problem(self._where, rule, found, remedy))

    def close(self) -> None:
        """Let go of the session and of the memory it took."""
        self._session = None

    def memory_gib(self) -> float:
        """Size of the graph's files: the weights, without activations."""
        return sum(path.stat().st_size for path in weight_files(self._member, self._base_dir)) / GIB


def softmax(logits: NDArray[np.float32]) -> Probabilities:
    """(items, classes) from logits; a row with infinities or NaN stays NaN, to be refused by name."""
    with np.errstate(invalid="ignore"):
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: Probabilities = powers / powers.sum(axis=1, keepdims=True)
    return result


def _agrees(declared: Any, expected: int) -> bool:
    """True where an axis of the graph is free (a name or None) or as long as expected."""
    return not isinstance(declared, int) or declared == expected


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
