"""Responses that leave in one piece.

uvicorn writes the head of a response and its body one after the other, and uvloop passes each on at once: two system calls and
two packets, each of which also wakes the proxy in front. A router's responses are short, so this is a good part of its work.
"""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class WholeWrites:
    """A transport that sends what is written in one turn of the event loop together. All else is the transport's own."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Send with what else is written before the loop turns to something else."""
        if not self._held:
            self._loop.call_soon(self._send)
        self._held.append(data)

    def close(self) -> None:
        """Close, after what is held has been sent."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        held, self._held = self._held, []
        if held and not self._transport.is_closing():
            self._transport.writelines(held)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class WholeWritesProtocol(HttpToolsProtocol):
    """uvicorn's own protocol over such a transport."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(WholeWrites(transport, self.loop))  # type: ignore[arg-type]


def write_responses_whole() -> None:
    """Let uvicorn servers that this process starts from now on, unless told otherwise, send responses in one piece."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{WholeWritesProtocol.__name__}"
