"""What the examples share: commands that are printed before they run, and where recorded data lie."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
NO_DATA = 77
"""Exit code of an example whose data are not there: nothing was tried, and nothing failed."""


class StepFailed(Exception):
    """A command failed; it has already said why on stderr."""

    def __init__(self, command: Sequence[str], code: int) -> None:
        super().__init__(f"`{shlex.join(command)}` ended with exit code {code}")
        self.code = code


class Steps:
    """Runs commands one after the other in the repository's folder; counts them and keeps the time."""

    def __init__(self, steps: int) -> None:
        self._started_s = time.monotonic()
        self._steps = steps
        self._number = 0

    def __call__(self, title: str, *command: str | Path, env: Mapping[str, str] | None = None) -> None:
        """Announce and run one command; `StepFailed` unless it exits 0."""
        words = [str(word) for word in command]
        self.announce(title, words)
        run(words, env)

    def announce(self, title: str, words: Sequence[str]) -> None:
        """Say which command is next, for one that runs beside the others."""
        self._number += 1
        elapsed_s = time.monotonic() - self._started_s
        say(f"\n[{self._number:2d}/{self._steps}] {title}  ({elapsed_s:.0f} s so far)\n        $ {shlex.join(words)}")

    @property
    def took_s(self) -> float:
        """Seconds since the first step."""
        return time.monotonic() - self._started_s


def run(words: Sequence[str], env: Mapping[str, str] | None = None) -> None:
    """Run one command with this environment's programs first on the path; `StepFailed` unless it exits 0."""
    code = subprocess.run(words, cwd=ROOT, env=environment(env or {}), check=False).returncode
    if code:
        raise StepFailed(words, code)


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, with this Python's programs first on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1", **more}


def say(text: str) -> None:
    """To stderr: stdout carries the report alone."""
    print(text, file=sys.stderr, flush=True)


def data_folder(name: str) -> Path | None:
    """The folder `name` of recorded data: in the folder COE_DATA, or in ``shared/data`` beside the repository; None without."""
    folder = Path(os.environ.get("COE_DATA", ROOT.parent / "shared" / "data")) / name
    return folder if folder.is_dir() else None


def without_data(name: str) -> int:
    """Say that the data of an example are not there; the exit code for it."""
    say(f"This example needs the folder {name} of recorded data: set COE_DATA to the folder that holds it.")
    return NO_DATA
