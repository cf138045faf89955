"""The Open Inference Protocol over gRPC with Triton's own client: behind a plain gRPC server. `test_service` has Ray Serve's."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.serve.config import gRPCOptions
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from coe import files
from coe.cascade.evaluate import route
from coe.cli.main import run
from coe.errors import InvalidInput
from coe.router.queries import Overloaded
from coe.serving import v2
from coe.serving.auth import hashed
from coe.serving.build import serve_config
from coe.serving.door import Gate
from coe.serving.service import Service
from coe.serving.v2_messages import CLASSES, MESSAGES, METHODS, SERVICE, add_servicer
from coe.serving.v2_rpc import V2Methods, V2Rpc, address_of, inference
from coe.types import Access, BearerTokens
from tests.serving.web_case import NAME, SHAPE, TABLE, FakeRouter, items, planned

OUTPUTS = ("label", "answer", "score", "tier", "degraded")
MAX_ITEMS = 50


class Servicer(V2Methods):
    """What Serve's replica is to the methods."""

    def __init__(self, rpc: V2Rpc) -> None:
        self._rpc = rpc


class Served:
    """A running server: its address, and the router behind it."""

    def __init__(self, address: str, router: FakeRouter) -> None:
        self.address = address
        self.router = router


@contextmanager
def served(
    access: Access | None = None, log: logging.Logger | None = None, *, is_text: bool = False
) -> Iterator[Served]:
    """The methods behind a gRPC server, in a thread, on a free port."""
    found, access = planned(is_text=is_text), access or Access()
    router = FakeRouter(found)
    service = Service(found, access, router.ask, router.is_alive, lambda: router.lacking)
    rpc = V2Rpc(service, Gate(access, time.monotonic), log, time.monotonic)
    loop, ready, ports = asyncio.new_event_loop(), threading.Event(), list[int]()

    async def run() -> None:
        server = grpc.aio.server()
        add_servicer(Servicer(rpc), server)
        ports.append(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        ready.set()
        await ended.wait()
        await router.stop()
        await server.stop(None)

    ended = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(run()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield Served(f"127.0.0.1:{ports[0]}", router)
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)
        loop.close()


@pytest.fixture(scope="module")
def service() -> Iterator[Served]:
    with served(Access(max_items=MAX_ITEMS, max_body_bytes=20_000)) as running:
        yield running


@pytest.fixture
def calm(service: Served) -> Iterator[Served]:
    """The service, whose faults end with the test."""
    yield service
    service.router.down, service.router.lacking, service.router.fault = set(), [], None


@pytest.fixture(scope="module")
def client(service: Served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(service.address) as connected:
        yield connected


def tensor(batch: np.ndarray, name: str = "input", datatype: str = "FP32") -> triton.InferInput:
    made = triton.InferInput(name, list(batch.shape), datatype)
    made.set_data_from_numpy(batch)
    return made


def test_triton_gets_the_answers_that_the_evaluation_predicts(client: triton.InferenceServerClient) -> None:
    got = client.infer(NAME, [tensor(items(40))], request_id="r1")
    expected = route(planned().cascade, TABLE)
    answer = got.as_numpy("answer")
    assert answer.tolist() == expected.answer[:40].tolist()
    assert got.as_numpy("tier").tolist() == expected.tier[:40].tolist()
    assert set(got.as_numpy("tier").tolist()) == {0, 1}
    assert [label.decode() for label in got.as_numpy("label").tolist()] == [TABLE.classes[a] for a in answer]
    assert not got.as_numpy("degraded").any()
    assert (got.as_numpy("score") > 0).all()
    types = {name: got.as_numpy(name).dtype for name in OUTPUTS}
    assert types == {"label": object, "answer": np.int64, "score": np.float32, "tier": np.int32, "degraded": np.bool_}
    assert (got.get_response().model_name, got.get_response().id) == (NAME, "r1")


def test_outputs_may_be_few_and_in_any_order(client: triton.InferenceServerClient) -> None:
    wanted = [triton.InferRequestedOutput("tier"), triton.InferRequestedOutput("label")]
    told = client.infer(NAME, [tensor(items(3))], outputs=wanted).get_response()
    assert [o.name for o in told.outputs] == ["tier", "label"]
    assert len(told.raw_output_contents) == 2


def test_metadata_and_health_as_triton_reads_them(calm: Served, client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(NAME)
    assert client.get_server_metadata().name == "coe"
    told = client.get_model_metadata(NAME)
    assert [(t.name, t.datatype, list(t.shape)) for t in told.inputs] == [("input", "FP32", [-1, *SHAPE])]
    assert [o.name for o in told.outputs] == list(OUTPUTS)
    (version,) = told.versions
    assert planned().fingerprint().startswith(version)
    assert client.is_model_ready(NAME, version)
    assert client.infer(NAME, [tensor(items(1))], model_version=version).as_numpy("answer").shape == (1,)
    calm.router.lacking = ["tier 1 needs 1 of 1 members; down: large"]
    assert client.is_server_live()
    assert not client.is_server_ready()
    assert not client.is_model_ready(NAME)


def failure(call: Any) -> tuple[str, str]:
    """Status and details of a call that fails."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()


def test_other_models_and_versions_are_not_here(client: triton.InferenceServerClient) -> None:
    status, told = failure(lambda: client.infer("other", [tensor(items(1))]))
    assert status == "NOT_FOUND"
    assert f"only model {NAME}, version" in told
    assert failure(lambda: client.get_model_metadata(NAME, "7"))[0] == "NOT_FOUND"
    assert failure(lambda: client.is_model_ready("other"))[0] == "NOT_FOUND"


def test_the_timeout_is_in_microseconds_and_the_shorter_one_counts(
    service: Served, client: triton.InferenceServerClient
) -> None:
    client.infer(NAME, [tensor(items(1))], timeout=2_500_000)
    assert service.router.waited_s[-1] == 2.5
    client.infer(NAME, [tensor(items(1))], timeout=2_500_000, headers={"x-request-timeout-ms": "2000"})
    assert service.router.waited_s[-1] == 2.0


def int_tensor() -> triton.InferInput:
    return tensor(np.zeros((1, 2, 2), np.int32), datatype="INT32")


def wide_tensor() -> triton.InferInput:
    return tensor(np.zeros((1, 3, 2), np.float32))


def nan_tensor() -> triton.InferInput:
    return tensor(np.full((1, 2, 2), np.nan, np.float32))


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"inputs": [int_tensor()]}, "inputs[0].datatype: must be FP32"),
        ({"inputs": [wide_tensor()]}, "inputs[0].shape: must be [-1, 2, 2]"),
        ({"inputs": [nan_tensor()]}, "inputs[0].data: must not hold NaN"),
        ({"inputs": [tensor(items(1), "image")]}, "inputs[0].name: must be 'input'"),
        ({"inputs": [tensor(items(1))] * 2}, "inputs: must be a list of the one tensor 'input'"),
        ({"outputs": [triton.InferRequestedOutput("logits")]}, "outputs[0].name: must be one of label"),
        ({"outputs": [triton.InferRequestedOutput("label", class_count=3)]}, "outputs[0].parameters: may only have"),
        ({"priority": 1}, "parameters: may only have the keys"),
        ({"sequence_id": 7}, "parameters: may only have the keys"),
        ({"timeout": -1}, "parameters.timeout: must be a positive whole number of microseconds"),
        ({"request_id": "x" * 201}, "id: must be a string of 1 to 200 characters"),
        ({"headers": {"x-request-timeout-ms": "soon"}}, "X-Request-Timeout-Ms: must be a positive number"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_bad_requests_name_field_and_rule_and_reach_no_member(
    service: Served, client: triton.InferenceServerClient, asked: dict[str, Any], told: str
) -> None:
    before = service.router.asked
    status, found = failure(lambda: client.infer(NAME, **{"inputs": [tensor(items(1))], **asked}))
    assert status == "INVALID_ARGUMENT"
    assert told in found
    assert service.router.asked == before


def test_too_many_items_and_bytes_are_refused(service: Served, client: triton.InferenceServerClient) -> None:
    before = service.router.asked
    status, told = failure(lambda: client.infer(NAME, [tensor(items(51))]))
    assert status == "RESOURCE_EXHAUSTED"
    assert "inputs[0].shape: must be at most 50 items" in told
    status, told = failure(lambda: client.infer(NAME, [tensor(items(2000))]))
    assert status == "RESOURCE_EXHAUSTED"
    assert "body: must be at most 20000 bytes" in told
    assert service.router.asked == before


def test_a_full_house_silent_members_and_faults_have_their_codes(
    calm: Served, client: triton.InferenceServerClient, caplog: pytest.LogCaptureFixture
) -> None:
    calm.router.fault = Overloaded(1.5)
    assert failure(lambda: client.infer(NAME, [tensor(items(1))]))[0] == "UNAVAILABLE"
    calm.router.fault = RuntimeError("secret detail")
    status, told = failure(lambda: client.infer(NAME, [tensor(items(1))]))
    assert (status, "secret" in told) == ("INTERNAL", False)
    assert "secret detail" in caplog.text
    calm.router.fault, calm.router.down = None, {"small", "middle", "other", "large"}
    status, told = failure(lambda: client.infer(NAME, [tensor(items(2))]))
    assert (status, told) == ("UNAVAILABLE", "no member answered 2 of 2 items: rows 0, 1")


def test_tokens_limits_and_the_log_are_those_of_the_door(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files.write(tmp_path / "tokens.yaml", BearerTokens(tokens=(hashed("anna", "secret"),)))
    access = Access(tokens=str(tmp_path / "tokens.yaml"), requests_per_s=0.01, burst=2)
    log = logging.getLogger("tests.grpc")
    token = {"authorization": "Bearer secret", "x-request-id": "mine-1"}
    with (
        caplog.at_level(logging.INFO, log.name),
        served(access, log) as guarded,
        triton.InferenceServerClient(guarded.address) as client,
    ):
        assert client.is_server_live()
        assert client.is_server_ready()
        assert failure(lambda: client.get_model_metadata(NAME))[0] == "UNAUTHENTICATED"
        assert failure(lambda: client.infer(NAME, [tensor(items(1))]))[0] == "UNAUTHENTICATED"
        assert guarded.router.asked == 0
        client.infer(NAME, [tensor(items(2))], headers=token)
        assert client.is_model_ready(NAME, headers=token)
        status, told = failure(lambda: client.infer(NAME, [tensor(items(1))], headers=token))
        assert status == "RESOURCE_EXHAUSTED"
        assert "anna asks too often" in told
    lines = [json.loads(record.message) for record in caplog.records if record.name == log.name]
    assert [line["status"] for line in lines] == [200, 200, 401, 401, 200, 200, 429]
    asked = lines[4]
    assert (asked["method"], asked["path"]) == ("GRPC", f"/{SERVICE}/ModelInfer")
    assert (asked["client"], asked["request_id"], asked["items"]) == ("anna", "mine-1", 2)
    assert lines[0]["client"] == "127.0.0.1"


def test_trailing_metadata_say_how_far_it_had_to_go(calm: Served) -> None:
    with grpc.insecure_channel(calm.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name=NAME)
        put = request.inputs.add(name="input", datatype="FP32", shape=[1, *SHAPE])
        put.contents.fp32_contents.extend(items(1).ravel().tolist())
        _, call = stub.ModelInfer.with_call(request, metadata=(("x-request-id", "mine-2"),))
        found = dict(call.trailing_metadata())
        assert (found["x-request-id"], found["x-coe-degraded"]) == ("mine-2", "0")
        assert (found["x-coe-tier"], found["x-coe-votes"]) in {("0", "3/3"), ("1", "1/1")}
        put.contents.int_contents.append(1)
        with pytest.raises(grpc.RpcError, match="inputs.0..contents: may only have the fp32_contents"):
            stub.ModelInfer(request)
        del put.contents.int_contents[:]
        request.raw_input_contents.append(items(1).tobytes())
        with pytest.raises(grpc.RpcError, match="raw_input_contents: must hold the bytes of every input"):
            stub.ModelInfer(request)
        with pytest.raises(grpc.RpcError, match="message: must be a ModelInferRequest"):
            channel.unary_unary(f"/{SERVICE}/ModelInfer")(b"\xff\xff")
        del request.raw_input_contents[:]
        calm.router.fault = Overloaded(1.5)
        with pytest.raises(grpc.RpcError, match="the queues are full") as caught:
            stub.ModelInfer(request)
        assert dict(caught.value.trailing_metadata())["retry-after"] == "2"
        calm.router.fault, calm.router.down = None, {"small", "middle", "other", "large"}
        with pytest.raises(grpc.RpcError, match="no member answered") as caught:
            stub.ModelInfer(request)
        assert dict(caught.value.trailing_metadata())["retry-after"] == "1", "when the members' rest ends"


def test_other_methods_of_triton_are_not_here(client: triton.InferenceServerClient) -> None:
    assert failure(client.get_model_repository_index)[0] == "UNIMPLEMENTED"


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.7:51234", "192.0.2.7"),
        ("ipv6:%5B::1%5D:51234", "::1"),
        ("ipv6:[2001:db8::7]:1", "2001:db8::7"),
        ("unix:/tmp/x", "unknown"),
        ("", "unknown"),
    ],
)
def test_the_address_of_a_peer(peer: str, address: str) -> None:
    assert address_of(peer) == address


def test_the_example_of_the_docs_prints_what_it_says(service: Served, capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "docs/protocols.md").read_text(encoding="utf-8")
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "triton" in block]
    exec(example, {"GRPC": service.address, "NAME": NAME})
    promised = [line.rsplit("# ", 1)[1] for line in example.splitlines() if line.startswith("print(")]
    assert capsys.readouterr().out.splitlines() == promised


# --- The wire ---------------------------------------------------------------------------------------------------------


def same_on_the_wire(ours: Any, theirs: Any) -> None:
    """Each field of ours is there in Triton's message, with the same number, type and kind."""
    for field in ours.fields:
        other = theirs.fields_by_name[field.name]
        assert (field.number, field.type, field.is_repeated) == (other.number, other.type, other.is_repeated)
        assert (field.containing_oneof is None) == (other.containing_oneof is None)
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            assert field.message_type.GetOptions().map_entry == other.message_type.GetOptions().map_entry
            same_on_the_wire(field.message_type, other.message_type)


@pytest.mark.parametrize("method", METHODS)
def test_our_messages_are_those_of_triton(method: str) -> None:
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert service.full_name == SERVICE
    theirs = service.methods_by_name[method]
    same_on_the_wire(CLASSES[f"{method}Request"].DESCRIPTOR, theirs.input_type)
    same_on_the_wire(CLASSES[f"{method}Response"].DESCRIPTOR, theirs.output_type)


def test_what_a_request_may_say_is_never_overlooked() -> None:
    """Every field of Triton's requests is one of ours: protobuf would skip an unknown one in silence."""
    for name in ("ModelInferRequest", "InferParameter", "InferTensorContents", "ModelReadyRequest"):
        theirs = service_pb2.DESCRIPTOR.message_types_by_name[name]
        assert {f.name for f in theirs.fields} == {f.name for f in MESSAGES[name]}
    nested = service_pb2.DESCRIPTOR.message_types_by_name["ModelInferRequest"].nested_types_by_name
    for name in ("InferInputTensor", "InferRequestedOutputTensor"):
        assert {f.name for f in nested[name].fields} == {f.name for f in MESSAGES[name]}


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
MODEL = v2.Model.of(planned())


def understood(request: Any) -> v2.Inference:
    ours = CLASSES["ModelInferRequest"].FromString(request.SerializeToString())
    return inference(ours, MODEL, iter("abcdefgh"), MAX_ITEMS)


@given(st.integers(1, 4).flatmap(lambda n: st.lists(FINITE, min_size=4 * n, max_size=4 * n)))
def test_raw_contents_and_json_are_the_same_request(values: list[float]) -> None:
    batch = np.array(values, dtype=np.float32).reshape(-1, *SHAPE)
    shape = list(batch.shape)
    raw = service_pb2.ModelInferRequest(raw_input_contents=[batch.astype("<f4").tobytes()])
    raw.inputs.add(name="input", datatype="FP32", shape=shape)
    listed = service_pb2.ModelInferRequest()
    listed.inputs.add(name="input", datatype="FP32", shape=shape).contents.fp32_contents.extend(values)
    tensor = {"name": "input", "datatype": "FP32", "shape": shape, "data": batch.tolist()}
    rest = v2.parsed(json.dumps({"inputs": [tensor]}).encode(), None, MODEL, iter("abcdefgh"), MAX_ITEMS)
    for way in (understood(raw), understood(listed)):
        assert way.outputs.keys() == rest.outputs.keys()
        assert list(way.items) == list(rest.items)
        assert np.array_equal(np.stack(list(way.items.values())), np.stack(list(rest.items.values())))


TEXTS = st.sampled_from(["", "input", "FP32", "label", "timeout", "binary_data_output", "x"])
PARAMETERS = st.dictionaries(
    TEXTS,
    st.one_of(
        st.builds(lambda v: service_pb2.InferParameter(int64_param=v), st.integers(-2, 2**62)),
        st.builds(lambda v: service_pb2.InferParameter(string_param=v), TEXTS),
        st.just(service_pb2.InferParameter()),
    ),
    max_size=2,
)
CONTENTS = st.none() | st.builds(
    lambda a, b: service_pb2.InferTensorContents(fp32_contents=a, int_contents=b),
    st.lists(st.floats(width=32), max_size=5),
    st.lists(st.integers(0, 5), max_size=2),
)
TENSORS = st.builds(
    lambda name, datatype, shape, parameters, contents: service_pb2.ModelInferRequest.InferInputTensor(
        name=name, datatype=datatype, shape=shape, parameters=parameters, contents=contents
    ),
    TEXTS,
    TEXTS,
    st.just([1, 2, 2]) | st.lists(st.integers(-1, 2**62), max_size=3),
    PARAMETERS,
    CONTENTS,
)


@settings(max_examples=300)
@given(
    TEXTS,
    st.lists(TENSORS, max_size=2),
    st.lists(TEXTS, max_size=2),
    PARAMETERS,
    st.lists(st.just(items(1).tobytes()) | st.binary(max_size=17), max_size=2),
)
def test_whatever_is_wrong_is_an_error_of_ours(
    name: str, tensors: list[Any], outputs: list[str], parameters: dict[str, Any], raws: list[bytes]
) -> None:
    request = service_pb2.ModelInferRequest(
        id=name, inputs=tensors, parameters=parameters, raw_input_contents=raws, outputs=[{"name": n} for n in outputs]
    )
    try:
        got = understood(request)
    except InvalidInput as error:
        json.dumps(v2.v2_error_body(error), allow_nan=False).encode()
    else:
        assert all(one.shape == SHAPE and np.isfinite(one).all() for one in got.items.values())


# --- Ray Serve --------------------------------------------------------------------------------------------------------


def test_the_config_listens_only_where_it_is_asked_to() -> None:
    assert "grpc_options" not in serve_config(planned(), ledger_dir=None)
    told = serve_config(planned(), ledger_dir=None, grpc_port=9001)["grpc_options"]
    assert (told["port"], told["grpc_servicer_functions"]) == (9001, ["coe.serving.v2_messages:add_servicer"])
    assert [f.__name__ for f in gRPCOptions(**told).grpc_servicer_func_callable] == ["add_servicer"]
    with pytest.raises(InvalidInput, match="must be another port than that of HTTP"):
        serve_config(planned(), ledger_dir=None, port=8000, grpc_port=8000)


def test_coe_build_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files.write(tmp_path / "plan.yaml", planned())
    command = ["build", str(tmp_path / "plan.yaml"), "--uncertified", "-o", str(tmp_path / "serve.yaml")]
    assert run([*command, "--grpc-port", "9001"]) == 0
    assert files.yaml_mapping(tmp_path / "serve.yaml")["grpc_options"]["port"] == 9001
    assert run([*command, "--grpc-port", "8000"]) == 2
    assert "--grpc-port: must be another port than that of HTTP" in capsys.readouterr().err
