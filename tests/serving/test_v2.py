"""The Open Inference Protocol with Triton's own client, and what is refused before any member hears of it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException, deserialize_bytes_tensor, triton_to_np_dtype

from coe.cascade.evaluate import route
from coe.errors import InvalidInput
from coe.router.queries import Overloaded
from coe.serving import v2
from coe.serving.v2_binary import encoded
from coe.types import ABSTAINED, Access
from tests.serving.web_case import NAME, SHAPE, TABLE, Served, item, items, planned, served

OUTPUTS = ("label", "answer", "score", "tier", "degraded")
MAX_ITEMS = 50


@pytest.fixture(scope="module")
def service() -> Iterator[Served]:
    with served(Access(max_items=MAX_ITEMS, max_body_bytes=20_000)) as running:
        yield running


@pytest.fixture
def calm(service: Served) -> Iterator[Served]:
    """The service, whose faults end with the test."""
    yield service
    service.router.down, service.router.lacking, service.router.fault = set(), [], None
    service.router.abstaining = set()


@pytest.fixture(scope="module")
def client(service: Served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(service.address) as connected:
        yield connected


def tensor(batch: np.ndarray, *, binary: bool) -> triton.InferInput:
    made = triton.InferInput("input", list(batch.shape), "FP32")
    made.set_data_from_numpy(batch, binary_data=binary)
    return made


@pytest.mark.parametrize("binary_in", [False, True], ids=["json-in", "binary-in"])
@pytest.mark.parametrize("binary_out", [False, True, None], ids=["json-out", "binary-out", "default-out"])
def test_triton_gets_the_answers_that_the_evaluation_predicts(
    client: triton.InferenceServerClient, binary_in: bool, binary_out: bool | None
) -> None:
    wanted = None if binary_out is None else [triton.InferRequestedOutput(n, binary_data=binary_out) for n in OUTPUTS]
    got = client.infer(NAME, [tensor(items(40), binary=binary_in)], outputs=wanted, request_id="r1")
    expected = route(planned().cascade, TABLE)
    answer = got.as_numpy("answer")
    assert answer.tolist() == expected.answer[:40].tolist()
    assert got.as_numpy("tier").tolist() == expected.tier[:40].tolist()
    assert set(got.as_numpy("tier").tolist()) == {0, 1}
    labels = [x.decode() if isinstance(x, bytes) else x for x in got.as_numpy("label").tolist()]
    assert labels == [TABLE.classes[a] for a in answer]
    assert not got.as_numpy("degraded").any()
    assert (got.as_numpy("score") > 0).all()
    types = {name: got.as_numpy(name).dtype for name in OUTPUTS}
    assert types == {"label": object, "answer": np.int64, "score": np.float32, "tier": np.int32, "degraded": np.bool_}
    told = got.get_response()
    assert (told["model_name"], told["id"]) == (NAME, "r1")


def test_an_item_on_which_all_members_abstain_has_no_class(calm: Served, client: triton.InferenceServerClient) -> None:
    calm.router.abstaining = {"small", "middle", "other", "large"}
    got = client.infer(NAME, [tensor(items(2), binary=True)])
    assert got.as_numpy("answer").tolist() == [ABSTAINED] * 2
    assert got.as_numpy("label").tolist() == [b""] * 2
    told = httpx.post(f"{calm.url}/predict", json={"items": [{"input": item(1)}]})
    assert told.status_code == 200
    assert (told.json()["answers"][0]["answer"], told.json()["answers"][0]["class"]) == (None, ABSTAINED)


def test_outputs_may_be_few_and_mixed(client: triton.InferenceServerClient) -> None:
    wanted = [triton.InferRequestedOutput("tier", binary_data=False), triton.InferRequestedOutput("label")]
    told = client.infer(NAME, [tensor(items(3), binary=True)], outputs=wanted).get_response()
    assert [(o["name"], "data" in o) for o in told["outputs"]] == [("tier", True), ("label", False)]


def test_metadata_and_health_as_triton_reads_them(calm: Served, client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(NAME)
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    told = client.get_model_metadata(NAME)
    assert told["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, *SHAPE]}]
    assert [o["name"] for o in told["outputs"]] == list(OUTPUTS)
    (version,) = told["versions"]
    assert planned().fingerprint().startswith(version)
    assert client.is_model_ready(NAME, version)
    assert client.infer(NAME, [tensor(items(1), binary=True)], model_version=version).as_numpy("answer").shape == (1,)
    calm.router.lacking = ["tier 1 needs 1 of 1 members; down: large"]
    assert client.is_server_live()
    assert not client.is_server_ready()
    assert not client.is_model_ready(NAME)
    assert httpx.get(f"{calm.url}/v2/health/ready").json()["missing"] == calm.router.lacking


def test_other_models_and_versions_are_not_here(service: Served, client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match=f"only model {NAME}, version"):
        client.infer("other", [tensor(items(1), binary=True)])
    with pytest.raises(InferenceServerException, match="asked for .*, version 7"):
        client.get_model_metadata(NAME, "7")
    assert httpx.get(f"{service.url}/v2/models/other/ready").status_code == 404


def test_the_timeout_is_in_microseconds_and_the_shorter_one_counts(
    service: Served, client: triton.InferenceServerClient
) -> None:
    client.infer(NAME, [tensor(items(1), binary=True)], timeout=1_500_000)
    assert service.router.waited_s[-1] == 1.5
    client.infer(NAME, [tensor(items(1), binary=True)], timeout=1_500_000, headers={"X-Request-Timeout-Ms": "900"})
    assert service.router.waited_s[-1] == 0.9
    with pytest.raises(InferenceServerException, match="no member answered 2 of 2 items: rows 0, 1"):
        client.infer(NAME, [tensor(items(2), binary=True)], timeout=1)


def test_items_are_known_by_the_request(service: Served, client: triton.InferenceServerClient) -> None:
    client.infer(NAME, [tensor(items(2), binary=True)], request_id="mine")
    client.infer(NAME, [tensor(items(1), binary=True)], request_id="single")
    assert service.router.ids[-3:] == ["mine.0", "mine.1", "single"]


def test_a_missing_vote_is_told(calm: Served, client: triton.InferenceServerClient) -> None:
    calm.router.down = {"large"}
    got = client.infer(NAME, [tensor(items(40), binary=True)])
    expected = route(planned().cascade, TABLE).tier[:40] == 1  # these fall back on the tier before
    assert got.as_numpy("degraded").tolist() == expected.tolist()
    calm.router.down = set(TABLE.members)
    with pytest.raises(InferenceServerException, match="no member answered 1 of 1 items"):
        client.infer(NAME, [tensor(items(1), binary=True)])
    response = post(calm, request())
    assert (response.status_code, response.headers["retry-after"]) == (503, "1"), "when the members' rest ends"


def test_overload_is_503_with_the_time_to_come_back(calm: Served) -> None:
    calm.router.fault = Overloaded(3.2)
    response = post(calm, request())
    assert (response.status_code, response.headers["retry-after"]) == (503, "4")
    assert "try again" in response.json()["error"]


# --- What is refused --------------------------------------------------------------------------------------------------


def request(**changes: Any) -> dict[str, Any]:
    """A good request for one item, but for `changes` of its tensor; None takes a key out."""
    given = {"name": "input", "shape": [1, 2, 2], "datatype": "FP32", "data": [item(3)], **changes}
    return {"inputs": [{k: v for k, v in given.items() if v is not None}]}


def post(service: Served, body: object, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return httpx.post(f"{service.url}/v2/models/{NAME}/infer", content=content, headers=named)


def test_the_request_that_the_others_break_is_a_good_one(service: Served) -> None:
    response = post(service, request())
    assert response.status_code == 200
    assert response.json()["outputs"][1]["data"] == [int(route(planned().cascade, TABLE).answer[3])]
    assert post(service, request(data=[3, 0, 0.5, -1])).json()["outputs"] == response.json()["outputs"]


@pytest.mark.parametrize(
    ("body", "field", "rule"),
    [
        (b"", "body", "must be JSON"),
        (b"\xff\xfe\x00", "body", "must be JSON"),
        (b"[" * 5000, "body", "must be JSON"),
        (b'{"inputs": [' + b"1" * 5000 + b"]}", "body", "must be JSON"),
        ([], "body", "must be an object"),
        ({}, "body", "must have the key 'inputs'"),
        ({**request(), "more": 1}, "body", "may only have the keys"),
        ({**request(), "id": 7}, "id", "must be a string"),
        ({**request(), "id": "\ud800"}, "id", "must be a string"),
        ({**request(), "parameters": []}, "parameters", "must be an object"),
        ({**request(), "parameters": {"priority": 1}}, "parameters", "may only have the keys"),
        ({**request(), "parameters": {"timeout": 0}}, "parameters.timeout", "positive whole number of microseconds"),
        ({**request(), "parameters": {"timeout": True}}, "parameters.timeout", "positive whole number"),
        ({**request(), "parameters": {"binary_data_output": 1}}, "parameters.binary_data_output", "true or false"),
        ({"inputs": []}, "inputs", "the one tensor 'input'"),
        ({"inputs": request()["inputs"] * 2}, "inputs", "the one tensor 'input'"),
        ({"inputs": [5]}, "inputs[0]", "must be an object"),
        (request(name="x"), "inputs[0].name", "must be 'input'"),
        (request(datatype="FP64"), "inputs[0].datatype", "must be FP32"),
        (request(datatype=None), "inputs[0]", "must have the key 'datatype'"),
        (request(shape=[2, 2]), "inputs[0].shape", "must be [-1, 2, 2]"),
        (request(shape=[0, 2, 2]), "inputs[0].shape", "at least one item"),
        (request(shape=[-1, 2, 2]), "inputs[0].shape", "at least one item"),
        (request(shape=[True, 2, 2]), "inputs[0].shape", "must be [-1, 2, 2]"),
        (request(shape=[]), "inputs[0].shape", "must be [-1, 2, 2]"),
        (request(shape=[10**15, 2, 2]), "inputs[0].shape", "at most 50 items"),
        (request(shape=[2, 2, 2]), "inputs[0].data", "must hold values for shape [2, 2, 2]"),
        (request(data=[1, 2, 3]), "inputs[0].data", "must hold values for shape"),
        (request(data=[[1, 2], [3]]), "inputs[0].data", "nested lists of numbers"),
        (request(data=["1", "2", "3", "4"]), "inputs[0].data", "nested lists of numbers"),
        (request(data=[1, 2, 3, {}]), "inputs[0].data", "nested lists of numbers"),
        (request(data=[1, 2, 3, float("nan")]), "inputs[0].data", "must not hold NaN"),
        (request(data=[1, 2, 3, 1e39]), "inputs[0].data", "must not hold NaN, infinities"),
        (request(data=[1, 2, 3, 10**400]), "inputs[0].data", "nested lists of numbers"),
        (request(data=None), "inputs[0]", "must have the key 'data'"),
        (request(parameters={"shared_memory_region": "x"}), "inputs[0].parameters", "may only have the keys"),
        (request(data=None, parameters={"binary_data_size": 16}), "inputs[0].parameters.binary_data_size", "header"),
        ({**request(), "outputs": [{"name": "probs"}]}, "outputs[0].name", "must be one of label, answer"),
        ({**request(), "outputs": [{"name": "tier"}] * 2}, "outputs[1].name", "must be named once"),
        (
            {**request(), "outputs": [{"name": "tier", "parameters": {"classification": 3}}]},
            "outputs[0].parameters",
            "may",
        ),
        ({**request(), "outputs": "tier"}, "outputs", "must be a list"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_requests_name_field_and_rule_and_reach_no_member(
    service: Served, body: object, field: str, rule: str
) -> None:
    before = service.router.asked
    response = post(service, body)
    told = response.json()
    assert response.status_code == (413 if "at most" in rule else 400)
    assert told["errors"][0]["field"] == field
    assert rule in told["errors"][0]["rule"]
    assert field in told["error"]
    assert service.router.asked == before


BINARY = request(data=None, parameters={"binary_data_size": 16})
SIXTEEN = np.array(item(3), dtype="<f4").tobytes()


def framed(head: object, tail: bytes, length: str | None = None) -> tuple[bytes, dict[str, str]]:
    text = json.dumps(head).encode()
    return text + tail, {"Inference_Header_Content_Length": str(len(text)) if length is None else length}


@pytest.mark.parametrize(
    ("frame", "field", "rule"),
    [
        (framed(BINARY, SIXTEEN, "x"), "Inference-Header-Content-Length", "must be a number of bytes"),
        (framed(BINARY, SIXTEEN, "-5"), "Inference-Header-Content-Length", "must be a number of bytes"),
        (framed(BINARY, SIXTEEN, "0"), "Inference-Header-Content-Length", "must be a number of bytes"),
        (framed(BINARY, SIXTEEN, "99999"), "Inference-Header-Content-Length", "must be a number of bytes"),
        (framed(BINARY, SIXTEEN, "9" * 5000), "Inference-Header-Content-Length", "must be a number of bytes"),
        (framed(BINARY, SIXTEEN, "10"), "body", "must be JSON"),
        (framed(BINARY, SIXTEEN[:-1]), "inputs[0].parameters.binary_data_size", "must be the 15 bytes that follow"),
        (framed(BINARY, SIXTEEN * 2), "inputs[0].parameters.binary_data_size", "must be the 32 bytes that follow"),
        (framed(request(), SIXTEEN), "body", "must end where the JSON ends"),
        (
            framed(request(parameters={"binary_data_size": 16}), SIXTEEN),
            "inputs[0].data",
            "must not stand beside binary_data_size",
        ),
        (
            framed(request(data=None, shape=[2, 2, 2], parameters={"binary_data_size": 16}), SIXTEEN),
            "inputs[0].parameters.binary_data_size",
            "must hold 8 FP32 values in 32 bytes",
        ),
        (framed(BINARY, np.full(4, np.nan, "<f4").tobytes()), "inputs[0].data", "must not hold NaN"),
        (framed(BINARY, np.full(4, np.inf, "<f4").tobytes()), "inputs[0].data", "must not hold NaN, infinities"),
    ],
    ids=lambda value: str(value)[-40:],
)
def test_bad_binary_requests_too(service: Served, frame: tuple[bytes, dict[str, str]], field: str, rule: str) -> None:
    before = service.router.asked
    response = post(service, frame[0], **frame[1])
    assert response.status_code == 400
    assert response.json()["errors"][0]["field"] == field
    assert rule in response.json()["errors"][0]["rule"]
    assert service.router.asked == before


def test_the_binary_request_that_the_others_break_is_a_good_one(service: Served) -> None:
    body, headers = framed(BINARY, SIXTEEN)
    assert post(service, body, **headers).json()["outputs"] == post(service, request()).json()["outputs"]


def test_compressed_bodies_are_refused(service: Served, client: triton.InferenceServerClient) -> None:
    before = service.router.asked
    with pytest.raises(InferenceServerException, match="Content-Encoding: must be absent"):
        client.infer(NAME, [tensor(items(1), binary=True)], request_compression_algorithm="gzip")
    assert service.router.asked == before


def test_too_many_items_and_bytes_are_413(service: Served, client: triton.InferenceServerClient) -> None:
    before = service.router.asked
    with pytest.raises(InferenceServerException, match=r"inputs\[0\].shape: must be at most 50 items"):
        client.infer(NAME, [tensor(items(51), binary=True)])
    response = post(service, b" " * 20_001)
    assert (response.status_code, response.json()["errors"][0]["field"]) == (413, "body")
    assert service.router.asked == before


# --- Laws -------------------------------------------------------------------------------------------------------------

MODEL = v2.Model.of(planned())
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
BATCHES = st.integers(1, 4).flatmap(lambda n: st.lists(FINITE, min_size=4 * n, max_size=4 * n))


def understood(body: bytes, header: str | None = None) -> v2.Inference:
    return v2.parsed(body, header, MODEL, (f"fresh-{n}" for n in itertools.count()), MAX_ITEMS)


@given(BATCHES)
def test_json_flat_json_nested_and_binary_are_the_same_request(values: list[float]) -> None:
    batch = np.array(values, dtype=np.float32).reshape(-1, *SHAPE)
    shape = list(batch.shape)
    flat = understood(json.dumps(request(shape=shape, data=batch.ravel().tolist())).encode())
    nested = understood(json.dumps(request(shape=shape, data=batch.tolist())).encode())
    head = json.dumps(request(shape=shape, data=None, parameters={"binary_data_size": batch.nbytes})).encode()
    binary = understood(head + batch.astype("<f4").tobytes(), str(len(head)))
    for way in (flat, nested, binary):
        assert np.array_equal(np.stack(list(way.items.values())), batch)
        assert all(one.dtype == np.float32 for one in way.items.values())


@given(st.lists(st.text(), min_size=1, max_size=5), st.integers(0, 2**62), st.floats(width=32, allow_nan=False))
def test_triton_reads_what_we_encode(labels: list[str], number: int, score: float) -> None:
    texts = [label for label in labels if not any("\ud800" <= c <= "\udfff" for c in label)]
    assert [t.decode() for t in deserialize_bytes_tensor(encoded(texts, "BYTES"))] == texts
    for values, datatype in (
        ([number], "INT64"),
        ([score], "FP32"),
        ([number % 100], "INT32"),
        ([True, False], "BOOL"),
    ):
        read = np.frombuffer(encoded(values, datatype), dtype=triton_to_np_dtype(datatype))
        assert read.tolist() == values


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("input") | st.just("FP32"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "data", "x"]), inner, max_size=2)
    ),
    max_leaves=5,
)
PLACES = (
    ("id",),
    ("parameters",),
    ("parameters", "timeout"),
    ("inputs",),
    ("inputs", 0),
    *(("inputs", 0, key) for key in ("name", "shape", "datatype", "data", "parameters")),
    ("inputs", 0, "parameters", "binary_data_size"),
    ("outputs",),
    ("outputs", 0),
    ("outputs", 0, "name"),
    ("outputs", 0, "parameters"),
)


@settings(max_examples=500)
@given(st.sampled_from(PLACES), ANYTHING, st.binary(max_size=20), st.none() | st.integers(-2, 300))
def test_whatever_is_wrong_is_an_error_of_ours(
    place: tuple[str | int, ...], value: Any, tail: bytes, moved: int | None
) -> None:
    body: Any = {"id": "a", "parameters": {}, "outputs": [{"name": "tier", "parameters": {}}], **request(parameters={})}
    inner = body
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    text = json.dumps(body).encode()
    try:
        got = understood(text + tail, None if moved is None else str(max(0, len(text) + min(moved, 0))))
    except InvalidInput as error:
        json.dumps(v2.v2_error_body(error), allow_nan=False).encode()
    else:
        assert all(one.shape == SHAPE and np.isfinite(one).all() for one in got.items.values())
