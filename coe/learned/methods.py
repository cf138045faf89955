"""Every way to train gates by one name, as the command line gives it (torch)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch

from coe.learned import gates, policy
from coe.learned.stages import Loss, StagedGates, Stages
from coe.learned.stopping import DEFAULTS, Progress, Settings, no_progress

Method = Literal["idk-cost-aware", "idk-cross-entropy", "policy-exact", "policy-reinforce"]

_OBJECTIVES: dict[str, gates.Objective] = {"idk-cost-aware": "cost_aware", "idk-cross-entropy": "cross_entropy"}
_TRAINERS: dict[str, policy.Trainer] = {"policy-exact": "exact", "policy-reinforce": "reinforce"}


def train(
    stages: Stages,
    method: Method,
    trade: float,
    *,
    loss: Loss | None = None,
    features: Sequence[str] | None = None,
    settings: Settings = DEFAULTS,
    progress: Progress = no_progress,
) -> StagedGates:
    """Gates by `gates.train` or policies by `policy.train`; without `loss` each with its own default."""
    with one_thread():
        if method in _OBJECTIVES:
            return gates.train(
                stages,
                trade,
                objective=_OBJECTIVES[method],
                loss=loss or "zero_one",
                features=features,
                settings=settings,
                progress=progress,
            )
        return policy.train(
            stages,
            trade,
            trainer=_TRAINERS[method],
            loss=loss or "log",
            features=features,
            settings=settings,
            progress=progress,
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: steps are so small that sharing them costs more than it saves."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
