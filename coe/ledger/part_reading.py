"""One file of a ledger, read as it passes by: its header, its records, what it says of itself, and whether its end is torn.

A killed writer can tear its last line and nothing else, so a reader forgives exactly that, and counts it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from coe.errors import InvalidInput, Problem, WrongKind
from coe.ledger.lines import READABLE, Deleted, End, Lost, number_in, understood
from coe.records import Record

END = b'["E"'
"""How a last line begins that is no record."""
DELETED = b'["D"'
BLOCK = 2**18
"""Bytes of a file that are in memory at once."""


@dataclass
class PartReader:
    """A file with a header. What stands below `number` is known once `records` has ended."""

    path: Path
    plan_fingerprint: str
    number: int
    records_before: int
    is_first_version: bool
    held: int = 0
    """Records in it."""
    torn_lines: int = 0
    end: End | None = None
    lost: list[Lost] = field(default_factory=list)
    deleted: list[Deleted] = field(default_factory=list)

    def records(self) -> Iterator[Record]:
        """Its records in their order. Raises `InvalidInput` for anything malformed but a torn last line."""
        lines = _numbered(self.path)
        next(lines)  # the header
        for number, line, is_whole in lines:
            if not is_whole:
                self.torn_lines = int(line != b"" and not line.startswith(END))
                return
            said = understood(_parsed(self.path, number, line))
            if isinstance(said, str):
                raise InvalidInput(Problem(f"{self.path}:{number}", said, _shown(line)))
            if self.end is not None:
                raise InvalidInput(
                    Problem(f"{self.path}:{number}", "must not follow the end of the file", _shown(line))
                )
            if isinstance(said, End):
                self.end = said
            elif isinstance(said, Lost):
                self.lost.append(said)
            elif isinstance(said, Deleted):
                self.deleted.append(said)
            else:
                self.held += 1
                yield said


def opened(path: Path) -> PartReader | None:
    """The file as its header has it; None where a killed writer did not come as far as that."""
    _, line, is_whole = next(_numbered(path))
    if not is_whole:
        return None
    header = _parsed(path, 1, line)
    if not isinstance(header, dict) or header.get("kind") != "ledger":
        raise WrongKind(Problem(f"{path}:1", "must be the header of a ledger", _shown(line)[:60]))
    version = header.get("version")
    if version not in READABLE:
        known = " or ".join(map(str, READABLE))
        raise InvalidInput(Problem(f"{path}:1: version", f"must be {known}", str(version)))
    return PartReader(
        path,
        str(header.get("plan")),
        number_in(header, "part", 1),
        number_in(header, "records_before", 0),
        version == 1,
    )


def plan_in(path: Path) -> str | None:
    """The plan that a file's first line names; None where it names none."""
    try:
        _, line, is_whole = next(_numbered(path))
    except (OSError, InvalidInput):
        return None  # whoever reads the file says what is wrong with it
    header = _parsed(path, 1, line) if is_whole else None
    return str(header.get("plan")) if isinstance(header, dict) else None


def deleted_by(path: Path) -> Iterator[Deleted]:
    """What a file says was deleted, without a look at its records."""
    for number, line, is_whole in _numbered(path):
        if is_whole and line.startswith(DELETED):
            said = understood(_parsed(path, number, line))
            if isinstance(said, Deleted):
                yield said


def _numbered(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """Number (from 1), text and True for each whole line; last what follows the last whole one, which was cut off, and False."""
    number, rest = 0, b""
    for block in _blocks(path):
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            number += 1
            yield number, line, True
    yield number + 1, rest, False


def _blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, unpacked where it is packed."""
    with path.open("rb") as file:
        packed = iter(partial(file.read, BLOCK), b"")
        yield from _unpacked(path, packed) if path.suffix == ".gz" else packed


def _unpacked(path: Path, packed: Iterator[bytes]) -> Iterator[bytes]:
    """Unpacked as far as it goes: a kill may have torn the last gzip member."""
    member, is_begun, came = zlib.decompressobj(wbits=31), False, False
    for block in packed:
        rest = block
        while rest:
            try:
                piece = member.decompress(rest)
            except zlib.error as error:
                raise InvalidInput(Problem(str(path), "is not valid gzip", str(error))) from None
            is_begun, came = True, came or piece != b""
            yield piece
            rest = member.unused_data
            if member.eof:
                member, is_begun, came = zlib.decompressobj(wbits=31), False, False
    if is_begun:  # torn: what could be unpacked counts to its last whole line
        piece = member.flush()
        yield piece if piece or came else b"?"  # nothing could be; a torn line all the same


def _parsed(path: Path, number: int, line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(Problem(f"{path}:{number}", "is not valid JSON", error.msg)) from None


def _shown(line: bytes) -> str:
    return line[:80].decode("utf-8", "backslashreplace")
