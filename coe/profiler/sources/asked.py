"""What the user says beside a table of measurements, and how rows become profiles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Literal

from coe.cost.roofline import Measured, Work
from coe.errors import InvalidInput, Problem
from coe.prices import accelerators
from coe.prices.accelerators import Accelerator, Precision
from coe.prices.rentals import checked, slug
from coe.prices.sources.table import Line
from coe.types import BatchTiming, Profile

Pick = Literal["median", "slowest", "fastest"]


@dataclass(frozen=True)
class Asked:
    """Options of an import. Empty tuples and mappings keep everything."""

    day: str | None = None
    source: str | None = None
    accelerator: str | None = None
    """What was measured on, for files that do not say."""
    rename: Mapping[str, str] = field(default_factory=dict)
    """The file's label of a device -> its name."""
    member: str | None = None
    """Which model it is, for files that do not say."""
    members: tuple[str, ...] = ()
    """Members to keep; ``resnet*`` keeps several."""
    accelerators: tuple[str, ...] = ()
    """Accelerators of ours to keep."""
    where: Mapping[str, str] = field(default_factory=dict)
    """Column -> the value that its rows must have."""
    batch_sizes: tuple[int, ...] = ()
    """Of each file, or of a table that does not say."""
    devices: int | None = None
    """How many devices a figure of a whole system stands for, where the file does not say."""
    precision: Precision | None = None
    p99_factor: float | None = None
    """p99 / p50, for files that have no p99."""
    memory_gib: float | None = None
    pick: Pick | None = None
    """Which of several measurements of one thing counts."""
    skip_unusable: bool = False

    def date(self, path: Path, told: str | None = None) -> str:
        """The day that the file tells or the user states; `InvalidInput` where neither does."""
        day = told or self.day
        if day is None:
            rule = "does not say when it was measured"
            raise InvalidInput(Problem(str(path), rule, remedy="give --date YYYY-MM-DD"))
        try:
            return date.fromisoformat(day).isoformat()
        except ValueError:
            raise InvalidInput(Problem("--date", "must be a day, YYYY-MM-DD", f"'{day}'")) from None

    def source_of(self, publisher: str, path: Path) -> str:
        """Where the figures come from: never a path on this machine."""
        return self.source or f"{publisher}, {path.name}"

    def keeps_member(self, member: str) -> bool:
        """True where the member is asked for."""
        return not self.members or any(fnmatchcase(member.lower(), m.lower()) for m in self.members)

    def keeps_line(self, line: Line) -> bool:
        """True where the row has the values asked for; `InvalidInput` for a column that the file lacks."""
        for column in self.where:
            if column not in line.cells:
                remedy = f"it has: {', '.join(line.cells)}"
                raise InvalidInput(Problem(f"--where {column}", f"is no column of {line.path.name}", remedy=remedy))
        return all(line.text(column) == value for column, value in self.where.items())

    def device(self, called: str | None, where: str) -> Accelerator | Problem | None:
        """The accelerator that a file calls so; None where it is not asked for, a problem where it is unknown."""
        name = self.rename.get(called or "", called) or self.accelerator
        if name is None:
            remedy = "give --accelerator, e.g. --accelerator T4"
            raise InvalidInput(Problem(where, "does not say what it was measured on", remedy=remedy))
        found = accelerators.find(name)
        if found is None:
            problem = accelerators.unknown(name, None, where)
            remedy = f"{problem.remedy} or give --rename '{name}'=NAME" if called else problem.remedy
            return None if self.accelerators else Problem(problem.where, problem.rule, problem.found, remedy)
        return found if not self.accelerators or found.name in self.accelerators else None


@dataclass(frozen=True)
class Timed:
    """One measured batch, in our words."""

    where: str
    member: str
    accelerator: str
    batch_size: int
    p50_s: float
    p99_s: float | None = None
    at_least_s: float = 0.0
    """A higher quantile below p99 that the file has; p99 is not below it."""
    runs: int = 0
    said: str = ""
    """What tells it from other rows of the same batch."""


@dataclass
class Reading:
    """What a reader found in one file, while it is being filled."""

    source: str
    date: str
    timed: list[Timed] = field(default_factory=list)
    profiles: list[Profile] = field(default_factory=list)
    """Profiles that are whole already."""
    memory_gib: dict[str, float] = field(default_factory=dict)
    """Member -> what the file says of its memory."""
    memory_said: str = ""
    work: dict[str, Work] = field(default_factory=dict)
    """Member -> what it does per item, where the file says."""
    measured: list[Measured] = field(default_factory=list)
    """What a roofline can be fitted on."""
    unusable: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def member_name(text: str) -> str:
    """A model's name as a member of ours: slashes stay, blanks and other signs become dashes."""
    return "/".join(filter(None, (slug(part) for part in text.split("/"))))[:100]


def profiles_of(reading: Reading, asked: Asked) -> list[Profile]:
    """Profiles of everything timed, one per member and accelerator.

    Raises `InvalidInput` where several rows time the same batch and `asked.pick` does not say which counts, where a p99 is
    missing and no factor is given, and where nothing says how much memory a member takes. A table in which a larger batch is
    faster than a smaller one is reported in `reading.notes` and kept as it is.
    """
    groups: dict[tuple[str, str], dict[int, list[Timed]]] = defaultdict(lambda: defaultdict(list))
    for timed in reading.timed:
        groups[timed.member, timed.accelerator][timed.batch_size].append(timed)
    problems: list[Problem] = []
    profiles = list(reading.profiles)
    for (member, accelerator), batches in groups.items():
        chosen = [_chosen(rows, asked, problems) for _, rows in sorted(batches.items())]
        timings = [_timing(t, asked, problems) for t in chosen]
        memory = asked.memory_gib if asked.memory_gib is not None else reading.memory_gib.get(member)
        if memory is None:
            remedy = "give --memory-gib, what a replica takes"
            problems.append(
                Problem(f"{chosen[0].where}: {member}", "does not say how much memory it takes", remedy=remedy)
            )
        if len(problems) > 20:
            break
        if problems:
            continue
        assert memory is not None
        _note_slower(reading, member, accelerator, timings)
        build = partial(
            Profile,
            member=member,
            accelerator=accelerator,
            timings=tuple(timings),
            memory_gib=memory,
            origin="imported",
            source=_source(reading, asked, chosen),
            date=reading.date,
        )
        profile = checked(build, chosen[0].where, problems)
        if profile is not None:
            profiles.append(profile)
    if problems:
        raise InvalidInput(problems[:20])
    return profiles


def _chosen(rows: Sequence[Timed], asked: Asked, problems: list[Problem]) -> Timed:
    """The row that counts among those that time the same batch."""
    if len(rows) > 1 and asked.pick is None:
        told = "; ".join(dict.fromkeys(r.said for r in rows[:4] if r.said))
        rule = f"times {rows[0].member} on {rows[0].accelerator} at batch {rows[0].batch_size} {len(rows)} times"
        problems.append(Problem(rows[0].where, rule, told, "choose with --where COLUMN=VALUE, or give --pick median"))
    ordered = sorted(rows, key=lambda r: r.p50_s)
    return ordered[{"fastest": 0, "slowest": -1}.get(asked.pick or "", (len(ordered) - 1) // 2)]


def _timing(timed: Timed, asked: Asked, problems: list[Problem]) -> BatchTiming:
    p99 = timed.p99_s
    if p99 is None:
        if asked.p99_factor is None:
            remedy = "give --p99-factor, by which the median is multiplied, e.g. 1.2"
            problems.append(Problem(f"{timed.where}: {timed.member}", "has no p99", remedy=remedy))
        p99 = timed.p50_s * (asked.p99_factor or 1.0)
    p99 = max(p99, timed.at_least_s, timed.p50_s)
    return BatchTiming(batch_size=timed.batch_size, latency_p50_s=timed.p50_s, latency_p99_s=p99, runs=timed.runs)


def _note_slower(reading: Reading, member: str, accelerator: str, timings: Sequence[BatchTiming]) -> None:
    for quantile in ("latency_p50_s", "latency_p99_s"):
        times = [getattr(t, quantile) for t in timings]
        drops = [i for i in range(1, len(times)) if times[i] < times[i - 1]]
        if drops:
            i = drops[0]
            reading.notes.append(
                f"{member} on {accelerator}: {quantile} falls from {times[i - 1]:.6g} at batch {timings[i - 1].batch_size} to "
                f"{times[i]:.6g} at batch {timings[i].batch_size}; kept as it is, plans count the slower figure for both"
            )


def _source(reading: Reading, asked: Asked, chosen: Sequence[Timed]) -> str:
    said = [reading.source]
    if any(t.p99_s is None for t in chosen):
        said.append(f"p99 taken as {asked.p99_factor:g} x p50")
    if asked.memory_gib is None and reading.memory_said:
        said.append(reading.memory_said)
    if asked.pick is not None:
        said.append(f"{asked.pick} where measured several times")
    return "; ".join(said)
