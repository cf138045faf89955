"""A ledger of several files: order, rotation, full disks, retention, and what a reader says is missing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from coe.errors import InvalidInput
from coe.ledger import Ledger, LedgerLimits, read_ledger
from coe.records import Answer, BatchRun, NodeSpan, Record


def answer(number: int, at_s: float = 0.0) -> Answer:
    return Answer(f"q{number}", at_s, at_s + 0.1, 0, 1, 0.5, False)


class Clock:
    """Seconds that a test sets."""

    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def opened(folder: Path, clock: Clock | None = None, **limits: object) -> Ledger:
    return Ledger(folder / "run.jsonl", "plan-1", 0.0, LedgerLimits.model_validate(limits), clock or Clock())


def written_hourly(folder: Path, hours: int, **limits: object) -> list[Record]:
    """A ledger of one answer an hour, each in a file of its own; what was written."""
    clock = Clock()
    ledger = opened(folder, clock, max_part_hours=1.0, **limits)
    records = [answer(i, 3600.0 * i) for i in range(hours)]
    for record in records:
        ledger.append(record)
        ledger.flush()
        clock.now_s += 3600
    ledger.close()
    return list(records)


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gzip"])
def test_files_rotate_by_age_and_are_read_in_their_order(tmp_path: Path, compress: bool) -> None:
    records = written_hourly(tmp_path, 12, compress=compress)
    assert len(list(tmp_path.iterdir())) == 12
    assert sorted(p.name for p in tmp_path.iterdir())[0] == "run.jsonl" + (".gz" if compress else "")
    read = read_ledger(tmp_path)
    assert list(read.records) == records
    assert (read.unaccounted, read.notes) == (0, ())


def test_files_rotate_by_size(tmp_path: Path) -> None:
    ledger = opened(tmp_path, max_part_mib=1)
    for i in range(30_000):
        ledger.append(answer(i))
        if i % 1000 == 999:
            ledger.flush()
    ledger.close()
    sizes = [p.stat().st_size for p in sorted(tmp_path.iterdir())]
    assert len(sizes) == ledger.state.parts == 2
    assert 2**20 <= sizes[0] < 1.2 * 2**20
    assert sum(sizes) == pytest.approx(ledger.state.bytes, abs=100)
    assert [r.query_id for r in read_ledger(tmp_path).records if isinstance(r, Answer)] == [
        f"q{i}" for i in range(30_000)
    ]


def test_a_ledger_that_goes_on_says_so_and_one_that_ended_does_not(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.append(answer(1))
    ledger.flush()
    assert any("is not closed: the router runs, or was killed" in note for note in read_ledger(tmp_path).notes)
    ledger.close()
    assert read_ledger(tmp_path).notes == ()


def test_a_file_that_is_gone_is_missed_with_its_records(tmp_path: Path) -> None:
    records = written_hourly(tmp_path, 5)
    (tmp_path / "run_00003.jsonl").unlink()
    read = read_ledger(tmp_path)
    assert list(read.records) == records[:2] + records[3:]
    assert read.unaccounted == 1
    assert read.notes == ("run: run_00003.jsonl is missing; 1 records are not there.",)
    (tmp_path / "run.jsonl").unlink()
    assert read_ledger(tmp_path).unaccounted == 2
    alone = read_ledger(tmp_path / "run_00004.jsonl")
    assert alone.unaccounted == 0
    assert alone.notes[0] == "run: 3 records in its 3 files before this one were not read."


def test_lines_taken_out_of_a_file_are_missed(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    for i in range(5):
        ledger.append(answer(i))
    ledger.close()
    path = tmp_path / "run.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[4:]))
    read = read_ledger(path)
    assert (read.unaccounted, read.notes) == (2, ("run: 2 records have been taken out of run.jsonl.",))


def test_old_files_are_deleted_only_where_asked_for_and_never_silently(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written_hourly(tmp_path, 3)
    other = tmp_path / "mine.jsonl"
    other.write_text('{"kind": "something else"}\n')
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    first = Ledger(tmp_path / "next.jsonl", "plan-1", 0.0)
    first.close()
    assert len(list(tmp_path.iterdir())) == 5, "nothing is deleted by default"
    second = Ledger(tmp_path / "then.jsonl", "plan-1", 0.0, LedgerLimits(keep_days=1.0))
    second.append(answer(7))
    second.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.jsonl", "next.jsonl", "then.jsonl"]
    assert second.state.deleted == 3
    assert caplog.text.count("as keep_days says") == 3
    other.unlink()
    assert read_ledger(tmp_path).unaccounted == 0


def test_a_report_over_a_ledger_whose_first_files_were_deleted_says_so(tmp_path: Path) -> None:
    clock, written_s = Clock(), dict[Path, float]()
    ledger = opened(tmp_path, clock, max_part_hours=1.0, keep_days=1.0)
    for i in range(4):
        ledger.append(answer(i))
        ledger.flush()
        for path in tmp_path.iterdir():  # the files' own times are of another year than the clock
            os.utime(path, (0, written_s.setdefault(path, clock.now_s)))
        clock.now_s += 12.5 * 3600
    ledger.close()
    read = read_ledger(tmp_path)
    assert [r.query_id for r in read.records if isinstance(r, Answer)] == ["q2", "q3"]
    assert read.notes == ("run: 2 files (run.jsonl to run_00002.jsonl) are with 2 records deleted, as keep_days says.",)
    assert read.unaccounted == 0


FULL = """
import resource, signal, sys
from pathlib import Path
from coe.ledger import Ledger, LedgerLimits
from coe.records import Answer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
ledger = Ledger(Path(sys.argv[1]), "plan-1", 0.0, LedgerLimits(max_waiting=500))
def ask(numbers):
    for i in numbers:
        ledger.append(Answer(f"q{i}", float(i), i + 0.5, 0, 1, 1.0, False))
    ledger.flush()
ask(range(100))
resource.setrlimit(resource.RLIMIT_FSIZE, (ledger.state.bytes + 1000, resource.RLIM_INFINITY))
ask(range(100, 200))
ask(range(200, 900))
state = ledger.state
assert state.written == 100 and state.waiting == 500 and state.lost == 300 and state.errors == 2 and state.says, state
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
ask(range(900, 1000))
assert ledger.state.waiting == 0 and ledger.state.says == ""
ledger.close()
"""


def test_where_the_disk_is_full_records_wait_and_those_beyond_are_counted(tmp_path: Path) -> None:
    """A file size limit makes a write end in the middle and then fail, as a full disk does."""
    subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "run.jsonl")], check=True)
    read = read_ledger(tmp_path)
    numbers = [int(r.query_id[1:]) for r in read.records if isinstance(r, Answer)]
    assert numbers == [*range(600)], "the write that broke off has left nothing behind, and what waited came in order"
    assert read.unaccounted == 400
    assert read.notes == (
        "run: 400 records (400 answers) from 1970-01-01 00:10:00 to 1970-01-01 00:16:39 could not be written: File too large.",
    )


def test_a_write_that_cannot_be_taken_back_ends_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = opened(tmp_path)
    ledger.append(answer(1))
    ledger.flush()
    whole, calls = os.write, []

    def breaks_off(file: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(errno.EIO, "Input/output error")
        return whole(file, data[:10])

    def cannot(_file: int, _size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "write", breaks_off)
        broken.setattr(os, "ftruncate", cannot)
        ledger.append(answer(2))
        assert ledger.flush() == 0
    assert ledger.flush() == 1
    ledger.close()
    read = read_ledger(tmp_path)
    assert read.records == (answer(1), answer(2))
    assert (read.unaccounted, read.notes) == (0, ())


def test_a_service_starts_on_a_full_disk_and_not_on_a_folder_it_may_not_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "write", full)
        ledger = opened(tmp_path)
        ledger.append(answer(1))
        assert ledger.flush() == 0
        assert ledger.state.says == "No space left on device"
    assert list(tmp_path.iterdir()) == [], "a header that was not written leaves no file"
    assert ledger.flush() == 1
    ledger.close()
    assert read_ledger(tmp_path).records == (answer(1),)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="cannot be written"):
        Ledger(tmp_path / "file" / "run.jsonl", "plan-1", 0.0)


def test_a_record_that_json_cannot_hold_keeps_back_no_other(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    for record in (answer(1), Answer("q2", 0.0, 0.1, 0, 1, float("nan"), False), answer(3)):
        ledger.append(record)
    assert ledger.flush() == 2
    ledger.append(answer(4))
    ledger.close()
    read = read_ledger(tmp_path)
    assert read.records == (answer(1), answer(3), answer(4))
    assert read.unaccounted == 1


def test_writing_aside_leaves_the_caller_alone_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that hangs: records wait, and come in their order once it goes on."""
    ledger, whole = opened(tmp_path), os.write

    def slow(file: int, data: bytes) -> int:
        time.sleep(0.2)
        return whole(file, data)

    monkeypatch.setattr(os, "write", slow)
    began_s = time.monotonic()
    for i in range(200):
        ledger.append(answer(i))
        ledger.flush_aside()
    assert time.monotonic() - began_s < 0.2
    assert ledger.state.waiting > 100
    ledger.close()
    assert read_ledger(tmp_path).records == tuple(answer(i) for i in range(200))


def test_time_without_a_record_is_named(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    for start_s, end_s in [(0.0, 10.0), (10.0, 20.0), (80.0, 90.0)]:
        ledger.append(NodeSpan("t4-node", 1, 0.5, start_s, end_s))
        ledger.append(NodeSpan("head", 1, 0.1, start_s, end_s))
    ledger.append(BatchRun(0, "small", "t4-node", 1.0, 8, 40.0, 0.5))
    ledger.close()
    expected = "run: no node time is recorded from 1970-01-01 00:00:20 to 1970-01-01 00:01:20 (60 s)."
    assert read_ledger(tmp_path).notes == (expected,)


WRITER = """
import sys, time
from pathlib import Path
from coe.ledger import Ledger, LedgerLimits
from coe.records import Answer
ledger = Ledger(Path(sys.argv[1]), "plan-1", 0.0, LedgerLimits(max_part_mib=1, compress=sys.argv[2] == "gzip"))
i = 0
while True:
    for _ in range(2000):
        ledger.append(Answer(f"q{i}", time.time(), time.time(), 0, 1, 1.0, False))
        i += 1
    ledger.flush_aside()
    time.sleep(0.02)
"""


@pytest.mark.parametrize("form", ["plain", "gzip"])
def test_a_killed_service_loses_the_last_moment_and_nothing_else(tmp_path: Path, form: str) -> None:
    """Killed while it writes, some time on; what is there is whole up to a moment before the kill."""
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "run.jsonl"), form])
    wait_for(lambda: len(list(tmp_path.iterdir())) >= 2)
    killed_s = time.time()
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    read = read_ledger(tmp_path)
    answers = [r for r in read.records if isinstance(r, Answer)]
    assert [a.query_id for a in answers] == [f"q{i}" for i in range(len(answers))]
    assert killed_s - answers[-1].done_s < 1.0
    assert read.missing_records == 0
    assert "was killed" in read.notes[-1]


def wait_for(there: Callable[[], bool], within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.01)
