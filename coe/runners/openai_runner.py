"""A member behind an endpoint that speaks OpenAI's protocol: a hosted language model, or a server of one's own.

    runner: openai
    options:
      base_url: https://api.example.com/v1
      model: some-model-1              # also its name in the price list
      api_key_env: EXAMPLE_API_KEY     # the environment variable that holds the key; keys never stand in files
      prompt: "{item}\\n\\nChoose one:\\n{choices}\\nEnd with: the answer is (letter)."
      extract: letter
      letters: true

Every item is one request to ``/chat/completions``; those of a batch are under way at the same time. An answer is a certainty
for one class. A reply in which no class can be read is a row of zeros: the model abstains, and is billed. A request that
failed, retries included, is a row of NaN: a missing vote, which costs nothing.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
from pydantic import Field, ValidationError

from coe.errors import InvalidInput, Problem, Unavailable
from coe.runners.base import Batch, Said, resolved, row_numbers
from coe.runners.reading import Read, reader
from coe.types import Count, Member, NotNegative, Noun, Pool, Positive, PositiveCount, Probabilities

WORTH_ANOTHER_TRY = frozenset({408, 409, 429, 500, 502, 503, 504, 529})
"""Statuses of requests that may succeed a moment later."""
CLOSED = frozenset({401, 402, 403, 404, 405})
"""Statuses that every request will meet."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 8.0
_SECRETS = {"api_key", "key", "token", "authorization"}


class Options(Noun):
    """The options of a member of this runner."""

    base_url: str = Field(pattern=r"^https?://[^/\s]+")
    model: str = Field(min_length=1)
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    system: str | None = None
    prompt: str = "{item}"
    """``{item}`` is the item, ``{classes}`` the names of the classes, ``{choices}`` a line for each with its letter."""
    items_file: str | None = None
    """A JSON array of texts, relative to the pool file: then an item is its row number there, as of runner ``table``."""
    max_tokens: PositiveCount | None = None
    temperature: NotNegative | None = 0.0
    """None leaves it to the endpoint."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the request's body."""
    extract: str = "whole"
    pattern: str | None = None
    normalise: str = "none"
    letters: bool = False
    """How replies are read: see `coe.runners.reading.reader`."""
    timeout_s: Positive = 60.0
    """An item is given up after so long, all attempts together."""
    retries: Count = 2
    max_concurrency: PositiveCount = 16
    """Requests under way at once, of all batches together."""
    count_tokens: bool = True
    """False for an endpoint that does not say how many tokens it used; then only calls can have a price."""


@dataclass(frozen=True)
class Reply:
    """One request's end: the class that was read, None for none; or why it failed."""

    answer: int | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failure: str = ""
    blame: Literal["", "item", "endpoint"] = ""
    """Whom a failure is owed to that another try would not mend: nobody listening, a wrong key, an unknown model; or the
    request."""


class OpenAIRunner:
    """Asks the endpoint about every item of a batch."""

    def __init__(
        self,
        member: Member,
        pool: Pool,
        base_dir: Path,
        *,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], object] = time.sleep,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._where = f"member '{member.name}'"
        if member.weights is not None or member.model:
            rule = "runner 'openai' has no weights and no code here: the model is named in its options"
            raise InvalidInput(Problem(self._where, rule, member.weights or member.model))
        self._options = _options(member)
        self._read = self._reader(pool)
        self._base_dir = base_dir
        self._pool = pool
        self._texts: list[str] | None = None
        self._transport, self._sleep, self._clock_s = transport, sleep, clock_s
        self._client: httpx.Client | None = None
        self._threads: ThreadPoolExecutor | None = None

    def _reader(self, pool: Pool) -> Read:
        o = self._options
        if o.pattern is not None and o.extract != "whole":
            raise InvalidInput(Problem(f"{self._where}: options", "give extract or pattern, not both"))
        try:
            return reader(pool.classes, extract=o.extract, pattern=o.pattern, normalise=o.normalise, letters=o.letters)
        except InvalidInput as error:
            found = [Problem(f"{self._where}: options: {p.where}", p.rule, p.found, p.remedy) for p in error.problems]
            raise InvalidInput(found) from None

    def load(self) -> None:
        """Open connections; asks nothing. `InvalidInput` where the key's variable is not set."""
        options, headers = self._options, {}
        if options.api_key_env is not None:
            key = os.environ.get(options.api_key_env)
            if not key:
                remedy = "set it where this runs: here for `coe predict`, on the router's node before Ray starts"
                where = f"{self._where}: options: api_key_env"
                raise InvalidInput(Problem(where, f"{options.api_key_env} is not set", remedy=remedy))
            headers["Authorization"] = f"Bearer {key}"
        if options.items_file is not None:
            self._texts = self._read_texts(resolved(options.items_file, self._base_dir))
        most = options.max_concurrency
        self._client = httpx.Client(
            headers=headers,
            timeout=options.timeout_s,
            limits=httpx.Limits(max_connections=most, max_keepalive_connections=most),
            transport=self._transport,
        )
        self._threads = ThreadPoolExecutor(most, thread_name_prefix="openai")

    def _read_texts(self, path: Path) -> list[str]:
        """The texts that row numbers stand for."""
        where = f"{self._where}: options: items_file"
        if self._pool.is_text:
            raise InvalidInput(Problem(where, "is for items that are row numbers, and the pool's are texts"))
        try:
            texts = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidInput(Problem(where, f"{path} cannot be read as JSON", str(error))) from None
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise InvalidInput(Problem(where, f"{path} must hold an array of texts"))
        return texts

    def predict(self, batch: Batch) -> Probabilities:
        """Certainties (n, classes); rows of zeros where the model abstains, of NaN where the request failed."""
        return self.ask(batch).probs

    def ask(self, batch: Batch) -> Said:
        """As `predict`, with the tokens that the endpoint billed.

        Raises `Unavailable` where it refused every request for good.
        """
        assert self._threads is not None, "load() comes first"
        replies = list(self._threads.map(self._replied, self._items(batch)))
        blamed = {reply.blame for reply in replies}
        if blamed == {"endpoint"} or (len(replies) > 1 and blamed and "" not in blamed):
            raise Unavailable(f"{self._where}: {self._options.base_url} answers nothing: {replies[0].failure}")
        probs = np.zeros((len(replies), len(self._pool.classes)), dtype=np.float32)
        for row, reply in enumerate(replies):
            if reply.failure:
                probs[row] = np.nan
            elif reply.answer is not None:
                probs[row, reply.answer] = 1.0
        counts = [(reply.prompt_tokens, reply.completion_tokens) for reply in replies]
        return Said(probs, np.array(counts, dtype=np.int32).reshape(-1, 2) if self._options.count_tokens else None)

    def request_bytes(self, batch: Batch) -> list[int]:
        """How many bytes of text each item's request holds, to tell about how many tokens it will be; asks nothing."""
        return [sum(len(m["content"].encode()) for m in self._body(item)["messages"]) for item in self._items(batch)]

    def _items(self, batch: Batch) -> list[str]:
        """One text per item; numbers as Python writes them."""
        rows = np.asarray(batch).reshape(len(batch), -1)
        if self._texts is not None:
            return [self._texts[row] for row in row_numbers(rows, len(self._texts), self._where)]
        if rows.dtype.kind == "U":
            return ["\n".join(row) for row in rows.tolist()]
        return [" ".join(np.format_float_positional(value, trim="-") for value in row) for row in rows]

    def _replied(self, item: str) -> Reply:
        """Ask about one item, again where that may help, until the time is up."""
        deadline_s = self._clock_s() + self._options.timeout_s
        body = self._body(item)
        for attempt in range(1 + self._options.retries):
            reply, pause_s = self._tried(body, deadline_s - self._clock_s())
            if not reply.failure or pause_s is None:
                return reply
            pause_s = max(pause_s, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt) * random.uniform(0.5, 1.0))
            if attempt == self._options.retries or self._clock_s() + pause_s >= deadline_s:
                return reply
            self._sleep(pause_s)
        raise AssertionError("the last attempt returns")

    def _tried(self, body: dict[str, Any], left_s: float) -> tuple[Reply, float | None]:
        """One attempt, and the least pause before another one; None where none is worth it."""
        assert self._client is not None
        url = f"{self._options.base_url.rstrip('/')}/chat/completions"
        try:
            response = self._client.post(url, json=body, timeout=left_s)
        except (httpx.ConnectError, httpx.UnsupportedProtocol) as error:
            return Reply(failure=_line(error), blame="endpoint"), 0.0
        except httpx.HTTPError as error:
            return Reply(failure=_line(error)), 0.0
        except UnicodeEncodeError as error:  # half a surrogate pair is no text
            return Reply(failure=_line(error), blame="item"), None
        if response.status_code in WORTH_ANOTHER_TRY:
            return Reply(failure=_refusal(response)), _retry_after_s(response)
        if response.status_code != httpx.codes.OK:
            return Reply(
                failure=_refusal(response), blame="endpoint" if response.status_code in CLOSED else "item"
            ), None
        try:
            return self._understood(response.json()), None
        except (ValueError, KeyError, TypeError, IndexError) as error:
            shown = " ".join(response.text.split())[:200]
            return Reply(
                failure=f"a reply that is no chat completion ({_line(error)}): {shown}", blame="endpoint"
            ), None

    def _body(self, item: str) -> dict[str, Any]:
        o, classes = self._options, self._pool.classes
        choices = "\n".join(f"{chr(ord('A') + i)}) {name}" for i, name in enumerate(classes[:26]))
        # the item last: it may hold such a word in braces itself
        prompt = o.prompt.replace("{classes}", ", ".join(classes)).replace("{choices}", choices)
        messages = [{"role": "user", "content": prompt.replace("{item}", item)}]
        if o.system is not None:
            messages.insert(0, {"role": "system", "content": o.system})
        body: dict[str, Any] = {"model": o.model, "messages": messages}
        if o.max_tokens is not None:
            body["max_tokens"] = o.max_tokens
        if o.temperature is not None:
            body["temperature"] = o.temperature
        return {**body, **o.extra}

    def _understood(self, data: Any) -> Reply:
        """Answer and tokens of a chat completion; KeyError, TypeError, ... where it is none."""
        content = data["choices"][0]["message"].get("content")
        if content is not None and not isinstance(content, str):
            raise TypeError(f"content of type {type(content).__name__}")
        prompt = completion = 0
        if self._options.count_tokens:
            prompt, completion = int(data["usage"]["prompt_tokens"]), int(data["usage"]["completion_tokens"])
        return Reply(self._read(content or ""), prompt, completion)

    def close(self) -> None:
        """Close connections."""
        if self._threads is not None:
            self._threads.shutdown()
        if self._client is not None:
            self._client.close()
        self._threads = self._client = None

    def memory_gib(self) -> float:
        """0: the model is elsewhere."""
        return 0.0


def _options(member: Member) -> Options:
    """The member's options; `InvalidInput` names each mistake."""
    where = f"member '{member.name}': options"
    secrets = sorted(_SECRETS & {name.lower() for name in member.options})
    if secrets:
        remedy = "name the environment variable that holds it in api_key_env"
        raise InvalidInput(Problem(f"{where}: {secrets[0]}", "keys do not belong into files", remedy=remedy))
    try:
        return Options.model_validate(member.options)
    except ValidationError as error:
        known = ", ".join(Options.model_fields)
        raise InvalidInput(
            Problem(
                f"{where}: {'.'.join(str(part) for part in e['loc'])}",
                e["msg"][:1].lower() + e["msg"][1:],
                "" if e["type"] == "missing" else repr(e["input"])[:60],
                f"known: {known}" if e["type"] == "extra_forbidden" else "",
            )
            for e in error.errors()
        ) from None


def _retry_after_s(response: httpx.Response) -> float:
    """What the header asks for, in seconds; 0 where it does not say so (or as a date)."""
    try:
        return max(0.0, float(response.headers.get("retry-after", 0)))
    except ValueError:
        return 0.0


def _refusal(response: httpx.Response) -> str:
    return f"{response.status_code} {' '.join(response.text.split())[:200]}"


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
