"""An open ledger of one router: records are remembered, written in groups, and counted where they cannot be written.

Nothing here stops a service: while the disk is full or gone, records wait, up to a number; those beyond are lost, which the log,
the state (for metrics) and, as soon as it can be written again, the ledger say.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from coe.errors import InvalidInput, Problem
from coe.ledger.lines import Deleted, End, Lost, encoded, header_line, remark_line
from coe.ledger.part import PATTERNS, Part, is_ledger, part_path
from coe.records import Record
from coe.types import LedgerLimits

GROUP = 2000
"""Records of one write: what a full disk costs to find out again."""
MIB = 2**20
SECONDS_PER_HOUR, SECONDS_PER_DAY = 3600.0, 86400.0
CLOSING_S = 5.0
"""How long closing waits for a write that hangs."""
PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.EMFILE, errno.ENFILE})
"""What keeps a file from being made today and not tomorrow; the service starts all the same."""

log = logging.getLogger("coe.ledger")


@dataclass(frozen=True)
class LedgerState:
    """What has become of the records of one ledger so far."""

    written: int = 0
    lost: int = 0
    """Never to be written."""
    waiting: int = 0
    errors: int = 0
    """Writes that failed; most of what they carried is written later."""
    bytes: int = 0
    parts: int = 0
    deleted: int = 0
    """Files that retention has ended."""
    last_write_s: float | None = None
    """When something was last written, by the ledger's clock; None where nothing was."""
    says: str = ""
    """Why the last write failed; empty where it did not."""


class Ledger:
    """`append` only remembers; `flush` writes what was remembered, `flush_aside` does so on the ledger's own thread.

    One thread appends and flushes; `flush_aside` takes what is there and writes it while more is appended.
    """

    def __init__(
        self,
        path: Path,
        plan_fingerprint: str,
        started_s: float,
        limits: LedgerLimits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """path: the first file; later ones are named after it.   started_s: of this ledger, in the records' time.
        clock: for the age of files.

        Raises `InvalidInput` where it can never be written, such as for a folder that belongs to somebody else.
        """
        self._limits = limits or LedgerLimits()
        self._first = path.with_name(path.name + ".gz") if self._limits.compress else path
        self._plan, self._started_s, self._clock = plan_fingerprint, started_s, clock
        self._waiting: deque[Record] = deque()
        self._being_written: deque[Record] = deque()
        self._refused, self._lost = Lost(), Lost()  # by `append`; all that the ledger still has to speak of
        self._part: Part | None = None
        self._part_began_s = clock()
        self._part_records = 0
        self._state = LedgerState()
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[int] | None = None
        self._is_closed = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._begin_part()
        except OSError as error:
            if error.errno not in PASSING:
                remedy = "choose another folder for the ledger"
                raise InvalidInput(Problem(str(path), "cannot be written", error.strerror or "", remedy)) from None
            self._note(error)

    def append(self, record: Record) -> None:
        """Remember a record until the next flush; count it as lost where too many wait."""
        if len(self._waiting) + len(self._being_written) < self._limits.max_waiting:
            self._waiting.append(record)
            return
        why = self._state.says or "writing took too long"
        if not self.state.lost:
            log.error("%s loses records, %d wait: %s", self._first, self._limits.max_waiting, why)
        self._refused.add(record, why)

    def flush(self) -> int:
        """Write everything remembered, as far as the disk takes it; the number of records written."""
        self._wait()
        self._take()
        return self._write()

    def flush_aside(self) -> None:
        """The same, without waiting for it; nothing happens where the last one is still under way."""
        if self._writing is not None and not self._writing.done():
            return
        self._wait()
        if not self._waiting and not self._being_written:
            return
        self._take()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self._writing = self._thread.submit(self._write)

    def stay_young(self) -> None:
        """Keep the file from looking old, and being deleted, while nothing is written to it."""
        part = self._part
        if part is not None:
            with contextlib.suppress(OSError):
                os.utime(part.path)

    def close(self) -> None:
        """Write what can be written, say that this is the end, and close."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self.flush()
            if missing := self.state.waiting + self.state.lost:
                log.error("%s ends without %d records", self._first, missing)
            self._end_part("closed")
        except (OSError, TimeoutError) as error:
            log.error("%s could not be closed: %s", self._first, error)
        if self._thread is not None:
            self._thread.shutdown(wait=False)

    @property
    def state(self) -> LedgerState:
        """The counts so far."""
        waiting = len(self._waiting) + len(self._being_written)
        return replace(self._state, waiting=waiting, lost=self._state.lost + self._refused.records)

    def _wait(self) -> None:
        """For the write under way, if there is one."""
        if self._writing is not None:
            self._writing.result(CLOSING_S)
            self._writing = None

    def _take(self) -> None:
        self._being_written.extend(self._waiting)
        self._waiting.clear()
        refused, self._refused = self._refused, Lost()
        self._lost = _together(self._lost, refused)
        self._state = replace(self._state, lost=self._state.lost + refused.records)

    # --- From here on perhaps on the ledger's own thread, and never on two at once ------------------------------------

    def _write(self) -> int:
        """Write what was taken, group by group, until it is done or the disk refuses; the number of records written."""
        written = 0
        try:
            while self._being_written:
                self._turn_over()
                group = list(islice(self._being_written, GROUP))
                lines = [line for record in group if (line := self._line(record))]
                self._put("".join(lines))
                for _ in group:
                    self._being_written.popleft()
                written += len(lines)
                self._part_records += len(lines)
                self._state = replace(self._state, written=self._state.written + len(lines), says="")
        except OSError as error:
            self._note(error)
        return written

    def _put(self, text: str) -> None:
        """Write lines, after what has to be said of records that were lost before them."""
        assert self._part is not None
        lost, self._lost = self._lost, Lost()
        before = self._part.bytes
        try:
            self._part.write((remark_line(lost) if lost.records else "") + text)
        except OSError:
            self._lost = _together(lost, self._lost)
            raise
        self._state = replace(
            self._state, bytes=self._state.bytes + self._part.bytes - before, last_write_s=self._clock()
        )

    def _line(self, record: Record) -> str:
        try:
            return encoded(record)
        except (TypeError, ValueError) as error:  # one that JSON cannot hold must not keep back all others
            log.error("%r cannot be written: %s", record, error)
            self._lost.add(record, str(error))
            self._state = replace(self._state, lost=self._state.lost + 1)
            return ""

    def _is_due(self) -> bool:
        """Whether the next file should begin."""
        part = self._part
        return (
            part is not None
            and self._part_records > 0
            and (
                part.bytes >= self._limits.max_part_mib * MIB
                or self._clock() - self._part_began_s >= self._limits.max_part_hours * SECONDS_PER_HOUR
            )
        )

    def _turn_over(self) -> None:
        """Begin the next file where there is none to write to, or where it is time to; in the second case the old one will do."""
        if self._part is None or self._part.is_torn:
            self._begin_part()
        elif self._is_due():
            try:
                self._begin_part()
            except OSError as error:
                self._note(error)

    def _begin_part(self) -> None:
        """Begin the next file, then close the one before: at every moment the end of one file says that another follows, or the
        next file's header how much the one before must hold."""
        number = self._state.parts + 1
        header = header_line(self._plan, self._started_s, number, self._state.written)
        began_s = self._clock()
        part = Part(part_path(self._first, number), header, compress=self._limits.compress)
        if self._part is not None:
            self._end_part("rotated")
        self._part, self._part_records, self._part_began_s = part, 0, began_s
        self._state = replace(self._state, parts=number, bytes=self._state.bytes + part.bytes, last_write_s=began_s)
        self._delete_old()

    def _end_part(self, why: str) -> None:
        part, self._part = self._part, None
        if part is None:
            return
        if not part.is_torn:
            try:
                part.write(remark_line(End(self._part_records, why)))
            except OSError as error:  # the next header says as much
                self._note(error)
        part.close()

    def _delete_old(self) -> None:
        """End the retention of files in this folder, and say so where it will be read."""
        if self._limits.keep_days is None or self._part is None:
            return
        before_s = self._clock() - self._limits.keep_days * SECONDS_PER_DAY
        try:
            for path in sorted(p for pattern in PATTERNS for p in self._first.parent.glob(pattern)):
                facts = path.stat()
                if facts.st_mtime >= before_s or path == self._part.path or not is_ledger(path):
                    continue
                self._put(remark_line(Deleted(path.name, facts.st_size)))  # first: a kill now leaves a file too many
                path.unlink()
                self._state = replace(self._state, deleted=self._state.deleted + 1)
                log.warning("deleted %s (%d bytes), as keep_days says", path, facts.st_size)
        except OSError as error:
            self._note(error)

    def _note(self, error: OSError) -> None:
        """Count a write that failed; log the first of a row."""
        if not self._state.says:
            log.error("%s cannot be written (%s); records wait, up to %d", self._first, error, self._limits.max_waiting)
        says = error.strerror or str(error)
        self._state = replace(self._state, errors=self._state.errors + 1, says=says)


def _together(one: Lost, other: Lost) -> Lost:
    """Both as one."""
    if not one.records or not other.records:
        return one if one.records else other
    counts = {k: one.counts.get(k, 0) + other.counts.get(k, 0) for k in {**one.counts, **other.counts}}
    return Lost(other.why, min(one.start_s, other.start_s), max(one.end_s, other.end_s), counts)


def write_ledger(path: str | Path, plan_fingerprint: str, started_s: float, records: Iterable[Record]) -> None:
    """Write a whole ledger at once, into one file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Part(path, header_line(plan_fingerprint, started_s, 1, 0), compress=path.name.endswith(".gz"))
    lines = [encoded(record) for record in records]
    part.write("".join(lines) + remark_line(End(len(lines), "closed")))
    part.close()
