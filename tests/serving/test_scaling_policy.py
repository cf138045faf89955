"""Replicas that follow the load, on a real local cluster: the policy `reach` in Serve's controller, and the router beside it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from ray import serve
from ray.serve._private.api import serve_start
from ray.serve.config import HTTPOptions
from ray.serve.schema import ReplicaState, ServeDeploySchema

from coe.bench import run_bench
from coe.files import to_yaml, write_predictions
from coe.ledger import read_ledger
from coe.profiler.predict import DataSet
from coe.records import BatchRun, Bench, BenchAnswer
from coe.router.scaling import wanted_by_ongoing, wanted_by_reach
from coe.serving.build import APPLICATION, serve_config
from coe.serving.cluster import ClusterState, free_port
from coe.serving.ready import wait_until_running
from coe.table import PredictionTable
from coe.types import CascadeStats, Fleet, Member, Plan, Scaling
from tests import factories
from tests.fleet_case import MEMBERS, small_plan
from tests.serving.test_service import rows_of

pytestmark = pytest.mark.serving

LARGE = "large@a100"
SLOW_PER_S, FAST_PER_S = 3.0, 40.0
PATIENCE_S = 60.0
"""For a replica to start or end on a machine that others use, too."""
SCALING = Scaling(
    max_replicas=2, interval_s=0.5, look_back_s=4.0, upscale_delay_s=1.0, downscale_delay_s=2.0, confidence=0.9
)


@dataclass(frozen=True)
class Scaled:
    """A deployed plan that scales, the table that it replays, and where it listens."""

    plan: Plan
    table: PredictionTable
    url: str
    ledger: Path

    def replicas(self, deployment: str) -> int:
        """That run now, as Serve says."""
        application = serve.status().applications[APPLICATION]
        return application.deployments[deployment].replica_states.get(ReplicaState.RUNNING, 0)


def scaled_plan(predictions: Path, fleet: Fleet) -> Plan:
    """Four members of the first tier's share on a T4, and one whose replicas take a quarter of an A100. The plan says that a
    query keeps the last tier busy for 200 ms, of which the replaying member knows nothing: its own queue stays empty."""
    router, t4, a100 = (n.offer for n in fleet.nodes)
    plan = small_plan(router, t4, a100)
    members = tuple(Member(name=m, runner="table", options={"predictions": str(predictions)}) for m in MEMBERS)
    placements = [
        p.model_copy(update={"share": 0.25, "replicas": 1, "expected_busy_s": 0.2 if p.member == "large" else 0.0004})
        for p in plan.placements
    ]
    calls = dict.fromkeys(MEMBERS[:3], 1.0) | {"large": 0.3}
    stats = CascadeStats(**{**plan.stats.model_dump(), "calls": calls})
    pool = factories.pool(MEMBERS).model_copy(update={"members": members})
    return plan.model_copy(
        update={
            "pool": pool,
            "placements": tuple(placements),
            "stats": stats,
            "workload": factories.workload(rate_per_s=SLOW_PER_S, latency_s=1.0),
        }
    )


@pytest.fixture(scope="module")
def scaled(
    fleet_cluster: ClusterState, test_fleet: Fleet, ray_session: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scaled]:
    """The service, deployed from the YAML that `coe build --scaling` would write."""
    folder = tmp_path_factory.mktemp("scaled")
    table = factories.table(n=480)
    write_predictions(folder / "predictions.npz", table)
    plan = scaled_plan(folder / "predictions.npz", test_fleet)
    port = free_port()
    text = to_yaml(serve_config(plan, ledger_dir=str(folder / "ledger"), scaling=SCALING, port=port))
    client = serve_start(http_options=HTTPOptions(host="127.0.0.1", port=port), proxy_location="HeadOnly")
    client.deploy_apps(ServeDeploySchema.model_validate(yaml.safe_load(text)))
    assert ray_session == fleet_cluster.address
    wait_until_running(fleet_cluster.address, 90)
    yield Scaled(plan, table, f"http://127.0.0.1:{port}", folder / "ledger")
    serve.shutdown()


def sent(scaled: Scaled, rate_per_s: float, seconds: float) -> Bench:
    """Rows of the table at a rate for so long."""
    count = int(rate_per_s * seconds)
    every = rows_of(scaled.table)
    rows = DataSet(every.x[:count], every.y[:count], every.items[:count], every.splits[:count])
    return run_bench(scaled.url, rows, "rows", rate_per_s, seed=1)


def until(scaled: Scaled, replicas: int, rate_per_s: float) -> list[BenchAnswer]:
    """What came back while the load went on until the last tier had so many replicas."""
    answers: list[BenchAnswer] = []
    due_s = time.monotonic() + PATIENCE_S
    while scaled.replicas(LARGE) != replicas and time.monotonic() < due_s:
        answers += sent(scaled, rate_per_s, 2.0).answers
    return answers


def test_the_last_tier_grows_with_the_first_ones_arrivals_and_nothing_fails(scaled: Scaled) -> None:
    large = next(p for p in scaled.plan.placements if p.deployment == LARGE)
    assert wanted_by_reach(scaled.plan, large, 2 * SLOW_PER_S, SCALING) == 1
    assert wanted_by_reach(scaled.plan, large, FAST_PER_S / 2, SCALING) == 2

    answers = list(sent(scaled, SLOW_PER_S, 4.0).answers)
    assert scaled.replicas(LARGE) == 1
    began_s = time.time()
    answers += until(scaled, 2, FAST_PER_S)
    took_s = time.time() - began_s
    assert scaled.replicas(LARGE) == 2
    answers += sent(scaled, FAST_PER_S, 3.0).answers  # now with both
    answers += until(scaled, 1, SLOW_PER_S)
    assert scaled.replicas(LARGE) == 1
    answers += sent(scaled, SLOW_PER_S, 2.0).answers
    assert [a.http_status for a in answers] == [200] * len(answers)
    assert not any(a.degraded for a in answers)

    calls = [r for r in read_ledger(scaled.ledger).records if isinstance(r, BatchRun) and r.member == "large"]
    under_way = sum(c.busy_s for c in calls if began_s <= c.start_s < began_s + took_s) / took_s
    assert 0 < under_way < 0.5
    assert wanted_by_ongoing(1, under_way, SCALING) == 1  # its own calls under way never told
