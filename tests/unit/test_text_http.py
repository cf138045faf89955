"""Texts over both protocols: what arrives at the members, and what is refused."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.errors import InvalidInput
from coe.serving import schemas, v2
from coe.serving.http_api import parsed_items

MODEL = v2.Model("intents", "1", (1,), "BYTES", ("a", "b"))
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


def own(*inputs: Any) -> list[np.ndarray]:
    body = json.dumps({"items": [{"input": value} for value in inputs]}).encode()
    return list(parsed_items(body, (1,), (f"i{n}" for n in itertools.count()), is_text=True).values())


def by_v2(data: Any, count: int, datatype: str = "BYTES", **more: Any) -> list[np.ndarray]:
    tensor = {"name": "input", "shape": [count, 1], "datatype": datatype, "data": data, **more}
    body = json.dumps({"inputs": [tensor]}).encode()
    return list(v2.parsed(body, None, MODEL, (f"i{n}" for n in itertools.count()), 10).items.values())


@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_texts_arrive_as_they_were_sent_whatever_the_protocol(texts: list[str]) -> None:
    nested = [[text] for text in texts]
    for found in (own(*texts), own(*nested), by_v2(texts, len(texts)), by_v2(nested, len(texts))):
        assert [array.tolist() for array in found] == nested
        assert all(array.shape == (1,) and array.dtype.kind == "U" for array in found)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "input: must be a string, got int"),
        ([1.5], "must be a string, got a list of 1"),
        (["a", "b"], "must be a string, got a list of 2"),
        (None, "must be a string, got NoneType"),
        ("a\0b", "must not hold NUL"),
        ("\ud800", "halves of surrogate pairs"),
    ],
)
def test_what_is_no_text_is_refused(value: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=rf"items\[0\].{message}|{message}"):
        own(value)


@pytest.mark.parametrize(
    ("data", "more", "message"),
    [
        ([1], {}, r"inputs\[0\].data: must be a string, got a list of 1"),
        (["a", "b"], {}, "must be a string, got a list of 2"),
        (["a"], {"datatype": "FP32"}, "datatype: must be BYTES"),
        (["a"], {"parameters": {"binary_data_size": 5}}, "texts in binary are not taken"),
    ],
)
def test_v2_refuses_what_is_no_text(data: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        by_v2(data, 1, **more)


def test_both_protocols_say_that_items_are_texts() -> None:
    assert MODEL.metadata["inputs"] == [{"name": "input", "datatype": "BYTES", "shape": [-1, 1]}]
    item = schemas.predict_request((1,), 5, is_text=True)["properties"]["items"]["items"]
    assert item["properties"]["input"]["anyOf"][0] == {"type": "string"}
    tensor = schemas.v2_request((1,), 5, ["label"], "BYTES")["properties"]["inputs"]["items"]
    assert tensor["properties"]["datatype"] == {"const": "BYTES"}
