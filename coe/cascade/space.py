"""Which cascades a search looks at: sets of members for the first and the later tiers, rules, carried votes, dispatch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from coe.table import PredictionTable
from coe.types import Tier


@dataclass(frozen=True)
class Space:
    """What to try. The defaults are two tiers, up to three members before up to two, by vote and by mean probability.

    rules: of gated tiers; None for `vote` and, where there are probabilities, `score`. carry: whether the last tier may count
    earlier votes too, or must not, or both. dispatch: how the first tier asks its members. tiers: 2 or 3. most_cost: leave out
    what costs more per query. most_cells: narrow the space rather than visit more configurations than this.
    """

    first_members: int = 3
    last_members: int = 2
    middle_members: int = 1
    rules: tuple[str, ...] | None = None
    carry: tuple[bool, ...] = (False, True)
    dispatch: tuple[Literal["parallel", "staged"], ...] = ("parallel",)
    tiers: int = 2
    most_cost: float = math.inf
    most_cells: float = 2e10

    def rules_for(self, table: PredictionTable) -> tuple[str, ...]:
        """The gate rules that `table` supports."""
        if self.rules is not None:
            return self.rules
        return ("vote",) if table.probs is None else ("vote", "score")

    def first_tiers(self, ranked: Sequence[str], table: PredictionTable) -> Iterator[Tier]:
        """Every first tier worth gating. `ranked`: members, the most accurate first; ties of votes go to the first.

        Votes need two members or more; a quorum beside a threshold must be one that the score alone does not imply.
        """
        for size in range(1, min(self.first_members, len(ranked) - 1) + 1):
            for members in itertools.combinations(ranked, size):
                for rule, dispatch in itertools.product(self.rules_for(table), self.dispatch):
                    if dispatch == "staged" and size == 1:
                        continue
                    yield from _gated(members, rule, dispatch)

    def last_sets(self, ranked: Sequence[str], has_probs: bool) -> list[tuple[str, ...]]:
        """Every set of members for the last tier. Two that only vote answer as the first of them alone."""
        most = min(self.last_members, len(ranked))
        return [
            s for size in range(1, most + 1) for s in itertools.combinations(ranked, size) if has_probs or size != 2
        ]

    def narrowed(self, members: int, items: int, rules: int) -> tuple[Space, str]:
        """A space that stays within `most_cells`, and in words what was left out; both unchanged where nothing was."""
        space, dropped = self, []
        while space.cells(members, items, rules) > self.most_cells:
            if space.last_members > 1:
                space = replace(space, last_members=space.last_members - 1)
                dropped.append(f"last tiers of {space.last_members + 1}")
            elif space.first_members > 1:
                space = replace(space, first_members=space.first_members - 1)
                dropped.append(f"first tiers of {space.first_members + 1}")
            else:
                break
        return space, ", ".join(dropped)

    def cells(self, members: int, items: int, rules: int) -> float:
        """About how many configurations there are: first tiers x rules x last tiers x gates."""
        heads = sum(math.comb(members, k) for k in range(1, self.first_members + 1))
        tails = sum(math.comb(members, k) for k in range(1, self.last_members + 1))
        return float(heads * rules * len(self.dispatch) * tails * len(self.carry) * items)


def _gated(members: tuple[str, ...], rule: str, dispatch: Literal["parallel", "staged"]) -> Iterator[Tier]:
    size = len(members)
    if rule == "vote":
        if size > 1:
            yield Tier(members=members, rule=rule, quorum=size, dispatch=dispatch)
    elif rule == "both":
        for quorum in range(2, size + 1):
            yield Tier(members=members, rule=rule, quorum=quorum, threshold=1.0, dispatch=dispatch)
    elif size > 1 or rule in ("score", "margin", "entropy") or ":" in rule:
        yield Tier(members=members, rule=rule, threshold=1.0, dispatch=dispatch)


def last_rule(table: PredictionTable) -> str:
    """The rule by which a last tier of several votes answers."""
    return "vote" if table.probs is None else "score"
