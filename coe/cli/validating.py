"""The verb validate: files of ours, each alone and all against each other.

What one file says is checked on reading, in `coe.files`. Here is only what takes two: names that one file uses and
another lacks, gates that mean nothing for the classes at hand, and certificates that belong to other predictions.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Annotated

import typer

from coe import files
from coe.errors import InvalidInput, Problem
from coe.table import PredictionTable
from coe.types import Cascade, Fleet, Noun, Plan, Pool, Prices, Profiles, Workload

Content = Noun | PredictionTable

LACKS = {
    "member": "names the member '{name}', which {other} does not have",
    "prediction": "names the member '{name}', of which {other} has no predictions",
    "profile": "names the member '{name}', of which {other} has no profile",
    "node type": "names the node type '{name}', which {other} does not have",
}
"""Kind of thing that a file may name -> the message where another file lacks it."""


def validate(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files of ours, of any kind.")],
) -> None:
    """Check files alone and, where several are given, against each other; report every mistake.

    \b
    Example:
      coe validate pool.yaml cascade.yaml workload.yaml fleet.yaml predictions.npz
    """
    read: dict[Path, Content] = {}
    problems: list[Problem] = []
    for path in paths:
        try:
            read[path] = files.read_any(path)
        except InvalidInput as error:
            problems += error.problems
    problems += cross_problems(read)
    if problems:
        raise InvalidInput(problems)
    for path, content in read.items():
        kind = "predictions" if isinstance(content, PredictionTable) else content.kind  # type: ignore[attr-defined]
        print(f"{path}: ok ({kind})")


def cross_problems(read: dict[Path, Content]) -> list[Problem]:
    """What does not fit together among the files given, each mistake once."""
    found: dict[Problem, None] = {}
    for (path, content), (other_path, other) in permutations(read.items(), 2):
        found.update(dict.fromkeys(_lacking_names(path, content, other_path, other)))
        if isinstance(content, Cascade):
            found.update(dict.fromkeys(_cascade_problems(path, content, other)))
        if isinstance(content, PredictionTable) and isinstance(other, Pool) and content.classes != other.classes:
            rule = f"must have the classes of {other_path} in the same order: {_few(other.classes)}"
            found[Problem(f"{path}: classes", rule, _few(content.classes), "run `coe predict` again")] = None
    for path, cascade in read.items():
        if isinstance(cascade, Cascade):
            found.update(dict.fromkeys(_unplaceable(path, cascade, read)))
    return list(found)


def _lacking_names(path: Path, content: Content, other_path: Path, other: Content) -> Iterator[Problem]:
    """Names that one file takes from the other, which lacks them."""
    defined = _names(other)
    for where, kind, name in _references(content):
        if kind in defined and name not in defined[kind]:
            rule = LACKS[kind].format(name=name, other=other_path)
            yield Problem(f"{path}: {where}", rule, remedy=f"it has: {', '.join(sorted(defined[kind]))}")


def _references(content: Content) -> list[tuple[str, str, str]]:
    """(key path, kind of thing, name) for every name that a file takes from another file."""
    if isinstance(content, Cascade):
        kinds = ("member", "prediction", "profile")
        asked = [(f"tiers[{i}].members", m) for i, tier in enumerate(content.tiers) for m in tier.members]
        return [(where, kind, member) for where, member in asked for kind in kinds]
    if isinstance(content, Workload):
        router = [("router_node_type", "node type", content.router_node_type)] if content.router_node_type else []
        return [*(("reference", kind, content.reference) for kind in ("member", "prediction")), *router]
    if isinstance(content, Profiles):
        return [(f"profiles[{i}].member", "member", p.member) for i, p in enumerate(content.profiles)]
    if isinstance(content, Plan):
        return [(f"placements[{i}].node_type", "node type", p.node_type) for i, p in enumerate(content.placements)]
    if isinstance(content, PredictionTable):
        return [("members", "member", m) for m in content.members]
    return []


def _names(content: Content) -> dict[str, set[str]]:
    """Kind of thing -> the names of it that a file has."""
    if isinstance(content, Pool):
        return {"member": {m.name for m in content.members}}
    if isinstance(content, PredictionTable):
        return {"prediction": set(content.members)}
    if isinstance(content, Profiles):
        return {"profile": {p.member for p in content.profiles}}
    if isinstance(content, Prices | Fleet):
        return {"node type": {o.node_type for o in _offers(content).offers}}
    return {}


def _cascade_problems(path: Path, cascade: Cascade, other: Content) -> Iterator[Problem]:
    """Gates that always accept, rules that lack what they look at, and a certificate of other predictions."""
    from coe.cascade.certify import verify_certificate
    from coe.cascade.evaluate import always_accepts

    if not isinstance(other, Pool | PredictionTable):
        return
    for i, tier in enumerate(cascade.tiers):
        if trouble := always_accepts(tier, len(other.classes)):
            yield Problem(f"{path}: tiers[{i}]", trouble, remedy="raise it, or leave the tier out")
    if not isinstance(other, PredictionTable):
        return
    for i, tier in enumerate(cascade.tiers):
        if tier.rule == "score" and other.probs is None:
            rule = "rule 'score' needs probabilities, and these predictions are answers alone"
            yield Problem(f"{path}: tiers[{i}].rule", rule, remedy="use rule 'vote'")
    if cascade.certificate is not None and {*cascade.members, cascade.certificate.reference} <= set(other.members):
        try:
            verify_certificate(cascade, other)
        except InvalidInput as error:
            yield from (Problem(f"{path}: {p.where}", p.rule, p.found, p.remedy) for p in error.problems)


def _unplaceable(path: Path, cascade: Cascade, read: dict[Path, Content]) -> Iterator[Problem]:
    """Members that were profiled, but on none of the accelerators that a price list offers."""
    for profiles_path, profiles in read.items():
        for prices_path, prices in read.items():
            if not isinstance(profiles, Profiles) or not isinstance(prices, Prices | Fleet):
                continue
            offered = {o.accelerator for o in _offers(prices).offers}
            for member in cascade.members:
                profiled = {p.accelerator for p in profiles.profiles if p.member == member}
                if profiled and not profiled & offered:
                    rule = f"{profiles_path} has no profile of '{member}' on any accelerator of {prices_path}"
                    remedy = f"run `coe profile` for it on one of: {', '.join(sorted(offered))}"
                    yield Problem(f"{path}: tiers", rule, f"only {', '.join(sorted(profiled))}", remedy)


def _offers(content: Prices | Fleet) -> Prices:
    return content.prices if isinstance(content, Fleet) else content


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
