"""OpenAI's protocol with OpenAI's own client; what a cascade cannot do is refused before any member hears of it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import OpenAI

from coe import files
from coe.cascade.evaluate import route
from coe.errors import InvalidInput
from coe.router.queries import Overloaded
from coe.serving import chat
from coe.serving.auth import hashed
from coe.types import ABSTAINED, Access, BearerTokens
from tests.serving.web_case import NAME, TABLE, Served, planned, served

MAX_BYTES = 5_000


@pytest.fixture(scope="module")
def service() -> Iterator[Served]:
    with served(Access(max_body_bytes=MAX_BYTES), is_text=True) as running:
        yield running


@pytest.fixture
def calm(service: Served) -> Iterator[Served]:
    """The service, whose faults end with the test."""
    yield service
    service.router.down, service.router.abstaining, service.router.fault = set(), set(), None


def client_of(service: Served, key: str = "any") -> OpenAI:
    return OpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=0)


@pytest.fixture(scope="module")
def client(service: Served) -> Iterator[OpenAI]:
    with client_of(service) as connected:
        yield connected


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_the_client_gets_the_answers_that_the_evaluation_predicts(client: OpenAI) -> None:
    expected = route(planned(is_text=True).cascade, TABLE)
    tiers = set()
    for row in range(25):
        got = client.chat.completions.create(model=NAME, messages=[user(f"question {row}")])
        (choice,) = got.choices
        assert choice.message.content == TABLE.classes[expected.answer[row]]
        assert (choice.message.role, choice.finish_reason) == ("assistant", "stop")
        coe = got.model_extra["coe"]
        assert (coe["class"], coe["tier"]) == (expected.answer[row], expected.tier[row])
        voters = planned(is_text=True).cascade.tiers[coe["tier"]].members
        votes = [int(TABLE.answers[row, TABLE.members.index(member)]) for member in voters]
        assert (coe["agreed"], coe["voted"]) == (votes.count(expected.answer[row]), len(votes))
        assert coe["score"] > 0
        assert (coe["degraded"], coe["ignored"]) == (False, [])
        tiers.add(coe["tier"])
    assert tiers == {0, 1}
    assert (got.object, got.model) == ("chat.completion", NAME)
    assert planned(is_text=True).fingerprint().startswith(got.system_fingerprint)
    assert got.usage is None


def test_a_text_arrives_as_it_was_sent(service: Served, client: OpenAI) -> None:
    text = '  Wie viel ist 7 \u00d7 6?\n\U0001f600 \\ "quoted"\t'
    plain = client.chat.completions.create(model=NAME, messages=[user(text)])
    part = client.chat.completions.create(model=NAME, messages=[user([{"type": "text", "text": text}])])
    assert plain.choices[0].message.content == part.choices[0].message.content
    assert chat.parsed(json.dumps({"model": NAME, "messages": [user(text)]}).encode(), NAME).text == text
    with_id = client.chat.completions.with_raw_response.create(
        model=NAME, messages=[user("3")], extra_headers={"x-request-id": "mine-1"}
    )
    assert with_id.headers["x-request-id"] == "mine-1"
    assert with_id.parse().id == "chatcmpl-mine-1"
    assert (with_id.headers["x-coe-tier"], with_id.headers["x-coe-votes"]) in {("0", "3/3"), ("1", "1/1")}
    assert service.router.ids[-1] == "mine-1", "ledger, access log and client speak of one id"


def test_the_cascade_is_the_one_model(client: OpenAI) -> None:
    (entry,) = client.models.list().data
    assert (entry.id, entry.object, entry.owned_by) == (NAME, "model", "coe")
    assert client.models.retrieve(NAME) == entry
    with pytest.raises(openai.NotFoundError, match=f"only '{NAME}' is served here") as caught:
        client.models.retrieve("gpt-7")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_what_has_no_effect_is_named_as_ignored(client: OpenAI) -> None:
    got = client.chat.completions.create(
        model=NAME, messages=[user("5")], temperature=0, seed=1, user="anna", max_tokens=5, n=1, stream=False
    )
    assert got.model_extra["coe"]["ignored"] == ["max_tokens", "seed", "temperature", "user"]


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}


@pytest.mark.parametrize(
    ("change", "param", "code", "rule"),
    [
        ({"stream": True}, "stream", "unsupported_value", "must be false, or be left out: the answer is there all"),
        ({"n": 2}, "n", "unsupported_value", "must be 1, or be left out"),
        ({"n": True}, "n", "unsupported_value", "must be 1, or be left out"),
        ({"tools": [TOOL]}, "tools", "unsupported_value", "members answer with a class and call nothing"),
        ({"tool_choice": "required"}, "tool_choice", "unsupported_value", 'must be "none" or "auto"'),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_value", '{"type": "text"}'),
        ({"logprobs": True}, "logprobs", "unsupported_value", "members vote"),
        ({"stop": ["x"]}, "stop", "unsupported_value", "must be []"),
        ({"logit_bias": {"1": 5}}, "logit_bias", "unsupported_value", "must be {}"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "unsupported_value", "is not supported; known: "),
        ({"temprature": 0}, "temprature", "unsupported_value", "is not supported; known: "),
        ({"temperature": "hot"}, "temperature", "invalid_value", "must be a number from 0 to 2"),
        ({"temperature": 3}, "temperature", "invalid_value", "must be a number from 0 to 2"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value", "must be a whole number from 1"),
        ({"metadata": {"a": 1}}, "metadata", "invalid_value", "must be an object of strings"),
        ({"messages": []}, "messages", "invalid_value", "must be a list of one message"),
        ({"messages": "hi"}, "messages", "invalid_value", "must be a list of one message"),
        ({"messages": ["hi"]}, "messages[0]", "invalid_value", "must be an object with a 'role'"),
        (
            {"messages": [{"role": "system", "content": "Be brief."}, user("3")]},
            "messages[0].role",
            "unsupported_value",
            "the members' instructions are part of the plan",
        ),
        (
            {"messages": [user("1"), {"role": "assistant", "content": "2"}, user("3")]},
            "messages[1].role",
            "unsupported_value",
            "earlier turns have no place",
        ),
        ({"messages": [user("1"), user("2")]}, "messages", "unsupported_value", "must be one user message"),
        ({"messages": [{**user("1"), "name": "bob"}]}, "messages[0].name", "unsupported_value", "a text alone"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_value", "must be a text"),
        ({"messages": [user("")]}, "messages[0].content", "invalid_value", "must be a text that is not empty"),
        ({"messages": [user("a\0")]}, "messages[0].content", "invalid_value", "must hold no NUL"),
        ({"messages": [user([])]}, "messages[0].content", "unsupported_value", "a list of one text part"),
        (
            {"messages": [user([{"type": "text", "text": "1"}, IMAGE])]},
            "messages[0].content[1].type",
            "unsupported_value",
            "must be 'text'",
        ),
        (
            {"messages": [user([{"type": "text", "text": "1"}] * 2)]},
            "messages[0].content",
            "unsupported_value",
            "2 parts",
        ),
        (
            {"messages": [user([{"type": "text", "text": 5}])]},
            "messages[0].content[0].text",
            "invalid_value",
            "must be a text",
        ),
        ({"model": 5}, "model", "invalid_value", "must be a string"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_represented_is_refused(
    service: Served, client: OpenAI, change: dict[str, Any], param: str, code: str, rule: str
) -> None:
    before = service.router.asked
    body: dict[str, Any] = {"model": NAME, "messages": [user("3")], **change}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body=body, cast_to=object)
    assert (caught.value.param, caught.value.code, caught.value.type) == (param, code, "invalid_request_error")
    assert rule in str(caught.value)
    assert service.router.asked == before


@pytest.mark.parametrize("key", ["model", "messages"])
def test_model_and_messages_must_be_there(client: OpenAI, key: str) -> None:
    body: dict[str, Any] = {"model": NAME, "messages": [user("3")]}
    del body[key]
    with pytest.raises(openai.BadRequestError, match="must be there") as caught:
        client.post("/chat/completions", body=body, cast_to=object)
    assert caught.value.param == key


def test_other_models_are_not_here(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=f"only '{NAME}' is served here") as caught:
        client.chat.completions.create(model="gpt-7", messages=[user("3")])
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff"])
def test_bodies_that_are_no_objects_are_mistakes(service: Served, body: bytes) -> None:
    response = httpx.post(f"{service.url}/v1/chat/completions", content=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "body")


def test_too_many_bytes_are_413(client: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError, match=f"at most {MAX_BYTES} bytes") as caught:
        client.chat.completions.create(model=NAME, messages=[user("x" * MAX_BYTES)])
    assert (caught.value.status_code, caught.value.code) == (413, "too_large")


def test_a_full_house_and_silent_members_are_503(calm: Served, client: OpenAI) -> None:
    calm.router.fault = Overloaded(1.5)
    with pytest.raises(openai.InternalServerError, match="the queues are full") as caught:
        client.chat.completions.create(model=NAME, messages=[user("3")])
    assert (caught.value.status_code, caught.value.code) == (503, "overloaded")
    assert caught.value.response.headers["retry-after"] == "2"
    calm.router.fault, calm.router.down = None, {"small", "middle", "other", "large"}
    with pytest.raises(openai.InternalServerError, match="no member answered") as caught:
        client.chat.completions.create(model=NAME, messages=[user("3")])
    assert (caught.value.status_code, caught.value.code) == (503, "unanswered")
    assert caught.value.response.headers["retry-after"] == "1", "when the members' rest ends"
    calm.router.down = {"small"}
    got = client.chat.completions.create(model=NAME, messages=[user("3")])
    assert got.model_extra["coe"]["voted"] == 1, "one of the first tier's three is down, so the last tier answers"
    assert got.model_extra["coe"]["degraded"] is (got.model_extra["coe"]["tier"] == 0)


def test_members_without_an_answer_refuse(calm: Served, client: OpenAI) -> None:
    calm.router.abstaining = {"small", "middle", "other", "large"}
    got = client.chat.completions.create(model=NAME, messages=[user("3")])
    message, coe = got.choices[0].message, got.model_extra["coe"]
    assert (message.content, message.refusal) == (None, chat.NO_ANSWER)
    assert (coe["class"], coe["agreed"], coe["voted"]) == (ABSTAINED, 0, 0)
    calm.router.abstaining = {"large"}
    rows = [row for row in range(30) if route(planned(is_text=True).cascade, TABLE).tier[row] == 1]
    got = client.chat.completions.create(model=NAME, messages=[user(str(rows[0]))])
    assert got.choices[0].message.content is None, "the last tier was asked, and has the last word"


def test_the_wait_is_the_clients(service: Served, client: OpenAI) -> None:
    client.chat.completions.create(model=NAME, messages=[user("3")], extra_headers={"X-Request-Timeout-Ms": "2500"})
    assert service.router.waited_s[-1] == 2.5
    with pytest.raises(openai.BadRequestError, match="positive number of milliseconds"):
        client.chat.completions.create(model=NAME, messages=[user("3")], extra_headers={"X-Request-Timeout-Ms": "0"})


def test_items_of_numbers_cannot_chat() -> None:
    with served() as numbers, client_of(numbers) as client:
        for ask in (
            client.models.list,
            lambda: client.models.retrieve(NAME),
            lambda: client.chat.completions.create(model=NAME, messages=[user("3")]),
        ):
            with pytest.raises(openai.NotFoundError, match=r"numbers of shape \[2, 2\].* ask at /predict") as caught:
                ask()
            assert caught.value.code == "not_a_text_model"
        assert numbers.router.asked == 0


def test_tokens_and_limits_are_those_of_the_door(tmp_path: Path) -> None:
    files.write(tmp_path / "tokens.yaml", BearerTokens(tokens=(hashed("anna", "secret"),)))
    access = Access(tokens=str(tmp_path / "tokens.yaml"), requests_per_s=0.01, burst=2)
    with served(access, is_text=True) as guarded, client_of(guarded, "secret") as anna, client_of(guarded) as nobody:
        with pytest.raises(openai.AuthenticationError, match="a known bearer token is needed") as refused:
            nobody.models.list()
        assert refused.value.type == "authentication_error"
        assert anna.models.retrieve(NAME).id == NAME
        assert anna.chat.completions.create(model=NAME, messages=[user("3")]).choices
        with pytest.raises(openai.RateLimitError, match="anna asks too often") as limited:
            anna.models.list()
        assert limited.value.type == "rate_limit_error"


def test_unknown_paths_have_errors_of_the_protocol(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model=NAME, input="x")
    assert caught.value.type == "invalid_request_error"


def test_the_example_of_the_docs_prints_what_it_says(service: Served, capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "docs/protocols.md").read_text(encoding="utf-8")
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "OpenAI" in block]
    exec(example, {"URL": service.url})
    promised = [line.rsplit("# ", 1)[1] for line in example.splitlines() if line.startswith("print(")]
    assert capsys.readouterr().out.splitlines() == promised


# --- Laws -------------------------------------------------------------------------------------------------------------

SCHEMA = jsonschema.Draft202012Validator(chat.request_schema(NAME))
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=3),
    st.sampled_from(["none", "auto", "default", NAME, "user", "text", [], {}, ["text"], {"type": "text"}, {"a": "b"}]),
)
PARTS = st.fixed_dictionaries({}, optional={"type": st.just("text") | VALUES, "text": VALUES, "x": VALUES})
MESSAGES = st.fixed_dictionaries(
    {"role": st.just("user") | VALUES},
    optional={"content": VALUES | st.lists(PARTS, max_size=2), "name": VALUES},
)
BODIES = st.fixed_dictionaries(
    {"model": st.just(NAME) | VALUES, "messages": st.lists(MESSAGES, min_size=1, max_size=2) | VALUES},
    optional={**dict.fromkeys((*chat.IGNORED, *chat.FIXED), VALUES), "x": VALUES},
)


@settings(max_examples=400, suppress_health_check=list(HealthCheck))
@given(BODIES | st.fixed_dictionaries({"model": st.just(NAME), "messages": st.lists(MESSAGES, min_size=1, max_size=1)}))
def test_the_schema_of_chats_and_their_parser_agree(body: dict[str, Any]) -> None:
    """Two readings of one rule."""
    described = SCHEMA.is_valid(body)
    try:
        got = chat.parsed(json.dumps(body).encode(), NAME)
    except InvalidInput as error:
        assert not described
        (problem,) = error.problems
        assert problem.where
        assert problem.rule
    else:
        assert described
        assert got.text
        assert set(got.ignored) == {key for key in chat.IGNORED if body.get(key) is not None}


@given(st.sampled_from([*chat.IGNORED, *chat.FIXED]), VALUES)
def test_each_parameter_alone_is_read_as_described(name: str, value: Any) -> None:
    body = {"model": NAME, "messages": [user("3")], name: value}
    try:
        chat.parsed(json.dumps(body).encode(), NAME)
    except InvalidInput:
        assert not SCHEMA.is_valid(body)
    else:
        assert SCHEMA.is_valid(body)


@pytest.mark.parametrize(
    ("path", "verb"), [("/v1/models", "get"), ("/v1/models/{name}", "get"), ("/v1/chat/completions", "post")]
)
def test_no_request_breaks_the_service_and_every_response_is_as_described(
    service: Served, path: str, verb: str
) -> None:
    operation = schemathesis.openapi.from_dict(httpx.get(f"{service.url}/openapi.json").json())[path][verb]
    seen: Counter[int] = Counter()

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy())
    def holds(case: schemathesis.Case) -> None:
        if "X-Request-Timeout-Ms" in case.headers:  # a microsecond is a good request, and nobody can answer it
            case.headers["X-Request-Timeout-Ms"] = str(max(60_000, float(case.headers["X-Request-Timeout-Ms"])))
        response = case.call(base_url=service.url)
        case.validate_response(response)
        seen[response.status_code] += 1

    holds()
    assert set(seen) <= {200, 404}
    assert "{name}" in path or seen[200] >= 1
