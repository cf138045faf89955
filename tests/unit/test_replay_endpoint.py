"""The replay endpoint, asked by OpenAI's own client and by our runner over a real connection."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn

from coe.cli.main import run
from coe.errors import InvalidInput, Unavailable
from coe.files import read, write
from coe.profiler.hosted import profile_hosted
from coe.profiler.predict import DataSet, predict
from coe.table import PredictionTable
from coe.types import ABSTAINED, MISSING_VOTE, ApiPrice, Member, Pool, Prices, Profiles
from deployments.llm.replay_endpoint import NO_ANSWER, ReplayEndpoint
from tests import factories

ITEMS = 120


def recorded() -> PredictionTable:
    """Three models' letters with token counts; some abstentions, one answer missing."""
    table = factories.table(n=ITEMS, members=("cheap", "middle", "dear"), classes=5, probs=False)
    answers = table.answers.copy()
    answers[::7, 0] = ABSTAINED
    answers[3, 1] = MISSING_VOTE
    tokens = np.random.default_rng(0).integers(1, 900, (ITEMS, 3, 2)).astype(np.int32)
    tokens[3, 1] = 0
    return replace(table, classes=tuple("ABCDE"), answers=answers, tokens=tokens)


TABLE = recorded()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The endpoint on a port of its own; it ends with the module."""
    config = uvicorn.Config(ReplayEndpoint(TABLE), log_level="warning", access_log=False, ws="none")
    server = uvicorn.Server(config)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 10
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.started
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        server.should_exit = True
        thread.join(10)


def pool(url: str, **options: Any) -> Pool:
    members = tuple(
        Member(
            name=name,
            runner="openai",
            options={"base_url": url, "model": name, "prompt": "[item {item}]", "extract": "letter", **options},
        )
        for name in TABLE.members
    )
    return Pool(classes=TABLE.classes, input_shape=(1,), input_dtype="text", members=members)


DATA = DataSet(TABLE.items[:, None], TABLE.labels, TABLE.items, TABLE.splits)


def test_what_is_predicted_through_the_endpoint_is_what_was_recorded(url: str) -> None:
    found = predict(pool(url, retries=0), Path(), DATA)
    assert (found.answers == TABLE.answers).all()
    assert found.tokens is not None
    assert (found.tokens == TABLE.tokens).all()
    assert found.probs is None


def test_openais_own_client_understands_it(url: str) -> None:
    openai = pytest.importorskip("openai", reason="needs the client package openai")
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        assert [m.id for m in client.models.list()] == list(TABLE.members)

        def ask(model: str, row: int, **more: Any) -> Any:
            content = f"Which letter? [item {TABLE.items[row]}]"
            return client.chat.completions.create(model=model, messages=[{"role": "user", "content": content}], **more)

        for row in (0, 1, 2):
            reply = ask("cheap", row)
            answer = TABLE.answers[row, 0]
            expected = NO_ANSWER if answer == ABSTAINED else f"The answer is ({TABLE.classes[answer]})."
            assert reply.choices[0].message.content == expected
            assert reply.choices[0].finish_reason == "stop"
            assert TABLE.tokens is not None
            assert [reply.usage.prompt_tokens, reply.usage.completion_tokens] == TABLE.tokens[row, 0].tolist()
            assert reply.usage.total_tokens == TABLE.tokens[row, 0].sum()
        with pytest.raises(openai.NotFoundError, match="The model `gpt-9` does not exist"):
            ask("gpt-9", 0)
        with pytest.raises(openai.BadRequestError, match="not streamed"):
            ask("cheap", 0, stream=True)
        with pytest.raises(openai.InternalServerError, match="never asked about item item-00003"):
            ask("middle", 3)


def test_a_model_that_the_endpoint_lacks_is_told_with_its_own_words(url: str) -> None:
    lost = pool(url).members[0].model_copy(update={"options": {**pool(url).members[0].options, "model": "gpt-9"}})
    with pytest.raises(Unavailable, match="member 'cheap'.*answers nothing: 404.*gpt-9"):
        predict(pool(url).model_copy(update={"members": (lost,)}), Path(), DATA)


def asked(app: ReplayEndpoint, method: str, path: str, body: bytes = b"") -> tuple[int, dict[str, Any]]:
    """Status and body of one request, without a connection."""
    sent: list[Any] = []
    halves = [body[: len(body) // 2], body[len(body) // 2 :]]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": halves.pop(0), "more_body": bool(halves)}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app({"type": "http", "method": method, "path": path}, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "not JSON"),
        (b"[]", 400, "must be a JSON object"),
        (b'{"model": "cheap"}', 400, "messages must end with one whose content is a text"),
        (b'{"model": "cheap", "messages": [{"content": [1]}]}', 400, "whose content is a text"),
        (b'{"model": "cheap", "messages": [{"content": "hello"}]}', 400, "must name its item"),
        (b'{"model": "cheap", "messages": [{"content": "[item x]"}]}', 400, "nothing was recorded about item x"),
        (b'{"messages": []}', 404, "does not exist"),
        (b" " * (2**22 + 1), 413, "longer than"),
    ],
)
def test_requests_that_cannot_be_answered_say_why(body: bytes, status: int, message: str) -> None:
    found, told = asked(ReplayEndpoint(TABLE), "POST", "/v1/chat/completions", body)
    assert found == status
    assert message in told["error"]["message"]


def test_other_paths_are_not_there() -> None:
    assert asked(ReplayEndpoint(TABLE), "GET", "/v1/embeddings")[0] == 404
    assert asked(ReplayEndpoint(TABLE), "DELETE", "/v1/models")[0] == 404


def test_answers_take_their_time_by_the_token() -> None:
    body = json.dumps({"model": "dear", "messages": [{"content": f"[item {TABLE.items[5]}]"}]}).encode()
    assert TABLE.tokens is not None
    expected_s = 0.05 + 0.0005 * int(TABLE.tokens[5, 2, 1])
    started = time.perf_counter()
    assert (
        asked(ReplayEndpoint(TABLE, latency_s=0.05, s_per_token=0.0005), "POST", "/v1/chat/completions", body)[0] == 200
    )
    assert time.perf_counter() - started >= expected_s


def test_a_record_without_tokens_is_refused() -> None:
    with pytest.raises(InvalidInput, match="has no token counts"):
        ReplayEndpoint(replace(TABLE, tokens=None))


# --- Profiles of hosted models ----------------------------------------------------------------------------------------


def api(model: str) -> ApiPrice:
    return ApiPrice(model=model, provider="p", usd_per_call=0.1, source="tests", date=factories.DAY)


def test_hosted_members_are_profiled_by_the_requests_under_way(url: str) -> None:
    prices = Prices(apis=(api("cheap"), api("dear")))
    found = profile_hosted(pool(url), Path(), prices, DATA.x, batch_sizes=(1, 4), runs=3, today=factories.DAY)
    assert [(p.member, p.accelerator) for p in found.profiles] == [("cheap", "API"), ("dear", "API")]
    for profile in found.profiles:
        assert [(t.batch_size, t.runs) for t in profile.timings] == [(1, 3), (4, 3)]
        assert profile.origin == "measured"
        assert url in profile.source


def test_failed_requests_are_not_timed_and_local_members_are_not_asked(url: str) -> None:
    sample = TABLE.items[3:4, None]
    asking = pool(url, retries=0)
    with pytest.raises(Unavailable, match="member 'middle': 1 of 1 requests failed while being timed"):
        profile_hosted(
            asking, Path(), Prices(apis=(api("middle"),)), sample, batch_sizes=(1,), runs=3, today=factories.DAY
        )
    with pytest.raises(InvalidInput, match="has no member that the price list sells"):
        profile_hosted(asking, Path(), Prices(apis=(api("other"),)), DATA.x, runs=3, today=factories.DAY)


def test_the_verb_times_them_through_the_real_runner(url: str, tmp_path: Path) -> None:
    asking = pool(url)
    only = asking.model_copy(update={"members": asking.members[2:]})
    write(tmp_path / "pool.yaml", only)
    write(tmp_path / "prices.yaml", Prices(apis=(api("dear"),)))
    np.savez(tmp_path / "data.npz", x=DATA.x, y=DATA.y, items=DATA.items, splits=DATA.splits)
    files = [str(tmp_path / name) for name in ("pool.yaml", "prices.yaml", "data.npz", "profiles.yaml")]
    words = ["profile", files[0], "--prices", files[1], "--data", files[2], "--requests", "124", "-o", files[3]]
    assert run(words) == 2  # nobody agreed to 124 x $0.10
    assert run([*words, "--max-usd", "12.5"]) == 0
    (found,) = read(files[3], Profiles).profiles
    assert (found.member, found.accelerator) == ("dear", "API")
    assert [(t.batch_size, t.runs) for t in found.timings] == [(n, 3) for n in (1, 2, 4, 8, 16)]
