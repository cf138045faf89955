"""A service whose last tier is a hosted model, replayed behind OpenAI's protocol: its answers, and its fees to the cent."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import uvicorn
import yaml
from ray import serve
from ray.serve._private.api import serve_start
from ray.serve.config import HTTPOptions
from ray.serve.schema import ServeDeploySchema

from coe.bench import run_bench
from coe.cascade.evaluate import route
from coe.cost.tokens import call_usd
from coe.files import to_yaml, write_predictions
from coe.ledger import read_ledger
from coe.placement.optimize import plan
from coe.profiler.predict import DataSet
from coe.records import Answer, BatchRun
from coe.report.summarise import summarise
from coe.serving.build import serve_config
from coe.serving.cluster import ClusterState, free_port
from coe.serving.ready import wait_until_running
from coe.table import PredictionTable
from coe.types import ApiPrice, Fleet, Member, Plan, Pool, Profiles
from deployments.llm.replay_endpoint import ReplayEndpoint
from tests import factories

pytestmark = pytest.mark.serving

PRICE = ApiPrice(
    model="large",
    provider="tests",
    usd_per_million_prompt_tokens=3.0,
    usd_per_million_completion_tokens=12.0,
    source="tests",
    date=factories.DAY,
)


def recorded() -> PredictionTable:
    """The usual table with letters for classes and tokens of the large model."""
    table = factories.table(n=240)
    tokens = np.zeros((len(table), len(table.members), 2), dtype=np.int32)
    tokens[:, table.members.index("large")] = np.random.default_rng(0).integers(10, 900, (len(table), 2))
    return replace(table, classes=tuple("ABCDE"), tokens=tokens)


@contextmanager
def replayed(table: PredictionTable) -> Iterator[str]:
    """The endpoint in a thread; its base URL."""
    port = free_port()
    config = uvicorn.Config(ReplayEndpoint(table), port=port, log_level="critical", access_log=False, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline_s = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline_s:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.should_exit = True
        thread.join(10)


def hosted_plan(table: PredictionTable, folder: Path, fleet: Fleet, url: str) -> Plan:
    """Three members that replay the table on the fleet, and `large` behind the endpoint."""
    (folder / "items.json").write_text(json.dumps([f"[item {item}]" for item in table.items]))
    write_predictions(folder / "predictions.npz", table)
    local = tuple(
        Member(name=m, runner="table", options={"predictions": str(folder / "predictions.npz")})
        for m in table.members
        if m != "large"
    )
    options = {"base_url": url, "model": "large", "items_file": "items.json", "extract": "letter"}
    pool = Pool(
        classes=table.classes,
        input_shape=(1,),
        members=(*local, Member(name="large", runner="openai", options=options)),
    )
    accelerators = {n.offer.accelerator: 1.0 for n in fleet.nodes if n.offer.accelerators_per_node}
    cheap = factories.profiles({"small": 0.0004, "middle": 0.0005, "other": 0.0004}, speeds=accelerators).profiles
    profiles = (*(p.model_copy(update={"memory_gib": 0.01}) for p in cheap), factories.profile("large", "API", 0.01))
    return plan(
        pool,
        [factories.cascade(rule="vote", quorum=3)],
        table,
        Profiles(profiles=profiles),
        fleet.prices.model_copy(update={"apis": (PRICE,)}),
        factories.workload(rate_per_s=80.0, latency_s=1.0),
        inputs={},
        uncertified=True,
        python_path=str(folder),
    )


def test_a_hosted_tier_answers_as_recorded_and_is_billed_by_its_tokens(
    fleet_cluster: ClusterState, test_fleet: Fleet, ray_session: str, tmp_path: Path
) -> None:
    assert ray_session == fleet_cluster.address
    table, ledger, port = recorded(), tmp_path / "ledger", free_port()
    with replayed(table) as url:
        found = hosted_plan(table, tmp_path, test_fleet, url)
        assert [p.member for p in found.placements if p.api] == ["large"]
        config = yaml.safe_load(to_yaml(serve_config(found, ledger_dir=str(ledger), port=port)))
        serve_start(http_options=HTTPOptions(host="127.0.0.1", port=port), proxy_location="HeadOnly").deploy_apps(
            ServeDeploySchema.model_validate(config)
        )
        try:
            wait_until_running(fleet_cluster.address, 90)
            rows = np.arange(len(table), dtype=np.float32)[:, None]
            data = DataSet(rows, table.labels, table.items, table.splits)
            bench = run_bench(f"http://127.0.0.1:{port}", data, "table:all", 40.0, seed=1)
            deadline_s = time.monotonic() + 10
            while sum(isinstance(r, Answer) for r in read_ledger(ledger).records) < len(table):
                assert time.monotonic() < deadline_s
                time.sleep(0.1)
        finally:
            serve.shutdown()
    routing = route(found.cascade, table)
    expected = list(zip(routing.answer.tolist(), routing.tier.tolist(), strict=True))
    assert [(a.answer, a.tier) for a in bench.answers] == expected
    records = read_ledger(ledger).records
    calls = [r for r in records if isinstance(r, BatchRun) and r.member == "large"]
    asked = routing.tier == 1
    assert sum(r.items for r in calls) == asked.sum() > 0
    assert table.tokens is not None
    tokens = table.tokens[asked, table.members.index("large")]
    fees = call_usd(PRICE, tokens[:, 0], tokens[:, 1]).sum()
    assert sum(r.fee_usd for r in calls) == pytest.approx(fees)
    assert {r.busy_s for r in calls} == {0.0}
    report = summarise(found, records, bench=bench, table=table)
    assert not [missed for missed in report.missed if not missed.startswith("latency")]  # the machine may be busy
    assert [line.usd for line in report.usage_lines if "fees of large" in line.name] == [pytest.approx(fees)]
