"""Small, realistic nouns with defaults, so that a test names only what it is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from coe.table import PredictionTable
from coe.types import BatchTiming, Cascade, Member, Offer, Pool, Prices, Profile, Profiles, Tier, Workload

DAY = "2026-11-01"
ACCURACY: Mapping[str, float] = {"small": 0.85, "middle": 0.88, "other": 0.86, "large": 0.96}
SERVICE_S: Mapping[str, float] = {"small": 0.001, "middle": 0.0015, "other": 0.0012, "large": 0.02}


def table(
    n: int = 800,
    members: Sequence[str] = tuple(ACCURACY),
    classes: int = 5,
    seed: int = 0,
    accuracy: Mapping[str, float] | None = None,
    missing: float = 0.0,
    probs: bool = True,
) -> PredictionTable:
    """Predictions whose errors are correlated: some items are hard for every member.

    Accuracies are approximate. `missing` is the share of votes that were not cast. The splits are four equal parts.
    """
    rng = np.random.default_rng(seed)
    accuracy = accuracy or ACCURACY
    labels = rng.integers(0, classes, n)
    difficulty = rng.normal(size=n)
    rivals = (labels + rng.integers(1, classes, n)) % classes
    logits = np.empty((n, len(members), classes))
    for column, name in enumerate(members):
        noise = rng.normal(size=n)
        skill = np.quantile(0.7 * difficulty + 0.7 * noise, accuracy.get(name, 0.9))
        margin = 2.0 * (skill - 0.7 * difficulty - 0.7 * noise)
        logits[:, column] = rng.normal(scale=0.3, size=(n, classes))
        logits[np.arange(n), column, labels] += 2 + margin / 2
        logits[np.arange(n), column, rivals] += 2 - margin / 2
    p = np.exp(logits - logits.max(axis=2, keepdims=True))
    p = (p / p.sum(axis=2, keepdims=True)).astype(np.float32)
    answers = p.argmax(axis=2).astype(np.int64)
    answers[rng.random(answers.shape) < missing] = -1
    names = np.array(["train", "calibration", "certification", "test"])
    return PredictionTable(
        members=tuple(members),
        classes=tuple(f"class-{c}" for c in range(classes)),
        items=np.array([f"item-{i:05d}" for i in range(n)]),
        labels=labels.astype(np.int64),
        splits=names[np.arange(n) * 4 // n],
        answers=answers,
        probs=p if probs else None,
        sources={name: f"fingerprint-of-{name}" for name in members},
    )


def pool(members: Sequence[str] = tuple(ACCURACY), classes: int = 5, **changes: Any) -> Pool:
    """A pool of table-replaying members."""
    entries = tuple(Member(name=name, runner="table") for name in members)
    fields = {"classes": tuple(f"class-{c}" for c in range(classes)), "input_shape": (1,), "members": entries}
    return Pool(**{**fields, **changes})


def cascade(
    first: Sequence[str] = ("middle", "other", "small"),
    last: Sequence[str] = ("large",),
    rule: str = "score",
    quorum: int | None = None,
    threshold: float | None = None,
) -> Cascade:
    """Two tiers; by default a score gate at 0.8, or a unanimous vote with rule="vote"."""
    if rule == "vote" and quorum is None:
        quorum = len(first)
    if rule != "vote" and threshold is None:
        threshold = 0.8
    gated = Tier(members=tuple(first), rule=rule, quorum=quorum, threshold=threshold)
    return Cascade(tiers=(gated, Tier(members=tuple(last))))


def offer(node_type: str = "t4-node", accelerator: str = "T4", usd_per_hour: float = 0.5, **changes: Any) -> Offer:
    """A one-accelerator node."""
    fields = {
        "node_type": node_type,
        "accelerator": accelerator,
        "accelerator_memory_gib": 16.0,
        "vcpus": 4.0,
        "memory_gib": 16.0,
        "usd_per_hour": usd_per_hour,
        "quota": 10,
        "source": "a price list for tests",
        "date": DAY,
    }
    return Offer(**{**fields, **changes})


def prices() -> Prices:
    """A CPU node for the router and two kinds of accelerator."""
    return Prices(
        offers=(
            offer("cpu-node", "CPU-node", 0.1, accelerators_per_node=0, accelerator_memory_gib=0.0, vcpus=2.0),
            offer("t4-node", "T4", 0.5),
            offer("a100-node", "A100", 3.6, accelerator_memory_gib=40.0),
        )
    )


def profile(member: str, accelerator: str, item_s: float, **changes: Any) -> Profile:
    """Linear batch times: a fixed part of two items' worth plus `item_s` per item; p99 is 20% above p50."""
    timings = tuple(
        BatchTiming(batch_size=b, latency_p50_s=item_s * (2 + b), latency_p99_s=1.2 * item_s * (2 + b), runs=20)
        for b in (1, 2, 4, 8, 16)
    )
    fields = {"memory_gib": 1.0, "hop_p99_s": 0.005, "origin": "measured", "source": "tests", "date": DAY}
    return Profile(member=member, accelerator=accelerator, timings=timings, **{**fields, **changes})


def profiles(service_s: Mapping[str, float] = SERVICE_S, speeds: Mapping[str, float] | None = None) -> Profiles:
    """Every member on every accelerator; `speeds` are relative to the T4."""
    speeds = speeds or {"CPU-node": 0.2, "T4": 1.0, "A100": 6.0}
    return Profiles(profiles=tuple(profile(m, a, s / v) for m, s in service_s.items() for a, v in speeds.items()))


def workload(**changes: Any) -> Workload:
    """100 queries/s within half a second, at most 5 points less accurate than `large`."""
    fields = {"rate_per_s": 100.0, "latency_s": 0.5, "reference": "large", "max_accuracy_loss": 0.05}
    return Workload(**{**fields, **changes})
