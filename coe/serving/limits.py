"""What a request may carry and how often a client may ask. Refuses before any work is done."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable

from coe.errors import InvalidInput, Problem

CLIENTS_KEPT = 10_000


class TooLarge(InvalidInput):
    """A request that carries more than this service takes at once."""


async def body_within(chunks: AsyncIterator[bytes], announced: str | None, max_bytes: int) -> bytes:
    """A request's body; `TooLarge` as soon as its announced or its real size is above `max_bytes`."""
    if announced is not None and announced.isascii() and announced.isdigit() and int(announced[:20]) > max_bytes:
        raise _too_long(max_bytes, announced[:20])
    parts, size = [], 0
    async for chunk in chunks:
        size += len(chunk)
        if size > max_bytes:
            raise _too_long(max_bytes, f"at least {size}")
        parts.append(chunk)
    return b"".join(parts)


def check_bytes(size: int, max_bytes: int) -> None:
    """`TooLarge` for a body of more bytes than a request may have."""
    if size > max_bytes:
        raise _too_long(max_bytes, str(size))


def _too_long(max_bytes: int, found: str) -> TooLarge:
    return TooLarge(Problem("body", f"must be at most {max_bytes} bytes", found))


def check_count(where: str, count: int, max_items: int) -> None:
    """`TooLarge` for more items than a request may carry."""
    if count > max_items:
        raise TooLarge(Problem(where, f"must be at most {max_items} items", f"{count} items"))


class Buckets:
    """A token bucket per client: `rate_per_s` requests on average, up to `burst` at once after a pause.

    The clients that asked longest ago are forgotten beyond `CLIENTS_KEPT`.
    """

    def __init__(self, rate_per_s: float, burst: int, clock: Callable[[], float]) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, client: str) -> float:
        """0 and one request taken, or the seconds until this client may ask again."""
        now = self._clock()
        left, since_s = self._left.get(client, (float(self._burst), now))
        left = min(self._burst, left + (now - since_s) * self._rate_per_s)
        wait_s = 0.0 if left >= 1 else (1 - left) / self._rate_per_s
        self._left[client] = (left - 1 if wait_s == 0 else left), now
        self._left.move_to_end(client)
        if len(self._left) > CLIENTS_KEPT:
            self._left.popitem(last=False)
        return wait_s
