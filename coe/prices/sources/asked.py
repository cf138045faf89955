"""What the user says beside the file: what it does not say itself, and which rows to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path

from coe.errors import InvalidInput, Problem
from coe.prices.rentals import Rental
from coe.types import ApiPrice, Offer


@dataclass(frozen=True)
class Asked:
    """Options of an import. Empty tuples keep everything."""

    day: str | None = None
    """YYYY-MM-DD on which the prices were published, for files that do not say."""
    source: str | None = None
    """Where the prices were published; by default the name of the format and of the file."""
    providers: tuple[str, ...] = ()
    """Whose prices to keep; for a file that does not say whose it is, the one who it is."""
    regions: tuple[str, ...] = ()
    """Regions to keep; ``us-*`` keeps all that begin so."""
    accelerators: tuple[str, ...] = ()
    """Names of ours; ``CPU`` keeps machines without accelerator."""
    markets: tuple[str, ...] = ()
    instances: tuple[str, ...] = ()
    """Instance types, or models of an API; ``g5.*`` keeps all that begin so."""
    quota: int | None = None
    skip_unusable: bool = False

    def date(self, path: Path) -> str:
        """The day that the user stated; `InvalidInput` where it is missing or no day."""
        if self.day is None:
            rule = "does not say of which day its prices are"
            raise InvalidInput(Problem(str(path), rule, remedy="give --date YYYY-MM-DD, the day they were published"))
        try:
            return date.fromisoformat(self.day).isoformat()
        except ValueError:
            raise InvalidInput(Problem("--date", "must be a day, YYYY-MM-DD", f"'{self.day}'")) from None

    def provider(self, path: Path) -> str:
        """The one provider that the user stated; `InvalidInput` unless there is exactly one."""
        if len(self.providers) != 1:
            rule = "does not say whose prices it holds"
            raise InvalidInput(Problem(str(path), rule, remedy="give --provider once, e.g. --provider aws"))
        return self.providers[0]

    def source_of(self, publisher: str, path: Path) -> str:
        """Where the prices come from: never a path on this machine."""
        return self.source or f"{publisher}, {path.name}"

    def keeps_row(self, provider: str, region: str, instance: str) -> bool:
        """True where the row of that name is asked for (its accelerator and market aside)."""
        return _any(self.providers, provider) and _any(self.regions, region) and _any(self.instances, instance)

    def keeps(self, rental: Rental) -> bool:
        """True where the rental is asked for."""
        wanted = {a.upper() for a in self.accelerators}
        named = "CPU" if rental.count == 0 else rental.accelerator.upper()
        return (not wanted or named in wanted) and (not self.markets or rental.market in self.markets)

    def nothing_left(self, paths: Sequence[Path]) -> Problem:
        """Why nothing was imported."""
        chosen = {
            "--provider": self.providers,
            "--region": self.regions,
            "--accelerator": self.accelerators,
            "--market": self.markets,
            "--instance": self.instances,
        }
        said = ", ".join(f"{option} {value}" for option, values in chosen.items() for value in values)
        files = ", ".join(str(p) for p in paths)
        return Problem(files, "has no usable price that was asked for", said or "no rows", "ask for less")


def _any(patterns: Sequence[str], value: str) -> bool:
    return not patterns or any(fnmatchcase(value.lower(), p.lower()) for p in patterns)


@dataclass
class Reading:
    """What a reader found in one file, while it is being filled."""

    source: str
    rentals: list[Rental] = field(default_factory=list)
    offers: list[Offer] = field(default_factory=list)
    """Offers that already have names of their own."""
    apis: list[ApiPrice] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    """What makes the whole file doubtful."""
    unusable: list[Problem] = field(default_factory=list)
    """Rows of which no offer can be made without guessing: malformed cells, unknown names, shares of an accelerator."""
    notes: list[str] = field(default_factory=list)
    not_asked_for: set[str] = field(default_factory=set)
    """Unknown names of accelerators in a file of which only named ones are kept."""

    def unknown(self, problem: Problem, called: str, asked: Asked) -> None:
        """Report an unknown accelerator: as an unusable row, or as a name beside the ones asked for."""
        if asked.accelerators:
            self.not_asked_for.add(called)
        else:
            self.unusable.append(problem)
