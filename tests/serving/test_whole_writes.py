"""Responses that leave in one piece: head and body together, streams as they come, nothing lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from coe.serving.whole_writes import WholeWrites, WholeWritesProtocol, write_responses_whole

LONG = "x" * 3_000_000


class Wire:
    """A transport that notes what is done to it."""

    def __init__(self) -> None:
        self.done: list[object] = []
        self.is_closed = False

    def writelines(self, pieces: list[bytes]) -> None:
        self.done.append(b"".join(pieces))

    def close(self) -> None:
        self.done.append("closed")
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def get_extra_info(self, name: str) -> str:
        return f"the wire's {name}"


def test_what_is_written_in_one_turn_leaves_together() -> None:
    async def run() -> list[object]:
        wire = Wire()
        whole = WholeWrites(wire, asyncio.get_running_loop())  # type: ignore[arg-type]
        whole.write(b"head")
        whole.write(b"body")
        assert wire.done == []
        await asyncio.sleep(0)
        whole.write(b"next")
        await asyncio.sleep(0)
        return wire.done

    assert asyncio.run(run()) == [b"headbody", b"next"]


def test_closing_sends_what_is_held_first_and_nothing_is_written_to_a_closed_connection() -> None:
    async def run() -> list[object]:
        wire = Wire()
        whole = WholeWrites(wire, asyncio.get_running_loop())  # type: ignore[arg-type]
        whole.write(b"last words")
        whole.close()
        whole.write(b"too late")
        await asyncio.sleep(0)
        assert whole.get_extra_info("peername") == "the wire's peername"
        return wire.done

    assert asyncio.run(run()) == [b"last words", "closed"]


def test_servers_that_ask_for_nothing_else_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray Serve's do, which it starts with the defaults."""
    monkeypatch.setattr(uvicorn.config, "HTTP_PROTOCOLS", dict(uvicorn.config.HTTP_PROTOCOLS))
    write_responses_whole()
    config = uvicorn.Config(Starlette())
    config.load()
    assert config.http_protocol_class is WholeWritesProtocol


@pytest.mark.parametrize("loops", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_server_answers_as_ever(loops: object) -> None:
    """Many requests over kept connections, a long body, a stream that waits between its pieces, HEAD, and a pipeline."""

    async def short(request: Request) -> Response:
        return PlainTextResponse(request.query_params.get("say", "nothing"))

    async def long(_request: Request) -> Response:
        return PlainTextResponse(LONG)

    async def stream(_request: Request) -> Response:
        async def pieces() -> AsyncIterator[str]:
            yield "one "
            await asyncio.sleep(0.01)
            yield "two"

        return StreamingResponse(pieces())

    async def run() -> None:
        api = Starlette(routes=[Route("/short", short), Route("/long", long), Route("/stream", stream)])
        server = uvicorn.Server(
            uvicorn.Config(api, port=0, http=WholeWritesProtocol, log_level="critical", lifespan="off", ws="none")
        )
        serving = asyncio.ensure_future(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            said = await asyncio.gather(*(client.get("/short", params={"say": str(i)}) for i in range(50)))
            assert [r.text for r in said] == [str(i) for i in range(50)]
            assert (await client.get("/long")).text == LONG
            assert (await client.get("/stream")).text == "one two"
            head = await client.head("/short")
            assert (head.status_code, head.headers["content-length"], head.text) == (200, "7", "")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"".join(b"GET /short?say=%d HTTP/1.1\r\nHost: h\r\n\r\n" % i for i in (1, 2)))
        writer.write(b"GET /short?say=3 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        answers = await reader.read()
        while not reader.at_eof():
            answers += await reader.read()
        assert [part.rpartition(b"\r\n\r\n")[2][:1] for part in answers.split(b"HTTP/1.1 200 OK")[1:]] == [
            b"1",
            b"2",
            b"3",
        ]
        writer.close()
        server.should_exit = True
        await serving

    with asyncio.Runner(loop_factory=loops) as runner:  # type: ignore[arg-type]
        runner.run(run())
