"""The ledger file: what is written is read, a torn end is forgiven, and nothing else is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.errors import InvalidInput, WrongKind
from coe.ledger import Ledger, read_ledger, write_ledger
from coe.ledger.routers import node_time_once
from coe.records import Answer, Audit, Auditing, BatchRun, NodeSpan, Record

SPAN = NodeSpan("t4-node", 2, 0.5, 0.0, 10.0)
RUN = BatchRun(0, "small", "t4-node", 0.5, 8, 1.0, 0.02, "ok")
ANSWER = Answer("q1", 1.0, 1.1, 0, 3, 0.9, False)

seconds = st.floats(0, 2e9)
records = st.lists(
    st.one_of(
        st.builds(NodeSpan, st.text(min_size=1), st.integers(1, 99), seconds, seconds, seconds),
        st.builds(BatchRun, st.integers(0, 3), st.text(), st.text(), seconds, st.integers(1, 99), seconds, seconds),
        st.builds(Answer, st.text(), seconds, seconds, st.integers(-1, 3), st.integers(-1, 99), seconds, st.booleans()),
        st.builds(Auditing, seconds, seconds, seconds, seconds, seconds, st.integers(0, 4)),
        st.builds(
            Audit, st.text(), st.integers(0, 3), st.integers(0, 99), st.integers(-1, 99), seconds, seconds, st.text()
        ),
    ),
    max_size=8,
)


def write_open(path: Path, *written: Record) -> None:
    """A ledger that goes on, or whose writer was killed."""
    ledger = Ledger(path, "plan-1", 5.0)
    for record in written:
        ledger.append(record)
    ledger.flush()


@given(records)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, written: list[Record]) -> None:
    path = tmp_path_factory.mktemp("ledger") / "a.jsonl"
    write_ledger(path, "plan-1", 5.0, written)
    read = read_ledger(path)
    assert list(read.records) == written
    assert (read.plan_fingerprint, read.torn_lines) == ("plan-1", 0)


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_last_line_is_counted_and_nothing_before_it_is_lost(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.jsonl"
    write_open(path, SPAN, RUN, ANSWER)
    path.write_bytes(path.read_bytes()[:-cut])
    read = read_ledger(path)
    assert read.records == (SPAN, RUN)
    assert read.torn_lines == 1


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("garbage", "is not valid JSON"),
        ('["X",1]', "must be a record"),
        ('["N","t4",2]', "a NodeSpan has the fields node_type, count"),
        ('["B",0,"small","t4",0.5,true,1.0,0.02,"ok"]', "a BatchRun has the fields"),
        ('{"kind":"ledger"}', "must be a record"),
    ],
)
def test_anything_else_malformed_is_refused_with_its_line(tmp_path: Path, line: str, rule: str) -> None:
    path = tmp_path / "a.jsonl"
    write_open(path, SPAN)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InvalidInput, match=f"a.jsonl:3.*{rule}"):
        read_ledger(path)


def test_nothing_follows_the_end_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_ledger(path, "plan-1", 5.0, [SPAN])
    with path.open("a") as file:
        file.write('["E",1,"closed"]\n')
    with pytest.raises(InvalidInput, match="a.jsonl:4: must not follow the end"):
        read_ledger(path)


def test_ledgers_of_the_first_version_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"kind": "ledger", "version": 1, "plan": "plan-1", "started_s": 5.0}\n["A","q1",1.0,1.1,0,3,0.9,false]\n'
    )
    read = read_ledger(tmp_path)
    assert read.records == (Answer("q1", 1.0, 1.1, 0, 3, 0.9, False),)
    assert (read.unaccounted, read.notes) == (0, ())


def test_files_that_are_no_ledgers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"kind":"plan"}\n')
    with pytest.raises(WrongKind, match="must be the header of a ledger"):
        read_ledger(tmp_path)
    with pytest.raises(InvalidInput, match="holds no ledger"):
        read_ledger(tmp_path / "nowhere")
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(InvalidInput, match="is empty"):
        read_ledger(tmp_path)


def test_ledgers_of_several_routers_are_read_together_but_not_of_several_plans(tmp_path: Path) -> None:
    write_ledger(tmp_path / "a.jsonl", "plan-1", 5.0, [SPAN])
    write_ledger(tmp_path / "b.jsonl", "plan-1", 6.0, [RUN, ANSWER])
    assert read_ledger(tmp_path).records == (SPAN, RUN, ANSWER)
    write_ledger(tmp_path / "c.jsonl", "plan-2", 6.0, [RUN])
    with pytest.raises(InvalidInput, match="different plans"):
        read_ledger(tmp_path)


def test_nothing_is_written_before_the_flush(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "a.jsonl", "plan-1", 5.0)
    ledger.append(RUN)
    assert read_ledger(tmp_path / "a.jsonl").records == ()
    assert ledger.flush() == 1
    assert read_ledger(tmp_path / "a.jsonl").records == (RUN,)
    ledger.close()


def test_a_killed_writer_loses_only_what_it_had_not_flushed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom coe.ledger import Ledger\nfrom coe.records import Answer\n"
        "ledger = Ledger(Path(sys.argv[1]), 'plan-1', 0.0)\n"
        "for i in range(10**6):\n"
        "    ledger.append(Answer(f'q{i}', 0.0, 1.0, 0, 1, 1.0, False))\n"
        "    if i % 10 == 9: ledger.flush(); time.sleep(0.001)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(path)])
    deadline = time.monotonic() + 20
    while (not path.exists() or path.stat().st_size < 20_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    answers = [r.query_id for r in read_ledger(path).records if isinstance(r, Answer)]
    assert answers == [f"q{i}" for i in range(len(answers))]
    assert len(answers) >= 100


def test_ledgers_of_several_routers_hold_the_node_time_once(tmp_path: Path) -> None:
    """Each router writes the nodes of the whole service; where they overlap the larger count holds. Simulated nodes add up."""
    write_ledger(
        tmp_path / "one.jsonl", "plan", 0.0, [NodeSpan("t4", 2, 0.5, 0.0, 10.0), NodeSpan("t4", 2, 0.5, 10.0, 20.0)]
    )
    write_ledger(
        tmp_path / "two.jsonl", "plan", 0.0, [NodeSpan("t4", 3, 0.5, 4.0, 6.0), NodeSpan("t4", 1, 0.5, 15.0, 25.0)]
    )
    found = [r for r in read_ledger(tmp_path).records if isinstance(r, NodeSpan)]
    assert sum(s.count * (s.end_s - s.start_s) for s in found) == pytest.approx(2 * 20 + 1 * 2 + 1 * 5)
    assert {s.usd_per_hour for s in found} == {0.5}
    apart = [r for r in read_ledger(tmp_path, "plan", comes_and_goes=True).records if isinstance(r, NodeSpan)]
    assert len(apart) == 4
    nodes = [NodeSpan("t4", 1, 0.5, 0.0, 10.0), NodeSpan("t4", 1, 0.7, 5.0, 10.0)]
    assert sum(s.count * s.usd_per_hour * (s.end_s - s.start_s) for s in node_time_once([nodes, []])) == pytest.approx(
        8.5
    )
