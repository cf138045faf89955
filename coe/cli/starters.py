"""The verb init: a folder of commented files that runs as it stands."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from coe import files
from coe.cli.console import say
from coe.errors import InvalidInput, Problem

STARTER = ("README.md", "pool.yaml", "cascade.yaml", "workload.yaml", "fleet.yaml", "models.py", "make_data.py")


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New or empty folder.")],
) -> None:
    """Write a commented starter folder that runs as it stands.

    \b
    Example:
      coe init my-cascade
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidInput(Problem(str(folder), "must be new or empty", remedy="choose another folder"))
    folder.mkdir(parents=True, exist_ok=True)
    source = resources.files("coe.cli") / "starter"
    for name in STARTER:
        # the Python files have another ending in the package, so that nobody imports them by accident
        stored = f"{name}.txt" if name.endswith(".py") else name
        files.write_text(folder / name, (source / stored).read_text(encoding="utf-8"))
    _make_data(folder)
    say(f"wrote {folder}: {', '.join((*STARTER, 'data.npz'))}")
    say(f"Next: cd {folder} && coe predict pool.yaml --data data.npz -o predictions.npz   (README.md has the rest)")


def _make_data(folder: Path) -> None:
    """Run the starter's own data script, so that `data.npz` is what a reader of the script expects."""
    import runpy

    runpy.run_path(str(folder / "make_data.py"))["main"](folder / "data.npz")
