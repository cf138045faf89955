"""The nouns themselves: what they derive, what their fingerprints notice, and that nobody can change them."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from coe.errors import InvalidInput
from coe.table import SPLITS, Outputs, PredictionTable
from coe.types import BatchTiming, Cascade, Fleet, FleetNode, PredictedCost, Prices, Profiles, Tier
from tests import factories

# --- Gates ---


@pytest.mark.parametrize(
    ("tier", "bar"),
    [
        (Tier(members=("a", "b", "c"), quorum=2), 2.0),
        (Tier(members=("a",), rule="score", threshold=0.7), 0.7),
        (Tier(members=("a",)), -math.inf),
    ],
    ids=["quorum", "threshold", "no gate"],
)
def test_the_bar_is_what_the_score_must_reach(tier: Tier, bar: float) -> None:
    assert tier.bar == bar
    assert tier.always_answers == (bar == -math.inf)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"quorum": 2, "threshold": 0.5}, "not both"),
        ({"rule": "score", "quorum": 2}, "only 'vote' and 'both' have a quorum"),
        ({"rule": "vote", "threshold": 0.67}, "takes an integer quorum"),
        ({"quorum": 3}, "it could never accept"),
        ({"quorum": 1}, "always accepts"),
        ({"rule": "score", "threshold": 0.0}, "always accept"),
        ({"rule": "score", "threshold": 1.2}, "never accept"),
        ({"members": ("a", "a")}, "the same answer twice"),
        ({"members": ()}, "at least 1"),
        ({"quorum": 2.5}, "integer"),
    ],
)
def test_a_tier_that_cannot_work_is_refused(fields: dict[str, object], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        Tier.model_validate({"members": ("a", "b"), **fields})


def test_a_cascade_ends_with_its_only_tier_that_always_answers() -> None:
    gate, last = Tier(members=("a", "b"), quorum=2), Tier(members=("c",))
    assert Cascade(tiers=(gate, last)).members == ("a", "b", "c")
    with pytest.raises(ValidationError, match=r"tiers\[0\] always accepts, so tiers\[1\] is never reached"):
        Cascade(tiers=(last, Tier(members=("d",))))
    with pytest.raises(ValidationError, match=r"tiers\[0\] is the last and must always answer"):
        Cascade(tiers=(gate,))
    with pytest.raises(ValidationError, match="'c' appears twice"):
        Cascade(tiers=(Tier(members=("c",), rule="score", threshold=0.5), last))


# --- Fingerprints ---


def test_a_cascade_is_known_by_what_decides() -> None:
    cascade = factories.cascade()
    renamed = cascade.model_copy(update={"name": "other"})
    assert renamed.tiers_fingerprint() == cascade.tiers_fingerprint()
    assert renamed.fingerprint() != cascade.fingerprint()
    others = [
        factories.cascade(threshold=0.81),
        factories.cascade(rule="vote"),
        factories.cascade(first=("other", "middle", "small")),  # order decides ties
    ]
    assert len({c.tiers_fingerprint() for c in (cascade, *others)}) == 4


def changed(table: PredictionTable, name: str) -> PredictionTable:
    """The table with one entry of one array changed."""
    if name == "probs":
        assert table.probs is not None
        probs = table.probs.copy()
        probs[3, 0] = probs[3, 0][::-1]
        return replace(table, probs=probs)
    array = getattr(table, name).copy()
    array[3] = "renamed" if name == "items" else (array[3] + 1) % len(table.classes)
    return replace(table, **{name: array})


@pytest.mark.parametrize("name", ["items", "labels", "answers", "probs"])
def test_a_table_is_known_by_everything_that_was_said_and_asked(name: str) -> None:
    table = factories.table(n=40)
    assert changed(table, name).fingerprint() != table.fingerprint()


def test_a_table_is_known_by_the_members_that_are_asked_for_only() -> None:
    table = factories.table(n=40)
    assert table.fingerprint(["large"]) != table.fingerprint(["small"])
    assert table.fingerprint(["small", "large"]) != table.fingerprint(["large", "small"])
    answers = table.answers.copy()
    answers[3, 0] = -1
    assert replace(table, answers=answers).fingerprint(["large"]) == table.fingerprint(["large"])


# --- Tables ---


def test_nobody_changes_a_table() -> None:
    table = factories.table(n=40)
    with pytest.raises(ValueError, match="read-only"):
        table.answers[0, 0] = 1
    with pytest.raises(FrozenInstanceError):
        table.labels = table.labels  # type: ignore[misc]


def test_outputs_keep_the_order_that_is_asked_for() -> None:
    table = factories.table(n=40)
    outputs = table.outputs(["large", "small"])
    assert outputs.probs is not None
    assert table.probs is not None
    assert (outputs.answers[:, 0] == table.answers[:, 3]).all()
    assert (outputs.probs[:, 1] == table.probs[:, 0]).all()


def test_splits_part_the_table() -> None:
    table = factories.table(n=100)
    parts = [item for name in SPLITS for item in table.split(name).items.tolist()]
    assert parts == table.items.tolist()
    with pytest.raises(InvalidInput, match="the split 'test' has no items; splits there: train"):
        table.rows(table.splits == "train").split("test")


def test_outputs_that_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match="disagree on items or members"):
        Outputs(np.zeros((3, 2), dtype=np.int64), np.zeros((3, 1, 4), dtype=np.float32))


# --- Money and time ---


@given(st.floats(1e-6, 1e3), st.floats(1e-6, 1e3), st.floats(1e-3, 1e5), st.floats(0.01, 1))
def test_an_hour_of_queries_costs_what_the_hour_costs(
    usage: float, rented: float, rate: float, accuracy: float
) -> None:
    cost = PredictedCost.of(usage, rented, rate, accuracy)
    thousands = 3600 * rate / 1000
    assert cost.usd_per_1k_usage * thousands == pytest.approx(usage)
    assert cost.usd_per_1k_allocation * thousands == pytest.approx(rented)
    assert cost.usd_per_1k_correct_usage * thousands * accuracy == pytest.approx(usage)
    assert cost.usd_per_1k_correct_allocation * thousands * accuracy == pytest.approx(rented)


def test_a_fleet_has_as_many_nodes_to_offer_as_it_has() -> None:
    fleet = Fleet(name="two", nodes=(FleetNode(offer=factories.offer(quota=10), count=2, cpu_share=0.5),))
    assert fleet.prices.offer("t4-node").quota == 2


def test_a_machine_without_accelerators_is_one_device_with_its_own_memory() -> None:
    machine = factories.prices().offer("cpu-node")
    assert (machine.devices_per_node, machine.device_memory_gib) == (1, machine.memory_gib)
    card = factories.prices().offer("a100-node")
    assert (card.devices_per_node, card.device_memory_gib) == (1, 40.0)


def test_times_and_lists_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ValidationError, match="below latency_p50_s"):
        BatchTiming(batch_size=1, latency_p50_s=0.2, latency_p99_s=0.1)
    profile = factories.profile("small", "T4", 0.001)
    with pytest.raises(ValidationError, match="rising batch sizes"):
        factories.profile("small", "T4", 0.001).model_validate(
            {**profile.model_dump(), "timings": profile.timings[::-1]}
        )
    with pytest.raises(ValidationError, match="'small on T4' appears twice"):
        Profiles(profiles=(profile, profile))
    with pytest.raises(ValidationError, match="'t4-node' appears twice"):
        Prices(offers=(factories.offer(), factories.offer()))


def test_names_that_are_not_there_are_answered_with_those_that_are() -> None:
    with pytest.raises(InvalidInput, match="no member is called 'tiny'; the pool has: small, middle"):
        factories.pool().member("tiny")
    with pytest.raises(InvalidInput, match="no offer has node_type 'tpu'; known: cpu-node"):
        factories.prices().offer("tpu")
    assert factories.profiles().find("tiny", "T4") is None
