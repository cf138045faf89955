"""Numbers as people read them. Rounding happens here and nowhere before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

UNKNOWN = "unknown"
_FEWEST_CENTS, _MOST_CENTS = 2, 10


def usd(value: float | None) -> str:
    """Dollars with three significant digits and at least cents: ``$3.60``, ``$0.000146``."""
    return _usd(value, _decimals([value])) if value is not None else UNKNOWN


def usd_column(values: Sequence[float | None]) -> list[str]:
    """Dollars of one column, all with the same number of decimals, so that a reader can add them up."""
    decimals = _decimals(values)
    return [_usd(value, decimals) if value is not None else UNKNOWN for value in values]


def _decimals(values: Iterable[float | None]) -> int:
    """Enough for three digits of the smallest value, but not more than six of the largest."""
    sizes = [abs(v) for v in values if v]
    if not sizes:
        return _FEWEST_CENTS
    wanted = 2 - _magnitude(min(sizes))
    sensible = 5 - _magnitude(max(sizes))
    return max(_FEWEST_CENTS, min(wanted, sensible, _MOST_CENTS))


def _magnitude(value: float) -> int:
    """The power of ten of a positive number once it is rounded to three digits: 0.9999 counts as 1.00."""
    return int(f"{value:.2e}".partition("e")[2])


def _usd(value: float, decimals: int) -> str:
    smallest = 10.0**-decimals
    if value == 0 or abs(value) < smallest * 1e-6:
        return f"${0:.{decimals}f}"
    if abs(value) < smallest / 2:
        return f"{'>-' if value < 0 else '<'}${smallest:.{decimals}f}"
    return f"{'-' if value < 0 else ''}${abs(value):,.{decimals}f}"


def seconds(value: float | None) -> str:
    """A duration with three significant digits in a fitting unit: ``214 ms``, ``1.20 s``."""
    if value is None:
        return UNKNOWN
    if value == 0:
        return "0 s"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size * 0.9995 or unit == "µs":
            number = value / size
            return f"{number:,.{max(0, 2 - _magnitude(max(number, 0.01)))}f} {unit}"
    raise AssertionError("the loop returns")


def percent(value: float | None, digits: int = 1) -> str:
    """A share: ``41.2%``."""
    return UNKNOWN if value is None else f"{100 * value + 0.0:.{digits}f}%"


def signed_percent(value: float | None) -> str:
    """A relative difference: ``+4.1%``; ``-`` where there is none to state."""
    if value is None:
        return "-"
    tenths = round(100 * value, 1) + 0.0
    return f"{tenths:+,.0f}%" if abs(tenths) >= 999.5 else f"{tenths:+.1f}%"


def points(value: float) -> str:
    """A difference of two shares in percentage points: ``0.31 points``."""
    return f"{100 * value + 0.0:.2f} points"


def number(value: float | None, digits: int = 1) -> str:
    """A count that may be a part of one: ``118``, ``117.5``."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if abs(value - round(value)) < 1e-9 else f"{value:,.{digits}f}"


def hours(value: float) -> str:
    """Hours with three significant digits, or five decimals."""
    decimals = 5 if abs(value) < 1e-9 else max(2, min(8, 2 - _magnitude(abs(value))))
    return f"{value + 0.0:,.{decimals}f}"


def interval(low: float | None, high: float | None) -> str:
    """An interval of shares: ``95.1 – 98.0%``."""
    return "-" if low is None or high is None else f"{100 * low:.1f} – {100 * high:.1f}%"


def day(epoch_s: float) -> str:
    """The UTC day of an instant, ``YYYY-MM-DD``."""
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%d")


def moment(epoch_s: float) -> str:
    """An instant, ``YYYY-MM-DD HH:MM:SS UTC``."""
    return f"{datetime.fromtimestamp(epoch_s, UTC):%Y-%m-%d %H:%M:%S} UTC"


def span(start_s: float, end_s: float) -> str:
    """Two instants in UTC; the day is not repeated."""
    start, end = datetime.fromtimestamp(start_s, UTC), datetime.fromtimestamp(end_s, UTC)
    until = end.strftime("%H:%M:%S" if start.date() == end.date() else "%Y-%m-%d %H:%M:%S")
    return f"{start:%Y-%m-%d %H:%M:%S} to {until} UTC"
