"""What ledgers say, and what is missing from them: torn ends, files that are not there, records that could not be written, time
for which there is no record at all.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from coe.errors import InvalidInput, Problem
from coe.ledger.lines import Lost
from coe.ledger.part import PATTERNS, ledger_of, part_path
from coe.ledger.part_reading import PartReader, deleted_by, opened, plan_in
from coe.ledger.routers import node_time_once
from coe.ledger.spans import Spans
from coe.records import NodeSpan, Record

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


class LedgerReader:
    """The ledger at a path, or all ledgers (`*.jsonl`, `*.jsonl.gz`) of that folder: those of one plan where it is named; else
    all must be of one. Iterating gives their records, once, as they are read: the files of each ledger in the order in which they
    were written, node time after all else and in as few spans as will do. What is missing is known when that has ended.

    Node time that several ledgers tell of is there once: each router writes that of the whole service.
    """

    def __init__(self, path: str | Path, plan_fingerprint: str | None = None, *, comes_and_goes: bool = False) -> None:
        """comes_and_goes: the plan is a gear, so that time without node time is another gear's and no hole; each router's node
        time is there, which says how long it was in the gear.

        Raises `InvalidInput` where no ledger is of the plan, and for files that do not begin as one.
        """
        path = Path(path)
        parts = _parts_at(path)
        self._others = [part.path for part in parts]
        self._is_alone, self._comes_and_goes = path.is_file(), comes_and_goes
        plans = sorted({part.plan_fingerprint for part in parts})
        if plan_fingerprint in plans:
            parts, plans = [p for p in parts if p.plan_fingerprint == plan_fingerprint], [plan_fingerprint]
        if len(plans) > 1:
            found = ", ".join(p[:12] for p in plans)
            raise InvalidInput(
                Problem(str(path), "holds ledgers of different plans", found, "report on them one by one")
            )
        self.plan_fingerprint = plans[0]
        ledgers: dict[str, list[PartReader]] = {}
        for part in parts:
            ledgers.setdefault(ledger_of(part.path), []).append(part)
        self._ledgers = {name: sorted(own, key=lambda p: p.number) for name, own in sorted(ledgers.items())}
        mine = {part.path for part in parts}
        self._others = [other for other in self._others if other not in mine]
        self.torn_lines = self.missing_records = 0
        self.notes: tuple[str, ...] = ()

    @property
    def is_of_several(self) -> bool:
        """Whether several routers wrote."""
        return len(self._ledgers) > 1

    @property
    def unaccounted(self) -> int:
        """Records known to be lost."""
        return self.torn_lines + self.missing_records

    def __iter__(self) -> Iterator[Record]:
        """All records. Raises `InvalidInput` for anything malformed but a torn last line."""
        spans = yield from self._passing()
        if self.is_of_several and not self._comes_and_goes:
            yield from node_time_once(spans)
        else:
            yield from (span for own in spans for span in own)

    def as_written(self) -> Iterator[Record]:
        """All records, each ledger's node time among the others."""
        yield from self._passing(keeps_order=True)

    def _passing(self, *, keeps_order: bool = False) -> Generator[Record, None, list[tuple[NodeSpan, ...]]]:
        """Records but for node time, which is returned by ledger; with it where that is wanted."""
        found = []
        for parts in self._ledgers.values():
            spans = Spans()
            for part in parts:
                for record in part.records():
                    if isinstance(record, NodeSpan):
                        spans.add(record)
                        if not keeps_order:
                            continue
                    yield record
            found.append(spans.found)
        self._conclude(found)
        return found

    def _conclude(self, spans: Sequence[Sequence[NodeSpan]]) -> None:
        """Say what is missing."""
        deleted = self._deleted()
        read = [
            _joined(name, parts, own, deleted, is_alone=self._is_alone, has_holes=not self._comes_and_goes)
            for (name, parts), own in zip(self._ledgers.items(), spans, strict=True)
        ]
        notes = [note for own in read for note in own.notes]
        if open_ones := sum(own.is_open for own in read):
            which = "The ledger is" if len(read) == 1 else f"{open_ones} of {len(read)} ledgers are"
            notes.append(
                f"{which} not closed: the router runs, or was killed and what it recorded in its last {FLUSH_S:g} s is lost."
            )
        self.torn_lines = sum(own.torn_lines for own in read)
        self.missing_records = sum(own.missing_records for own in read)
        self.notes = tuple(notes)

    def _deleted(self) -> set[str]:
        """Names of files that were deleted on purpose: said in the file that was written then, of whatever plan that is."""
        parts = [part for own in self._ledgers.values() for part in own]
        deleted = {d.name for part in parts for d in part.deleted}
        if self._absent() <= deleted:
            return deleted
        return deleted | {d.name for other in self._others for d in deleted_by(other)}

    def _absent(self) -> set[str]:
        """Names of files that should be between others."""
        return {
            part_path(part.path, number).name
            for parts in self._ledgers.values()
            for before, part in zip((0, *(p.number for p in parts)), parts, strict=False)
            for number in range(before + 1, part.number)
        }


def _parts_at(path: Path) -> list[PartReader]:
    """Every file with a header at a path."""
    files = sorted(p for pattern in PATTERNS for p in path.glob(pattern)) if path.is_dir() else [path]
    if not files or not all(f.exists() for f in files):
        remedy = "was the service started with this folder?"
        raise InvalidInput(Problem(str(path), "holds no ledger (*.jsonl)", remedy=remedy))
    parts = [part for file in files if (part := opened(file)) is not None]
    if not parts:
        raise InvalidInput(Problem(str(files[0]), "is empty: not even the header was written"))
    return parts


def read_ledger(path: str | Path, plan_fingerprint: str | None = None, *, comes_and_goes: bool = False) -> LedgerFile:
    """All that a `LedgerReader` reads, in memory: some 500 bytes for each record. Raises as it does."""
    reader = LedgerReader(path, plan_fingerprint, comes_and_goes=comes_and_goes)
    if reader.is_of_several and not comes_and_goes:
        records = tuple(sorted(reader, key=lambda record: not isinstance(record, NodeSpan)))
    else:
        records = tuple(reader.as_written())
    return LedgerFile(reader.plan_fingerprint, records, reader.torn_lines, reader.missing_records, reader.notes)


def plans_in(path: str | Path) -> frozenset[str]:
    """Fingerprints of the plans whose ledgers lie at `path`, a file or a folder, by their first lines."""
    path = Path(path)
    files = sorted(p for pattern in PATTERNS for p in path.glob(pattern)) if path.is_dir() else [path]
    return frozenset(plan for file in files if (plan := plan_in(file)) is not None)


@dataclass(frozen=True)
class _Joined:
    """What is missing from the files of one ledger."""

    torn_lines: int
    missing_records: int
    notes: tuple[str, ...]
    is_open: bool


def _joined(
    name: str,
    parts: Sequence[PartReader],
    spans: Sequence[NodeSpan],
    deleted: set[str],
    *,
    is_alone: bool,
    has_holes: bool,
) -> _Joined:
    """`parts` in their order, and their node time.

    deleted: names of files that were deleted on purpose.   is_alone: one file was asked for.
    has_holes: time without node time is worth a note."""
    lost = [line for part in parts for line in part.lost]
    notes = [
        f"{name}: {line.records:,} records ({_counts(line)}) from {_time(line.start_s)} to {_time(line.end_s)} could not be"
        f" written: {line.why}."
        for line in lost
    ]
    missing, told = _between(name, parts, deleted, is_alone=is_alone)
    holes = _holes(spans) if has_holes else []
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
        torn,
        missing + sum(line.records for line in lost),
        (*notes, *told),
        is_open=not parts[-1].is_first_version and (end is None or (end.why == "rotated" and not is_alone)),
    )


def _between(name: str, parts: Sequence[PartReader], deleted: set[str], *, is_alone: bool) -> tuple[int, list[str]]:
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
        number, held = part.number, part.records_before + part.held
        if part.end is not None and part.end.records > part.held:
            lacking = part.end.records - part.held
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


def _holes(spans: Iterable[NodeSpan]) -> list[tuple[float, float]]:
    """Stretches of time between the first and the last span of node time that lie in none."""
    holes: list[tuple[float, float]] = []
    reached_s = None
    for span in sorted(spans, key=lambda s: s.start_s):
        if reached_s is not None and span.start_s - reached_s > HOLE_S:
            holes.append((reached_s, span.start_s))
        reached_s = span.end_s if reached_s is None else max(reached_s, span.end_s)
    return holes
