"""Hosted models in service: how they are deployed, what a batch costs, and that batches do not wait for each other."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coe.errors import InvalidInput
from coe.files import read, write
from coe.placement.fees import call_fee_usd
from coe.placement.optimize import plan
from coe.records import NodeSpan
from coe.report.bill import nodes_and_calls
from coe.report.nouns import Window
from coe.runners.base import RUNNERS, Said
from coe.serving.app import MEMBER_QUEUE, CascadeArgs, build
from coe.serving.labels import NODE_TYPE_LABEL
from coe.serving.member import HostedReplica, MemberReplica, item_fees_usd
from coe.types import ApiPrice, Member, Plan, Pool, Profiles
from tests import factories

NAN = float("nan")
PRICE = ApiPrice(
    model="big-1",
    provider="p",
    usd_per_million_prompt_tokens=2.0,
    usd_per_million_completion_tokens=8.0,
    usd_per_call=0.01,
    source="tests",
    date=factories.DAY,
)
PER_CALL = PRICE.model_copy(update={"usd_per_million_prompt_tokens": 0.0, "usd_per_million_completion_tokens": 0.0})


def planned() -> Plan:
    """`large` is hosted, at a price per call."""
    hosted = Member(
        name="large",
        runner="openai",
        options={"base_url": "http://llm.test/v1", "model": "big-1", "extract": "mention"},
    )
    pool = factories.pool()
    return plan(
        pool.model_copy(update={"members": (*pool.members[:3], hosted)}),
        [factories.cascade()],
        factories.table(),
        Profiles(
            profiles=(
                *(p for p in factories.profiles().profiles if p.member != "large"),
                factories.profile("large", "API", 0.02),
            )
        ),
        factories.prices().model_copy(update={"apis": (PER_CALL,)}),
        factories.workload(latency_s=2.0),
        inputs={},
        uncertified=True,
    )


def test_the_plan_carries_the_prices_of_the_models_it_calls(tmp_path: Path) -> None:
    found = planned()
    assert found.apis == (PER_CALL,)
    assert found.api("big-1") == PER_CALL
    write(tmp_path / "plan.yaml", found)
    assert read(tmp_path / "plan.yaml", Plan) == found
    with pytest.raises(InvalidInput, match="no hosted model is called 'other'"):
        found.api("other")


def test_hosted_models_are_called_from_the_routers_node_and_take_none_of_it() -> None:
    found = planned()
    bound = build(CascadeArgs(plan=found))._bound_deployment
    assert {p.api for p in found.placements} == {None, "big-1"}
    for placement in found.placements:
        deployment = bound.init_args[2][placement.deployment]._bound_deployment
        assert deployment.func_or_class is (MemberReplica if placement.api is None else HostedReplica)
        if placement.api is not None:
            assert placement.node_type == found.router.node_type
            options = deployment.ray_actor_options
            assert (options["num_cpus"], options["num_gpus"]) == (0, 0)
            assert options["label_selector"] == {NODE_TYPE_LABEL: found.router.node_type}
            assert deployment.max_ongoing_requests == max(MEMBER_QUEUE, placement.calls_at_once or 0)
            assert deployment.init_args[2] == PER_CALL


def test_a_fee_counts_the_calls_that_were_answered_by_their_tokens() -> None:
    probs = np.array([[1, 0], [0, 0], [NAN, NAN]], dtype=np.float32)
    tokens = np.array([[100, 10], [200, 20], [999, 999]], dtype=np.int32)
    expected = (300 * 2.0 + 30 * 8.0) / 1e6 + 2 * 0.01
    assert item_fees_usd(PRICE, Said(probs, tokens)).sum() == pytest.approx(expected)
    assert item_fees_usd(PER_CALL, Said(probs)).sum() == pytest.approx(0.02)
    with pytest.raises(InvalidInput, match="big-1: is priced by the token, and the endpoint does not count them"):
        item_fees_usd(PRICE, Said(probs))


class Gate:
    """A runner none of whose batches is answered before two of them are asked."""

    def __init__(self, *_: Any) -> None:
        self.barrier = threading.Barrier(2, timeout=10)

    def load(self) -> None: ...

    def close(self) -> None: ...

    def memory_gib(self) -> float:
        return 0.0

    def predict(self, batch: np.ndarray) -> np.ndarray:
        return self.ask(batch).probs

    def ask(self, batch: np.ndarray) -> Said:
        self.barrier.wait()
        time.sleep(0.05)
        return Said(np.eye(2, dtype=np.float32)[[0] * len(batch)], np.full((len(batch), 2), 1000, dtype=np.int32))


def test_batches_are_under_way_side_by_side_and_keep_no_machine_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RUNNERS, "gate", Gate)
    pool = Pool(classes=("a", "b"), input_shape=(1,), input_dtype="text", members=(Member(name="m", runner="gate"),))
    replica = HostedReplica(pool, "m", PRICE, 4, ".")

    async def both() -> list[Any]:
        return list(await asyncio.gather(*(replica.predict(np.array([["x"], ["y"]])) for _ in range(2))))

    for reply in asyncio.run(both()):
        assert reply.probs.tolist() == [[1, 0], [1, 0]]
        assert (reply.busy_s, reply.node) == (0.0, "")
        assert reply.fee_usd == pytest.approx(2 * (0.01 + (2000 + 8000) / 1e6))


# --- Fees in plan and report -------------------------------------------------------------------------------------------


def test_what_a_report_expects_of_a_plan_with_hosted_models_adds_up_to_its_usage() -> None:
    found = planned()
    span = NodeSpan(found.router.node_type, 1, 1.0, 0.0, 3600.0)
    _, calls = nodes_and_calls(found, [span], {}, Window(start_s=0.0, end_s=3600.0, source="ledger"), 0)
    per_1k = {row.member: row.usd_per_1k_predicted for row in calls}
    assert per_1k["large"] == pytest.approx(1000 * found.stats.calls["large"] * PER_CALL.usd_per_call)
    assert sum(per_1k.values()) == pytest.approx(found.cost.usd_per_1k_usage)


def test_members_that_share_a_model_keep_their_own_fees() -> None:
    found = planned()
    placement = next(p for p in found.placements if p.api is not None)
    other = placement.model_copy(update={"member": "other"})
    line = next(one for one in found.usage_lines if one.name == "API: big-1")
    dearer = line.model_copy(update={"unit_price_usd": 3 * line.unit_price_usd, "usd": 3 * line.usd})
    both = found.model_copy(
        update={"placements": (*found.placements, other), "usage_lines": (*found.usage_lines, dearer)}
    )
    assert call_fee_usd(both, placement) == pytest.approx(0.01)
    assert call_fee_usd(both, other) == pytest.approx(0.03)
    assert call_fee_usd(found, found.placements[0]) == 0.0
