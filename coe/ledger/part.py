"""One file of a ledger. What is written to it is there whole or not at all, also where the disk is full in the middle."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
from pathlib import Path

LEVEL = 1
"""Of gzip: three quarters of what the best level saves, at a tenth of its time."""
PATTERNS = ("*.jsonl", "*.jsonl.gz")
BEGINS = b'{"kind": "ledger"'
_NAME = re.compile(r"(?P<ledger>.+?)(?:_\d{5,})?\.jsonl(?:\.gz)?")


class Part:
    """A file that is being written. The caller is its only writer."""

    def __init__(self, path: Path, header: str, *, compress: bool) -> None:
        """Raises `OSError` where it cannot be made, which leaves nothing behind."""
        self.path = path
        self.is_torn = False
        """True where a write broke off and could not be taken back: nothing more may be written."""
        self.bytes = 0
        self._compress = compress
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        try:
            self.write(header)
        except OSError:
            os.close(self._file)
            path.unlink(missing_ok=True)
            raise

    def write(self, text: str) -> None:
        """Write lines, all of them or (raising `OSError`) none."""
        data = text.encode()
        if self._compress:
            data = gzip.compress(data, LEVEL, mtime=0)
        size, left = len(data), memoryview(data)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError:
            try:
                os.ftruncate(self._file, self.bytes)
            except OSError:
                self.is_torn = len(left) < size
            raise
        self.bytes += size

    def close(self) -> None:
        """Close it, with what it holds on the disk itself."""
        with contextlib.suppress(OSError):  # some file systems cannot sync; what was written stays written
            os.fsync(self._file)
        os.close(self._file)


def part_path(beside: Path, number: int) -> Path:
    """The file of that number (from 1) of the ledger that `beside` is a file of, in names that sort in their order."""
    ending = ".jsonl.gz" if beside.name.endswith(".gz") else ".jsonl"
    return beside.with_name(ledger_of(beside) + (f"_{number:05d}" if number > 1 else "") + ending)


def ledger_of(path: Path) -> str:
    """The name that the files of one ledger share."""
    match = _NAME.fullmatch(path.name)
    return path.stem if match is None else match["ledger"]


def is_ledger(path: Path) -> bool:
    """True for a file that begins as a ledger does; false, too, where it cannot be read."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(len(BEGINS)) == BEGINS
    except (OSError, EOFError):
        return False
