"""When queries arrive, as the command line says it: a trace, or a stream drawn."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from coe.errors import InvalidInput, Problem
from coe.types import FloatArray, IntArray

MOST_PROBLEMS = 20


class Arrivals(StrEnum):
    """How queries arrive where no trace says it."""

    poisson = "poisson"
    bursty = "bursty"
    on_off = "on-off"
    diurnal = "diurnal"


class Unit(StrEnum):
    """Of the times of a trace."""

    s = "s"
    ms = "ms"
    iso = "iso"
    """Dates with times, 2026-11-01T12:00:00.250Z; without a zone they count as UTC."""


@dataclass(frozen=True)
class Trace:
    """How a trace is read."""

    time_column: str
    unit: Unit
    item_column: str | None = None
    scale: float = 1.0


def drawn(
    kind: Arrivals,
    rate_per_s: float,
    duration_s: float,
    seed: int,
    burstiness: float,
    on_off_s: tuple[float, float],
    period_and_swing: tuple[float, float],
) -> FloatArray:
    """Arrival times of a stream, in seconds from 0."""
    from coe.simulator import arrivals

    rng = arrivals.stream(seed, "arrivals")
    match kind:
        case Arrivals.poisson:
            return arrivals.poisson(rng, rate_per_s, duration_s)
        case Arrivals.bursty:
            return arrivals.gamma(rng, rate_per_s, duration_s, burstiness)
        case Arrivals.on_off:
            return arrivals.on_off(rng, rate_per_s, duration_s, *on_off_s)
        case Arrivals.diurnal:
            period_s, swing = period_and_swing
            return arrivals.diurnal(rng, rate_per_s, duration_s, swing, period_s)


def of_trace(
    path: Path, trace: Trace, items: Sequence[str] | np.ndarray, duration_s: float | None
) -> tuple[FloatArray, IntArray | None]:
    """Arrival times of a trace, whole or its first seconds, and the row of `items` that each request replays, if it says so.

    Raises `InvalidInput` for malformed rows, times that go back, and items that are not there.
    """
    from coe.simulator.arrivals import replay

    raw, names = read_trace(path, trace)
    times = replay(raw, trace.scale)
    keep = np.ones(len(times), dtype=np.bool_) if duration_s is None else times < duration_s
    return times[keep], None if names is None else _rows(path, names, items)[keep]


def read_trace(path: Path, trace: Trace) -> tuple[FloatArray, list[str] | None]:
    """Times in seconds as the file has them, and item names where a column holds them."""
    from coe.prices.sources.table import rows

    columns = [trace.time_column, *([trace.item_column] if trace.item_column else [])]
    problems: list[Problem] = []
    times, names = [], []
    for line in rows(path, columns, problems, "a trace of arrivals"):
        if trace.unit is Unit.iso:
            times.append(_moment(line.text(trace.time_column), f"{line.where}: {trace.time_column}", problems))
        else:
            times.append(line.number(trace.time_column, least=-1e18) / (1000 if trace.unit is Unit.ms else 1))
        if trace.item_column:
            names.append(line.text(trace.item_column))
        if len(problems) >= MOST_PROBLEMS:
            break
    if problems:
        raise InvalidInput(problems)
    return np.array(times, dtype=np.float64), names if trace.item_column else None


def _moment(text: str, where: str, problems: list[Problem]) -> float:
    """Seconds since 1970 of a date with a time."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        problems.append(Problem(where, "must be a date with a time, such as 2026-11-01T12:00:00.25Z", f"'{text}'"))
        return np.nan
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


def _rows(path: Path, names: Sequence[str], items: Sequence[str] | np.ndarray) -> IntArray:
    """The row of each named item."""
    at = {str(name): row for row, name in enumerate(items)}
    missing = [name for name in names if name not in at]
    if missing:
        rule = f"{len(missing)} requests name items that the predictions' split lacks"
        remedy = "give the split that holds them (--split), or leave out --item-column"
        raise InvalidInput(Problem(str(path), rule, f"the first is '{missing[0]}'", remedy))
    return np.array([at[name] for name in names], dtype=np.int64)
