"""The OpenAPI document describes what is really served: schemathesis makes requests from it and checks the responses."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coe import files
from coe.errors import InvalidInput
from coe.router.queries import Overloaded
from coe.serving.auth import hashed
from coe.serving.http_api import parsed_items
from coe.serving.schemas import predict_request
from coe.types import Access, BearerTokens
from tests.serving.web_case import NAME, Served, item, served

FEW = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
MAX_ITEMS = 5


@pytest.fixture(scope="module")
def service() -> Iterator[Served]:
    with served(Access(max_items=MAX_ITEMS)) as running:
        yield running


@pytest.fixture(scope="module")
def document(service: Served) -> dict[str, Any]:
    """The document as a client gets it."""
    told: dict[str, Any] = httpx.get(f"{service.url}/openapi.json").json()
    return told


OPERATIONS = [
    ("/predict", "post"),
    ("/healthz", "get"),
    ("/readyz", "get"),
    ("/plan", "get"),
    ("/v2", "get"),
    ("/v2/health/live", "get"),
    ("/v2/health/ready", "get"),
    *(
        (f"/v2/models/{{name}}{version}{rest}", verb)
        for version in ("", "/versions/{version}")
        for rest, verb in (("", "get"), ("/ready", "get"), ("/infer", "post"))
    ),
    ("/v1/models", "get"),
    ("/v1/models/{name}", "get"),
    ("/v1/chat/completions", "post"),
]


def test_every_route_is_in_the_document(document: dict[str, Any]) -> None:
    told = {(path, verb) for path, verbs in document["paths"].items() for verb in verbs}
    assert told == set(OPERATIONS)


@pytest.mark.parametrize(("path", "verb"), OPERATIONS)
def test_no_request_breaks_the_service_and_every_response_is_as_described(
    service: Served, document: dict[str, Any], path: str, verb: str
) -> None:
    operation = schemathesis.openapi.from_dict(document)[path][verb]
    seen: Counter[int] = Counter()

    @FEW
    @given(operation.as_strategy())
    def holds(case: schemathesis.Case) -> None:
        if "X-Request-Timeout-Ms" in case.headers:  # a microsecond is a good request, and nobody can answer it
            case.headers["X-Request-Timeout-Ms"] = str(max(60_000, float(case.headers["X-Request-Timeout-Ms"])))
        if path == "/predict":  # the schema cannot say that ids are unique
            for number, entry in enumerate(case.body["items"]):
                entry.update({"id": f"{entry['id'][:190]}-{number}"} if "id" in entry else {})
        response = case.call(base_url=service.url)
        case.validate_response(response)
        seen[response.status_code] += 1

    holds()
    if path.startswith("/v1/"):  # items of numbers: `test_openai_api` has texts
        assert set(seen) == {404}
        return
    assert "{name}" in path or seen[200] >= (5 if verb == "post" else 1), "the generated requests are good ones"


def schema_of(document: dict[str, Any], path: str, verb: str, status: int) -> dict[str, Any]:
    """The schema of a JSON response, with what it refers to."""
    schema = document["paths"][path][verb]["responses"][str(status)]["content"]["application/json"]["schema"]
    return {**schema, "components": document["components"]}


def test_infer_with_the_name_that_is_served_is_as_described(service: Served, document: dict[str, Any]) -> None:
    operation = schemathesis.openapi.from_dict(document)["/v2/models/{name}/infer"]["post"]
    seen: Counter[int] = Counter()

    @settings(FEW, max_examples=60)
    @given(operation.as_strategy(), st.booleans())
    def holds(case: schemathesis.Case, is_filled: bool) -> None:
        case.path_parameters["name"] = NAME
        if is_filled and isinstance(case.body, dict):
            # the schema cannot say that `data` has as many numbers as `shape`
            (tensor,) = case.body["inputs"]
            tensor.pop("parameters", None)
            tensor["data"] = [1.0] * (4 * int(tensor["shape"][0]))
            case.body.pop("outputs", None)
            case.body.pop("parameters", None)
            case.headers.clear()
        response = case.call(base_url=service.url)
        seen[response.status_code] += 1
        if response.headers["content-type"][0] == "application/json":
            described = schema_of(document, "/v2/models/{name}/infer", "post", response.status_code)
            jsonschema.validate(response.json(), described)

    holds()
    assert {200, 400} <= set(seen) <= {200, 400, 503}


def test_what_goes_wrong_later_is_as_described(service: Served, document: dict[str, Any]) -> None:
    body = {"items": [{"input": item(3)}]}
    try:
        service.router.fault = Overloaded(1.0)
        overloaded = httpx.post(f"{service.url}/predict", json=body)
        service.router.fault, service.router.down = None, {"small", "middle", "other", "large"}
        unanswered = httpx.post(f"{service.url}/predict", json=body)
        service.router.lacking = ["tier 0 needs 3 of 3 members; down: small"]
        unready = httpx.get(f"{service.url}/readyz")
    finally:
        service.router.fault, service.router.down, service.router.lacking = None, set(), []
    assert [r.status_code for r in (overloaded, unanswered, unready)] == [503, 503, 503]
    for response in (overloaded, unanswered):
        jsonschema.validate(response.json(), schema_of(document, "/predict", "post", 503))
        described = document["paths"]["/predict"]["post"]["responses"]["503"]["headers"]["Retry-After"]["schema"]
        jsonschema.validate(int(response.headers["retry-after"]), described)
    jsonschema.validate(unready.json(), schema_of(document, "/readyz", "get", 503))


NUMBERS = st.one_of(st.integers(-3, 3), st.floats(), st.sampled_from([None, True, "1", 10**400, 1e39, {}, []]))
ROWS = st.lists(st.one_of(st.integers(-3, 3), NUMBERS), min_size=1, max_size=3)
INPUTS = st.one_of(st.just([[1, 2], [3, 4.5]]), st.lists(ROWS, min_size=1, max_size=3), NUMBERS)
ITEMS = st.fixed_dictionaries(
    {"input": INPUTS}, optional={"id": st.one_of(st.text(max_size=3), st.just("x" * 201), NUMBERS)}
)
BODIES = st.one_of(
    st.fixed_dictionaries({"items": st.lists(ITEMS, max_size=MAX_ITEMS + 1)}, optional={"more": st.none()}),
    NUMBERS,
)


@settings(max_examples=400)
@given(BODIES)
def test_the_schema_of_predict_and_its_parser_agree(body: Any) -> None:
    """Two readings of one rule. JSON schema knows no unique ids; JSON itself no NaN."""
    names = [i["id"] for i in body["items"] if "id" in i] if isinstance(body, dict) and "items" in body else []
    text = json.dumps(body)
    finite = "NaN" not in text and "Infinity" not in text
    described = finite and jsonschema.Draft202012Validator(predict_request((2, 2), MAX_ITEMS)).is_valid(body)
    unique = len({repr(n) for n in names}) == len(names)
    try:
        parsed_items(text.encode(), (2, 2), (f"fresh-{n}" for n in itertools.count()), MAX_ITEMS)
    except InvalidInput:
        assert not (described and unique)
    else:
        assert described


def test_the_document_says_who_needs_a_token(tmp_path: Path) -> None:
    files.write(tmp_path / "tokens.yaml", BearerTokens(tokens=(hashed("anna", "secret"),)))
    with served(Access(tokens=str(tmp_path / "tokens.yaml"))) as guarded:
        told = httpx.get(f"{guarded.url}/openapi.json", headers={"Authorization": "Bearer secret"}).json()
    assert told["components"]["securitySchemes"]["token"] == {"type": "http", "scheme": "bearer"}
    assert told["security"] == [{"token": []}]
    is_open = {path for path, verbs in told["paths"].items() if verbs.get("get", {}).get("security") == []}
    assert is_open == {"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"}


def test_without_tokens_it_asks_for_none(document: dict[str, Any]) -> None:
    assert "security" not in document


def test_unknown_paths_and_verbs_are_errors_like_the_others(service: Served) -> None:
    missing, wrong = httpx.get(f"{service.url}/nowhere"), httpx.get(f"{service.url}/predict")
    assert (missing.status_code, missing.json()) == (404, {"error": "Not Found"})
    assert (wrong.status_code, wrong.json(), wrong.headers["allow"]) == (405, {"error": "Method Not Allowed"}, "POST")
