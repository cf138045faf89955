"""CSV files of others: read with every malformed cell reported, plain or gzipped."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from coe.errors import InvalidInput, Problem


@dataclass(frozen=True)
class Line:
    """One row: its cells by column, and how to complain about them."""

    path: Path
    at: int
    cells: dict[str, str]
    problems: list[Problem]

    @property
    def where(self) -> str:
        """File and line."""
        return f"{self.path}:{self.at}"

    def text(self, column: str) -> str:
        """The cell without surrounding blanks; empty where the file lacks the column."""
        return self.cells.get(column, "").strip()

    def optional(self, column: str, least: float = 0.0, above: bool = False) -> float | None:
        """The number in a cell, None where it is empty. A wrong one is reported and None."""
        text = self.text(column)
        return self._number(column, text, least, above) if text else None

    def number(self, column: str, least: float = 0.0, above: bool = False) -> float:
        """The number in a cell that must have one; at least `least`, or above it. A wrong one is reported and NaN."""
        text = self.text(column)
        if not text:
            self.complain(column, "is missing")
            return math.nan
        found = self._number(column, text, least, above)
        return math.nan if found is None else found

    def whole(self, column: str, least: float = 0.0) -> float:
        """The whole number in a cell that must have one. A wrong one is reported and NaN."""
        value = self.number(column, least)
        if math.isfinite(value) and value != int(value):
            self.complain(column, "must be a whole number", self.text(column))
            return math.nan
        return value

    def complain(self, column: str, rule: str, found: str = "", remedy: str = "") -> None:
        """Report something malformed."""
        self.problems.append(Problem(f"{self.where}: {column}", rule, found, remedy))

    def _number(self, column: str, text: str, least: float, above: bool) -> float | None:
        try:
            value = float(text.removeprefix("$"))
        except ValueError:
            remedy = "prices must be in US dollars" if any(c in text for c in "€£¥₹") or "EUR" in text.upper() else ""
            self.complain(column, "must be a number", f"'{text}'", remedy)
            return None
        if not math.isfinite(value):
            self.complain(column, "must be a finite number", text)
            return None
        if value < least or (above and value == least):
            self.complain(column, f"must be {'>' if above else '>='} {least:g}", text)
            return None
        return value


def rows(path: Path, required: Iterable[str], problems: list[Problem], what: str) -> Iterator[Line]:
    """The rows of a CSV file that has at least the `required` columns; complaints are added to `problems`.

    Raises `InvalidInput` where the file cannot be read as such a table, or says that it is in another currency.
    """
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(path, header, list(required), what)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                rule = f"must have {len(header)} cells, as the first line has"
                problems.append(Problem(f"{path}:{reader.line_num}", rule, str(len(cells))))
            else:
                line = Line(path, reader.line_num, dict(zip(header, cells, strict=True)), problems)
                _check_currency(line)
                yield line
    except csv.Error as error:
        raise InvalidInput(Problem(f"{path}:{reader.line_num}", "is not valid CSV", str(error))) from None


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except FileNotFoundError:
        raise InvalidInput(Problem(str(path), "does not exist", remedy="check the path")) from None
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise InvalidInput(Problem(str(path), "cannot be read as text", str(error))) from None


def text_of(path: Path) -> str:
    """A text file, plain or gzipped; `InvalidInput` where it cannot be read."""
    return _text(path)


def _check_header(path: Path, header: list[str], required: list[str], what: str) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise InvalidInput(Problem(f"{path}:1", "has a column twice", ", ".join(twice)))
    lacking = [name for name in required if name not in header]
    if lacking:
        near = {n: difflib.get_close_matches(n, header, 1, 0.8) for n in lacking}
        hint = "; ".join(f"is '{found[0]}' meant to be '{name}'?" for name, found in near.items() if found)
        rule = f"is not {what}: it lacks the columns {', '.join(lacking)}"
        raise InvalidInput(Problem(f"{path}:1", rule, remedy=hint or f"it has: {', '.join(header)[:200]}"))


def _check_currency(line: Line) -> None:
    for column in line.cells:
        if column.lower() == "currency" and line.text(column).upper() not in ("", "USD"):
            line.complain(column, "must be USD", f"'{line.text(column)}'", "convert the prices at a rate you can name")


def finite(*values: float | None) -> bool:
    """True where every value is there and a number."""
    return all(v is not None and math.isfinite(v) for v in values)
