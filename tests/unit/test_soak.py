"""Whether something grows: the statistics of `benchmarks.soak`."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.soak_watch import Slope, kind_of, slope_of

AT_S = np.arange(0.0, 300.0, 3.0)


def test_a_straight_line_is_found_exactly() -> None:
    slope = slope_of(AT_S.tolist(), (5e8 + 200 * AT_S).tolist())
    assert slope.per_s == pytest.approx(200.0)
    assert slope.uncertainty_per_s < 1e-3


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Steps that last for several samples, as memory has them, around no growth: 95% of 400 intervals hold 0, within three
    standard errors, where single samples would make them hold it far less often."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        steps = np.repeat(rng.normal(0, 1e6, 50), 2)
        slope = slope_of(AT_S.tolist(), steps.tolist())
        held += abs(slope.per_s) <= slope.uncertainty_per_s
    assert 0.95 - 3 * np.sqrt(0.95 * 0.05 / 400) <= held / 400


def test_a_leak_of_a_kilobyte_per_query_is_certain_within_minutes() -> None:
    rng = np.random.default_rng(1)
    slope = slope_of(AT_S.tolist(), (100 * 1024 * AT_S + rng.normal(0, 1e6, len(AT_S))).tolist())
    assert slope.certain_per_s / 100 > 200, "bytes per query, at 100 queries per second"


def test_few_samples_say_nothing() -> None:
    assert slope_of([0.0, 3.0, 6.0], [1.0, 2.0, 3.0]) == Slope(0.0, float("inf"))


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("ray::ServeReplica:coe:router.handle_request", "router"),
        ("ray::ServeReplica:coe:small@t4", "members"),
        ("ray::ServeController.run", "controller"),
        ("/x/bin/haproxy -f /tmp/haproxy.cfg", "proxy"),
        ("/x/raylet --raylet_socket_name", "ray"),
        ("python -m pytest", None),
    ],
)
def test_processes_are_known_by_their_titles(title: str, kind: str | None) -> None:
    assert kind_of(title) == kind
