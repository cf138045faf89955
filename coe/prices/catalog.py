"""How old prices are and where they come from. Today's date is an argument; nothing here reads a clock."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

from coe.errors import Problem, Stale
from coe.types import Offer, Prices


def age_days(offer: Offer, today: str) -> int:
    """Days from the price's date to `today` (both YYYY-MM-DD); negative for a price of the future."""
    return (date.fromisoformat(today) - date.fromisoformat(offer.date)).days


def check_age(prices: Prices, today: str, max_age_days: int) -> None:
    """Raise `Stale` naming every offer that is older than allowed."""
    problems = [
        Problem(
            f"offers: {offer.node_type}",
            f"its price must be at most {max_age_days} days old",
            f"{age_days(offer, today)} days ({offer.date})",
            "renew the price list, or allow older prices with --max-price-age",
        )
        for offer in prices.offers
        if age_days(offer, today) > max_age_days
    ]
    if problems:
        raise Stale(problems)


def provenance(offers: Iterable[Offer]) -> str:
    """Sources and dates of prices in one line: ``AWS on-demand list, us-east-1 (2026-11-01)``."""
    dates: dict[str, set[str]] = {}
    for offer in offers:
        dates.setdefault(offer.source, set()).add(offer.date)
    return "; ".join(f"{source} ({', '.join(sorted(days))})" for source, days in sorted(dates.items()))
