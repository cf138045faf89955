"""What verbs share: their common flags, messages and progress on stderr, where to write, today's date."""

from __future__ import annotations

import ctypes
import datetime
import functools
import inspect
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from coe import files

Advance = Callable[[int, int], None]
SHOWN_AFTER_S = 2.0
"""Work that is done sooner shows no progress bar."""


@dataclass
class Settings:
    """Flags that every verb obeys; set once by the command line."""

    quiet: bool = False
    color: bool = True


settings = Settings()

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only errors on stderr, no progress.")]
NoColor = Annotated[bool, typer.Option("--no-color", help="No colours; NO_COLOR does the same.")]


def obey(quiet: bool, no_color: bool) -> None:
    """Take over flags; one that was given stays, be it before the verb or after it."""
    settings.quiet = settings.quiet or quiet
    settings.color = settings.color and not no_color and "NO_COLOR" not in os.environ


def with_common_flags(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with --quiet and --no-color among its own options, as people type them last."""

    @functools.wraps(verb)
    def obeying(quiet: bool, no_color: bool, **arguments: Any) -> None:
        obey(quiet, no_color)
        verb(**arguments)

    hints = {**get_type_hints(verb, include_extras=True), "quiet": Quiet, "no_color": NoColor}
    defaults = {name: p.default for name, p in inspect.signature(verb).parameters.items()}
    keyword = inspect.Parameter.KEYWORD_ONLY
    obeying.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what typer reads
        [
            inspect.Parameter(name, keyword, default=default, annotation=hints[name])
            for name, default in {**defaults, "quiet": False, "no_color": False}.items()
        ]
    )
    return obeying


def place(path: Path | None) -> Path | None:
    """An output path at which a file can be written; found out before the work, not after it."""
    if path is not None:
        files.check_place(path)
    return path


Out = Annotated[Path, typer.Option("--out", "-o", help="File to write.", callback=place)]


def say(text: str) -> None:
    """A message for people, on stderr."""
    if not settings.quiet:
        print(text, file=sys.stderr)


def wrote(path: Path, what: str) -> None:
    """Say that a file was written and what is in it."""
    say(f"wrote {path}: {what}")


@contextmanager
def progress(title: str) -> Iterator[Advance]:
    """A progress bar with the remaining time, on stderr, only where that is a terminal and the work takes a while."""
    console = Console(stderr=True, no_color=not settings.color)
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(title, total=None)
    wanted = console.is_terminal and not settings.quiet
    begun_s = time.monotonic()

    def advance(done: int, total: int) -> None:
        if wanted and not bar.live.is_started and time.monotonic() - begun_s > SHOWN_AFTER_S:
            bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()


@contextmanager
def quiet_solver() -> Iterator[None]:
    """Keep what the solver's C++ code prints out of standard output, where our data goes."""
    sys.stdout.flush()
    saved, sink = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what C has buffered must go to the sink too
        os.dup2(saved, 1)
        os.close(saved)
        os.close(sink)


def today() -> str:
    """Today's date, YYYY-MM-DD, UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()
