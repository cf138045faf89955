"""What one call of each member costs, in whatever unit the user counts: dollars, seconds on a device, tokens, joules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coe.cost.tokens import call_usd
from coe.errors import InvalidInput, Problem
from coe.table import PredictionTable
from coe.types import BoolArray, Costs, FloatArray


@dataclass(frozen=True)
class CallCosts:
    """The cost of a call, the same for every item or one for each.

    per_call: (members,) or (items, members), finite and not negative, in `unit`.    source: where the figures are from.
    """

    members: tuple[str, ...]
    per_call: FloatArray
    unit: str = "usd"
    source: str = ""

    def __post_init__(self) -> None:
        if self.per_call.ndim not in (1, 2) or self.per_call.shape[-1] != len(self.members):
            raise ValueError(f"per_call {self.per_call.shape} must end in {len(self.members)} members")
        bad = ~np.isfinite(self.per_call) | (self.per_call < 0)
        if bad.any():
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            found = f"{self.per_call[at]} in row {at[0]}" if len(at) == 2 else f"{self.per_call[at]}"
            raise InvalidInput(
                Problem(f"cost of '{self.members[at[-1]]}'", "must be a finite number, not negative", found)
            )
        self.per_call.flags.writeable = False

    @property
    def by_item(self) -> bool:
        """True where every item has costs of its own."""
        return self.per_call.ndim == 2

    def of(self, members: Sequence[str], items: int) -> FloatArray:
        """(items, members): cost of calling each of `members` about each item; `InvalidInput` where one has none."""
        lacking = [m for m in members if m not in self.members]
        if lacking:
            known = ", ".join(self.members)
            raise InvalidInput(
                Problem("costs", f"no cost is known for {', '.join(lacking)}", remedy=f"costs are known for: {known}")
            )
        columns = [self.members.index(m) for m in members]
        costs = self.per_call[..., columns]
        if self.by_item and len(costs) != items:
            raise InvalidInput(Problem("costs", f"must be given for {items} items", f"{len(costs)}"))
        return np.broadcast_to(costs, (items, len(columns)))

    def rows(self, mask: BoolArray) -> CallCosts:
        """The costs on some of the items."""
        return CallCosts(self.members, self.per_call[mask], self.unit, self.source) if self.by_item else self

    def mean(self) -> dict[str, float]:
        """Member -> mean cost of a call."""
        means = self.per_call.mean(axis=0) if self.by_item else self.per_call
        return dict(zip(self.members, means.tolist(), strict=True))


def constant(cost: Mapping[str, float], unit: str = "usd", source: str = "") -> CallCosts:
    """The same cost for every call of a member."""
    return CallCosts(tuple(cost), np.array(list(cost.values()), dtype=np.float64), unit, source)


def call_costs(costs: Costs, table: PredictionTable) -> CallCosts:
    """The cost of every call of every member of the table.

    Raises `InvalidInput` for a member without a cost, and where tokens are priced and the table counts none.
    """
    lacking = [m for m in table.members if m not in costs.per_call and m not in costs.by_token]
    if lacking:
        remedy = "add them, or leave these members out"
        raise InvalidInput(Problem("costs", f"no cost is known for {', '.join(lacking)}", remedy=remedy))
    source = f"{costs.source}, {costs.date}" if costs.date else costs.source
    if not any(m in costs.by_token for m in table.members):
        return constant({m: costs.per_call[m] for m in table.members}, costs.unit, source)
    if table.tokens is None:
        remedy = "import predictions with token counts"
        raise InvalidInput(Problem("predictions", "hold no token counts to price", remedy=remedy))
    per_call = np.empty(table.answers.shape)
    for column, member in enumerate(table.members):
        price = costs.by_token.get(member)
        prompt, completion = table.tokens[:, column, 0], table.tokens[:, column, 1]
        per_call[:, column] = costs.per_call[member] if price is None else call_usd(price, prompt, completion)
    return CallCosts(table.members, per_call, costs.unit, source)
