"""The names of `coe.fleet.labels` for the code that runs on a cluster, and the one that is read from its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping

from coe.errors import InvalidInput, Problem
from coe.fleet.labels import (
    ACCELERATOR_LABEL,
    CPU_SHARE_ENV,
    MAX_MESSAGE_BYTES,
    NODE_TYPE_LABEL,
    SERVE_ENV,
    accelerator_resource,
    hosted_options,
    label_value,
    node_cpus,
    node_labels,
    replica_options,
)

__all__ = [
    "ACCELERATOR_LABEL",
    "CPU_SHARE_ENV",
    "MAX_MESSAGE_BYTES",
    "NODE_TYPE_LABEL",
    "SERVE_ENV",
    "accelerator_resource",
    "hosted_options",
    "label_value",
    "node_cpus",
    "node_labels",
    "replica_options",
    "simulated_speed",
]


def simulated_speed(share: float, environment: Mapping[str, str] | None = None) -> float | None:
    """Speed for `Paced` of a replica with `share` of an accelerator; None on a node whose accelerators are real.

    Raises `InvalidInput` where the variable is not a share in (0, 1].
    """
    text = (os.environ if environment is None else environment).get(CPU_SHARE_ENV)
    if text is None:
        return None
    try:
        cpu_share = float(text)
    except ValueError:
        cpu_share = float("nan")
    if not 0 < cpu_share <= 1:
        raise InvalidInput(Problem(CPU_SHARE_ENV, "must be a number in (0, 1]", repr(text)))
    return cpu_share * share
