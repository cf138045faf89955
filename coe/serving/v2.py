"""The Open Inference Protocol, version 2 (REST): what comes in as items, what goes out as tensors. Without the web.

The cascade is the model. It has one input, `input` (FP32, [-1, *item shape]; BYTES, [-1, 1], where items are texts), and one
element per item in each of its outputs: `label` (BYTES, the class's name), `answer` (INT64, its index), `score` (FP32), `tier`
(INT32) and `degraded` (BOOL). Where all members that were heard abstained, the label is empty and the index -2. The request
parameter `timeout` is in microseconds, as in Triton. What the protocol offers beyond this is refused, never ignored.

https://github.com/open-inference/open-inference-protocol, and Triton's extension_binary_data.md
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from coe.errors import InvalidInput
from coe.records import Answer
from coe.serving import v2_binary
from coe.serving.http_api import (
    check_finite,
    check_id,
    class_name,
    error_body,
    numbers,
    parsed_json,
    refused,
    shown,
    text_item,
)
from coe.serving.limits import check_count
from coe.types import Plan

INPUT = "input"
VERSION_CHARS = 12

Column = Callable[[Answer, Sequence[str]], object]

OUTPUTS: Mapping[str, tuple[str, Column]] = {
    "label": ("BYTES", lambda answer, classes: class_name(answer.answer, classes) or ""),
    "answer": ("INT64", lambda answer, _: answer.answer),
    "score": ("FP32", lambda answer, _: float(np.float32(answer.score))),
    "tier": ("INT32", lambda answer, _: answer.tier),
    "degraded": ("BOOL", lambda answer, _: answer.degraded),
}
"""Output -> its datatype and what it says of an answer."""


@dataclass(frozen=True)
class Model:
    """The cascade as the protocol sees it."""

    name: str
    version: str
    item_shape: tuple[int, ...]
    classes: tuple[str, ...]
    is_text: bool = False

    @property
    def datatype(self) -> str:
        """Of the input."""
        return "BYTES" if self.is_text else "FP32"

    @classmethod
    def of(cls, plan: Plan) -> Model:
        """Named after the cascade; its version is the start of the plan's fingerprint."""
        pool = plan.pool
        return cls(plan.cascade.name, plan.fingerprint()[:VERSION_CHARS], pool.input_shape, pool.classes, pool.is_text)

    @property
    def metadata(self) -> dict[str, Any]:
        """The body of `GET /v2/models/NAME`."""
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": "coe_cascade",
            "inputs": [{"name": INPUT, "datatype": self.datatype, "shape": [-1, *self.item_shape]}],
            "outputs": [{"name": name, "datatype": datatype, "shape": [-1]} for name, (datatype, _) in OUTPUTS.items()],
        }


class Served:
    """The cascade that is in service, which changes with the plan."""

    def __init__(self, plan: Callable[[], Plan]) -> None:
        self._plan = plan
        self._known: tuple[Plan, Model] = (plan(), Model.of(plan()))

    @property
    def now(self) -> Model:
        """The model of the plan in service."""
        plan = self._plan()
        if self._known[0] is not plan:
            self._known = plan, Model.of(plan)
        return self._known[1]


@dataclass(frozen=True)
class Inference:
    """A request as understood: items by id, how long it waits, and which outputs it wants, each binary or not."""

    request_id: str | None
    items: dict[str, np.ndarray]
    timeout_s: float
    outputs: dict[str, bool]


def parsed(body: bytes, header: str | None, model: Model, fresh_ids: Iterator[str], max_items: int) -> Inference:
    """A request from its body and its `Inference-Header-Content-Length`.

    Raises `InvalidInput` naming the field of the first mistake, `TooLarge` for more than `max_items`.
    """
    text, binary = v2_binary.split(body, header)
    return understood(parsed_json(text), binary, header is not None, model, fresh_ids, max_items)


def understood(
    request: Any, binary: bytes, is_framed: bool, model: Model, fresh_ids: Iterator[str], max_items: int
) -> Inference:
    """A request from the value of its JSON, whose tensors may have arrays as `data`, and the bytes behind it.

    is_framed: whether it was said where the JSON ends. Raises as `parsed`.
    """
    data = _object("body", request, required={"inputs"}, optional={"id", "parameters", "outputs"})
    request_id = data.get("id")
    if request_id is not None:
        check_id("id", request_id)
    known = {"timeout", "binary_data_output"}
    parameters = _object("parameters", data.get("parameters", {}), required=set(), optional=known)
    all_binary = _flag("parameters.binary_data_output", parameters.get("binary_data_output", False))
    batch = _batch(data["inputs"], binary, is_framed, model, max_items)
    names = [next(fresh_ids) for _ in batch] if request_id is None else _ids(request_id, len(batch))
    return Inference(
        request_id,
        dict(zip(names, batch, strict=True)),
        _timeout_s(parameters.get("timeout")),
        _wanted(data.get("outputs"), all_binary),
    )


def _ids(request_id: str, count: int) -> list[str]:
    """Ids of a request's items, by which the ledger knows them."""
    return [request_id] if count == 1 else [f"{request_id}.{row}" for row in range(count)]


def _batch(inputs: Any, binary: bytes, is_framed: bool, model: Model, max_items: int) -> np.ndarray | list[np.ndarray]:
    """(items, *item shape) float32; of texts a list of arrays (1,), as one array would be as wide as the longest everywhere."""
    if not isinstance(inputs, list) or len(inputs) != 1:
        found = f"{len(inputs)} tensors" if isinstance(inputs, list) else type(inputs).__name__
        raise refused("inputs", f"must be a list of the one tensor '{INPUT}'", found)
    where = "inputs[0]"
    tensor = _object(where, inputs[0], required={"name", "shape", "datatype"}, optional={"data", "parameters"})
    if tensor["name"] != INPUT:
        raise refused(f"{where}.name", f"must be '{INPUT}'", shown(tensor["name"]))
    if tensor["datatype"] != model.datatype:
        raise refused(f"{where}.datatype", f"must be {model.datatype}", shown(tensor["datatype"]))
    shape = _shape(f"{where}.shape", tensor["shape"], model.item_shape, max_items)
    parameters = _object(f"{where}.parameters", tensor.get("parameters", {}), set(), {"binary_data_size"})
    if "binary_data_size" in parameters:
        field = _binary_field(where, tensor, parameters["binary_data_size"], binary, is_framed)
        if model.is_text:
            return _text_items(where, v2_binary.texts(field, binary), shape[0])
        array = v2_binary.floats(field, binary, math.prod(shape))
    else:
        data = _json_data(where, tensor, binary)
        if model.is_text:
            return _text_items(where, data, shape[0])
        array = _json_values(where, data, shape)
    check_finite(f"{where}.data", array)
    return array.reshape(shape)


def _shape(where: str, shape: Any, item_shape: tuple[int, ...], max_items: int) -> tuple[int, ...]:
    expected = [-1, *item_shape]
    is_list = isinstance(shape, list) and all(type(n) is int for n in shape)
    if not is_list or shape[1:] != expected[1:] or not shape or shape[0] < 1:
        raise refused(where, f"must be {expected}, at least one item", shown(shape))
    check_count(where, shape[0], max_items)
    return tuple(shape)


def _text_items(where: str, data: Any, count: int) -> list[np.ndarray]:
    """The texts of `data`, flat or nested as the shape."""
    if not isinstance(data, list) or len(data) != count:
        found = f"{len(data)} values" if isinstance(data, list) else type(data).__name__
        raise refused(f"{where}.data", f"must hold values for shape [{count}, 1], flat or nested", found)
    return [text_item(f"{where}.data[{row}]", value) for row, value in enumerate(data)]


def _binary_field(where: str, tensor: dict[str, Any], size: Any, binary: bytes, is_framed: bool) -> str:
    """Which field speaks of the bytes behind the JSON, which must be as long as it says."""
    field = f"{where}.parameters.binary_data_size"
    if not is_framed:
        raise refused(field, f"needs the header {v2_binary.HEADER}")
    if "data" in tensor:
        raise refused(f"{where}.data", "must not stand beside binary_data_size")
    if type(size) is not int or size != len(binary):
        raise refused(field, f"must be the {len(binary)} bytes that follow the JSON", shown(size))
    return field


def _json_data(where: str, tensor: dict[str, Any], binary: bytes) -> Any:
    """What stands in `data`."""
    if "data" not in tensor:
        raise refused(where, "must have the key 'data', or the parameter 'binary_data_size' with binary data")
    if binary:
        raise refused("body", "must end where the JSON ends, as no tensor is binary", f"{len(binary)} bytes more")
    return tensor["data"]


def _json_values(where: str, data: Any, shape: tuple[int, ...]) -> np.ndarray:
    """float32 from `data`, flat or nested as the shape."""
    array = numbers(f"{where}.data", data)
    if array.shape not in (shape, (math.prod(shape),)):
        raise refused(f"{where}.data", f"must hold values for shape {list(shape)}, flat or nested", str(array.shape))
    return array


def _timeout_s(timeout: Any) -> float:
    if timeout is None:
        return math.inf
    if type(timeout) is not int or not 0 < timeout < 2**63:
        raise refused("parameters.timeout", "must be a positive whole number of microseconds", shown(timeout))
    return timeout / 1e6


def _wanted(outputs: Any, all_binary: bool) -> dict[str, bool]:
    """Output -> whether it is wanted in binary; all outputs where none is named."""
    if outputs is None or outputs == []:
        return dict.fromkeys(OUTPUTS, all_binary)
    if not isinstance(outputs, list):
        raise refused("outputs", "must be a list of tensors", type(outputs).__name__)
    wanted: dict[str, bool] = {}
    for number, output in enumerate(outputs):
        where = f"outputs[{number}]"
        entry = _object(where, output, required={"name"}, optional={"parameters"})
        name = entry["name"]
        if not isinstance(name, str) or name not in OUTPUTS:
            raise refused(f"{where}.name", f"must be one of {', '.join(OUTPUTS)}", shown(name))
        if name in wanted:
            raise refused(f"{where}.name", "must be named once", shown(name))
        parameters = _object(f"{where}.parameters", entry.get("parameters", {}), set(), {"binary_data"})
        wanted[name] = _flag(f"{where}.parameters.binary_data", parameters.get("binary_data", all_binary))
    return wanted


def _flag(where: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise refused(where, "must be true or false", shown(value))
    return value


def _object(where: str, value: Any, required: set[str], optional: set[str]) -> dict[str, Any]:
    """The JSON object `value`; `InvalidInput` for missing and for unknown keys."""
    if not isinstance(value, dict):
        raise refused(where, "must be an object", type(value).__name__)
    for key in sorted(required - set(value)):
        raise refused(where, f"must have the key '{key}'", ", ".join(value))
    for key in value:
        if key not in required | optional:
            raise refused(where, f"may only have the keys {', '.join(sorted(required | optional))}", key)
    return value


def inference_body(inference: Inference, answers: Sequence[Answer], model: Model) -> tuple[bytes, int | None]:
    """The body of a response, and the length of its JSON where binary tensors follow."""
    tensors, binary = [], []
    for name, is_binary in inference.outputs.items():
        datatype, column = OUTPUTS[name]
        values = [column(answer, model.classes) for answer in answers]
        tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": [len(answers)]}
        if is_binary:
            binary.append(v2_binary.encoded(values, datatype))
            tensor["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            tensor["data"] = values
        tensors.append(tensor)
    told = {"model_name": model.name, "model_version": model.version, "outputs": tensors}
    if inference.request_id is not None:
        told["id"] = inference.request_id
    text = orjson.dumps(told)
    return b"".join([text, *binary]), len(text) if binary else None


def unknown(model: Model, name: str, version: str) -> str:
    """Why a request for another model or version has no answer."""
    return f"only model {model.name}, version {model.version}, is served here; asked for {name}, version {version}"


def unanswered(answers: Sequence[object]) -> str:
    """Why a request of which an item got no answer has none."""
    rows = [str(row) for row, a in enumerate(answers) if not isinstance(a, Answer)]
    return f"no member answered {len(rows)} of {len(answers)} items: rows {', '.join(rows)}"


def v2_error_body(error: InvalidInput) -> dict[str, Any]:
    """The protocol's `error`, one text, and beside it our list of fields and rules."""
    return {"error": "; ".join(str(p) for p in error.problems), **error_body(error)}
