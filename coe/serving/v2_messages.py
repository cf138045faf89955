"""The messages and the service of the Open Inference Protocol over gRPC, as Python classes; and the server's side of the wire.

The tables below are the wire format: names, numbers and types of the fields that this service reads or writes, as in
https://github.com/open-inference/open-inference-protocol/blob/main/specification/protocol/open_inference_grpc.proto
(Apache-2.0). The classes are made from them in a pool of their own: generated code would register the package `inference` for
the whole process, where a member may well use Triton's client, which does the same, and would ask for its version of protobuf.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import grpc  # type: ignore[import-untyped]
from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from coe.serving.http_api import refused

Message = Any
"""An instance of one of the classes."""

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
METHODS = ("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelInfer")
SERVICER = f"{__name__}:add_servicer"
"""What `grpc_servicer_functions` of Serve names."""


class Field(NamedTuple):
    """A field of a message. type: a scalar, or the name of a message."""

    name: str
    number: int
    type: str
    kind: Literal["one", "many", "map", "choice"] = "one"
    """map: from strings; choice: one of those in the message."""


MESSAGES: dict[str, tuple[Field, ...]] = {
    "ServerLiveRequest": (),
    "ServerLiveResponse": (Field("live", 1, "bool"),),
    "ServerReadyRequest": (),
    "ServerReadyResponse": (Field("ready", 1, "bool"),),
    "ServerMetadataRequest": (),
    "ServerMetadataResponse": (
        Field("name", 1, "string"),
        Field("version", 2, "string"),
        Field("extensions", 3, "string", "many"),
    ),
    "ModelReadyRequest": (Field("name", 1, "string"), Field("version", 2, "string")),
    "ModelReadyResponse": (Field("ready", 1, "bool"),),
    "ModelMetadataRequest": (Field("name", 1, "string"), Field("version", 2, "string")),
    "TensorMetadata": (
        Field("name", 1, "string"),
        Field("datatype", 2, "string"),
        Field("shape", 3, "int64", "many"),
    ),
    "ModelMetadataResponse": (
        Field("name", 1, "string"),
        Field("versions", 2, "string", "many"),
        Field("platform", 3, "string"),
        Field("inputs", 4, "TensorMetadata", "many"),
        Field("outputs", 5, "TensorMetadata", "many"),
    ),
    "InferParameter": (
        Field("bool_param", 1, "bool", "choice"),
        Field("int64_param", 2, "int64", "choice"),
        Field("string_param", 3, "string", "choice"),
        Field("double_param", 4, "double", "choice"),
        Field("uint64_param", 5, "uint64", "choice"),
    ),
    "InferTensorContents": (
        Field("bool_contents", 1, "bool", "many"),
        Field("int_contents", 2, "int32", "many"),
        Field("int64_contents", 3, "int64", "many"),
        Field("uint_contents", 4, "uint32", "many"),
        Field("uint64_contents", 5, "uint64", "many"),
        Field("fp32_contents", 6, "float", "many"),
        Field("fp64_contents", 7, "double", "many"),
        Field("bytes_contents", 8, "bytes", "many"),
    ),
    "InferInputTensor": (
        Field("name", 1, "string"),
        Field("datatype", 2, "string"),
        Field("shape", 3, "int64", "many"),
        Field("parameters", 4, "InferParameter", "map"),
        Field("contents", 5, "InferTensorContents"),
    ),
    "InferRequestedOutputTensor": (Field("name", 1, "string"), Field("parameters", 2, "InferParameter", "map")),
    "ModelInferRequest": (
        Field("model_name", 1, "string"),
        Field("model_version", 2, "string"),
        Field("id", 3, "string"),
        Field("parameters", 4, "InferParameter", "map"),
        Field("inputs", 5, "InferInputTensor", "many"),
        Field("outputs", 6, "InferRequestedOutputTensor", "many"),
        Field("raw_input_contents", 7, "bytes", "many"),
    ),
    "InferOutputTensor": (
        Field("name", 1, "string"),
        Field("datatype", 2, "string"),
        Field("shape", 3, "int64", "many"),
    ),
    "ModelInferResponse": (
        Field("model_name", 1, "string"),
        Field("model_version", 2, "string"),
        Field("id", 3, "string"),
        Field("outputs", 5, "InferOutputTensor", "many"),
        Field("raw_output_contents", 6, "bytes", "many"),
    ),
}

_Proto = descriptor_pb2.FieldDescriptorProto


def _classes() -> dict[str, Any]:
    """Name -> class."""
    file = descriptor_pb2.FileDescriptorProto(name="coe/open_inference.proto", package=PACKAGE, syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field in fields:
            _add(message, field, name)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in MESSAGES}


def _add(message: Any, field: Field, owner: str) -> None:
    added = message.field.add(name=field.name, number=field.number)
    added.label = _Proto.LABEL_REPEATED if field.kind in ("many", "map") else _Proto.LABEL_OPTIONAL
    if field.kind == "choice":
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        added.oneof_index = 0
    if field.kind != "map":
        _set_type(added, field.type)
        return
    entry = message.nested_type.add(name=f"{field.name.title()}Entry")
    entry.options.map_entry = True
    for number, (name, type_) in enumerate((("key", "string"), ("value", field.type)), 1):
        part = entry.field.add(name=name, number=number, label=_Proto.LABEL_OPTIONAL)
        _set_type(part, type_)
    added.type, added.type_name = _Proto.TYPE_MESSAGE, f".{PACKAGE}.{owner}.{entry.name}"


def _set_type(added: Any, type_: str) -> None:
    if type_ in MESSAGES:
        added.type, added.type_name = _Proto.TYPE_MESSAGE, f".{PACKAGE}.{type_}"
    else:
        added.type = _Proto.Type.Value(f"TYPE_{type_.upper()}")


CLASSES = _classes()


def read(name: str, body: bytes) -> Message:
    """A message from the wire; `InvalidInput` for bytes that are none."""
    try:
        return CLASSES[name].FromString(body)
    except DecodeError as error:
        raise refused("message", f"must be a {name}", str(error)) from None


def add_servicer(servicer: Any, server: Any) -> None:
    """Have `server` answer the methods of the service by the methods of `servicer`, which take requests as bytes.

    So a message that cannot be read, or is too large, is refused by us and in our words.
    """
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            getattr(servicer, name), response_serializer=lambda message: message.SerializeToString()
        )
        for name in METHODS
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
