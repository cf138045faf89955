"""An asyncio loop on a virtual clock: nothing is waited for, time jumps to whatever happens next.

What runs on it is written as for the real world; a run depends on nothing but its arguments.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` starts at 0 and moves only when every task waits."""

    def __init__(self) -> None:
        self._virtual_s = 0.0
        super().__init__(_Jump(self._advance))

    def time(self) -> float:
        """Seconds since the run began."""
        return self._virtual_s

    def _advance(self, seconds: float) -> None:
        self._virtual_s += seconds


class _Jump(selectors.SelectSelector):
    """Waits for no file: it lets virtual time pass instead."""

    def __init__(self, advance: Callable[[float], None]) -> None:
        super().__init__()
        self._advance = advance

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Let `timeout` seconds pass. Raises `RuntimeError` where every task waits for something that will never come."""
        if timeout is None:
            raise RuntimeError("every task of the simulation waits, and nothing is due to happen")
        if timeout > 0:
            self._advance(timeout)
        return []


def run_virtually(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, run on a loop of its own from virtual second 0."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
