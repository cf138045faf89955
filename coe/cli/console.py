"""What verbs share: messages and progress on stderr, data on stdout, today's date, fingerprints of input files."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Advance = Callable[[int, int], None]


@dataclass
class Settings:
    """Flags that every verb obeys; set once by the command line."""

    quiet: bool = False
    color: bool = True


settings = Settings()

Out = Annotated[Path, typer.Option("--out", "-o", help="File to write.")]


def say(text: str) -> None:
    """A message for people, on stderr."""
    if not settings.quiet:
        print(text, file=sys.stderr)


def wrote(path: Path, what: str) -> None:
    """Say that a file was written and what is in it."""
    say(f"wrote {path}: {what}")


@contextmanager
def progress(title: str) -> Iterator[Advance]:
    """A progress bar with the remaining time, on stderr, and only where that is a terminal."""
    console = Console(stderr=True, no_color=not settings.color)
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=settings.quiet or not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def today() -> str:
    """Today's date, YYYY-MM-DD, UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()
