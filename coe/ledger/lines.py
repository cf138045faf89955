"""The lines of a ledger's file: first its header, then records and remarks, each a JSON list that starts with a letter.

header: {"kind", "version", "plan", "started_s", "part", "records_before"}, the last two the number of the file in its ledger
    (from 1) and how many records the files before it hold; absent in files of version 1, which were a whole ledger each.
N, B, A, S, U: a record (`NodeSpan`, `BatchRun`, `Answer`, `Auditing`, `Audit`) with its fields in their order.
L: records that could not be written: first and last instant, how many by letter, why.
D: a file that was deleted as `keep_days` says: its name, its bytes.
E: the end: records in this file, "rotated" or "closed". A file without it is still written to, or its writer was killed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from operator import attrgetter
from typing import Any

from coe.records import Answer, Audit, Auditing, BatchRun, NodeSpan, Record

VERSION = 2
READABLE = (1, 2)
LETTERS: dict[str, type[Record]] = {"N": NodeSpan, "B": BatchRun, "A": Answer, "S": Auditing, "U": Audit}
_LETTER_OF = {kind: letter for letter, kind in LETTERS.items()}
_VALUES = {kind: attrgetter(*(f.name for f in fields(kind))) for kind in _LETTER_OF}
_INSTANTS = ("done_s", "start_s", "at_s")
"""Fields of records that say when they were made, as far as a count of lost ones needs to know."""
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "dict": (dict,),
}
_FITTING: dict[tuple[Any, ...], type[Record]] = {}
"""Types of a line's values and its letter -> the record that it was found to be; few, as many as there are kinds of lines."""
_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


@dataclass(frozen=True)
class End:
    """The last line of a file that was closed."""

    records: int
    why: str


@dataclass(frozen=True)
class Deleted:
    """A file that its retention has ended."""

    name: str
    bytes: int


@dataclass
class Lost:
    """Records that were not written, by letter, and the time that they speak of."""

    why: str = ""
    start_s: float = 0.0
    end_s: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def records(self) -> int:
        """How many."""
        return sum(self.counts.values())

    def add(self, record: Record, why: str) -> None:
        """Count one more."""
        at_s = next(float(getattr(record, name)) for name in _INSTANTS if hasattr(record, name))
        self.start_s, self.end_s = (min(self.start_s, at_s), max(self.end_s, at_s)) if self.records else (at_s, at_s)
        letter = _LETTER_OF[type(record)]
        self.counts[letter] = self.counts.get(letter, 0) + 1
        self.why = why


Remark = End | Deleted | Lost


def header_line(plan_fingerprint: str, started_s: float, part: int, records_before: int) -> str:
    """The first line of a file."""
    header = {
        "kind": "ledger",
        "version": VERSION,
        "plan": plan_fingerprint,
        "started_s": started_s,
        "part": part,
        "records_before": records_before,
    }
    return json.dumps(header) + "\n"


def encoded(record: Record) -> str:
    """The line of a record. Raises `ValueError` or `TypeError` for one that holds what JSON has not, such as NaN."""
    kind = type(record)
    return _json((_LETTER_OF[kind], *_VALUES[kind](record))) + "\n"


def remark_line(remark: Remark) -> str:
    """The line of a remark."""
    if isinstance(remark, End):
        return _json(("E", remark.records, remark.why)) + "\n"
    if isinstance(remark, Deleted):
        return _json(("D", remark.name, remark.bytes)) + "\n"
    return _json(("L", remark.start_s, remark.end_s, remark.counts, remark.why)) + "\n"


def understood(data: Any) -> Record | Remark | str:
    """What a parsed line says, or the rule that it breaks."""
    letter: Any = None
    values: list[Any] = []
    if isinstance(data, list) and data:
        known = _FITTING.get((*map(type, data), data[0])) if isinstance(data[0], str) else None
        if known is not None:
            return known(*data[1:])
        letter, *values = data
    if letter == "E" and _fit(values, ("int", "str")):
        return End(*values)
    if letter == "D" and _fit(values, ("str", "int")):
        return Deleted(*values)
    if letter == "L" and _fit(values, ("float", "float", "dict", "str")):
        start_s, end_s, counts, why = values
        if _fit(list(counts.values()), ["int"] * len(counts)):
            return Lost(why, start_s, end_s, counts)
    kind = LETTERS.get(letter) if isinstance(letter, str) else None
    if kind is None:
        return f"must be a record ({', '.join(LETTERS)})"
    names = fields(kind)
    least = sum(f.default is MISSING for f in names)  # a ledger written before a field came does without it
    types = [str(f.type) for f in names[: max(least, len(values))]]
    if not _fit(values, types):
        return f"a {kind.__name__} has the fields {', '.join(f.name for f in names)}"
    _FITTING[*map(type, data), letter] = kind
    return kind(*values)


def _fit(values: list[Any], types: Iterable[str]) -> bool:
    """True where each value has its type."""
    wanted = list(types)
    return len(values) == len(wanted) and all(
        isinstance(v, _TYPES[t]) and (t == "bool" or not isinstance(v, bool))
        for v, t in zip(values, wanted, strict=True)
    )


def number_in(header: Mapping[str, Any], key: str, otherwise: int) -> int:
    """A whole number of a header, or `otherwise` where it has none."""
    value = header.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else otherwise
