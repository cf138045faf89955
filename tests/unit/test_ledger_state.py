"""What a service says of its ledger, on its page, in its report and to Prometheus."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from coe import files
from coe.cli.main import run
from coe.ledger import Ledger, LedgerLimits, LedgerState
from coe.records import NodeSpan
from coe.serving.ledger_state import ledger_exposition, together
from coe.serving.live_page import Watch
from coe.serving.process_state import process_exposition
from tests import report_case as case


def watching(state: LedgerState | None) -> Watch:
    now = [case.START_S]
    watch = Watch(case.plan(), lambda: now[0], "r1", ledger=lambda: state)
    now[0] += 15
    for record in case.records():
        watch.record(record)
    return watch


def test_lost_and_waiting_records_are_alarms_notes_and_samples() -> None:
    watch = watching(LedgerState(100, 7, 30, 2, 5000, 3, 1, says="No space left on device"))
    said = (
        "The ledger cannot be written (No space left on device); 30 records wait.",
        "7 records are lost to the ledger; the sums here have them, `coe report` will not.",
    )
    assert watch.view().alarms[-2:] == said
    assert set(said) <= set(watch.report().notes)
    samples = {
        (sample.name, sample.labels.get("status", "")): sample.value
        for family in text_string_to_metric_families(watch.metrics().decode())
        for sample in family.samples
        if sample.name.startswith("coe_ledger")
    }
    assert samples == {
        ("coe_ledger_records_total", "written"): 100,
        ("coe_ledger_records_total", "lost"): 7,
        ("coe_ledger_bytes_total", ""): 5000,
        ("coe_ledger_files_total", ""): 3,
        ("coe_ledger_files_deleted_total", ""): 1,
        ("coe_ledger_write_errors_total", ""): 2,
        ("coe_ledger_records_waiting", ""): 30,
    }


@pytest.mark.parametrize("state", [None, LedgerState(100)], ids=["none kept", "all is well"])
def test_a_ledger_that_is_well_is_no_news(state: LedgerState | None) -> None:
    watch = watching(state)
    assert not any("ledger" in alarm for alarm in watch.view().alarms)
    assert (b"coe_ledger" in watch.metrics()) == (state is not None)


def test_the_report_says_what_is_missing_from_a_ledger_of_several_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten seconds in three files of which the second is gone, killed before its end: what the report cannot know, it says."""
    hours = iter(range(10_000))
    folder = tmp_path / "ledger"
    limits = LedgerLimits(max_part_hours=1.0)
    ledger = Ledger(folder / "run.jsonl", case.plan().fingerprint(), case.START_S, limits, lambda: 3600.0 * next(hours))
    records = case.records()
    third = len(records) // 3
    for part in (records[:third], records[third : 2 * third], records[2 * third :]):
        for record in part:
            ledger.append(record)
        ledger.flush()
    files.write(tmp_path / "plan.yaml", case.plan())
    (folder / "run_00002.jsonl").unlink()
    assert run(["report", "--plan", str(tmp_path / "plan.yaml"), "--ledger", str(folder)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"run: run_00002.jsonl is missing; {third} records are not there." in said
    assert f"{third} answers or records are missing from the ledger" in said
    assert "The ledger is not closed: the router runs, or was killed" in said


def test_what_the_router_takes_is_told_as_far_as_the_system_tells(tmp_path: Path) -> None:
    told = {
        sample.name: sample.value
        for family in text_string_to_metric_families(process_exposition(7, "r1").decode())
        for sample in family.samples
    }
    assert told["coe_router_tasks"] == 7
    assert told["coe_router_resident_bytes"] > 1e6
    assert told["coe_router_open_files"] >= 3
    assert b"coe_router_resident_bytes" not in process_exposition(7, "r1", tmp_path)


def test_when_something_was_last_written_is_told_once_something_was(tmp_path: Path) -> None:
    at_s = [1000.0]
    ledger = Ledger(tmp_path / "run.jsonl", "plan", 0.0, clock=lambda: at_s[0])
    assert ledger.state.last_write_s == 1000.0, "the header"
    at_s[0] = 1005.0
    ledger.append(NodeSpan("t4", 1, 0.5, 0.0, 1.0))
    assert ledger.state.last_write_s == 1000.0
    ledger.flush()
    at_s[0] = 1010.0
    ledger.flush()
    assert ledger.state.last_write_s == 1005.0, "nothing was there to write"
    both = together([ledger.state, LedgerState(last_write_s=7.0), LedgerState()])
    assert both is not None
    assert both.last_write_s == 1005.0
    name = "coe_ledger_last_write_timestamp_seconds"
    assert f'{name}{{router="r"}} 1005.0' in ledger_exposition(both, "r").decode()
    assert f"{name}{{" not in ledger_exposition(LedgerState(), "r").decode()
    ledger.close()
