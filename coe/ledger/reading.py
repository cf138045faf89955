"""What ledgers say, and what is missing from them: torn ends, files that are not there, records that could not be written, time
for which there is no record at all.

A killed writer can tear its last line and nothing else, so a reader forgives exactly that, and counts it.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from coe.errors import InvalidInput, Problem, WrongKind
from coe.ledger.lines import READABLE, Deleted, End, Lost, number_in, understood
from coe.ledger.part import PATTERNS, ledger_of, part_path
from coe.ledger.routers import node_time_once
from coe.records import NodeSpan, Record

END = '["E"'
"""How a last line begins that is no record."""
HOLE_S = 1.0
"""Spans of node time follow each other without a gap; a longer one is a hole in the ledger."""
HOLES_NAMED = 5
FLUSH_S = 1.0
"""What a killed writer loses at most."""


@dataclass(frozen=True)
class LedgerFile:
    """What one or several ledgers of the same plan say."""

    plan_fingerprint: str
    records: tuple[Record, ...]
    torn_lines: int
    """Last lines cut off by a crash."""
    missing_records: int = 0
    """Known to be lost beside those: never written, or in a file that is not there."""
    notes: tuple[str, ...] = ()
    """What is missing, in words."""

    @property
    def unaccounted(self) -> int:
        """Records known to be lost."""
        return self.torn_lines + self.missing_records


@dataclass(frozen=True)
class _Part:
    """One file, read."""

    path: Path
    plan_fingerprint: str
    number: int
    records_before: int
    is_first_version: bool
    records: tuple[Record, ...]
    torn_lines: int
    end: End | None
    lost: tuple[Lost, ...]
    deleted: tuple[Deleted, ...]


def read_ledger(path: str | Path, plan_fingerprint: str | None = None, *, comes_and_goes: bool = False) -> LedgerFile:
    """The ledger at `path`, or all ledgers (`*.jsonl`, `*.jsonl.gz`) of that folder: those of one plan where it is named;
    else all must be of one. The files of each ledger are read in the order in which they were written.

    Node time that several ledgers tell of is there once: each router writes that of the whole service.

    comes_and_goes: the plan is a gear, so that time without node time is another gear's and no hole; each router's node time is
    there, which says how long it was in the gear.

    Raises `InvalidInput` for anything malformed but a torn last line, and where no ledger is of the plan.
    """
    path = Path(path)
    files = sorted(p for pattern in PATTERNS for p in path.glob(pattern)) if path.is_dir() else [path]
    if not files or not all(f.exists() for f in files):
        remedy = "was the service started with this folder?"
        raise InvalidInput(Problem(str(path), "holds no ledger (*.jsonl)", remedy=remedy))
    parts = [part for file in files if (part := _read_one(file)) is not None]
    if not parts:
        raise InvalidInput(Problem(str(files[0]), "is empty: not even the header was written"))
    deleted = {d.name for part in parts for d in part.deleted}
    plans = sorted({part.plan_fingerprint for part in parts})
    if plan_fingerprint in plans:
        parts, plans = [part for part in parts if part.plan_fingerprint == plan_fingerprint], [plan_fingerprint]
    if len(plans) > 1:
        found = ", ".join(p[:12] for p in plans)
        raise InvalidInput(Problem(str(path), "holds ledgers of different plans", found, "report on them one by one"))
    ledgers: dict[str, list[_Part]] = {}
    for part in parts:
        ledgers.setdefault(ledger_of(part.path), []).append(part)
    read = [
        _joined(
            name, sorted(own, key=lambda p: p.number), deleted, is_alone=path.is_file(), has_holes=not comes_and_goes
        )
        for name, own in sorted(ledgers.items())
    ]
    open_ones = sum(own.is_open for own in read)
    notes = [note for own in read for note in own.notes]
    if open_ones:
        which = "The ledger is" if len(read) == 1 else f"{open_ones} of {len(read)} ledgers are"
        notes.append(
            f"{which} not closed: the router runs, or was killed and what it recorded in its last {FLUSH_S:g} s is lost."
        )
    records = tuple(record for own in read for record in own.records)
    if len(read) > 1 and not comes_and_goes:
        spans = [[r for r in own.records if isinstance(r, NodeSpan)] for own in read]
        records = (*node_time_once(spans), *(r for r in records if not isinstance(r, NodeSpan)))
    return LedgerFile(
        plans[0],
        records,
        sum(own.torn_lines for own in read),
        sum(own.missing_records for own in read),
        tuple(notes),
    )


def plans_in(path: str | Path) -> frozenset[str]:
    """Fingerprints of the plans whose ledgers lie at `path`, a file or a folder, by their first lines."""
    path = Path(path)
    found = set()
    for file in sorted(p for pattern in PATTERNS for p in path.glob(pattern)) if path.is_dir() else [path]:
        try:
            with gzip.open(file, "rt") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
                line = lines.readline()
        except (OSError, EOFError):
            continue  # `read_ledger` says what is wrong with it
        header = _parsed(file, 1, line) if line.endswith("\n") else None
        if isinstance(header, dict):
            found.add(str(header.get("plan")))
    return frozenset(found)


@dataclass(frozen=True)
class _Joined:
    """The files of one ledger, one after the other."""

    records: tuple[Record, ...]
    torn_lines: int
    missing_records: int
    notes: tuple[str, ...]
    is_open: bool


def _joined(name: str, parts: Sequence[_Part], deleted: Iterable[str], *, is_alone: bool, has_holes: bool) -> _Joined:
    """`parts` in their order.   deleted: names of files that were deleted on purpose.   is_alone: one file was asked for.
    has_holes: time without node time is worth a note."""
    records = tuple(record for part in parts for record in part.records)
    lost = [line for part in parts for line in part.lost]
    notes = [
        f"{name}: {line.records:,} records ({_counts(line)}) from {_time(line.start_s)} to {_time(line.end_s)} could not be"
        f" written: {line.why}."
        for line in lost
    ]
    missing, told = _between(name, parts, set(deleted), is_alone=is_alone)
    holes = _holes(records) if has_holes else []
    told += [
        f"{name}: no node time is recorded from {_time(start_s)} to {_time(end_s)} ({end_s - start_s:,.0f} s)."
        for start_s, end_s in holes[:HOLES_NAMED]
    ]
    if len(holes) > HOLES_NAMED:
        told.append(f"{name}: nor in {len(holes) - HOLES_NAMED} more stretches of time.")
    torn = parts[
        -1
    ].torn_lines  # what broke off in an earlier file was written again, or is missing by the next one's count
    if torn:
        told.append(f"{name}: its last line is torn.")
    end = parts[-1].end
    return _Joined(
        records,
        torn,
        missing + sum(line.records for line in lost),
        (*notes, *told),
        is_open=end is None and not parts[-1].is_first_version,
    )


def _between(name: str, parts: Sequence[_Part], deleted: set[str], *, is_alone: bool) -> tuple[int, list[str]]:
    """Records that the files before, between and within `parts` should hold and do not; and what to say of it."""
    missing, notes = 0, []
    number = held = 0  # of the last file before, and the records up to its end
    for part in parts:
        absent = [part_path(part.path, n).name for n in range(number + 1, part.number)]
        short = part.records_before - held
        gone = [file for file in absent if file in deleted]
        if is_alone and absent:
            notes.append(f"{name}: {short:,} records in its {len(absent)} files before this one were not read.")
        elif absent and len(gone) == len(absent):
            notes.append(f"{name}: {_some(gone)} with {short:,} records deleted, as keep_days says.")
        elif absent or short > 0:
            missing += max(short, 0)
            which = f"{_some(absent)} missing" if absent else f"{part.path.name} follows on a file that is cut short"
            notes.append(f"{name}: {which}; {max(short, 0):,} records are not there.")
        number, held = part.number, part.records_before + len(part.records)
        if part.end is not None and part.end.records > len(part.records):
            lacking = part.end.records - len(part.records)
            notes.append(f"{name}: {lacking:,} records have been taken out of {part.path.name}.")
            missing, held = missing + lacking, held + lacking
    return missing, notes


def _some(names: Sequence[str]) -> str:
    """One name, or the first and the last, and how many."""
    return f"{names[0]} is" if len(names) == 1 else f"{len(names)} files ({names[0]} to {names[-1]}) are"


def _counts(lost: Lost) -> str:
    words = {"N": "node times", "B": "calls", "A": "answers"}
    return ", ".join(f"{count:,} {words.get(letter, letter)}" for letter, count in lost.counts.items() if count)


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _holes(records: Iterable[Record]) -> list[tuple[float, float]]:
    """Stretches of time between the first and the last span of node time that lie in none."""
    holes: list[tuple[float, float]] = []
    reached_s = None
    for span in sorted((r for r in records if isinstance(r, NodeSpan)), key=lambda s: s.start_s):
        if reached_s is not None and span.start_s - reached_s > HOLE_S:
            holes.append((reached_s, span.start_s))
        reached_s = span.end_s if reached_s is None else max(reached_s, span.end_s)
    return holes


def _read_one(file: Path) -> _Part | None:
    """What a file says; None where a killed writer did not come as far as its header."""
    text = _text(file)
    lines = text.split("\n")
    rest = lines.pop()  # every whole line ends with a newline, so what follows the last one was cut off
    torn = int(rest != "" and not rest.startswith(END))
    if not lines:
        return None
    header = _parsed(file, 1, lines[0])
    if not isinstance(header, dict) or header.get("kind") != "ledger":
        raise WrongKind(Problem(f"{file}:1", "must be the header of a ledger", lines[0][:60]))
    version = header.get("version")
    if version not in READABLE:
        known = " or ".join(map(str, READABLE))
        raise InvalidInput(Problem(f"{file}:1: version", f"must be {known}", str(version)))
    records: list[Record] = []
    lost: list[Lost] = []
    deleted: list[Deleted] = []
    end: End | None = None
    for number, line in enumerate(lines[1:], 2):
        said = understood(_parsed(file, number, line))
        if isinstance(said, str):
            raise InvalidInput(Problem(f"{file}:{number}", said, line[:80]))
        if end is not None:
            raise InvalidInput(Problem(f"{file}:{number}", "must not follow the end of the file", line[:80]))
        if isinstance(said, End):
            end = said
        elif isinstance(said, Lost):
            lost.append(said)
        elif isinstance(said, Deleted):
            deleted.append(said)
        else:
            records.append(said)
    return _Part(
        file,
        str(header.get("plan")),
        number_in(header, "part", 1),
        number_in(header, "records_before", 0),
        version == 1,
        tuple(records),
        torn,
        end,
        tuple(lost),
        tuple(deleted),
    )


def _text(file: Path) -> str:
    """The text of a file, unpacked as far as it goes: a kill may have torn its last gzip member."""
    data = file.read_bytes()
    if file.suffix != ".gz":
        return data.decode()
    pieces, rest = [], data
    while rest:
        member = zlib.decompressobj(wbits=31)
        try:
            pieces.append(member.decompress(rest))
        except zlib.error as error:
            raise InvalidInput(Problem(str(file), "is not valid gzip", str(error))) from None
        if not member.eof:  # torn: what could be unpacked counts to its last whole line
            pieces.append(member.flush())
            if not pieces[-1] and not pieces[-2]:
                pieces.append(b"?")  # nothing could be; a torn line all the same
            break
        rest = member.unused_data
    return b"".join(pieces).decode()


def _parsed(file: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidInput(Problem(f"{file}:{number}", "is not valid JSON", error.msg)) from None
