"""Price lists as others publish them, read strictly into ours. One module per format; reading files happens here alone.

Adding a format is one function ``read(path, asked) -> Reading`` and one line in `READERS`; a dotted path
``package.module:function`` works as a kind, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from coe.errors import InvalidInput, Problem
from coe.plugins import resolve
from coe.prices.rentals import named_offers
from coe.prices.sources import cloud_vm, fullstack, gpuhunt, litellm, owned, plain, skypilot, token_csv
from coe.prices.sources.asked import Asked, Reading
from coe.types import Offer, Prices

Reader = Callable[[Path, Asked], Reading]

READERS: dict[str, Reader] = {
    "skypilot": skypilot.read,
    "gpuhunt": gpuhunt.read,
    "cloud-vm": cloud_vm.read,
    "fullstack": fullstack.read,
    "fullstack-serverless": fullstack.read_serverless,
    "litellm": litellm.read,
    "llm-csv": token_csv.read,
    "owned": owned.read,
    "yaml": plain.read,
}
"""Kind -> reader; `coe import prices KIND FILE`."""


SHOWN = 20
"""So many problems are enough to see what is wrong with a file."""


def import_prices(kind: str, paths: Sequence[Path], asked: Asked) -> tuple[Prices, tuple[str, ...]]:
    """The price list that is in the files, and what is worth knowing about it.

    Raises `InvalidInput` for a file of another kind or currency; and with every row that cannot be used (a malformed cell, an
    unknown accelerator, a share of one, two prices for one thing) unless `asked.skip_unusable`.
    """
    read = resolve(kind, READERS, "price list")
    readings = [read(path, asked) for path in paths]
    problems = [p for r in readings for p in r.problems]
    if problems:
        raise InvalidInput(problems)
    unusable = [p for r in readings for p in r.unusable]
    notes = [n for r in readings for n in r.notes]
    others = sorted({name for r in readings for name in r.not_asked_for})
    if others:
        notes.append(f"accelerators of names that are not known were left out, too: {', '.join(others[:20])}")
    offers: list[Offer] = [o for r in readings for o in r.offers]
    for source in dict.fromkeys(r.source for r in readings):
        named = named_offers([x for r in readings if r.source == source for x in r.rentals], source, asked.quota)
        offers += named.offers
        unusable += named.conflicts
        if named.merged:
            notes.append(f"{named.merged} rows say the same as another one (zones at one price)")
    if unusable and not asked.skip_unusable:
        raise InvalidInput(shown(unusable))
    if unusable:
        notes.append(f"{len(unusable)} reasons to leave rows out; the first: {unusable[0]}")
    apis = tuple(a for r in readings for a in r.apis)
    if not offers and not apis:
        raise InvalidInput(asked.nothing_left(paths))
    _refuse_repeats([o.node_type for o in offers], "offers of the name")
    _refuse_repeats([f"{a.model} of {a.provider}" for a in apis], "prices of the hosted model")
    return Prices(offers=tuple(offers), apis=apis), tuple(notes)


def _refuse_repeats(names: Sequence[str], what: str) -> None:
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        rule = f"these files have two {what} '{twice[0]}'"
        raise InvalidInput(Problem("", rule, remedy="import them apart, or rename one"))


def shown(problems: Sequence[Problem]) -> list[Problem]:
    """The first problems, and how many more there are: a long table can have thousands of the same kind."""
    if len(problems) <= SHOWN:
        return list(problems)
    rest = Problem(
        "", f"and {len(problems) - SHOWN} more like these", remedy="leave such rows out with --skip-unusable"
    )
    return [*problems[:SHOWN], rest]
