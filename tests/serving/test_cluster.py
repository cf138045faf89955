"""The local cluster: it starts what the fleet says, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from coe.errors import InvalidInput, Unavailable
from coe.serving import cluster
from coe.serving.cluster import ClusterState, NodeProcess
from coe.serving.labels import replica_options
from coe.types import Fleet


def _alone(fleet: Fleet) -> Fleet:
    """Only the router node."""
    return fleet.model_copy(update={"nodes": fleet.nodes[:1]})


@pytest.mark.usefixtures("ray_session")
def test_nodes_have_the_labels_and_accelerators_of_their_offers() -> None:
    import ray

    nodes = {n["Labels"]["coe.dev/node-type"]: n for n in ray.nodes() if n["Alive"]}
    assert set(nodes) == {"router", "t4", "a100"}
    assert "GPU" not in nodes["router"]["Resources"]
    for node_type, accelerator in (("t4", "T4"), ("a100", "A100")):
        assert nodes[node_type]["Resources"]["GPU"] == 1
        assert nodes[node_type]["Resources"][f"accelerator_type:{accelerator}"] == 1
        assert nodes[node_type]["Resources"]["CPU"] == 2
        assert nodes[node_type]["Labels"]["ray.io/accelerator-type"] == accelerator


@pytest.mark.usefixtures("ray_session")
def test_a_replica_runs_on_its_node_and_sees_the_environment(test_fleet: Fleet) -> None:
    import ray

    def environment() -> dict[str, str]:
        return dict(os.environ)

    offer = test_fleet.prices.offer("t4")
    seen = ray.get(ray.remote(environment).options(**replica_options(offer, 0.5)).remote(), timeout=60)
    assert seen["COE_CPU_SHARE"] == "0.2"
    assert seen["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
    assert seen["OMP_NUM_THREADS"] == "1"
    assert os.getcwd() in seen["PYTHONPATH"].split(os.pathsep)


@pytest.mark.serving
def test_down_leaves_no_process_and_no_file(test_fleet: Fleet, tmp_path: Path) -> None:
    try:
        state = cluster.up(
            _alone(test_fleet), tmp_path, elsewhere=lambda node_type, command: ["env", f"PLACE={node_type}", *command]
        )
        started = cluster.processes(state)
        assert b"PLACE=router" in cluster._marks(state.nodes[0].pid)
        assert len(started) >= 3, "leader, raylet, gcs"
        assert cluster.load_state(tmp_path) == state
        with pytest.raises(Unavailable, match=r"already up .* coe cluster down"):
            cluster.up(test_fleet, tmp_path)
    finally:
        ended = cluster.down(tmp_path)

    assert ended == 1
    assert cluster.processes(state, list(state.pids)) == []
    assert not [pid for pid in started if _is_alive(pid)]
    assert not Path(state.temp_dir).exists()
    assert list(tmp_path.iterdir()) == []
    assert cluster.down(tmp_path) == 0, "idempotent"
    with pytest.raises(Unavailable, match=r"no fleet .* is up"):
        cluster.load_state(tmp_path)


@pytest.mark.serving
def test_a_start_that_fails_leaves_nothing(test_fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[ClusterState] = []

    def fail(*_: object) -> str:
        kept.append(cluster._state(tmp_path))  # type: ignore[arg-type]
        raise Unavailable("the second node is broken")

    monkeypatch.setattr(cluster, "_wait_for", fail)
    with pytest.raises(Unavailable, match="second node"):
        cluster.up(_alone(test_fleet), tmp_path)
    assert cluster.processes(kept[0], list(kept[0].pids)) == []
    assert list(tmp_path.iterdir()) == []


def test_a_node_that_exits_is_reported_with_its_last_words(
    test_fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_head_arguments", lambda: ["--head", "--port", "no-number"])
    with pytest.raises(Unavailable, match=r"(?s)node router did not start:.*no-number"):
        cluster.up(_alone(test_fleet), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_outlives_its_leader_is_found_by_its_mark(tmp_path: Path) -> None:
    if not Path("/proc/self/environ").exists():
        pytest.skip("only Linux shows the environment of other processes")
    orphan = _sleeper({cluster.CLUSTER_ENV: "mark-of-a-test"})
    try:
        _write_state(tmp_path, "mark-of-a-test")
        assert cluster.current(tmp_path) is None
        assert cluster.down(tmp_path) == 0
        assert orphan.wait(5) == -signal.SIGTERM
    finally:
        orphan.kill()


def test_a_reused_pid_is_not_ended(tmp_path: Path) -> None:
    stranger = _sleeper({})
    try:
        _write_state(tmp_path, "another-mark", NodeProcess(node_type="router", pid=stranger.pid, started="long ago"))
        assert cluster.current(tmp_path) is None
        assert cluster.down(tmp_path) == 0
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_head_with_accelerators_is_refused(test_fleet: Fleet, tmp_path: Path) -> None:
    upside_down = test_fleet.model_copy(update={"nodes": test_fleet.nodes[::-1]})
    with pytest.raises(InvalidInput, match="must be CPU-only"):
        cluster.up(upside_down, tmp_path)


def _sleeper(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    child = subprocess.Popen(command, env={**os.environ, **environment}, start_new_session=True)
    time.sleep(0.2)  # until exec has replaced the environment
    return child


def _write_state(folder: Path, mark: str, *nodes: NodeProcess) -> None:
    keys: dict[str, Any] = {"name": "x", "address": "", "temp_dir": "/nowhere", "cluster_id": mark}
    cluster.write(folder / cluster.STATE_FILE, ClusterState(**keys, nodes=nodes))


def _is_alive(pid: int) -> bool:
    return any(p.pid == pid for p in cluster._all_processes())
