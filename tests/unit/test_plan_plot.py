"""The picture of a plan shows every deployment and every dollar, and the same plan gives the same picture."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from coe import files
from coe.cli.main import run as command
from coe.placement.optimize import plan
from coe.placement.packing import packed
from coe.report import words
from coe.report.plan_plot import plan_plot
from coe.types import Plan
from tests import factories


def planned(**work: float) -> Plan:
    return plan(
        factories.pool(),
        [factories.cascade()],
        factories.table(n=400),
        factories.profiles(),
        factories.prices(),
        factories.workload(**work),
        inputs={},
        uncertified=True,
        reasons=False,
    )


PLAN = planned(rate_per_s=300.0)


def test_every_replica_is_on_a_node_and_no_device_holds_more_than_itself() -> None:
    nodes = packed(PLAN)
    assert len(nodes) == sum(n.count for n in PLAN.nodes)
    assert sum(n.is_router for n in nodes) == PLAN.router.replicas
    for placement in PLAN.placements:
        assert sum(p == placement for n in nodes for p, _ in n.replicas) == placement.replicas
    for node in nodes:
        assert min(node.devices) >= -1e-9
        for device in range(len(node.devices)):
            used = sum(p.share for p, d in node.replicas if d == device)
            assert used <= 1 + 1e-9


def test_the_picture_names_members_nodes_and_dollars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    svg = plan_plot(PLAN)
    text = " ".join("".join(e.itertext()) for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("text"))
    for member in PLAN.cascade.members:
        assert member in text
    assert all(n.node_type in text for n in PLAN.nodes)
    assert words.usd(sum(line.usd for line in PLAN.allocation_lines)) in text
    assert plan_plot(PLAN) == svg
    files.write(tmp_path / "plan.yaml", PLAN, "")
    assert command(["explain", str(tmp_path / "plan.yaml"), "--plot", str(tmp_path / "plan.svg")]) == 0
    assert (tmp_path / "plan.svg").read_text() == svg
    assert "nodes and what they cost" in capsys.readouterr().err
