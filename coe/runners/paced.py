"""Slows a runner down to the speed of a declared accelerator that is not there.

On a simulated node one CPU core stands for ``1 / cpu_share`` accelerators. A batch that took the thread c seconds of
CPU time is given back after c / speed seconds, by sleeping the rest. CPU time is counted rather than elapsed time, so
what other processes do on the machine does not change the speed, as long as there is CPU left while the runner sleeps.
Work that a library does in threads of its own is not seen: give it one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from coe.runners.base import Batch, Runner
from coe.types import Probabilities


class Paced:
    """The same answers as `runner`, at `speed` times the speed of one CPU core (in (0, 1])."""

    def __init__(
        self,
        runner: Runner,
        speed: float,
        *,
        cpu_s: Callable[[], float] = time.thread_time,
        clock_s: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        if not 0 < speed <= 1:
            raise ValueError(f"speed must be in (0, 1], got {speed}")
        self._runner = runner
        self._speed = speed
        self._cpu_s = cpu_s
        self._clock_s = clock_s
        self._sleep = sleep

    def load(self) -> None:
        """Load at full speed: only answering is paced."""
        self._runner.load()

    def predict(self, batch: Batch) -> Probabilities:
        """What the runner returns, not before its CPU time / speed has passed. An error is not held back."""
        started, cpu_before = self._clock_s(), self._cpu_s()
        outputs = self._runner.predict(batch)
        due = started + (self._cpu_s() - cpu_before) / self._speed
        rest = due - self._clock_s()
        if rest > 0:
            self._sleep(rest)
        return outputs

    def close(self) -> None:
        self._runner.close()

    def memory_gib(self) -> float:
        return self._runner.memory_gib()
