"""The Open Inference Protocol over gRPC: the same cascade, door and words as under `/v2`. Knows nothing of Ray.

Mistakes name their fields as the protocol's JSON does. Outputs are always raw, as Triton has them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import grpc  # type: ignore[import-untyped]
import numpy as np

import coe
from coe.errors import InvalidInput
from coe.records import Answer
from coe.router.queries import Overloaded
from coe.serving import v2, v2_binary
from coe.serving.door import Gate, Visit, fresh_ids, log_line
from coe.serving.headers import answer_headers, request_id
from coe.serving.http_api import asked_timeout_s, refused, retry_after
from coe.serving.limits import TooLarge, check_bytes
from coe.serving.service import Service
from coe.serving.v2_messages import CLASSES, SERVICE, Message, read

log = logging.getLogger("coe.router")

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
}
"""Status of HTTP -> that of gRPC for the same thing."""
MAX_DETAILS = 2000
"""Characters; details travel in headers, which clients bound."""
_TWINS = {"ServerLive": "/v2/health/live", "ServerReady": "/v2/health/ready"}
"""Methods that need no token, as the paths that say the same."""


class Failed(Exception):
    """No answer: the status that HTTP has for it, why, and trailing metadata."""

    def __init__(self, status: int, told: str, trailing: Mapping[str, str] | None = None) -> None:
        super().__init__(told)
        self.status = status
        self.trailing = dict(trailing or {})


class V2Rpc:
    """What answers each method."""

    def __init__(
        self, service: Service, gate: Gate, access_log: logging.Logger | None, clock: Callable[[], float]
    ) -> None:
        """access_log: takes a line per request; None for no access log."""
        self._service = service
        self._gate = gate
        self._log = access_log
        self._clock = clock
        self._fresh_ids = fresh_ids()
        self._models = v2.Served(lambda: service.plan)

    async def respond(self, method: str, body: bytes, context: Any) -> Message:
        """The response to a request, with status and trailing metadata set on the context of gRPC.

        A failure is a status and an empty message; nothing is raised, so that a client's mistake leaves no traceback in the log.
        """
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        visit = Visit(request_id(metadata.get("x-request-id"), next(self._fresh_ids)), address_of(context.peer()))
        began_s, trailing = self._clock(), {"x-request-id": visit.request_id}
        status, message = 200, CLASSES[f"{method}Response"]()
        try:
            self._let_in(method, metadata.get("authorization"), visit)
            message, told = await self._answered(method, body, metadata, visit)
            trailing |= told
        except Failed as failure:
            status = failure.status
            trailing |= failure.trailing
            context.set_code(CODES[status])
            context.set_details(str(failure)[:MAX_DETAILS])
        context.set_trailing_metadata([(key.lower(), value) for key, value in trailing.items()])
        if self._log is not None:
            self._log.info(log_line("GRPC", f"/{SERVICE}/{method}", visit, status, self._clock() - began_s))
        return message

    def _let_in(self, method: str, authorization: str | None, visit: Visit) -> None:
        turned = self._gate.refusal(_TWINS.get(method, "/v2"), authorization, visit)
        if turned is not None:
            raise Failed(turned.status, turned.told, turned.headers)

    async def _answered(
        self, method: str, body: bytes, metadata: Mapping[str, str], visit: Visit
    ) -> tuple[Message, dict[str, str]]:
        """A response, and trailing metadata. Raises `Failed`."""
        try:
            check_bytes(len(body), self._service.access.max_body_bytes)
            request = read(f"{method}Request", body)
            if method == "ModelInfer":
                return await self._infer(request, metadata, visit)
            return self._told(method, request), {}
        except TooLarge as error:
            raise Failed(413, _text(error)) from None
        except InvalidInput as error:
            raise Failed(400, _text(error)) from None
        except Failed:
            raise
        except Exception:
            log.exception("a fault while answering %s", method)
            raise Failed(500, "a fault in the service; its log says more") from None

    def _told(self, method: str, request: Message) -> Message:
        """What the service says of itself and of its model."""
        model = self._models.now
        if method == "ServerLive":
            return CLASSES["ServerLiveResponse"](live=self._service.is_alive())
        if method == "ServerReady":
            return CLASSES["ServerReadyResponse"](ready=not self._service.missing())
        if method == "ServerMetadata":
            return CLASSES["ServerMetadataResponse"](name="coe", version=coe.__version__)
        _check_known(model, request.name, request.version)
        if method == "ModelReady":
            return CLASSES["ModelReadyResponse"](ready=not self._service.missing())
        return CLASSES["ModelMetadataResponse"](**model.metadata)

    async def _infer(
        self, request: Message, metadata: Mapping[str, str], visit: Visit
    ) -> tuple[Message, dict[str, str]]:
        model = self._models.now
        _check_known(model, request.model_name, request.model_version)
        header_s = asked_timeout_s(metadata.get("x-request-timeout-ms"))
        asked = inference(request, model, self._fresh_ids, self._service.access.max_items)
        try:
            answers = await self._service.ask(asked.items, min(asked.timeout_s, header_s))
        except Overloaded as refusal:
            raise Failed(503, str(refusal), retry_after(refusal)) from None
        visit.note(answers)
        answered = [a for a in answers if isinstance(a, Answer)]
        if len(answered) < len(answers):
            raise Failed(503, v2.unanswered(answers), answer_headers(answers))
        return response(asked, answered, model), answer_headers(answers)


def _check_known(model: v2.Model, name: str, version: str) -> None:
    """`Failed` (404) for a model or version that is not served here."""
    if (name, version or model.version) != (model.name, model.version):
        raise Failed(404, v2.unknown(model, name, version or model.version))


def _text(error: InvalidInput) -> str:
    return "; ".join(str(p) for p in error.problems)


def address_of(peer: str) -> str:
    """The address in gRPC's name of a peer, such as ``ipv4:192.0.2.7:51234`` or ``ipv6:%5B::1%5D:51234``."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6") or not rest:
        return "unknown"
    return unquote(rest).rpartition(":")[0].strip("[]")


def inference(request: Message, model: v2.Model, fresh_ids: Iterator[str], max_items: int) -> v2.Inference:
    """A `ModelInferRequest` as understood. Raises `InvalidInput` and `TooLarge`, as `v2.parsed`."""
    data: dict[str, Any] = {"inputs": [_tensor(tensor) for tensor in request.inputs]}
    if request.raw_input_contents:
        for tensor, values in zip(data["inputs"], _raw(request), strict=True):
            tensor["data"] = values
    if request.id:
        data["id"] = request.id
    data["parameters"] = _parameters("parameters", request.parameters)
    data["outputs"] = [
        {"name": output.name, "parameters": _parameters(f"outputs[{number}].parameters", output.parameters)}
        for number, output in enumerate(request.outputs)
    ]
    return v2.understood(data, b"", False, model, fresh_ids, max_items)


def _tensor(tensor: Message) -> dict[str, Any]:
    """An input as in JSON, with the values of its contents."""
    found = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
    if tensor.HasField("contents"):
        kind = "bytes_contents" if tensor.datatype == "BYTES" else "fp32_contents"
        for field, _ in tensor.contents.ListFields():
            if field.name != kind:
                raise refused("inputs[0].contents", f"may only have the {kind}", field.name)
        values = getattr(tensor.contents, kind)
        is_text = tensor.datatype == "BYTES"
        found["data"] = _decoded(values) if is_text else np.array(values, dtype=np.float32)
    if tensor.parameters:
        found["parameters"] = _parameters("inputs[0].parameters", tensor.parameters)
    return found


def _decoded(values: Iterable[bytes]) -> list[str]:
    try:
        return [value.decode() for value in values]
    except UnicodeDecodeError as error:
        raise refused("inputs[0].contents", "must hold texts in UTF-8", str(error)) from None


def _raw(request: Message) -> list[np.ndarray | list[str]]:
    """The values of the inputs from raw bytes, where all must be."""
    raws, inputs = request.raw_input_contents, request.inputs
    if len(raws) != len(inputs) or any(tensor.HasField("contents") for tensor in inputs):
        found = f"{len(raws)} for {len(inputs)} inputs"
        raise refused("raw_input_contents", "must hold the bytes of every input, which then have no contents", found)
    return [
        _raw_values(f"raw_input_contents[{number}]", raw, tensor.datatype)
        for number, (raw, tensor) in enumerate(zip(raws, inputs, strict=True))
    ]


def _raw_values(where: str, raw: bytes, datatype: str) -> np.ndarray | list[str]:
    if datatype == "BYTES":
        return v2_binary.texts(where, raw)
    if len(raw) % 4:
        raise refused(where, "must be FP32 values of 4 bytes each", f"{len(raw)} bytes")
    return np.frombuffer(raw, dtype=v2_binary.DTYPES["FP32"]).astype(np.float32)


def _parameters(where: str, parameters: Mapping[str, Message]) -> dict[str, Any]:
    """Parameters as in JSON; those that choose between JSON and bytes mean nothing here."""
    found = {}
    for key, value in parameters.items():
        if key.startswith("binary_data"):
            raise refused(where, "has no such key over gRPC, where all outputs are raw", key)
        chosen = value.WhichOneof("parameter_choice")
        found[key] = None if chosen is None else getattr(value, chosen)
    return found


def response(asked: v2.Inference, answers: list[Answer], model: v2.Model) -> Message:
    """The `ModelInferResponse`."""
    told = CLASSES["ModelInferResponse"](model_name=model.name, model_version=model.version, id=asked.request_id or "")
    for name in asked.outputs:
        datatype, column = v2.OUTPUTS[name]
        told.outputs.add(name=name, datatype=datatype, shape=[len(answers)])
        told.raw_output_contents.append(v2_binary.encoded([column(a, model.classes) for a in answers], datatype))
    return told


class V2Methods:
    """The methods by which a gRPC server finds what answers them; for a class that has a `V2Rpc`."""

    _rpc: V2Rpc

    async def ServerLive(self, request: bytes, grpc_context: Any) -> Message:  # noqa: N802
        """Whether the router runs."""
        return await self._rpc.respond("ServerLive", request, grpc_context)

    async def ServerReady(self, request: bytes, grpc_context: Any) -> Message:  # noqa: N802
        """Whether every tier can form its quorum."""
        return await self._rpc.respond("ServerReady", request, grpc_context)

    async def ServerMetadata(self, request: bytes, grpc_context: Any) -> Message:  # noqa: N802
        """Who serves."""
        return await self._rpc.respond("ServerMetadata", request, grpc_context)

    async def ModelReady(self, request: bytes, grpc_context: Any) -> Message:  # noqa: N802
        """Whether every tier of the cascade can form its quorum."""
        return await self._rpc.respond("ModelReady", request, grpc_context)

    async def ModelMetadata(self, request: bytes, grpc_context: Any) -> Message:  # noqa: N802
        """Inputs and outputs of the cascade."""
        return await self._rpc.respond("ModelMetadata", request, grpc_context)

    async def ModelInfer(self, request: bytes, grpc_context: Any) -> Message:  # noqa: N802
        """Answer the items of one tensor."""
        return await self._rpc.respond("ModelInfer", request, grpc_context)
