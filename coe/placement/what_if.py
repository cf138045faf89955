"""What if a price, a quota or a promise were another: `price.A100=1.2`, `quota.l4-node=8`, `rate=500`, `latency_s=0.2`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import pydantic

from coe.errors import InvalidInput, Problem
from coe.types import Offer, Prices, Workload

_SHORT = {"rate": "rate_per_s", "latency": "latency_s"}
_OPTION = "--what-if"


def changed(settings: Iterable[str], prices: Prices, workload: Workload) -> tuple[Prices, Workload]:
    """Price list and workload after the changes, in their order.

    ``price.NAME=USD`` sets the price per hour of a node type, or per accelerator of every node that has accelerators NAME;
    ``quota.NAME=N`` a quota; anything else is a key of the workload. Raises `InvalidInput` naming what is unknown.
    """
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign or not key or not value:
            remedy = "write price.NAME=USD, quota.NAME=NODES, or a key of the workload, such as rate=500"
            raise InvalidInput(Problem(_OPTION, "must be KEY=VALUE", setting, remedy))
        group, dot, name = key.partition(".")
        if dot and group in ("price", "quota"):
            prices = _with_offers(prices, group, name, _number(setting, value))
        else:
            workload = _with_key(workload, setting, _SHORT.get(key, key), value)
    return prices, workload


def _with_offers(prices: Prices, group: str, name: str, value: float) -> Prices:
    """The price list with the price or the quota of the offers that `name` means changed."""
    meant = {o.node_type for o in prices.offers if name in (o.node_type, o.accelerator)}
    if not meant:
        names = sorted({n for o in prices.offers for n in (o.node_type, o.accelerator)})
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        remedy = f"did you mean {near[0]}?" if near else f"known: {', '.join(names[:12])}"
        raise InvalidInput(
            Problem(f"{_OPTION} {group}.{name}", "no offer has this node type or accelerator", remedy=remedy)
        )
    offers = tuple(_with(o, group, name, value) if o.node_type in meant else o for o in prices.offers)
    return Prices.model_validate(prices.model_copy(update={"offers": offers}).model_dump())


def _with(offer: Offer, group: str, name: str, value: float) -> Offer:
    if group == "quota":
        return offer.model_copy(update={"quota": int(value)})
    count = 1 if name == offer.node_type else offer.devices_per_node
    return offer.model_copy(update={"usd_per_hour": value * count, "source": f"what if, instead of {offer.source}"})


def _with_key(workload: Workload, setting: str, key: str, value: str) -> Workload:
    """The workload with one key changed, checked like a file."""
    known = [k for k in Workload.model_fields if k not in ("kind", "version")]
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
        remedy = f"did you mean {near[0]}?" if near else f"known: price.NAME, quota.NAME, {', '.join(known)}"
        raise InvalidInput(Problem(f"{_OPTION} {setting}", "the workload has no such key", remedy=remedy))
    content: Mapping[str, Any] = {**workload.model_dump(), key: value}
    try:
        return Workload.model_validate(content, strict=False)
    except pydantic.ValidationError as error:
        rule = "; ".join(e["msg"] for e in error.errors())
        raise InvalidInput(Problem(f"{_OPTION} {setting}", rule, value)) from None


def _number(setting: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise InvalidInput(Problem(f"{_OPTION} {setting}", "must be a number >= 0", value))
    return number
