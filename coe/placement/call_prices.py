"""What one call of each member costs in dollars, wherever it runs: on the cheapest node that holds it, or as a hosted model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from coe.cost.calls import CallCosts, constant
from coe.cost.model import unit_costs
from coe.cost.tokens import call_usd
from coe.errors import InvalidInput, Problem
from coe.placement.candidates import HOSTED_RUNNER, hosted_model, usd_by_lengths
from coe.placement.columns import HOSTED
from coe.prices.catalog import Priced, provenance
from coe.table import PredictionTable
from coe.types import ApiPrice, Pool, Prices, Profiles, Workload


def call_prices(
    table: PredictionTable,
    pool: Pool | None,
    profiles: Profiles,
    prices: Prices,
    workload: Workload | None,
    batch: float,
    where: str = "prices",
) -> CallCosts:
    """Dollars of a call of every member of the table, in batches of `batch` on nodes.

    A member is hosted where the pool says which model it is and the price list sells that; its calls cost their recorded
    tokens, else the workload's lengths. `where` names the price list. Raises `InvalidInput` for a member that has a profile
    as a hosted model and no price as one, and for what `unit_costs` and `usd_by_lengths` refuse.
    """
    sold = {} if pool is None else _sold(table.members, pool, prices)
    if problems := [*_unpriced(table.members, sold, pool, profiles, where)]:
        raise InvalidInput(problems)
    on_nodes = unit_costs([m for m in table.members if m not in sold], profiles, prices, batch=batch)
    used: list[Priced] = [*(prices.offers if on_nodes else ()), *sold.values()]
    source = f"prices: {provenance(used)}"
    if table.tokens is None or not sold:
        hosted = {m: usd_by_lengths(api, workload) for m, api in sold.items()}
        return constant({m: {**on_nodes, **hosted}[m] for m in table.members}, "usd", source)
    per_call = np.empty(table.answers.shape)
    for column, member in enumerate(table.members):
        api = sold.get(member)
        tokens = table.tokens[:, column]
        per_call[:, column] = on_nodes[member] if api is None else call_usd(api, tokens[:, 0], tokens[:, 1])
    return CallCosts(table.members, per_call, "usd", source)


def _sold(members: Sequence[str], pool: Pool, prices: Prices) -> dict[str, ApiPrice]:
    """The members of the table that are hosted, with their prices."""
    models = {m.name: hosted_model(m, prices) for m in pool.members if m.name in members}
    return {name: prices.api(model) for name, model in models.items() if model is not None}


def _unpriced(
    members: Sequence[str], sold: dict[str, ApiPrice], pool: Pool | None, profiles: Profiles, where: str
) -> Iterator[Problem]:
    """Members that were timed as hosted models, of which it is not known what they cost."""
    for member in members:
        if member in sold or profiles.find(member, HOSTED) is None:
            continue
        known = None if pool is None else next((m for m in pool.members if m.name == member), None)
        if known is None:
            rule = f"has a profile on {HOSTED}, so it is hosted, and nothing says which model it is"
            yield Problem(
                f"profiles: {member}", rule, remedy="give the pool file with --pool, or what calls cost with --costs"
            )
        elif known.runner == HOSTED_RUNNER:
            rule = f"has no price, and member '{member}' is hosted"
            remedy = f"add it to {where} under apis: model, provider, price, source, date"
            yield Problem(f"{where}: apis: {known.options.get('model')}", rule, remedy=remedy)
