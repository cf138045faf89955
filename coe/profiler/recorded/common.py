"""What every reader of recorded predictions shares: what was asked for, member names, splits, and leaving out."""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coe.errors import InvalidInput, Problem
from coe.table import SPLITS, PredictionTable
from coe.types import MISSING_VOTE, Costs

DEFAULT_SPLITS = {"calibration": 0.5, "certification": 0.25, "test": 0.25}
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.+\-/]")


@dataclass(frozen=True)
class Asked:
    """Options of an import.

    task: which of several data sets in one folder. members: only these, all by default. cost: which column prices a call.
    splits: name -> share, drawn at random by `seed`. complete: leave out members with fewer answers than this share, then
    items that a member lacks; None keeps both, as missing votes. uncosted: `refuse` or `drop` members without a cost.
    extract, normalise: how to get from a text to its answer; see `extract`.
    """

    task: str = ""
    members: tuple[str, ...] = ()
    cost: str = ""
    splits: dict[str, float] = field(default_factory=lambda: dict(DEFAULT_SPLITS))
    seed: int = 0
    complete: float | None = None
    uncosted: str = "refuse"
    extract: str = "whole"
    normalise: str = "none"


@dataclass(frozen=True)
class Recorded:
    """A prediction table, what its calls cost where that is recorded too, and what a reader of the import should know."""

    table: PredictionTable
    costs: Costs | None
    notes: tuple[str, ...] = ()


def finished(table: PredictionTable, costs: Costs | None, asked: Asked, notes: Iterable[str] = ()) -> Recorded:
    """The import with members, items and costs left out as asked. Raises `InvalidInput` where nothing remains."""
    said = list(notes)
    if asked.members:
        table = table.only(asked.members)
    if costs is not None:
        table = _costed(table, costs, asked, said)
    if asked.complete is not None:
        table = _completed(table, asked.complete, said)
    silent = [m for m in table.members if (table.answers[:, table.members.index(m)] < 0).all()]
    if silent:
        remedy = "leave these members out with --member, or --complete"
        raise InvalidInput(Problem(f"member '{silent[0]}'", "has no answer to any item", remedy=remedy))
    return Recorded(table, costs, tuple(said))


def _costed(table: PredictionTable, costs: Costs, asked: Asked, said: list[str]) -> PredictionTable:
    lacking = [m for m in table.members if m not in costs.per_call and m not in costs.by_token]
    if not lacking:
        return table
    if asked.uncosted != "drop":
        remedy = "name the members to keep with --member, or leave these out with --drop-uncosted"
        raise InvalidInput(Problem("costs", f"no cost is recorded for {', '.join(lacking)}", remedy=remedy))
    said.append(f"left out for lack of a cost: {', '.join(lacking)}")
    return table.only([m for m in table.members if m not in lacking])


def _completed(table: PredictionTable, least: float, said: list[str]) -> PredictionTable:
    share = (table.answers != MISSING_VOTE).mean(axis=0)
    partial = [f"{m} ({s:.0%})" for m, s in zip(table.members, share, strict=True) if s < least]
    if partial:
        said.append(f"left out for too few answers: {', '.join(partial)}")
        table = table.only([m for m, s in zip(table.members, share, strict=True) if s >= least])
    whole = (table.answers != MISSING_VOTE).all(axis=1)
    if not whole.all():
        said.append(f"left out {int((~whole).sum())} of {len(whole)} items that some member did not answer")
        table = table.rows(whole)
    return table


def member_names(found: Sequence[str], where: str) -> tuple[tuple[str, ...], list[str]]:
    """Names that cascades may use, and notes on those that had to change. Raises `InvalidInput` where two become one."""
    names = [_NOT_IN_NAMES.sub("-", n).lstrip("-_.+/") for n in found]
    changed = [f"'{old}' is called {new}" for old, new in zip(found, names, strict=True) if old != new]
    for name in names:
        if names.count(name) > 1 or not name:
            raise InvalidInput(Problem(where, "every member needs a name of its own", f"'{name}'"))
    return tuple(names), changed


def drawn_splits(items: NDArray[np.str_], shares: dict[str, float], seed: int) -> NDArray[np.str_]:
    """(items,) split names, drawn by the items' ids: the same item falls into the same place whatever the order."""
    unknown = sorted(set(shares) - set(SPLITS))
    if unknown or abs(sum(shares.values()) - 1) > 1e-9 or min(shares.values()) < 0:
        found = ", ".join(f"{k}={v:g}" for k, v in shares.items())
        rule = f"must be shares of {', '.join(SPLITS)} that add up to 1"
        raise InvalidInput(Problem("--splits", rule, found, "for example calibration=0.5,certification=0.25,test=0.25"))
    order = np.random.default_rng(seed).permutation(len(items))
    rank = np.empty(len(items), dtype=np.int64)
    rank[np.argsort(items, kind="stable")[order]] = np.arange(len(items))
    edges = np.round(np.cumsum(list(shares.values())) * len(items)).astype(np.int64)
    result: NDArray[np.str_] = np.array(list(shares), dtype=np.str_)[np.searchsorted(edges, rank, side="right")]
    return result


def rows_of(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV file, plain or gzipped; every row as long as the header. Raises `InvalidInput`."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise InvalidInput(Problem(str(path), "cannot be read as CSV", str(error))) from None
    lines = list(csv.reader(io.StringIO(text)))
    if len(lines) < 2:
        raise InvalidInput(Problem(str(path), "needs a header and at least one row", f"{len(lines)} lines"))
    header, rows = lines[0], [row for row in lines[1:] if row]
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise InvalidInput(Problem(f"{path}:1", "every column needs its own name", f"'{twice[0]}' more than once"))
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise InvalidInput(Problem(f"{path}:{number}", f"must have {len(header)} cells", str(len(row))))
    return header, rows


def column_of(path: Path, header: Sequence[str], *names: str) -> int:
    """Position of the first of `names` that is there; `InvalidInput` where none is."""
    for name in names:
        if name in header:
            return header.index(name)
    raise InvalidInput(Problem(str(path), f"needs a column {' or '.join(names)}", ", ".join(header)))


def keyed(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], key: int) -> dict[str, Sequence[str]]:
    """Rows by their id; `InvalidInput` names an id that is there twice."""
    result: dict[str, Sequence[str]] = {}
    for number, row in enumerate(rows, start=2):
        if row[key] in result:
            raise InvalidInput(Problem(f"{path}:{number}: {header[key]}", "every item may occur once", f"'{row[key]}'"))
        result[row[key]] = row
    return result


def same_items(path: Path, items: Sequence[str], other: Iterable[str], against: Path) -> None:
    """`InvalidInput` where two files do not speak of the same items."""
    mine, theirs = set(items), set(other)
    if mine != theirs:
        odd = sorted(mine ^ theirs)[0]
        lacks = path if odd in theirs else against
        raise InvalidInput(Problem(str(path), f"must have the items of {against}", f"'{odd}' is not in {lacks}"))


def arrays_of(path: Path, *needed: str) -> dict[str, NDArray[np.generic]]:
    """The arrays of an NPZ file; `InvalidInput` where one of `needed` is not there."""
    from coe.files import read_npz

    arrays = read_npz(path)
    lacking = [name for name in needed if name not in arrays]
    if lacking:
        raise InvalidInput(Problem(str(path), f"lacks the arrays {', '.join(lacking)}", f"there: {', '.join(arrays)}"))
    return arrays


def with_splits(table: PredictionTable, asked: Asked) -> PredictionTable:
    """The table with its splits drawn anew."""
    return replace(table, splits=drawn_splits(table.items, asked.splits, asked.seed))
