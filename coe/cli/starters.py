"""Verbs about files of ours: init writes a starter folder, validate checks files alone and against each other."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from coe import files
from coe.cli.console import say
from coe.errors import InvalidInput, Problem
from coe.table import PredictionTable
from coe.types import Cascade, Fleet, Noun, Plan, Pool, Prices, Profiles, Workload

STARTER = ("README.md", "pool.yaml", "cascade.yaml", "workload.yaml", "fleet.yaml", "models.py", "make_data.py")


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New or empty folder.")],
) -> None:
    """Write a commented starter folder that runs as it stands.

    \b
    Example:
      coe init my-cascade
    """
    if folder.exists() and any(folder.iterdir()):
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


def validate(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files of ours, of any kind.")],
) -> None:
    """Check files alone and, where several are given, against each other; report every mistake.

    \b
    Example:
      coe validate pool.yaml cascade.yaml workload.yaml fleet.yaml predictions.npz
    """
    read: dict[Path, Noun | PredictionTable] = {}
    problems: list[Problem] = []
    for path in paths:
        try:
            read[path] = files.read_any(path)
        except InvalidInput as error:
            problems += error.problems
    problems += cross_problems(read)
    if problems:
        raise InvalidInput(problems)
    for path, noun in read.items():
        kind = "predictions" if isinstance(noun, PredictionTable) else noun.kind  # type: ignore[attr-defined]
        print(f"{path}: ok ({kind})")


def cross_problems(read: dict[Path, Noun | PredictionTable]) -> list[Problem]:
    """What does not fit together among the files given: names that one uses and another lacks."""
    problems: list[Problem] = []
    for path, noun in read.items():
        for where, kind, name in _references(noun):
            for other_path, other in read.items():
                known = _names(other).get(kind)
                if known is not None and other_path != path and name not in known:
                    rule = f"names the {kind} '{name}', which {other_path} does not have"
                    problems.append(Problem(f"{path}: {where}", rule, remedy=f"it has: {', '.join(sorted(known))}"))
    return problems


def _references(noun: Noun | PredictionTable) -> list[tuple[str, str, str]]:
    """(key path, kind of thing, name) for every name that a file takes from another file."""
    if isinstance(noun, Cascade):
        return [(f"tiers[{i}].members", "member", m) for i, tier in enumerate(noun.tiers) for m in tier.members]
    if isinstance(noun, Workload):
        router = [("router_node_type", "node type", noun.router_node_type)] if noun.router_node_type else []
        return [("reference", "member", noun.reference), *router]
    if isinstance(noun, Profiles):
        return [(f"profiles[{i}].member", "member", p.member) for i, p in enumerate(noun.profiles)]
    if isinstance(noun, Plan):
        return [(f"placements[{i}].node_type", "node type", p.node_type) for i, p in enumerate(noun.placements)]
    if isinstance(noun, PredictionTable):
        return [("members", "member", m) for m in noun.members]
    return []


def _names(noun: Noun | PredictionTable) -> dict[str, set[str]]:
    """Kind of thing -> the names that a file defines."""
    if isinstance(noun, Pool):
        return {"member": {m.name for m in noun.members}}
    if isinstance(noun, Prices):
        return {"node type": {o.node_type for o in noun.offers}}
    if isinstance(noun, Fleet):
        return {"node type": {n.offer.node_type for n in noun.nodes}}
    return {}
