"""The ledger on disk: append-only JSON lines, written in groups, readable after a crash.

The first line names the plan; every other line is one record (`NodeSpan`, `BatchRun` or `Answer`) as a JSON list that starts
with the record's letter. A killed writer can tear its last line and nothing else, so a reader forgives exactly that.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import MISSING, astuple, dataclass, fields
from pathlib import Path
from typing import Any

from coe.errors import InvalidInput, Problem, WrongKind
from coe.records import Answer, BatchRun, NodeSpan, Record

VERSION = 1
_LETTERS: dict[str, type[Record]] = {"N": NodeSpan, "B": BatchRun, "A": Answer}
_LETTER_OF = {kind: letter for letter, kind in _LETTERS.items()}
_TYPES: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (float, int), "bool": (bool,)}


class Ledger:
    """An open ledger of one writer. `append` only remembers; `flush` writes what was remembered in one go."""

    def __init__(self, path: Path, plan_fingerprint: str, started_s: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._waiting: list[Record] = []
        header = {"kind": "ledger", "version": VERSION, "plan": plan_fingerprint, "started_s": started_s}
        self._write(json.dumps(header) + "\n")

    def append(self, record: Record) -> None:
        """Remember a record until the next flush."""
        self._waiting.append(record)

    def flush(self) -> int:
        """Write everything remembered with one system call; the number of records written."""
        records, self._waiting = self._waiting, []
        if records:
            self._write("".join(encoded(r) for r in records))
        return len(records)

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        os.close(self._file)

    def _write(self, text: str) -> None:
        data = text.encode()
        while data:
            data = data[os.write(self._file, data) :]


@dataclass(frozen=True)
class LedgerFile:
    """What one or several ledgers of the same plan say. `torn_lines` counts last lines cut off by a crash."""

    plan_fingerprint: str
    records: tuple[Record, ...]
    torn_lines: int


def encoded(record: Record) -> str:
    """One line of the file."""
    return json.dumps([_LETTER_OF[type(record)], *astuple(record)], separators=(",", ":"), allow_nan=False) + "\n"


def read_ledger(path: str | Path, plan_fingerprint: str | None = None) -> LedgerFile:
    """The ledger at `path`, or all ledgers (`*.jsonl`) of that folder: those of one plan where it is named; else all
    must be of one.

    Raises `InvalidInput` for anything malformed but a torn last line, and where no ledger is of the plan.
    """
    path = Path(path)
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or not all(f.exists() for f in files):
        remedy = "was the service started with this folder?"
        raise InvalidInput(Problem(str(path), "holds no ledger (*.jsonl)", remedy=remedy))
    parts = [_read_one(file) for file in files]
    plans = sorted({part.plan_fingerprint for part in parts})
    if plan_fingerprint in plans:
        parts, plans = [part for part in parts if part.plan_fingerprint == plan_fingerprint], [plan_fingerprint]
    if len(plans) > 1:
        found = ", ".join(p[:12] for p in plans)
        raise InvalidInput(Problem(str(path), "holds ledgers of different plans", found, "report on them one by one"))
    records = tuple(record for part in parts for record in part.records)
    return LedgerFile(plans[0], records, sum(part.torn_lines for part in parts))


def write_ledger(path: str | Path, plan_fingerprint: str, started_s: float, records: Iterable[Record]) -> None:
    """Write a whole ledger at once."""
    ledger = Ledger(Path(path), plan_fingerprint, started_s)
    for record in records:
        ledger.append(record)
    ledger.close()


def _read_one(file: Path) -> LedgerFile:
    lines = file.read_text(encoding="utf-8").split("\n")
    torn = 0
    if lines[-1]:
        torn = 1  # every whole line ends with a newline, so what follows the last one was cut off
    lines.pop()
    if not lines:
        raise InvalidInput(Problem(str(file), "is empty: not even the header was written"))
    header = _json(file, 1, lines[0])
    if not isinstance(header, dict) or header.get("kind") != "ledger":
        raise WrongKind(Problem(f"{file}:1", "must be the header of a ledger", lines[0][:60]))
    if header.get("version") != VERSION:
        raise InvalidInput(Problem(f"{file}:1: version", f"must be {VERSION}", str(header.get("version"))))
    records = tuple(_record(file, number, line) for number, line in enumerate(lines[1:], 2))
    return LedgerFile(str(header.get("plan")), records, torn)


def _record(file: Path, number: int, line: str) -> Record:
    data = _json(file, number, line)
    kind = _LETTERS.get(data[0]) if isinstance(data, list) and data and isinstance(data[0], str) else None
    if kind is None:
        raise InvalidInput(Problem(f"{file}:{number}", f"must be a record ({', '.join(_LETTERS)})", line[:60]))
    values = data[1:]
    names = fields(kind)
    least = sum(f.default is MISSING for f in names)  # a ledger written before a field came does without it
    good = least <= len(values) <= len(names) and all(
        isinstance(v, _TYPES[str(f.type)]) and (f.type == "bool" or not isinstance(v, bool))
        for v, f in zip(values, names, strict=False)
    )
    if not good:
        rule = f"a {kind.__name__} has the fields {', '.join(f.name for f in names)}"
        raise InvalidInput(Problem(f"{file}:{number}", rule, line[:80]))
    return kind(*values)


def _json(file: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidInput(Problem(f"{file}:{number}", "is not valid JSON", error.msg)) from None
