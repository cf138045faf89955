"""How old prices are and where they come from. Today's date is an argument; nothing here reads a clock."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

from coe.errors import Problem, Stale
from coe.types import ApiPrice, Offer, Prices

Priced = Offer | ApiPrice


def age_days(offer: Priced, today: str) -> int:
    """Days from the price's date to `today` (both YYYY-MM-DD); negative for a price of the future."""
    return (date.fromisoformat(today) - date.fromisoformat(offer.date)).days


def check_age(prices: Prices, today: str, max_age_days: int) -> None:
    """Raise `Stale` naming every offer that is older than allowed."""
    named: list[tuple[str, Priced]] = [(f"offers: {o.node_type}", o) for o in prices.offers]
    named += [(f"apis: {a.model} of {a.provider}", a) for a in prices.apis]
    problems = [
        Problem(
            where,
            f"its price must be at most {max_age_days} days old",
            f"{age_days(priced, today)} days ({priced.date})",
            "renew the price list, or allow older prices with --max-price-age",
        )
        for where, priced in named
        if age_days(priced, today) > max_age_days
    ]
    if problems:
        raise Stale(problems)


def provenance(offers: Iterable[Priced], today: str | None = None) -> str:
    """Sources and dates of prices in one line: ``AWS on-demand list, us-east-1 (2026-11-01)``.

    With `today` also how old they are: ``(2026-11-01, 19 days old)``.
    """
    dates: dict[str, set[str]] = {}
    for offer in offers:
        dates.setdefault(offer.source, set()).add(offer.date)
    return "; ".join(
        f"{source} ({', '.join(_aged(day, today) for day in sorted(days))})" for source, days in sorted(dates.items())
    )


def _aged(day: str, today: str | None) -> str:
    if today is None:
        return day
    days = (date.fromisoformat(today) - date.fromisoformat(day)).days
    return f"{day}, {days} day{'s' if abs(days) != 1 else ''} old" if days >= 0 else f"{day}, in the future"
