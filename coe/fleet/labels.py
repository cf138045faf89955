"""The names on which cluster files, cluster, profiler, service and doctor must agree: labels, resources, environment.

Imports neither Ray nor anything that runs a model, so that files for Ray can be written where Ray is not installed.
"""

from __future__ import annotations

import re
from typing import Any

from coe.errors import InvalidInput, Problem
from coe.types import Offer

NODE_TYPE_LABEL = "coe.dev/node-type"
"""Every node says with it which offer of the price list it is."""

ACCELERATOR_LABEL = "ray.io/accelerator-type"
"""Ray's own label for the accelerator of a node."""

CPU_SHARE_ENV = "COE_CPU_SHARE"
"""Set on simulated nodes alone: the share of one CPU core that stands in for one whole accelerator."""

MAX_MESSAGE_BYTES = 512 * 2**20

SERVE_ENV = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(MAX_MESSAGE_BYTES),
    # replicas that share an accelerator in the plan must share one in the cluster; spread out they rent more nodes
    "RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY": "1",
}
"""Serve reads these when its processes start, so they must be in the environment of every node."""

_LABEL_VALUE = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9_.\-]{0,61}[A-Za-z0-9])?$")


def label_value(name: str) -> str:
    """`name`, if Ray takes it as the value of a label; `InvalidInput` otherwise."""
    if not _LABEL_VALUE.fullmatch(name):
        rule = "must have at most 63 letters, digits, '-', '_' and '.', and begin and end with a letter or digit"
        raise InvalidInput(Problem(f"node type '{name}'", rule, remedy="Ray labels nodes with it: rename it"))
    return name


def node_labels(offer: Offer) -> dict[str, str]:
    """The labels of a node of that offer."""
    labels = {NODE_TYPE_LABEL: label_value(offer.node_type)}
    if offer.accelerators_per_node:
        labels[ACCELERATOR_LABEL] = label_value(offer.accelerator)
    return labels


def accelerator_resource(accelerator: str) -> str:
    """The custom resource by which Ray knows that a node has that accelerator."""
    return f"accelerator_type:{accelerator}"


def node_cpus(offer: Offer) -> int:
    """CPUs that a node of that offer declares to Ray: its vcpus, rounded down, at least one."""
    return max(1, int(offer.vcpus))


def replica_options(offer: Offer, share: float) -> dict[str, Any]:
    """Ray actor options of a replica that owns `share` of one device of a node of that offer, and runs nowhere else."""
    wanted: dict[str, Any] = (
        {"num_cpus": 0, "num_gpus": share}
        if offer.accelerators_per_node
        else {"num_cpus": share * node_cpus(offer), "num_gpus": 0}
    )
    return {**wanted, "label_selector": {NODE_TYPE_LABEL: label_value(offer.node_type)}}


def hosted_options(offer: Offer) -> dict[str, Any]:
    """Ray actor options of a replica that calls a hosted model from the router's node: it waits, and needs no CPU of its own."""
    return {"num_cpus": 0, "num_gpus": 0, "label_selector": {NODE_TYPE_LABEL: label_value(offer.node_type)}}
