"""The runner of OpenAI's protocol: what it sends, what it reads, what it bills, and what becomes of failures."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.errors import InvalidInput, Unavailable
from coe.files import read_predictions, write_predictions
from coe.profiler.predict import answered, content_hashes, load_data, predict
from coe.runners import base
from coe.runners.base import Checked, make_runner
from coe.runners.openai_runner import OpenAIRunner
from coe.runners.reading import reader
from coe.types import ABSTAINED, MISSING_VOTE, Member, Pool

Answering = Callable[[dict[str, Any]], httpx.Response]


def member(**options: Any) -> Member:
    return Member(name="m", runner="openai", options={"base_url": "http://llm.test/v1", "model": "big-1", **options})


def pool(**options: Any) -> Pool:
    return Pool(
        classes=("red", "green", "dark green"), input_shape=(1,), input_dtype="text", members=(member(**options),)
    )


def completion(text: str | None, prompt_tokens: int = 7, completion_tokens: int = 3) -> httpx.Response:
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return httpx.Response(200, json={"choices": [{"message": {"content": text}}], "usage": usage})


class Endpoint:
    """What answers; keeps the requests, and the pauses between them."""

    def __init__(self, answer: Answering) -> None:
        self.answer = answer
        self.requests: list[httpx.Request] = []
        self.bodies: list[dict[str, Any]] = []
        self.pauses_s: list[float] = []
        self.now_s = 0.0
        self._lock = threading.Lock()

    def runner(self, **options: Any) -> Checked:
        """A loaded runner that talks to this endpoint, on a clock that only pauses move."""
        asked = pool(**options)
        inner = OpenAIRunner(
            asked.members[0],
            asked,
            Path(),
            transport=httpx.MockTransport(self._handle),
            sleep=self._sleep,
            clock_s=lambda: self.now_s,
        )
        inner.load()
        return Checked(inner, "m", len(asked.classes))

    def _handle(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        with self._lock:
            self.requests.append(request)
            self.bodies.append(body)
        return self.answer(body)

    def _sleep(self, pause_s: float) -> None:
        with self._lock:
            self.pauses_s.append(pause_s)
            self.now_s += pause_s


def texts(*items: str) -> np.ndarray:
    return np.array(items)[:, None]


def said(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


# --- Asking -----------------------------------------------------------------------------------------------------------


def test_every_item_is_a_request_and_answers_keep_the_order() -> None:
    endpoint = Endpoint(lambda body: completion(said(body), prompt_tokens=len(said(body))))
    runner = endpoint.runner(max_concurrency=4)
    found = runner.ask(texts("green", "red", "Dark Green.", "red"))
    assert found.probs.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0]]
    assert found.tokens is not None
    assert found.tokens.tolist() == [[5, 3], [3, 3], [11, 3], [3, 3]]
    assert {str(r.url) for r in endpoint.requests} == {"http://llm.test/v1/chat/completions"}
    assert all(body["model"] == "big-1" and body["temperature"] == 0.0 for body in endpoint.bodies)
    runner.close()


def test_the_prompt_is_filled_in_and_braces_of_items_are_left_alone() -> None:
    endpoint = Endpoint(lambda _: completion("B"))
    prompt = 'Item {item}: one of {classes}.\n{choices}\nAs {"json": true}.'
    runner = endpoint.runner(
        prompt=prompt, system="Be brief.", letters=True, max_tokens=5, extra={"seed": 1, "temperature": 1}
    )
    assert runner.predict(texts("{classes}")).tolist() == [[0, 1, 0]]
    (body,) = endpoint.bodies
    assert body == {
        "model": "big-1",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": "Item {classes}: one of red, green, dark green.\nA) red\nB) green\nC) dark green\n"
                'As {"json": true}.',
            },
        ],
        "max_tokens": 5,
        "temperature": 1,
        "seed": 1,
    }


def test_items_that_are_numbers_are_written_plainly() -> None:
    endpoint = Endpoint(lambda _: completion("red"))
    endpoint.runner().predict(np.array([[12345678.0], [0.1]], dtype=np.float32))
    assert sorted(said(body) for body in endpoint.bodies) == ["0.1", "12345678"]


def test_requests_of_a_batch_are_under_way_together_but_never_too_many() -> None:
    """Nobody is answered before three ask at once; a fourth never does."""
    barrier, lock, counts = threading.Barrier(3, timeout=10), threading.Lock(), {"now": 0, "most": 0}

    def answer(_: dict[str, Any]) -> httpx.Response:
        with lock:
            counts["now"] += 1
            counts["most"] = max(counts["most"], counts["now"])
        barrier.wait()
        with lock:
            counts["now"] -= 1
        return completion("red")

    assert Endpoint(answer).runner(max_concurrency=3).predict(texts(*"abcdef")).shape == (6, 3)
    assert counts["most"] <= 3


def test_the_key_comes_from_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_OF_TESTS", "sesame")
    endpoint = Endpoint(lambda _: completion("red"))
    endpoint.runner(api_key_env="KEY_OF_TESTS").predict(texts("x"))
    assert endpoint.requests[0].headers["authorization"] == "Bearer sesame"
    monkeypatch.delenv("KEY_OF_TESTS")
    with pytest.raises(InvalidInput, match=r"member 'm': options: api_key_env: KEY_OF_TESTS is not set; set it where"):
        endpoint.runner(api_key_env="KEY_OF_TESTS")
    with pytest.raises(InvalidInput, match="api_key: keys do not belong into files; name the environment variable"):
        endpoint.runner(api_key="sesame")


# --- Silence and failure ----------------------------------------------------------------------------------------------


def test_no_answer_in_the_reply_abstains_and_is_billed() -> None:
    replies = {"a": "red", "b": "blue, I think", "c": "", "d": None}
    runner = Endpoint(lambda body: completion(replies[said(body)])).runner()
    found = runner.ask(texts(*replies))
    assert found.probs.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert found.tokens is not None
    assert (found.tokens == [7, 3]).all()
    assert answered(found.probs).tolist() == [0, ABSTAINED, ABSTAINED, ABSTAINED]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_tried_again_with_growing_pauses(status: int) -> None:
    left = [httpx.Response(status), httpx.Response(status), completion("green")]
    endpoint = Endpoint(lambda _: left.pop(0))
    assert endpoint.runner(retries=2).predict(texts("x")).tolist() == [[0, 1, 0]]
    first, second = endpoint.pauses_s
    assert 0.125 <= first <= 0.25
    assert 0.25 <= second <= 0.5


def test_an_item_whose_requests_fail_is_a_missing_vote_that_costs_nothing() -> None:
    def answer(body: dict[str, Any]) -> httpx.Response:
        if said(body) == "slow":
            raise httpx.ReadTimeout("too slow")
        return httpx.Response(503, text="busy") if said(body) == "busy" else completion("red")

    endpoint = Endpoint(answer)
    found = endpoint.runner(retries=1).ask(texts("slow", "fine", "busy"))
    assert np.isnan(found.probs).tolist() == [[True] * 3, [False] * 3, [True] * 3]
    assert answered(found.probs).tolist() == [MISSING_VOTE, 0, MISSING_VOTE]
    assert found.tokens is not None
    assert found.tokens.tolist() == [[0, 0], [7, 3], [0, 0]]
    assert len(endpoint.requests) == 5


def test_a_pause_that_the_endpoint_asks_for_is_kept_within_the_time() -> None:
    busy = httpx.Response(429, headers={"retry-after": "3"})
    left = [busy, completion("red")]
    endpoint = Endpoint(lambda _: left.pop(0))
    assert endpoint.runner(timeout_s=10).predict(texts("x")).tolist() == [[1, 0, 0]]
    assert endpoint.pauses_s == [3.0]
    hurried = Endpoint(lambda _: busy)
    assert np.isnan(hurried.runner(timeout_s=2).predict(texts("x"))).all()
    assert hurried.pauses_s == []
    assert len(hurried.requests) == 1


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (httpx.Response(401, text="no such key"), "answers nothing: 401 no such key"),
        (httpx.Response(404, text="no model big-1"), "404 no model big-1"),
        (httpx.Response(200, text="<html>"), "a reply that is no chat completion.*<html>"),
        (httpx.Response(200, json={"choices": []}), "no chat completion"),
        (httpx.Response(200, json={"choices": [{"message": {"content": "red"}}]}), "KeyError: 'usage'"),
    ],
)
def test_an_endpoint_that_will_never_answer_is_unavailable(response: httpx.Response, message: str) -> None:
    endpoint = Endpoint(lambda _: response)
    with pytest.raises(Unavailable, match=f"member 'm': http://llm.test/v1 {message}|{message}"):
        endpoint.runner().predict(texts("x"))
    assert len(endpoint.requests) == 1


def test_nobody_listening_is_unavailable_after_the_retries() -> None:
    def refuse(_: dict[str, Any]) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    endpoint = Endpoint(refuse)
    with pytest.raises(Unavailable, match="ConnectError: connection refused"):
        endpoint.runner(retries=2).predict(texts("x"))
    assert len(endpoint.requests) == 3


def test_a_request_that_is_refused_alone_is_one_missing_vote_and_all_of_them_are_a_mistake() -> None:
    def answer(body: dict[str, Any]) -> httpx.Response:
        return completion("red") if said(body) == "fine" else httpx.Response(400, text="too long")

    runner = Endpoint(answer).runner()
    assert np.isnan(runner.predict(texts("bad", "fine"))).all(axis=1).tolist() == [True, False]
    assert np.isnan(runner.predict(texts("bad"))).all()
    with pytest.raises(Unavailable, match="400 too long"):
        runner.predict(texts("bad", "worse"))


def test_an_endpoint_may_leave_tokens_uncounted_where_that_is_said() -> None:
    response = httpx.Response(200, json={"choices": [{"message": {"content": "red"}}]})
    found = Endpoint(lambda _: response).runner(count_tokens=False).ask(texts("x"))
    assert found.tokens is None
    assert found.probs.tolist() == [[1, 0, 0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "llm.test"}, "member 'm': options: base_url: string should match pattern"),
        ({"model": ""}, "options: model: string should have at least 1 character"),
        ({"max_token": 5}, "options: max_token: extra inputs are not permitted.*known: base_url, model"),
        ({"timeout_s": 0}, "options: timeout_s: input should be greater than 0, got 0"),
        ({"extract": "guess"}, "is not a known extractor"),
        ({"pattern": "("}, "options: pattern: is not a regular expression"),
        ({"pattern": "answer"}, r"options: pattern: must have one group: the answer, got 0 in answer"),
        ({"pattern": "(a)", "extract": "letter"}, "give extract or pattern, not both"),
    ],
)
def test_options_are_checked_before_anything_is_sent(options: dict[str, Any], message: str) -> None:
    asked = pool(**options)
    with pytest.raises(InvalidInput, match=message):
        make_runner(asked.members[0], asked, Path())


def test_weights_are_not_for_endpoints() -> None:
    asked = pool()
    odd = asked.members[0].model_copy(update={"weights": "w.bin"})
    with pytest.raises(InvalidInput, match="member 'm': runner 'openai' has no weights.*got w.bin"):
        make_runner(odd, asked, Path())


# --- Reading ----------------------------------------------------------------------------------------------------------

COLOURS = ("red", "green", "dark green")


@pytest.mark.parametrize(
    ("options", "reply", "expected"),
    [
        ({}, " Green.\n", 1),
        ({}, "it is green", None),
        ({"extract": "mention"}, "It is surely dark green, not light.", 2),
        ({"extract": "mention"}, "Green! Green!", 1),
        ({"extract": "mention"}, "red or green", None),
        ({"extract": "mention"}, "evergreen", None),
        ({"extract": "letter", "letters": True}, "Thinking... the answer is (C).", 2),
        ({"extract": "letter", "letters": True}, "the answer is (D).", None),
        ({"pattern": r"colour: (\w+)"}, "colour: red\nNo: colour: green", 1),
        ({"pattern": r"colour: (\w+)"}, "colour red", None),
        ({"extract": "boxed"}, r"so \boxed{red}", 0),
        ({"normalise": "words"}, "darkgreen", None),
        ({"normalise": "words"}, "The  dark-green", 2),
    ],
)
def test_replies_are_read_as_said(options: dict[str, Any], reply: str, expected: int | None) -> None:
    assert reader(COLOURS, **options)(reply) == expected


@given(st.lists(st.text("abcXYZ é1", min_size=1).map(str.strip).filter(bool), min_size=2, unique_by=str.casefold))
def test_every_class_reads_as_itself_and_only_where_it_alone_is_mentioned(names: list[str]) -> None:
    read, mention = reader(names), reader(names, extract="mention")
    for number, name in enumerate(names):
        assert read(f" {name}. ") == number
        assert mention(f"it is '{name}'!") == number


def test_classes_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(InvalidInput, match="class 'Red.': would be read like 'red'"):
        reader(("red", "Red."))
    with pytest.raises(InvalidInput, match="class '1.0': would be read like '1'"):
        reader(("1", "1.0"), normalise="number")
    with pytest.raises(InvalidInput, match="there are 26 letters, got 27 classes"):
        reader([f"c{i}" for i in range(27)], letters=True)


# --- From texts to a prediction table ---------------------------------------------------------------------------------


def test_predictions_on_texts_keep_silence_failures_and_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replies = {"rosé": "red", "grass": "green", "sky": "blue", "down": "503"}

    def answer(body: dict[str, Any]) -> httpx.Response:
        reply = replies[said(body)]
        return httpx.Response(503) if reply == "503" else completion(reply)

    endpoint = Endpoint(answer)
    monkeypatch.setitem(base.RUNNERS, "openai", lambda m, p, d: _mocked(endpoint, m, p, d))
    np.savez(
        tmp_path / "data.npz",
        x=np.array(list(replies)),
        y=np.array([0, 1, 2, 1]),
        items=np.array(["i0", "i1", "i2", "i3"]),
        splits=np.array(["test"] * 4),
    )
    (tmp_path / "words.py").write_text(
        "import numpy as np\n"
        "def length(batch):\n"
        "    return np.eye(3, dtype=np.float32)[[len(text) % 3 for text in batch[:, 0]]]\n"
    )
    plain = Member(name="plain", runner="callable", model="words:length")
    given_pool = pool().model_copy(update={"members": (plain, member())})
    data = load_data(tmp_path / "data.npz")
    assert data.x.shape == (4, 1)
    table = predict(given_pool, tmp_path, data)
    assert table.answers[:, 0].tolist() == [4 % 3, 5 % 3, 3 % 3, 4 % 3]
    assert table.answers[:, 1].tolist() == [0, 1, ABSTAINED, MISSING_VOTE]
    assert table.tokens is not None
    assert table.tokens[:, 0].tolist() == [[0, 0]] * 4
    assert table.tokens[:, 1].tolist() == [[7, 3], [7, 3], [7, 3], [0, 0]]
    write_predictions(tmp_path / "p.npz", table)
    assert read_predictions(tmp_path / "p.npz").fingerprint() == table.fingerprint()
    assert table.content is not None
    assert len(set(table.content.tolist())) == 4
    assert (content_hashes(data.x.astype("<U99")) == table.content).all()


def _mocked(endpoint: Endpoint, asked: Member, of: Pool, folder: Path) -> OpenAIRunner:
    return OpenAIRunner(
        asked, of, folder, transport=httpx.MockTransport(endpoint._handle), sleep=endpoint._sleep, clock_s=lambda: 0.0
    )


def test_items_may_be_row_numbers_into_a_file_of_texts(tmp_path: Path) -> None:
    file = tmp_path / "items.json"
    file.write_text(json.dumps(["red", "grün", "green"]))
    endpoint = Endpoint(lambda body: completion(said(body)))
    numbered = pool(items_file="items.json").model_copy(update={"input_dtype": "float32"})
    (entry,) = numbered.members

    def loaded(of: Pool = numbered) -> OpenAIRunner:
        runner = _mocked(endpoint, entry, of, tmp_path)
        runner.load()
        return runner

    assert loaded().predict(np.array([[2.0], [0.0], [1.0]], dtype=np.float32)).argmax(axis=1).tolist() == [1, 0, 0]
    assert said(endpoint.bodies[-1]) in ("red", "grün", "green")
    before = base.fingerprint(entry, tmp_path)
    file.write_text(json.dumps(["red", "green"]))
    assert base.fingerprint(entry, tmp_path) != before
    with pytest.raises(InvalidInput, match=r"row numbers must be whole and in 0..1, got 2.0"):
        loaded().predict(np.array([[2.0]]))
    with pytest.raises(InvalidInput, match="is for items that are row numbers, and the pool's are texts"):
        loaded(numbered.model_copy(update={"input_dtype": "text"}))
    file.write_text('{"a": 1}')
    with pytest.raises(InvalidInput, match="items_file: .*items.json must hold an array of texts"):
        loaded()
    file.unlink()
    with pytest.raises(InvalidInput, match="items_file: .*items.json cannot be read as JSON"):
        loaded()


def test_texts_and_numbers_are_not_mixed_up(tmp_path: Path) -> None:
    common = {"y": np.array([0, 1]), "items": np.array(["a", "b"]), "splits": np.array(["test"] * 2)}
    np.savez(tmp_path / "numbers.npz", x=np.zeros((2, 1)), **common)
    with pytest.raises(
        InvalidInput, match=r"data: x: must hold texts \(str\): the pool's input_dtype is text, got float64"
    ):
        predict(pool(), tmp_path, load_data(tmp_path / "numbers.npz"))
    np.savez(tmp_path / "texts.npz", x=np.array(["red", "green"]), **common)
    numbers = pool().model_copy(update={"input_dtype": "float32"})
    with pytest.raises(InvalidInput, match="must hold numbers: the pool's input_dtype is float32, got <U5"):
        predict(numbers, tmp_path, load_data(tmp_path / "texts.npz"))
    np.savez(tmp_path / "bytes.npz", x=np.array([b"red", b"green"]), **common)
    with pytest.raises(InvalidInput, match="x: must hold numbers, or texts as NumPy's str"):
        load_data(tmp_path / "bytes.npz")
    with pytest.raises(ValueError, match=r"an item of text has the shape \[1\], got \[2\]"):
        Pool(classes=("a", "b"), input_shape=(2,), input_dtype="text", members=(member(),))
