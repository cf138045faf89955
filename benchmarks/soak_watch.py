"""What a running service takes, sampled from /proc, and whether it grows: for `benchmarks.soak`."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from scipy.stats import t as student

KINDS = {
    "router": ("ServeReplica:coe:router",),
    "members": ("ServeReplica:coe:",),
    "controller": ("ServeController",),
    "proxy": ("haproxy", "HAProxyManager", "ProxyActor"),
    "ray": ("raylet", "gcs_server"),
}
"""Kind of process -> parts of its title, the first that fits."""
BLOCKS = 8
"""Neighbouring samples resemble each other; means of so many stretches hardly do."""
CONFIDENCE = 0.95
TASKS = re.compile(r"^coe_router_tasks\{.*\} ([0-9.e+]+)$", re.MULTILINE)


@dataclass(frozen=True)
class Sample:
    """One look: seconds since the start; memory in bytes, open files and threads by kind of process; the rest by itself."""

    at_s: float
    rss: dict[str, int]
    files: dict[str, int]
    threads: dict[str, int]
    tasks: int
    ledger_bytes: int
    ledger_files: int


@dataclass(frozen=True)
class Slope:
    """Growth per second, and the half width of its confidence interval."""

    per_s: float
    uncertainty_per_s: float

    @property
    def certain_per_s(self) -> float:
        """What it grows by at least, so far as the samples tell."""
        return self.per_s - self.uncertainty_per_s


@dataclass
class Watcher:
    """Looks every `every_s` seconds from a thread of its own, while it is entered."""

    pids: Callable[[], list[int]]
    url: str
    ledger: Path
    every_s: float
    samples: list[Sample] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Watcher:
        self._thread = threading.Thread(target=self._look_for_ever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join()

    def _look_for_ever(self) -> None:
        began_s = time.monotonic()
        while True:
            self.samples.append(self._look(time.monotonic() - began_s, self.pids()))
            if self._stop.wait(self.every_s):
                return

    def _look(self, at_s: float, pids: Sequence[int]) -> Sample:
        rss, files, threads = (dict.fromkeys(KINDS, 0) for _ in range(3))
        for pid in pids:
            process = Path("/proc") / str(pid)
            try:
                kind = kind_of((process / "cmdline").read_bytes().decode(errors="replace"))
                if kind is not None:
                    status = (process / "status").read_text()
                    rss[kind] += 1024 * int(re.findall(r"VmRSS:\s+(\d+)", status)[0])
                    threads[kind] += int(re.findall(r"Threads:\s+(\d+)", status)[0])
                    files[kind] += len(list((process / "fd").iterdir()))
            except (OSError, IndexError):
                continue  # it has ended meanwhile
        parts = list(self.ledger.glob("*.jsonl*"))
        return Sample(at_s, rss, files, threads, self._tasks(), sum(p.stat().st_size for p in parts), len(parts))

    def _tasks(self) -> int:
        try:
            found = TASKS.search(httpx.get(f"{self.url}/metrics", timeout=5).text)
        except httpx.HTTPError:
            return -1
        return -1 if found is None else int(float(found[1]))


def kind_of(title: str) -> str | None:
    """What a process is to the service; None for what is not watched."""
    return next((kind for kind, parts in KINDS.items() if any(part in title for part in parts)), None)


def slope_of(at_s: Sequence[float], values: Sequence[float]) -> Slope:
    """Straight line through the means of `BLOCKS` stretches, with its 95% interval by Student's t.

    Single samples would make the interval far too narrow: memory moves in steps, and each sample is nearly the one before.
    """
    blocks = min(BLOCKS, len(values) // 2)
    if blocks < 3:
        return Slope(0.0, float("inf"))
    x = np.array([part.mean() for part in np.array_split(np.asarray(at_s, dtype=float), blocks)])
    y = np.array([part.mean() for part in np.array_split(np.asarray(values, dtype=float), blocks)])
    off = x - x.mean()
    slope = float(off @ y / (off @ off))
    rest = y - y.mean() - slope * off
    error = float(np.sqrt(rest @ rest / (blocks - 2) / (off @ off)))
    return Slope(slope, float(student.ppf((1 + CONFIDENCE) / 2, blocks - 2)) * error)


def second_half(samples: Sequence[Sample]) -> list[Sample]:
    """Those after half of the time, when caches are warm."""
    return [s for s in samples if s.at_s >= samples[-1].at_s / 2]
