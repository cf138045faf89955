"""One small local cluster for all tests that need Ray: a router node and two accelerator node types.

The processes end with the session, whatever happens to the tests: `down` runs in a finaliser, and Ray ends what the
cluster's processes started.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coe.serving import cluster
from coe.serving.cluster import ClusterState
from coe.serving.labels import SERVE_ENV
from coe.types import Fleet, FleetNode, Offer

DAY = "2026-08-01"
SETTINGS = {**SERVE_ENV, "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1"}
"""Nobody balances load in front: a router that is to stop need not go on for half a minute, as it does by default."""


def fleet() -> Fleet:
    """A head for the router, one slow T4 and one fast A100, at made-up prices."""
    router = Offer(
        node_type="router",
        accelerator="CPU-router",
        accelerators_per_node=0,
        vcpus=2,
        memory_gib=8,
        usd_per_hour=0.1,
        source="made up for tests",
        date=DAY,
    )
    accelerated = {"accelerator_memory_gib": 16, "vcpus": 2, "memory_gib": 16}
    t4 = router.model_copy(
        update={"node_type": "t4", "accelerator": "T4", "accelerators_per_node": 1, "usd_per_hour": 0.5, **accelerated}
    )
    a100 = t4.model_copy(update={"node_type": "a100", "accelerator": "A100", "usd_per_hour": 4.0})
    return Fleet(
        name="tests",
        nodes=(
            FleetNode(offer=router, count=1, cpu_share=1.0),
            FleetNode(offer=t4, count=1, cpu_share=0.2),
            FleetNode(offer=a100, count=1, cpu_share=0.8),
        ),
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What uses the cluster is marked `serving`, so that `-m "not serving"` leaves it out."""
    for item in items:
        if {"fleet_cluster", "ray_session"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.serving)


@pytest.fixture(scope="session")
def test_fleet() -> Fleet:
    """The fleet that `fleet_cluster` runs."""
    return fleet()


@pytest.fixture(scope="session")
def fleet_cluster(test_fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterState]:
    """The cluster; `fleet_cluster.address` is what `RAY_ADDRESS` must say."""
    state_dir: Path = tmp_path_factory.mktemp("cluster")
    try:
        yield cluster.up(test_fleet, state_dir, settings=SETTINGS)
    finally:
        cluster.down(state_dir)


@pytest.fixture(scope="session")
def ray_session(fleet_cluster: ClusterState) -> Iterator[str]:
    """A driver connected to the cluster; gives its address."""
    import ray

    ray.init(address=fleet_cluster.address, logging_level="ERROR", log_to_driver=False)
    try:
        yield fleet_cluster.address
    finally:
        ray.shutdown()
