"""Rehearsals: a plan for which a node is missing, by the command on a fleet of its own; and, without Ray, that it always ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coe.cascade.decide import decide
from coe.cli import main
from coe.errors import InvalidInput, Unavailable
from coe.files import write
from coe.fleet.local import local_fleet
from coe.runners.base import make_runner
from coe.serving import cluster, rehearsal
from coe.serving.cluster import ClusterState
from coe.serving.http_api import parsed_items
from coe.serving.rehearsal import Details, Line, Rehearsal, Replica, rehearse
from coe.serving.stand_in import item_of, with_stand_ins
from coe.table import Outputs
from coe.types import Plan
from tests import factories
from tests.fleet_case import MEMBERS, aws_plan

COMMAND = [sys.executable, "-c", "from coe.cli.main import main; main()", "rehearse"]


def plan(large: int = 1) -> Plan:
    """A CPU node for the router, a T4 that three members share, and one A10G for `large` replicas of the large member, which
    takes all of it; small images, and code that is nowhere to be found."""
    whole = aws_plan(pool=factories.pool(MEMBERS, input_shape=(3, 8, 8)), python_path="/nowhere/but/there")
    placements = [p.model_copy(update={"replicas": large if p.member == "large" else 1}) for p in whole.placements]
    nodes = [n.model_copy(update={"count": 1}) for n in whole.nodes]
    return whole.model_copy(update={"placements": tuple(placements), "nodes": tuple(nodes)})


def test_a_node_too_few_is_reported_and_nothing_is_left_behind(fleet_cluster: ClusterState, tmp_path: Path) -> None:
    before = cluster.processes(fleet_cluster)
    write(tmp_path / "plan.yaml", plan(large=2))
    command = [*COMMAND, str(tmp_path / "plan.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 4, done.stderr
    told = [line.split() for line in done.stdout.splitlines()]
    verdict = {" ".join(line[:2]): line[-1] for line in told if line[-1] in ("ok", "MISSING")}
    assert verdict.pop("replicas large@g5.xlarge") == "MISSING"
    assert set(verdict.values()) == {"ok"}
    assert set(verdict) >= {"nodes g5.xlarge", "replicas small@g4dn.xlarge", "replicas router", "devices of"}
    assert "to be scheduled" in done.stdout  # Serve's own words
    assert "8 (4 by tier 1, 4 by tier 2)" in done.stdout
    assert "planned 2 on g5.xlarge, found 1 on g5.xlarge" in done.stderr
    assert "5 of 6 replicas run" in done.stderr
    assert not Path(done.stderr.partition("--state ")[2].partition(")")[0]).exists()
    assert set(before) <= set(cluster.processes(fleet_cluster))  # the fleet that was up stays


# --- Without Ray -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [{"input_shape": (2, 2)}, {"input_dtype": "text"}], ids=["numbers", "texts"])
@pytest.mark.parametrize("rule", ["score", "vote"])
def test_stand_ins_agree_on_easy_items_and_pass_hard_ones_on(shape: dict[str, Any], rule: str) -> None:
    cascade, pool = factories.cascade(rule=rule), with_stand_ins(factories.pool(MEMBERS, **shape))
    body = json.dumps({"items": [{"input": item_of(pool, is_hard=is_hard)} for is_hard in (False, True)]})
    items = parsed_items(body.encode(), pool.input_shape, iter("ab"), 2, is_text=pool.is_text)
    batch = np.stack(list(items.values()))
    members = cascade.tiers[0].members
    probs = np.stack([make_runner(pool.member(m), pool, Path()).predict(batch) for m in members], axis=1)
    decision = decide(cascade.tiers[0], Outputs(probs.argmax(axis=2), probs, texts=pool.classes))
    assert decision.accepted.tolist() == [True, False]
    assert decision.answer[0] == 0


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens to the fleet, without any."""
    done: list[str] = []
    state = ClusterState(name="x", cluster_id="x", address="nowhere:1", temp_dir="x")

    def up(_fleet: object, folder: Path, **_settings: object) -> ClusterState:
        assert str(folder) in os.environ["PYTHONPATH"].split(os.pathsep)
        assert (folder / "serve.yaml").exists()
        done.append("up")
        return state

    monkeypatch.setattr(cluster, "up", up)
    monkeypatch.setattr(cluster, "down", lambda _folder: done.append("down"))
    monkeypatch.setattr(rehearsal.ray, "is_initialized", lambda: False)
    return done


def interrupted() -> None:
    raise KeyboardInterrupt


def failed() -> None:
    raise Unavailable("serve run failed")


def terminated() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    signal.sigtimedwait([signal.SIGUSR1], 5.0)


@pytest.mark.parametrize(
    ("event", "error"),
    [(interrupted, KeyboardInterrupt), (failed, Unavailable), (terminated, KeyboardInterrupt)],
    ids=["Ctrl-C", "an error", "SIGTERM"],
)
def test_whatever_happens_the_fleet_is_taken_down(
    steps: list[str], monkeypatch: pytest.MonkeyPatch, event: Callable[[], None], error: type[BaseException]
) -> None:
    before = (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), os.environ.get("PYTHONPATH"))
    monkeypatch.setattr(rehearsal, "_looked_at", lambda *_: event())
    with pytest.raises(error):
        rehearse(plan())
    assert steps == ["up", "down"]
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), os.environ.get("PYTHONPATH"))


def test_more_than_a_laptop_carries_is_refused_before_anything_starts(steps: list[str]) -> None:
    with pytest.raises(InvalidInput, match=r"at most 7 .*got 3 nodes and 5 replicas.*--max-processes 8"):
        rehearse(plan(), most_processes=7)
    assert steps == []


def test_hosted_models_are_not_called(steps: list[str]) -> None:
    found = plan()
    hosted = found.placements[-1].model_copy(update={"api": "a-provider/large"})
    with pytest.raises(InvalidInput, match="names a hosted model"):
        rehearse(found.model_copy(update={"placements": (*found.placements[:-1], hosted)}))
    assert steps == []


def test_a_process_that_uses_another_cluster_is_refused(steps: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal.ray, "is_initialized", lambda: True)
    with pytest.raises(Unavailable, match="connected to a Ray cluster already"):
        rehearse(plan())
    assert steps == []


def looked_at(monkeypatch: pytest.MonkeyPatch, found: Plan, *replicas: tuple[str, str]) -> Details:
    """Details of replicas (deployment, node), on nodes that are called by their types."""
    monkeypatch.setattr(rehearsal, "_types", lambda: {n.node_type: n.node_type for n in found.nodes})
    return Details("DEPLOYING", "", tuple(Replica(*r) for r in replicas), {"large@g5.xlarge": "no room"})


FIRST = [(f"{m}@g4dn.xlarge", "g4dn.xlarge") for m in MEMBERS[:3]] + [("router", "m7i.xlarge")]
LARGE = ("large@g5.xlarge", "g5.xlarge")


@pytest.mark.parametrize(
    ("large", "there", "is_room"),
    [(2, [*FIRST, LARGE], False), (2, FIRST, True), (1, FIRST[1:], True), (1, [*FIRST, LARGE], False)],
    ids=["its node is full", "its node is empty", "another is missing", "nothing is missing"],
)
def test_waiting_ends_where_no_node_has_room(
    monkeypatch: pytest.MonkeyPatch, large: int, there: list[tuple[str, str]], is_room: bool
) -> None:
    found = plan(large)
    assert rehearsal._is_room(found, looked_at(monkeypatch, found, *there)) == is_room


def test_a_replica_on_the_wrong_node_and_a_node_that_holds_too_much_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = plan(large=2)
    details = looked_at(monkeypatch, found, *FIRST, LARGE, ("large@g5.xlarge", "g4dn.xlarge"))
    lines = Rehearsal((*rehearsal._deployments(found, details), *rehearsal._room(found, details)), 1.0)
    assert lines.missed == (
        "replicas large@g5.xlarge: planned 2 on g5.xlarge, found 1 on g4dn.xlarge, 1 on g5.xlarge",
        "devices of one g4dn.xlarge: planned at most 1, found 1.75 in use",
    )
    rows = lines.text.splitlines()
    assert rows[rows.index(next(r for r in rows if "large@g5.xlarge" in r)) + 1] == "    no room"


@pytest.mark.parametrize(("is_ok", "code"), [(True, 0), (False, 4)])
def test_the_exit_code_says_how_it_went(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], is_ok: bool, code: int
) -> None:
    asked: dict[str, Any] = {}

    def rehearsed(found: Plan, **options: Any) -> Rehearsal:
        asked.update(options, plan=found)
        return Rehearsal((Line("nodes t4", "1", "1" if is_ok else "0", is_ok),), 2.0)

    monkeypatch.setattr(rehearsal, "rehearse", rehearsed)
    write(tmp_path / "plan.yaml", plan())
    assert main.run(["rehearse", str(tmp_path / "plan.yaml"), "--max-processes", "9", "--time-limit", "7"]) == code
    assert (asked["plan"], asked["most_processes"], asked["time_limit_s"]) == (plan(), 9, 7.0)
    printed = capsys.readouterr()
    assert ("ok" in printed.out, "MISSING" in printed.out) == (is_ok, not is_ok)
    assert ("nodes t4: planned 1, found 0" in printed.err) is not is_ok


def test_the_local_fleet_has_every_node_of_the_plan() -> None:
    assert {n.offer.node_type: n.count for n in local_fleet(plan()).nodes} == {
        n.node_type: n.count for n in plan().nodes
    }
