"""Reading a ledger record by record: whatever the size of the pieces, it says what is in the file."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.ledger import Ledger, LedgerLimits, LedgerReader, part_reading, read_ledger
from coe.ledger.routers import node_time_once
from coe.ledger.spans import Spans
from coe.records import Answer, BatchRun, NodeSpan, Record

HEADER = b'{"kind": "ledger", "version": 2, "plan": "plan-1", "started_s": 0.0, "part": 1, "records_before": 0}\n'


def answer(number: int) -> Answer:
    return Answer(f"q{number}", 0.0, 0.5, 0, 1, 1.0, False)


def write(folder: Path, records: list[Record], **limits: Any) -> None:
    ledger = Ledger(folder / "run.jsonl", "plan-1", 0.0, LedgerLimits(**limits))
    for number, record in enumerate(records):
        ledger.append(record)
        if number % 7 == 0:
            ledger.flush()
    ledger.close()


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("block", [1, 7, 100, 2**18])
def test_pieces_of_any_size_give_the_same_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, compress: bool
) -> None:
    monkeypatch.setattr(part_reading, "BLOCK", block)
    records: list[Record] = [answer(i) for i in range(50)]
    write(tmp_path, records, compress=compress)
    reader = LedgerReader(tmp_path)
    assert list(reader) == records
    assert (reader.unaccounted, reader.notes) == (0, ())


@pytest.mark.parametrize("block", [1, 64, 2**18])
def test_a_ledger_torn_anywhere_loses_what_was_torn_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(part_reading, "BLOCK", block)
    write(tmp_path, [answer(i) for i in range(4)])
    whole = (tmp_path / "run.jsonl").read_bytes()
    first = whole.index(b"\n") + 1
    for kept in range(first, len(whole)):
        (tmp_path / "run.jsonl").write_bytes(whole[:kept])
        reader = LedgerReader(tmp_path)
        found = [*reader]
        lines = whole[first:kept].split(b"\n")
        assert found == [answer(i) for i in range(min(4, len(lines) - 1))]
        assert reader.torn_lines == (lines[-1] != b"" and not lines[-1].startswith(b'["E"'))


@pytest.mark.parametrize("block", [1, 50, 2**18])
def test_a_packed_ledger_torn_in_its_last_group_keeps_the_groups_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(part_reading, "BLOCK", block)
    groups = [gzip.compress(HEADER), gzip.compress(b'["A","a",0,1,0,1,1.0,false]\n')]
    last = gzip.compress(b'["A","b",0,1,0,1,1.0,false]\n["A","c",0,1,0,1,1.0,false]\n')
    for kept in range(1, len(last)):
        (tmp_path / "run.jsonl.gz").write_bytes(b"".join(groups) + last[:kept])
        reader = LedgerReader(tmp_path)
        found = [r.query_id for r in reader if isinstance(r, Answer)]
        assert found[:1] == ["a"]
        assert found == ["a", "b", "c"][: len(found)]
        assert any("is not closed" in note for note in reader.notes)


def test_node_time_that_follows_on_is_one_span(tmp_path: Path) -> None:
    seconds: list[Record] = [NodeSpan(t, 1, 0.5, i / 2, (i + 1) / 2) for i in range(100) for t in ("t4", "cpu")]
    write(tmp_path, [*seconds[:100], answer(1), *seconds[100:]])
    assert list(LedgerReader(tmp_path)) == [
        answer(1),
        NodeSpan("t4", 1, 0.5, 0.0, 50.0),
        NodeSpan("cpu", 1, 0.5, 0.0, 50.0),
    ]
    assert read_ledger(tmp_path).records == (*seconds[:100], answer(1), *seconds[100:])


times = st.integers(0, 12)
spans = st.builds(
    lambda kind, count, start, length: NodeSpan(kind, count, 0.5 * count, float(start), float(start + length)),
    st.sampled_from(("t4", "cpu")),
    st.integers(1, 2),
    times,
    st.integers(0, 4),
)


@settings(max_examples=200)
@given(st.lists(spans, max_size=20))
def test_fewer_spans_are_the_same_nodes_at_every_moment(ledger: list[NodeSpan]) -> None:
    together = Spans()
    for span in ledger:
        together.add(span)

    def at(found: Any, kind: str, moment: float) -> tuple[int, float]:
        own = [s for s in found if s.node_type == kind and s.start_s <= moment < s.end_s]
        return sum(s.count for s in own), sum(s.count * s.usd_per_hour for s in own)

    for kind in ("t4", "cpu"):
        for moment in range(17):
            there = at(ledger, kind, moment + 0.5)
            assert at(together.found, kind, moment + 0.5) == there
            count, usd = at(node_time_once([together.found]), kind, moment + 0.5)
            assert (count, usd) == (there[0], pytest.approx(there[1]))
    assert len(together.found) <= len(ledger)


def test_a_ledger_whose_last_file_says_that_another_follows_is_not_whole(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "run.jsonl", "plan-1", 0.0, LedgerLimits(max_part_mib=1))
    for number in range(40_000):
        ledger.append(answer(number))
    ledger.close()
    parts = sorted(tmp_path.iterdir())
    assert len(parts) > 1
    parts[-1].unlink()
    assert any("not closed" in note for note in read_ledger(tmp_path).notes)
    alone = read_ledger(parts[0])
    assert not any("not closed" in note for note in alone.notes)


def test_other_plans_files_are_not_read_but_for_what_they_deleted(tmp_path: Path) -> None:
    line = HEADER.replace(b'"part": 1, "records_before": 0', b'"part": 3, "records_before": 2')
    (tmp_path / "run_00003.jsonl").write_bytes(line + b'["A","a",0,1,0,1,1.0,false]\n["E",1,"closed"]\n')
    other = (
        HEADER.replace(b"plan-1", b"plan-2") + b'["A","not even one"]\n["D","run.jsonl",9]\n["D","run_00002.jsonl",9]\n'
    )
    (tmp_path / "then.jsonl").write_bytes(other)
    reader = LedgerReader(tmp_path, "plan-1")
    assert len(list(reader)) == 1
    assert reader.missing_records == 0
    assert reader.notes == (
        "run: 2 files (run.jsonl to run_00002.jsonl) are with 2 records deleted, as keep_days says.",
    )


def test_calls_of_a_batch_are_told_from_each_other() -> None:
    run = BatchRun(0, "m", "t4", 0.5, 1, 0.0, 0.1)
    assert part_reading.understood(["B", 0, "m", "t4", 0.5, 1, 0.0, 0.1]) == run
    assert part_reading.understood(["B", 0, "m", "t4", 0.5, 1, 0.0, 0.1]) == run, "known by its types the second time"
    assert isinstance(part_reading.understood(["B", 0, "m", "t4", 0.5, True, 0.0, 0.1]), str)
    assert isinstance(part_reading.understood(["A", 0, "m", "t4", 0.5, 1, 0.0, 0.1]), str)
