"""A plan in service, without Ray: what drift does to its gates, its page, its metrics and its ledger."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

import numpy as np
import pytest

from coe.errors import InvalidInput
from coe.ledger import read_ledger
from coe.records import Audit, Auditing
from coe.report.html import render_html
from coe.report.summarise import summarise
from coe.report.text import render_text
from coe.router.audits import Accounts, Auditor
from coe.router.queries import Reply
from coe.serving.in_service import InService
from coe.types import Audits, Placement, Plan
from tests import report_case as case

AUDITS = Audits(share=1.0, usd_per_hour=1000.0, alarm_above=0.1)


async def member(where: Placement, batch: np.ndarray) -> Reply:
    """The two small ones agree on class 0, and the large one always says 1."""
    probs = np.zeros((len(batch), 3), dtype=np.float32)
    probs[:, int(where.member == "large")] = 1.0
    return Reply(probs, 0.0001, "node-1")


def quick(plan: Plan) -> Plan:
    """Without waits, and with members that the plan believes to be fast."""
    fast = tuple(p.model_copy(update={"expected_busy_s": 0.0001, "replicas": 4}) for p in plan.placements)
    work = plan.workload.model_copy(update={"batch_wait_s": 0.0, "latency_s": 5.0})
    return plan.model_copy(update={"placements": fast, "workload": work})


def served(audits: Audits | None, ledger: Path, queries: int = 160) -> InService:
    """So many queries, a few at a time, and the end of the service."""

    async def run() -> InService:
        plan = quick(case.plan())
        auditor = None if audits is None else Auditor(audits, plan, np.random.default_rng(0), time.time())
        service = InService(plan, str(ledger), member, "replica-1", auditor=auditor)
        for start in range(0, queries, 4):
            await service.ask({f"q{n}": np.array([float(n)]) for n in range(start, start + 4)}, 20.0)
            await asyncio.sleep(0.002)
        await asyncio.sleep(1.2)
        await service.close()
        return service

    return asyncio.run(run())


def test_drift_raises_an_alarm_and_changes_nothing_unless_it_may(tmp_path: Path) -> None:
    service = served(AUDITS, tmp_path)
    view = service.watch.view()
    assert view.audits is not None
    assert view.audits.verdict == "drift"
    assert view.audits.observed == view.audits.differing == 160
    assert view.audits.usd == pytest.approx(view.window("all").calls[-1].usd)
    assert view.alarms[0].startswith("Drift: The last tier answers at least")
    assert view.window("all").tiers[1].answers == 0
    metrics = service.watch.metrics().decode()
    assert 'coe_certificate_drift{router="replica-1"} 1.0' in metrics
    assert 'coe_audit_strictness{router="replica-1"} 0.0' in metrics


def test_with_tighten_the_gates_close_and_nothing_opens_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "coe.router"):
        service = served(AUDITS.model_copy(update={"tighten": True}), tmp_path)
    view = service.watch.view()
    assert view.audits is not None
    assert view.audits.strictness == 1
    assert "tier 1 passes on everything" in view.audits.says
    answers = [t.answers for t in view.window("all").tiers]
    assert 4 < answers[0] < 40, "as many early answers as it took to show drift"
    assert answers[1] == 160 - answers[0]
    assert 'coe_audit_strictness{router="replica-1"} 1.0' in service.watch.metrics().decode()
    assert [r.getMessage() for r in caplog.records if "drift" in r.getMessage()] == [
        "drift: tier 1 passes on everything (its 2 voters cannot be asked for more than 2 votes)"
    ]


@pytest.mark.parametrize("tighten", [False, True])
def test_the_report_of_the_ledger_says_what_the_page_says(tmp_path: Path, tighten: bool) -> None:
    service = served(AUDITS.model_copy(update={"tighten": tighten}), tmp_path)
    records = read_ledger(tmp_path).records
    assert sum(isinstance(r, Auditing) for r in records) == 1 + tighten
    assert sum(isinstance(r, Audit) for r in records) > 4
    report = summarise(quick(case.plan()), records)
    live = service.watch.view().audits
    assert live is not None
    assert report.audits is not None
    assert report.audits.model_dump(exclude={"usd"}) == live.model_dump(exclude={"usd"})
    assert report.audits.usd == pytest.approx(live.usd)
    so_far = service.watch.report().audits
    assert so_far is not None
    assert so_far.says == report.audits.says
    text = render_text(report)
    assert "Shadow audits" in text
    assert '<section id="audits"' in render_html(report)
    assert report.audits.says.split(" with ")[0] in text
    usage = sum(line.usd for line in report.usage_lines if "large" in line.name)
    assert report.audits.usd <= usage


def test_how_audits_are_made_is_said_again_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coe.serving.in_service.RESTATED_S", 0.1)
    service = served(AUDITS, tmp_path)
    settings = [r for r in read_ledger(tmp_path).records if isinstance(r, Auditing)]
    assert len(settings) > 1
    seen = service.watch.view().audits
    assert seen is not None
    assert seen.observed == 160
    assert seen.drift_since_s is not None
    assert seen.drift_since_s < settings[-1].at_s


def test_without_audits_there_is_nothing_of_them(tmp_path: Path) -> None:
    service = served(None, tmp_path, queries=8)
    assert service.watch.view().audits is None
    assert "audit" not in service.watch.metrics().decode()
    report = summarise(quick(case.plan()), read_ledger(tmp_path).records)
    assert report.audits is None
    assert "audit" not in render_text(report).lower()


def test_audits_without_an_alarm_are_refused_before_anything_starts() -> None:
    with pytest.raises(InvalidInput, match="alarm_above"):
        Accounts(AUDITS.model_copy(update={"alarm_above": None}), case.plan(), np.random.default_rng(0), 0.0)
