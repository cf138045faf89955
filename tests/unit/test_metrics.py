"""What Prometheus reads, read back with its own parser and compared with the report of the same records."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from coe.ledger import LedgerState
from coe.records import Answer
from coe.report.audits import Audited
from coe.report.live import live_view
from coe.report.running import Running
from coe.report.summarise import summarise
from coe.serving.ledger_state import ledger_exposition
from coe.serving.metrics import exposition
from tests import report_case as case
from tests.unit.test_live import counted, drawn, end_s

NOW_S = case.START_S + 15
AUDITS = Audited(
    share=0.1,
    usd_per_hour=1.0,
    usd=0.25,
    chosen=40,
    observed=30,
    differing=3,
    failed=2,
    skipped=1,
    early=0.75,
    rate=0.1,
    low=0.02,
    high=0.3,
    delta=0.05,
    promised=0.05,
    alarm_above=0.08,
    verdict="open",
    drift_since_s=None,
    says="",
)


def scraped(running: Running, now_s: float, audits: Audited | None = None) -> dict[str, dict[tuple[str, ...], float]]:
    """Sample name -> label values without the router's, in the order of their names -> value."""
    text = exposition(running, live_view(running, now_s, router="r1", audits=audits)).decode()
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("router") == "r1"
            key = tuple(value for _, value in sorted(labels.items()))
            assert key not in found.setdefault(sample.name, {})
            found[sample.name][key] = sample.value
    return found


def test_metrics_are_the_report_of_the_same_records() -> None:
    records = drawn(np.random.default_rng(5))
    running = counted(records, case.EPOCH_S)
    whole = summarise(case.plan(), records)
    now_s = max(end_s(r) for r in records)
    found = scraped(running, now_s)
    assert sum(found["coe_requests_total"].values()) == whole.served.requests
    assert found["coe_requests_total"][("failed",)] == whole.served.failed
    both = ("degraded",), ("fallback",)
    assert sum(found["coe_requests_total"][k] for k in both) == whole.served.degraded
    for row in whole.calls:
        labels = (row.member, row.node_type)
        votes = found["coe_votes_total"]
        at = {k[2]: v for k, v in votes.items() if k[:2] == labels}
        assert at["ok"] + at["missing"] == pytest.approx(row.items)
        assert at["saved"] == row.saved_items
        calls = {k[2]: v for k, v in found["coe_calls_total"].items() if k[:2] == labels}
        assert sum(calls.values()) == pytest.approx(row.calls)
        assert (calls["late"], calls["failed"], calls["cancelled"]) == (row.late, row.failed, row.cancelled)
        tier = str(row.tier + 1)
        assert found["coe_busy_seconds_total"][(*labels, tier)] == pytest.approx(row.busy_s)
        assert found["coe_member_cost_usd_total"][(*labels, tier)] == pytest.approx(row.usd + row.usd_fees)
    for cost in whole.costs:
        assert found["coe_cost_usd_total"][(cost.basis,)] == pytest.approx(cost.usd)
    assert whole.against is not None
    for saving in whole.against.savings:
        saved = saving.baseline_usd_per_1k - saving.cascade_usd_per_1k
        key = ("large on a100-node", saving.basis)
        assert found["coe_cost_saved_usd_total"][key] == pytest.approx(saved * whole.served.answered / 1000)
    reached = found["coe_tier_arrivals_total"]
    assert reached[("2",)] / reached[("1",)] == whole.tiers[1].reach
    assert found["coe_escalations_total"] == {("1",): reached[("2",)], ("2",): 0}


def test_the_histogram_counts_what_was_within_each_bound() -> None:
    records = [r for r in drawn(np.random.default_rng(6)) if not isinstance(r, Answer) or r.tier >= 0]
    found = scraped(counted(records, case.EPOCH_S), case.EPOCH_S + 300)
    took_s = np.array([r.done_s - r.arrival_s for r in records if isinstance(r, Answer)])
    for (bound,), count in found["coe_request_latency_seconds_bucket"].items():
        assert count == (took_s <= float(bound)).sum()
    assert found["coe_request_latency_seconds_sum"][()] == pytest.approx(took_s.sum())
    assert found["coe_request_latency_seconds_count"][()] == len(took_s)
    assert (repr(0.5),) in found["coe_request_latency_seconds_bucket"]  # the promise is a bound


def test_counters_never_fall() -> None:
    records = sorted(drawn(np.random.default_rng(8)), key=end_s)
    running, before = Running(case.plan(), case.EPOCH_S), dict[str, Mapping[tuple[str, ...], float]]()
    for number, record in enumerate(records):
        running.add(record, end_s(record))
        if number % 100 == 0:
            found = scraped(running, end_s(record))
            for name in (n for n in found if n.endswith(("_total", "_bucket")) and "saved_usd" not in n):
                for key, value in before.get(name, {}).items():
                    assert found[name][key] >= value - 1e-12, (name, key)
            before = dict(found)


def test_the_designs_names_are_there() -> None:
    found = scraped(counted(case.records(), case.START_S - 9), NOW_S, AUDITS)
    assert {
        "coe_requests_total",
        "coe_request_latency_seconds_bucket",
        "coe_escalations_total",
        "coe_agreement_ratio",
        "coe_votes_total",
        "coe_cost_usd_total",
        "coe_hourly_cost_usd",
        "coe_cost_saved_usd_total",
    } <= found.keys()


def test_audits_are_there_where_they_are_made() -> None:
    running = counted(case.records(), case.START_S - 9)
    found = scraped(running, NOW_S, AUDITS)
    assert found["coe_audits_total"] == {
        ("same",): 27,
        ("differs",): 3,
        ("failed",): 2,
        ("skipped",): 1,
        ("resting",): 0,
    }
    assert found["coe_audit_disagreement_ratio"][("alarm",)] == 0.08
    assert found["coe_certificate_drift"] == {(): 0}
    drifting = AUDITS.model_copy(update={"verdict": "drift"})
    assert scraped(running, NOW_S, drifting)["coe_certificate_drift"] == {(): 1}
    assert scraped(running, NOW_S, drifting)["coe_alarms"][()] == 1 + found["coe_alarms"][()]
    assert not any("audit" in name for name in scraped(running, NOW_S))


def test_the_dashboard_asks_for_metrics_and_labels_that_there_are() -> None:
    records = drawn(np.random.default_rng(5))
    running = counted(records, case.EPOCH_S)
    text = exposition(running, live_view(running, max(map(end_s, records)), router="r1", audits=AUDITS)).decode()
    text += ledger_exposition(LedgerState(last_write_s=case.EPOCH_S), "r1").decode()
    labels_of: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels_of.setdefault(sample.name, set()).update(sample.labels)
    board = json.loads((Path(__file__).parents[2] / "deployments" / "grafana" / "coe.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    assert len(queries) > 10
    for query in queries:
        (metric,) = set(re.findall(r"coe_\w+", query))
        assert metric in labels_of, query
        grouped = {name for names in re.findall(r"by \(([^)]*)\)", query) for name in names.split(", ")}
        assert grouped <= labels_of[metric], query
    shown = {metric for query in queries for metric in re.findall(r"coe_\w+", query)}
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            assert (
                set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
                <= labels_of[re.findall(r"coe_\w+", target["expr"])[0]]
            )
    assert {"coe_cost_saved_usd_total", "coe_ledger_records_waiting"} <= shown
