"""Items that are texts, over every protocol but OpenAI's, which has a file of its own."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from coe.bench import run_bench
from coe.cascade.evaluate import route
from coe.errors import InvalidInput
from coe.profiler.predict import DataSet
from coe.serving import v2, v2_binary
from coe.serving.http_api import MAX_TEXT_CHARS, parsed_items
from coe.serving.limits import TooLarge
from coe.serving.schemas import predict_request
from coe.serving.v2_messages import CLASSES
from coe.serving.v2_rpc import inference
from coe.types import Access
from tests.serving import test_grpc
from tests.serving.web_case import NAME, TABLE, Served, planned, served

ROWS = 30
TEXTS = np.array([[f"Frage {row}: wie weit ist es nach \u00c5rhus? \U0001f600"] for row in range(ROWS)])
EXPECTED = route(planned(is_text=True).cascade, TABLE)


@pytest.fixture(scope="module")
def service() -> Iterator[Served]:
    with served(Access(max_items=50), is_text=True) as running:
        yield running


def check_like_evaluation(got: Any) -> None:
    assert got.as_numpy("answer").tolist() == EXPECTED.answer[:ROWS].tolist()
    assert got.as_numpy("tier").tolist() == EXPECTED.tier[:ROWS].tolist()
    assert set(got.as_numpy("tier").tolist()) == {0, 1}


@pytest.mark.parametrize("nested", [False, True])
def test_predict_takes_texts(service: Served, nested: bool) -> None:
    items = [{"id": f"i{row}", "input": [text] if nested else text} for row, (text,) in enumerate(TEXTS.tolist())]
    told = httpx.post(f"{service.url}/predict", json={"items": items}).json()["answers"]
    assert [a["class"] for a in told] == EXPECTED.answer[:ROWS].tolist()
    assert [a["answer"] for a in told] == [TABLE.classes[a] for a in EXPECTED.answer[:ROWS]]


def test_bench_sends_them(service: Served) -> None:
    data = DataSet(TEXTS, TABLE.labels[:ROWS], TABLE.items[:ROWS], TABLE.splits[:ROWS])
    found = run_bench(service.url, data, "texts", 200.0, seed=1)
    assert [(a.http_status, a.answer) for a in found.answers] == [(200, a) for a in EXPECTED.answer[:ROWS].tolist()]


@pytest.mark.parametrize("binary", [False, True])
def test_triton_sends_them(service: Served, binary: bool) -> None:
    with tritonclient.http.InferenceServerClient(service.address) as client:
        (told,) = client.get_model_metadata(NAME)["inputs"]
        assert told == {"name": "input", "datatype": "BYTES", "shape": [-1, 1]}
        tensor = tritonclient.http.InferInput("input", [ROWS, 1], "BYTES")
        tensor.set_data_from_numpy(TEXTS.astype(object), binary_data=binary)
        check_like_evaluation(client.infer(NAME, [tensor]))


def test_triton_sends_them_over_grpc() -> None:
    with (
        test_grpc.served(is_text=True) as running,
        tritonclient.grpc.InferenceServerClient(running.address) as client,
    ):
        assert client.get_model_metadata(NAME).inputs[0].datatype == "BYTES"
        tensor = tritonclient.grpc.InferInput("input", [ROWS, 1], "BYTES")
        tensor.set_data_from_numpy(TEXTS.astype(object))
        check_like_evaluation(client.infer(NAME, [tensor]))
        numbers = tritonclient.grpc.InferInput("input", [1, 1], "FP32")
        numbers.set_data_from_numpy(np.zeros((1, 1), np.float32))
        with pytest.raises(InferenceServerException, match='datatype: must be BYTES, got "FP32"'):
            client.infer(NAME, [numbers])


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (3, "must be a text that is not empty"),
        ("", "must be a text that is not empty"),
        ([], "must be a text that is not empty"),
        (["a", "b"], "must be a text that is not empty"),
        ([["a"]], "must be a text that is not empty"),
        ("a\0", "must hold no NUL"),
        ("\ud800", "must hold no NUL and no half of a surrogate pair"),
    ],
)
def test_what_is_no_text_reaches_no_member(service: Served, value: Any, rule: str) -> None:
    before = service.router.asked
    body = json.dumps({"items": [{"input": value}]})
    (error,) = httpx.post(f"{service.url}/predict", content=body).json()["errors"]
    assert error["field"] == "items[0].input"
    assert rule in error["rule"]
    tensor = {"name": "input", "datatype": "BYTES", "shape": [1, 1], "data": [value]}
    response = httpx.post(f"{service.url}/v2/models/{NAME}/infer", content=json.dumps({"inputs": [tensor]}))
    assert (response.status_code, response.json()["errors"][0]["field"]) == (400, "inputs[0].data[0]")
    assert service.router.asked == before


def test_texts_have_an_end(service: Served) -> None:
    text = "x" * (MAX_TEXT_CHARS + 1)
    response = httpx.post(f"{service.url}/predict", json={"items": [{"input": text}]})
    assert (response.status_code, response.json()["errors"][0]["rule"]) == (413, "must be at most 1000000 characters")
    assert httpx.post(f"{service.url}/predict", json={"items": [{"input": text[1:]}]}).status_code == 200


# --- Laws -------------------------------------------------------------------------------------------------------------

MODEL = v2.Model.of(planned(is_text=True))
GOOD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=9)


def ids() -> Iterator[str]:
    return (f"fresh-{n}" for n in itertools.count())


def of_json(request: Any, binary: bytes = b"", framed: bool = False) -> list[str]:
    head = json.dumps(request).encode()
    asked = v2.parsed(head + binary, str(len(head)) if framed else None, MODEL, ids(), 50)
    return [str(one[0]) for one in asked.items.values()]


def of_message(request: Any) -> list[str]:
    ours = CLASSES["ModelInferRequest"].FromString(request.SerializeToString())
    return [str(one[0]) for one in inference(ours, MODEL, ids(), 50).items.values()]


@given(st.lists(GOOD, min_size=1, max_size=4))
def test_texts_arrive_as_they_were_sent_every_way(texts: list[str]) -> None:
    raw = serialize_byte_tensor(np.array(texts, dtype=object)).item()
    tensor = {"name": "input", "datatype": "BYTES", "shape": [len(texts), 1]}
    assert of_json({"inputs": [{**tensor, "data": texts}]}) == texts
    assert of_json({"inputs": [{**tensor, "data": [[text] for text in texts]}]}) == texts
    assert of_json({"inputs": [{**tensor, "parameters": {"binary_data_size": len(raw)}}]}, raw, framed=True) == texts
    message = service_pb2.ModelInferRequest(raw_input_contents=[raw])
    message.inputs.add(**tensor)
    assert of_message(message) == texts
    message.ClearField("raw_input_contents")
    message.inputs[0].contents.bytes_contents.extend(text.encode() for text in texts)
    assert of_message(message) == texts
    body = json.dumps({"items": [{"input": text} for text in texts]}).encode()
    assert [str(one[0]) for one in parsed_items(body, (1,), ids(), 50, is_text=True).values()] == texts


@given(st.binary(max_size=12))
def test_bytes_that_are_no_texts_are_an_error_of_ours(data: bytes) -> None:
    try:
        found = v2_binary.texts("x", data)
    except InvalidInput:
        return
    assert v2_binary.encoded(found, "BYTES") == data


def test_one_long_text_does_not_widen_the_others() -> None:
    tensor = {"name": "input", "datatype": "BYTES", "shape": [2, 1], "data": ["a", "b" * 1000]}
    asked = v2.parsed(json.dumps({"inputs": [tensor]}).encode(), None, MODEL, ids(), 50)
    assert [one.nbytes for one in asked.items.values()] == [4, 4000]


VALUES = st.one_of(st.none(), st.integers(0, 3), st.text(max_size=3), st.lists(st.text(max_size=2), max_size=2))


@settings(max_examples=200)
@given(VALUES)
def test_the_schema_of_predict_and_its_parser_agree_on_texts(value: Any) -> None:
    body = {"items": [{"input": value}]}
    described = jsonschema.Draft202012Validator(predict_request((1,), 5, is_text=True)).is_valid(body)
    try:
        parsed_items(json.dumps(body).encode(), (1,), ids(), 5, is_text=True)
    except TooLarge:
        raise
    except InvalidInput:
        assert not described
    else:
        assert described
