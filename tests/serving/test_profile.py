"""Profiling on a real local cluster: declared accelerators show the speed that was declared."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from coe.errors import InvalidInput, Unavailable
from coe.serving.profile import _answer_of, profile_members
from coe.types import Fleet, Member, Pool, Prices, Profile

CODE = """
import time
import numpy as np

def spin(batch, ms_per_item):
    due = time.thread_time() + ms_per_item * len(batch) / 1000
    while time.thread_time() < due:
        pass
    return np.full((len(batch), 2), 0.5, dtype=np.float32)

def broken(batch):
    return np.full((len(batch), 2), np.nan, dtype=np.float32)
"""
DAY = "2026-11-20"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "profiled_members.py").write_text(CODE)
    return tmp_path


def pool(*members: Member) -> Pool:
    return Pool(classes=("no", "yes"), input_shape=(3,), members=members)


def spinning(ms_per_item: float) -> Member:
    model = "profiled_members:spin"
    return Member(name=f"spin-{ms_per_item:g}", runner="callable", model=model, options={"ms_per_item": ms_per_item})


def test_profiles_show_the_declared_speeds(ray_session: str, test_fleet: Fleet, folder: Path) -> None:
    asked = pool(spinning(1), spinning(4))
    seen: list[tuple[int, int]] = []
    profiles = profile_members(
        asked,
        folder,
        test_fleet.prices,
        ray_session,
        batch_sizes=(1, 4),
        max_s=0.4,
        today=DAY,
        progress=lambda done, total: seen.append((done, total)),
    )

    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [(p.member, p.accelerator) for p in profiles.profiles] == [
        (m.name, accelerator) for accelerator in ("T4", "A100") for m in asked.members
    ], "the head is left out"
    for accelerator, cpu_share in (("T4", 0.2), ("A100", 0.8)):
        for member, ms_per_item in (("spin-1", 1), ("spin-4", 4)):
            profile = profiles.find(member, accelerator)
            assert profile is not None
            assert [t.batch_size for t in profile.timings] == [1, 4]
            for timing in profile.timings:
                declared_s = timing.batch_size * ms_per_item / 1000 / cpu_share
                assert declared_s <= timing.latency_p50_s < 1.3 * declared_s + 0.003
                assert timing.runs >= 3
            assert 0 < profile.hop_p99_s < 1
            assert profile.origin == "measured"
            assert profile.date == DAY
            assert f"simulated by {cpu_share} of one core" in profile.source


def test_a_broken_member_is_named(ray_session: str, test_fleet: Fleet, folder: Path) -> None:
    broken = pool(Member(name="nan", runner="callable", model="profiled_members:broken"))
    with pytest.raises(InvalidInput, match="member 'nan': must not return NaN") as caught:
        profile_members(broken, folder, test_fleet.prices, ray_session, batch_sizes=(1,), max_s=0.1, today=DAY)
    assert caught.value.problems[0].where == "member 'nan'"


def test_a_cluster_without_the_node_types_is_refused(ray_session: str, test_fleet: Fleet, folder: Path) -> None:
    strange = Prices(offers=(test_fleet.nodes[1].offer.model_copy(update={"node_type": "h100"}),))
    with pytest.raises(InvalidInput, match=r"price list \(h100\), got a100, t4"):
        profile_members(pool(spinning(1)), folder, strange, ray_session, today=DAY)


def test_a_node_type_that_is_fully_taken_is_reported(ray_session: str, test_fleet: Fleet) -> None:
    import ray

    never = ray.remote(lambda: None).options(num_gpus=1, label_selector={"coe.dev/node-type": "nowhere"}).remote()
    with pytest.raises(Unavailable, match=r"no free device on a node of type t4 .*serve shutdown"):
        _answer_of(never, test_fleet.prices.offer("t4"), 0.2)
    ray.cancel(never, force=True)
    assert ray_session


def test_what_is_known_is_not_measured_again_unless_its_code_changed(
    ray_session: str, test_fleet: Fleet, folder: Path
) -> None:
    asked = pool(spinning(1), spinning(2))
    kept: list[Profile] = []

    def run(known: Sequence[Profile]) -> list[Profile]:
        kept.clear()
        found = profile_members(
            asked,
            folder,
            test_fleet.prices,
            ray_session,
            batch_sizes=(1,),
            max_s=0.05,
            today=DAY,
            known=known,
            keep=kept.append,
        )
        return list(found.profiles)

    first = run(())
    assert sorted(p.member for p in kept) == ["spin-1", "spin-1", "spin-2", "spin-2"]
    half = [p for p in first if p.accelerator == "T4"]
    again = run(half)
    assert {p.accelerator for p in kept} == {"A100"}
    assert [p for p in again if p.accelerator == "T4"] == half
    stale = [p.model_copy(update={"code": "of another version"}) if p.member == "spin-1" else p for p in first]
    run(stale)
    assert {p.member for p in kept} == {"spin-1"}


SILENT = """
import socket, sys
from coe.errors import Unavailable
from coe.serving.profile import connect
listener = socket.create_server(("127.0.0.1", 0))
try:
    connect(f"127.0.0.1:{listener.getsockname()[1]}", within_s=1.0)
except Unavailable as error:
    sys.exit(0 if "does not answer as Ray does within 1 s" in str(error) else str(error))
sys.exit("it connected")
"""


def test_what_listens_and_is_no_ray_is_given_up_in_time() -> None:
    """In a process of its own, since Ray goes on trying in the background."""
    done = subprocess.run([sys.executable, "-c", SILENT], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
