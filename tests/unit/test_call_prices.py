"""Dollars of a call for the search, where some members are hosted models: the same that a plan counts with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coe import files
from coe.cli.main import run
from coe.cost.model import unit_costs
from coe.cost.tokens import call_usd
from coe.errors import InvalidInput
from coe.placement.call_prices import call_prices
from coe.placement.candidates import World, hosted_members
from coe.table import PredictionTable
from coe.types import ApiPrice, Front, Member, Pool, Prices, Profiles, TokenLengths
from tests import factories

PRICE = ApiPrice(
    model="big-1",
    provider="p",
    usd_per_million_prompt_tokens=2.0,
    usd_per_million_completion_tokens=8.0,
    usd_per_call=0.001,
    source="hosted tests",
    date=factories.DAY,
)


def pool() -> Pool:
    """`large` is the hosted model big-1."""
    options = {"base_url": "https://llm.test/v1", "model": "big-1"}
    given = factories.pool()
    return given.model_copy(
        update={"members": (*given.members[:3], Member(name="large", runner="openai", options=options))}
    )


def profiles() -> Profiles:
    local = [p for p in factories.profiles().profiles if p.member != "large"]
    return Profiles(profiles=(*local, factories.profile("large", "API", 0.02)))


def prices(*apis: ApiPrice) -> Prices:
    return factories.prices().model_copy(update={"apis": apis or (PRICE,)})


def table(tokens: bool = True) -> PredictionTable:
    given = factories.table()
    if not tokens:
        return given
    counts = np.random.default_rng(0).integers(1, 900, (*given.answers.shape, 2)).astype(np.int32)
    return replace(given, tokens=counts)


def test_hosted_members_cost_their_recorded_tokens_and_others_their_nodes() -> None:
    given = table()
    found = call_prices(given, pool(), profiles(), prices(), None, 4.0)
    assert found.by_item
    assert given.tokens is not None
    large = given.members.index("large")
    expected = call_usd(PRICE, given.tokens[:, large, 0], given.tokens[:, large, 1])
    np.testing.assert_allclose(found.per_call[:, large], expected)
    others = [m for m in given.members if m != "large"]
    on_nodes = unit_costs(others, profiles(), prices(), batch=4.0)
    for member in others:
        np.testing.assert_allclose(found.per_call[:, given.members.index(member)], on_nodes[member])
    assert "hosted tests" in found.source


def test_the_mean_is_what_a_plan_counts_with() -> None:
    given = table()
    found = call_prices(given, pool(), profiles(), prices(), None, 4.0)
    world = World(pool(), given, profiles(), prices(), factories.workload())
    asked = {"large": np.ones(len(given), dtype=np.bool_)}
    hosted = hosted_members(["large"], asked, world)
    assert found.mean()["large"] == pytest.approx(hosted["large"].usd_per_call)


def test_without_tokens_the_workloads_lengths_count_and_a_price_per_call_needs_neither() -> None:
    lengths = (
        TokenLengths(prompt_tokens=100, completion_tokens=10, share=0.5),
        TokenLengths(prompt_tokens=300, completion_tokens=30, share=0.5),
    )
    work = factories.workload(tokens=lengths)
    found = call_prices(table(tokens=False), pool(), profiles(), prices(), work, 4.0)
    assert not found.by_item
    assert found.mean()["large"] == pytest.approx((200 * 2 + 20 * 8) / 1e6 + 0.001)
    per_call = PRICE.model_copy(update={"usd_per_million_prompt_tokens": 0.0, "usd_per_million_completion_tokens": 0.0})
    found = call_prices(table(tokens=False), pool(), profiles(), prices(per_call), None, 4.0)
    assert found.mean()["large"] == pytest.approx(0.001)
    with pytest.raises(InvalidInput, match="apis: big-1: is priced by the token, and nobody counted them"):
        call_prices(table(tokens=False), pool(), profiles(), prices(), factories.workload(), 4.0)


def test_a_hosted_member_that_nobody_prices_is_refused_with_file_key_and_remedy() -> None:
    with pytest.raises(InvalidInput, match=r"profiles: large: has a profile on API.*give the pool file with --pool"):
        call_prices(table(), None, profiles(), prices(), None, 4.0)
    other = PRICE.model_copy(update={"model": "other-1"})
    with pytest.raises(InvalidInput, match=r"my.yaml: apis: big-1: has no price.*add it to my.yaml under apis"):
        call_prices(table(), pool(), profiles(), prices(other), None, 4.0, "my.yaml")
    both = Profiles(profiles=(*profiles().profiles, factories.profile("large", "T4", 0.02)))
    with pytest.raises(InvalidInput, match="nothing says which model it is"):  # not silently at the price of a node
        call_prices(table(), None, both, prices(), None, 4.0)


def test_without_hosted_members_nothing_changes() -> None:
    found = call_prices(table(), factories.pool(), factories.profiles(), factories.prices(), None, 4.0)
    assert found.mean() == unit_costs(table().members, factories.profiles(), factories.prices(), batch=4.0)


def search(folder: Path, *options: str) -> int:
    given: tuple[Any, ...] = ("search", folder / "predictions.npz", "--profiles", folder / "profiles.yaml")
    given += ("--prices", folder / "prices.yaml", "--workload", folder / "workload.yaml", "--first", "2", "--last", "1")
    return run([str(word) for word in (*given, *options, "-o", folder / "front.json")])


def test_search_prices_them_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = table()
    files.write_predictions(tmp_path / "predictions.npz", given)
    for name, noun in (("pool", pool()), ("profiles", profiles()), ("prices", prices())):
        files.write(tmp_path / f"{name}.yaml", noun)
    files.write(tmp_path / "workload.yaml", factories.workload())
    assert search(tmp_path) == 2
    assert "give the pool file with --pool" in capsys.readouterr().err
    assert search(tmp_path, "--pool", str(tmp_path / "pool.yaml")) == 0
    assert "hosted tests" in capsys.readouterr().err
    front = files.read(tmp_path / "front.json", Front)
    expected = call_prices(given, pool(), profiles(), prices(), factories.workload(), 1.0).mean()["large"]
    assert front.unit_cost["large"] == pytest.approx(expected, rel=0.2)  # of the items of its split
