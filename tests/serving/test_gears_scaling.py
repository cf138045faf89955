"""Gears and replicas that follow the load, both on a real local cluster: each gear has the replicas of its own work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from ray import serve
from ray.serve._private.api import serve_start
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client
from ray.serve.schema import ReplicaState, ServeDeploySchema

from coe import files
from coe.cascade.evaluate import route
from coe.cli.main import run as command
from coe.files import write_predictions
from coe.ledger import read_ledger
from coe.placement.together import together
from coe.records import Answer, BenchAnswer
from coe.serving.build import APPLICATION
from coe.serving.cluster import ClusterState, free_port
from coe.serving.ready import wait_until_running
from coe.types import Fleet, Gears, Scaling
from tests import gears_case
from tests.serving.test_gears import FAST_PER_S, SLOW_PER_S, Geared, gears_of, sent

pytestmark = pytest.mark.serving

MIDDLE, LARGE = "middle@t4", "large@t4"
BUSY_S = {MIDDLE: 0.012, LARGE: 0.15}
"""What the plans say of a query's work there, of which replaying members know nothing. At the target of 0.6, ten queries per
second of the accurate gear bring LARGE the work of 1.5 replicas, and eighty of the fast one MIDDLE that of 1.6."""
CALM, RUSH = {MIDDLE: 1, LARGE: 2}, {MIDDLE: 2, LARGE: 1}
PATIENCE_S = 45.0
"""For replicas to start or end on a machine that others use, too."""
SCALING = Scaling(
    max_replicas=2, interval_s=0.5, look_back_s=3.0, upscale_delay_s=0.5, downscale_delay_s=1.0, confidence=0.9
)


def scaled_gears(predictions: Path, fleet: Fleet) -> Gears:
    """Those of the test of gears, with room for two replicas of each deployment and more work than members have in truth."""
    found = gears_of(gears_case.TABLE, predictions, fleet)
    changed = []
    for gear in found.gears:
        placements = [
            p.model_copy(update={"share": p.share / 2, "expected_busy_s": BUSY_S.get(p.deployment, p.expected_busy_s)})
            for p in gear.plan.placements
        ]
        plan = gear.plan.model_copy(update={"placements": tuple(placements)})
        changed.append(gear.model_copy(update={"plan": plan}))
    return found.model_copy(update={"gears": tuple(changed)})


@pytest.fixture(scope="module")
def geared(
    fleet_cluster: ClusterState, test_fleet: Fleet, ray_session: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Geared]:
    """Deployed from the file that `coe build gears.yaml --scaling` writes."""
    folder = tmp_path_factory.mktemp("gears-scaling")
    write_predictions(folder / "predictions.npz", gears_case.TABLE)
    gears = scaled_gears(folder / "predictions.npz", test_fleet)
    files.write(folder / "gears.yaml", gears)
    files.write(folder / "scaling.yaml", SCALING)
    port = free_port()
    built = ["build", str(folder / "gears.yaml"), "--scaling", str(folder / "scaling.yaml")]
    out = ["--ledger", str(folder / "ledger"), "--port", str(port), "-o", str(folder / "serve.yaml")]
    assert command([*built, *out]) == 0
    serve_start(http_options=HTTPOptions(host="127.0.0.1", port=port), proxy_location="HeadOnly")
    deploy(folder / "serve.yaml")
    assert ray_session == fleet_cluster.address
    wait_until_running(fleet_cluster.address, 90)
    yield Geared(together(gears).gears, gears_case.TABLE, f"http://127.0.0.1:{port}", folder)
    serve.shutdown()


def deploy(file: Path) -> None:
    config: dict[str, Any] = yaml.safe_load(file.read_text())
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config))


def replicas() -> dict[str, int]:
    """That run now of the two deployments, as Serve says."""
    deployments = serve.status().applications[APPLICATION].deployments
    return {d: deployments[d].replica_states.get(ReplicaState.RUNNING, 0) for d in (MIDDLE, LARGE)}


def until(geared: Geared, wanted: dict[str, int], rate_per_s: float, first: int) -> list[BenchAnswer]:
    """What came back while the load went on, until so many replicas ran."""
    answers = list(sent(geared, first, rate_per_s, 2.0).answers)
    due_s = time.monotonic() + PATIENCE_S
    while replicas() != wanted and time.monotonic() < due_s:
        first += int(2 * rate_per_s)
        answers += sent(geared, first % 1000, rate_per_s, 2.0).answers
    assert replicas() == wanted
    return answers


def test_replicas_follow_the_load_by_the_plan_of_the_gear_in_service(geared: Geared) -> None:
    answers = until(geared, CALM, SLOW_PER_S, 0)
    assert geared.live()["now"] == "accurate"
    answers += until(geared, RUSH, FAST_PER_S, 100)
    assert geared.live()["now"] == "fast"
    answers += until(geared, CALM, SLOW_PER_S, 500)
    seen = geared.live()
    assert (seen["now"], seen["changes"]) == ("accurate", 2)
    assert [a.http_status for a in answers] == [200] * len(answers)
    assert not any(a.degraded for a in answers)

    # an operator's gear brings its own work, too, and does not set replicas back to those that were deployed
    file, pinned = geared.folder / "serve.yaml", geared.folder / "pinned.yaml"
    gears = str(geared.folder / "gears.yaml")
    assert command(["build", gears, "--live", str(file), "--pin", "fast", "-o", str(pinned)]) == 0
    deploy(pinned)
    answers = until(geared, {MIDDLE: 1, LARGE: 1}, SLOW_PER_S, 700)
    seen = geared.live()
    assert (seen["now"], seen["is_pinned"]) == ("fast", True)
    assert [a.http_status for a in answers] == [200] * len(answers)

    # every answer is that of the gear whose ledger has it
    time.sleep(1.2)  # a ledger is written twice a second
    row_of = {item: row for row, item in enumerate(geared.table.items.tolist())}
    for gear in geared.gears.gears:
        routing = route(gear.plan.cascade, geared.table)
        held = [
            r for r in read_ledger(geared.folder / "ledger", gear.plan.fingerprint()).records if isinstance(r, Answer)
        ]
        assert held
        rows = [row_of[r.query_id] for r in held]
        assert [(r.answer, r.tier) for r in held] == [(routing.answer[row], routing.tier[row]) for row in rows]
    assert httpx.get(f"{geared.url}/readyz").status_code == 200
