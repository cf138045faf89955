"""A light HTTP client: many keep-alive connections on one core, so that what is measured is the service.

Closed loop: every connection sends its next request when the last one is answered. Open loop: requests leave at given moments
whatever the service does, and latency counts from the moment a request was due (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Load:
    """What a client saw: responses per second, latencies in seconds (of those with status 200), and the other statuses."""

    per_s: float
    latency_s: np.ndarray
    statuses: dict[int, int]

    def quantile(self, q: float) -> float:
        """A quantile of the latencies."""
        return float(np.quantile(self.latency_s, q)) if len(self.latency_s) else float("nan")


class _Connection(asyncio.Protocol):
    """One connection; one request under way at a time."""

    def __init__(self) -> None:
        self._bytes = b""
        self._answered: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._bytes += data
        head, separator, body = self._bytes.partition(b"\r\n\r\n")
        if not separator or self._answered is None:
            return
        length = next(
            (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")),
            None,
        )
        if (
            body.endswith(b"0\r\n\r\n") if length is None else len(body) >= length
        ):  # without a length it comes in chunks
            self._bytes = b""
            self._answered.set_result((int(head[9:12]), body))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(exc or ConnectionResetError("closed by the service"))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the response."""
        assert self._transport is not None
        if self._transport.is_closing():
            raise ConnectionResetError("closed by the service")
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answered


def request_bytes(path: str, body: bytes, content_type: str = "application/json", extra: str = "") -> bytes:
    """A POST request as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n{extra}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def closed_loop(port: int, requests: Sequence[bytes], clients: int, seconds: float) -> Load:
    """`clients` connections that send the requests round and round for so long."""

    async def run() -> Load:
        loop = asyncio.get_running_loop()
        latencies: list[float] = []
        statuses: dict[int, int] = {}
        end = loop.time() + seconds

        async def client(number: int) -> None:
            _, connection = await loop.create_connection(_Connection, "127.0.0.1", port)
            at = number
            while loop.time() < end:
                start = time.perf_counter()
                try:
                    status, _ = await connection.ask(requests[at % len(requests)])
                except ConnectionError:
                    status = 0
                    _, connection = await loop.create_connection(_Connection, "127.0.0.1", port)
                if status == 200:
                    latencies.append(time.perf_counter() - start)
                statuses[status] = statuses.get(status, 0) + 1
                at += clients

        start = loop.time()
        await asyncio.gather(*(client(n) for n in range(clients)))
        return Load(statuses.get(200, 0) / (loop.time() - start), np.array(latencies), statuses)

    return asyncio.run(run())


def open_loop(
    port: int,
    requests: Sequence[bytes],
    due_s: np.ndarray,
    connections: int = 256,
    take: Callable[..., None] | None = None,
) -> Load:
    """Requests at the moments `due_s` (rising seconds from 0); `take` gets number, status, body and seconds of each."""

    async def run() -> Load:
        loop = asyncio.get_running_loop()
        free: deque[_Connection] = deque()
        slots = asyncio.Semaphore(connections)
        latencies: list[float] = []
        statuses: dict[int, int] = {}
        begun = loop.time()

        async def one(number: int) -> None:
            async with slots:
                connection = (
                    free.popleft() if free else (await loop.create_connection(_Connection, "127.0.0.1", port))[1]
                )
                try:
                    status, body = await connection.ask(requests[number % len(requests)])
                except (ConnectionError, OSError):
                    status, body = 0, b""
                else:
                    free.append(connection)
            seconds = loop.time() - begun - due_s[number]
            statuses[status] = statuses.get(status, 0) + 1
            if status == 200:
                latencies.append(seconds)
            if take is not None:
                take(number, status, body, seconds)

        tasks = []
        for number, due in enumerate(due_s.tolist()):
            await asyncio.sleep(max(0.0, begun + due - loop.time()))
            tasks.append(asyncio.ensure_future(one(number)))
        await asyncio.gather(*tasks)
        return Load(statuses.get(200, 0) / (loop.time() - begun), np.array(latencies), statuses)

    return asyncio.run(run())
