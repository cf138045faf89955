"""The whole service on a real local Ray cluster, with members that replay a prediction table."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import ray
import tritonclient.grpc
import tritonclient.http as triton
import yaml
from ray import serve
from ray.serve._private.api import serve_start
from ray.serve.config import HTTPOptions, gRPCOptions
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema
from tritonclient.utils import InferenceServerException

from coe.bench import run_bench
from coe.cascade.evaluate import route
from coe.files import to_yaml, write_predictions
from coe.ledger import read_ledger
from coe.placement.optimize import plan
from coe.profiler.predict import DataSet
from coe.records import Answer, Audit, BatchRun, Bench, NodeSpan, Record
from coe.report.live import LiveView
from coe.report.summarise import summarise
from coe.serving.build import live_config, serve_config
from coe.serving.cluster import ClusterState, free_port
from coe.serving.labels import NODE_TYPE_LABEL
from coe.serving.ready import wait_until_running
from coe.table import PredictionTable
from coe.types import Audits, Fleet, Member, Plan, Pool
from tests import factories

pytestmark = pytest.mark.serving

AUDITS = Audits(share=0.5, usd_per_hour=1000.0, alarm_above=0.5)


@dataclass(frozen=True)
class Live:
    """A deployed plan, the table it replays, and where it listens."""

    plan: Plan
    table: PredictionTable
    url: str
    grpc_address: str
    ledger: Path


def table_plan(table: PredictionTable, predictions: Path, fleet: Fleet) -> Plan:
    """A plan over the fleet whose members replay `predictions`; every batch takes well under a millisecond."""
    accelerators = {n.offer.accelerator: 1.0 for n in fleet.nodes if n.offer.accelerators_per_node}
    members = tuple(Member(name=m, runner="table", options={"predictions": str(predictions)}) for m in table.members)
    pool = Pool(classes=table.classes, input_shape=(1,), members=members)
    cost = {"small": 0.0004, "middle": 0.0005, "other": 0.0004, "large": 0.004}
    profiles = factories.profiles(cost, speeds=accelerators)
    small = [p.model_copy(update={"memory_gib": 0.01}) for p in profiles.profiles]
    return plan(
        pool,
        [factories.cascade(rule="vote", quorum=3)],
        table,
        profiles.model_copy(update={"profiles": tuple(small)}),
        fleet.prices,
        factories.workload(rate_per_s=80.0, latency_s=1.0),
        inputs={},
        uncertified=True,
    )


@pytest.fixture(scope="module")
def live(
    fleet_cluster: ClusterState, test_fleet: Fleet, ray_session: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    """The service, deployed from the YAML that `coe build` would write."""
    folder = tmp_path_factory.mktemp("service")
    table = factories.table(n=480)
    write_predictions(folder / "predictions.npz", table)
    found = table_plan(table, folder / "predictions.npz", test_fleet)
    port, grpc_port = free_port(), free_port()
    text = to_yaml(
        serve_config(found, ledger_dir=str(folder / "ledger"), audits=AUDITS, port=port, grpc_port=grpc_port)
    )
    config = ServeDeploySchema.model_validate(yaml.safe_load(text))
    client = serve_start(
        http_options=HTTPOptions(host="127.0.0.1", port=port),
        grpc_options=gRPCOptions(**config.grpc_options.model_dump()),
        proxy_location="HeadOnly",
    )
    client.deploy_apps(config)
    assert ray_session == fleet_cluster.address
    wait_until_running(fleet_cluster.address, 90)
    yield Live(found, table, f"http://127.0.0.1:{port}", f"127.0.0.1:{grpc_port}", folder / "ledger")
    serve.shutdown()


def rows_of(table: PredictionTable) -> DataSet:
    """The data set whose items are the table's own row numbers."""
    x = np.arange(len(table), dtype=np.float32)[:, None]
    return DataSet(x, table.labels, table.items, table.splits)


@pytest.fixture(scope="module")
def bench(live: Live) -> Bench:
    """Every item of the table over HTTP, once."""
    return run_bench(live.url, rows_of(live.table), "table:all", 120.0, seed=1)


def test_every_answer_is_the_one_that_the_evaluation_predicts(live: Live, bench: Bench) -> None:
    routing = route(live.plan.cascade, live.table)
    assert [a.http_status for a in bench.answers] == [200] * len(live.table)
    assert [(a.answer, a.tier) for a in bench.answers] == list(
        zip(routing.answer.tolist(), routing.tier.tolist(), strict=True)
    )
    assert not any(a.degraded for a in bench.answers)


def test_the_ledger_reconciles_with_the_client(live: Live, bench: Bench) -> None:
    records = settled(live, len(bench.answers))
    answers = [r for r in records if isinstance(r, Answer)]
    assert {a.query_id for a in answers} >= set(live.table.items.tolist())
    calls = [r for r in records if isinstance(r, BatchRun)]
    escalated = sum(a.tier == 1 for a in bench.answers)
    for member in live.plan.cascade.members:
        items = sum(r.items for r in calls if r.member == member and not r.audit)
        assert items == (escalated if member == "large" else len(bench.answers))
    spans = [r for r in records if isinstance(r, NodeSpan)]
    assert {s.node_type for s in spans} == {n.node_type for n in live.plan.nodes}
    report = summarise(live.plan, records, bench=bench, table=live.table)
    assert not [m for m in report.missed if not m.startswith("latency")]  # which other work on the machine may miss


def settled(live: Live, answers: int, timeout_s: float = 10.0) -> tuple[Record, ...]:
    """The ledger's records once it holds that many answers (it is written about once a second)."""
    deadline = time.monotonic() + timeout_s
    while True:
        records = read_ledger(live.ledger).records
        if sum(isinstance(r, Answer) for r in records) >= answers or time.monotonic() > deadline:
            return records
        time.sleep(0.1)


def test_early_answers_are_audited_beside_everything_else(live: Live, bench: Bench) -> None:
    """What the last tier said of each is what it says in the table, and page, metrics and ledger tell the same."""
    deadline = time.monotonic() + 15
    seen = None
    while time.monotonic() < deadline and (seen is None or seen.observed < 20):
        seen = LiveView.model_validate(httpx.get(f"{live.url}/live.json").json()).audits
        time.sleep(0.5)
    assert seen is not None
    assert seen.observed >= 20
    assert 0 < seen.usd < seen.usd_per_hour
    assert "coe_audits_total{" in httpx.get(f"{live.url}/metrics").text
    row_of = {item: row for row, item in enumerate(live.table.items.tolist())}
    large = live.table.answers[:, live.table.members.index("large")]
    routing = route(live.plan.cascade, live.table)
    audits = [r for r in settled(live, len(bench.answers)) if isinstance(r, Audit) and r.last >= 0]
    assert len(audits) >= 20
    for audit in audits:
        row = row_of[audit.query_id]
        assert (audit.tier, audit.answer, audit.last) == (0, routing.answer[row], large[row])
        assert (audit.outcome == "same") == (audit.answer == audit.last)


def test_replicas_run_on_the_node_types_that_the_plan_says(live: Live) -> None:
    labels = {n["NodeID"]: n["Labels"].get(NODE_TYPE_LABEL) for n in ray.nodes()}
    details = ray.get(_get_global_client()._controller.get_serve_instance_details.remote())
    placed = {
        name: {labels[replica["node_id"]] for replica in deployment["replicas"]}
        for name, deployment in details["applications"]["coe"]["deployments"].items()
    }
    expected = {p.deployment: {p.node_type} for p in live.plan.placements}
    assert placed == {**expected, "router": {live.plan.router.node_type}}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{", "body"),
        (b'{"items": [{"input": [1, 2]}]}', "items[0].input"),
        (b'{"items": [{"input": [null]}]}', "items[0].input"),
        (b'{"items": []}', "items"),
    ],
)
def test_bad_requests_get_422_with_the_field_and_reach_no_member(live: Live, body: bytes, field: str) -> None:
    response = httpx.post(f"{live.url}/predict", content=body)
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == field


def test_many_items_in_one_request_come_back_in_order(live: Live, bench: Bench) -> None:
    items = [{"id": f"again-{row}", "input": [row]} for row in range(40)]
    answers = httpx.post(f"{live.url}/predict", json={"items": items}, timeout=20).json()["answers"]
    assert [a["id"] for a in answers] == [f"again-{row}" for row in range(40)]
    first = [(a.answer, a.tier) for a in bench.answers[:40]]
    assert [(a["class"], a["tier"]) for a in answers] == first
    assert answers[0]["answer"] == live.table.classes[answers[0]["class"]]


def test_the_service_says_which_plan_it_serves(live: Live) -> None:
    assert Plan.model_validate_json(httpx.get(f"{live.url}/plan").text) == live.plan
    assert httpx.get(f"{live.url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{live.url}/readyz").json() == {"status": "ready", "missing": []}


def test_a_request_may_say_how_long_it_waits(live: Live) -> None:
    def ask(timeout_ms: str) -> httpx.Response:
        headers = {"X-Request-Timeout-Ms": timeout_ms, "x-request-id": "mine"}
        return httpx.post(f"{live.url}/predict", json={"items": [{"input": [0]}]}, headers=headers, timeout=20)

    in_time = ask("5000")
    assert in_time.status_code == 200
    assert in_time.headers["x-coe-degraded"] == "0"
    assert in_time.headers["x-coe-tier"] == str(in_time.json()["answers"][0]["tier"])
    assert in_time.headers["x-request-id"] == "mine"  # once
    assert ask("soon").json()["errors"][0]["field"] == "X-Request-Timeout-Ms"
    late = ask("0.001")
    assert late.status_code == 503
    assert "error" in late.json()["answers"][0]


def test_triton_gets_the_same_answers(live: Live, bench: Bench) -> None:
    batch = np.arange(40, dtype=np.float32)[:, None]
    tensor = triton.InferInput("input", [40, 1], "FP32")
    tensor.set_data_from_numpy(batch)
    with triton.InferenceServerClient(live.url.removeprefix("http://")) as client:
        assert client.is_model_ready(live.plan.cascade.name)
        got = client.infer(live.plan.cascade.name, [tensor], request_id="triton")
    first = [(a.answer, a.tier) for a in bench.answers[:40]]
    assert list(zip(got.as_numpy("answer").tolist(), got.as_numpy("tier").tolist(), strict=True)) == first


def test_triton_gets_them_over_grpc_too(live: Live) -> None:
    """Through the listener of Serve's proxy, to the router's methods."""
    name, routing = live.plan.cascade.name, route(live.plan.cascade, live.table)
    tensor = tritonclient.grpc.InferInput("input", [60, 1], "FP32")
    tensor.set_data_from_numpy(rows_of(live.table).x[:60])
    with tritonclient.grpc.InferenceServerClient(live.grpc_address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(name)
        assert list(client.get_model_metadata(name).inputs[0].shape) == [-1, 1]
        got = client.infer(name, [tensor], request_id="grpc")
        with pytest.raises(InferenceServerException, match="only model .* is served here") as caught:
            client.infer("other", [tensor])
    assert got.as_numpy("answer").tolist() == routing.answer[:60].tolist()
    assert got.as_numpy("tier").tolist() == routing.tier[:60].tolist()
    assert caught.value.status() == "StatusCode.NOT_FOUND"


def test_the_plan_changes_live(live: Live, ray_session: str) -> None:
    """From three votes of three to two of three: answers change, the router's process does not, and the ledgers are apart.

    While its one router takes the change, HAProxy hands requests to Serve's own proxy, where they wait; none is lost.
    """
    before = router_id(ray_session)
    tier = live.plan.cascade.tiers[0].model_copy(update={"quorum": 2})
    cascade = live.plan.cascade.model_copy(update={"tiers": (tier, *live.plan.cascade.tiers[1:]), "certificate": None})
    eager = live.plan.model_copy(update={"cascade": cascade, "name": "eager"})
    deployed = yaml.safe_load(
        to_yaml(
            serve_config(live.plan, ledger_dir=str(live.ledger), audits=AUDITS, port=int(live.url.rpartition(":")[2]))
        )
    )
    failed: list[int] = []
    stop = threading.Event()

    def keep_asking() -> None:
        with httpx.Client(timeout=20) as client:
            while not stop.is_set():
                status = client.post(f"{live.url}/predict", json={"items": [{"input": [7]}]}).status_code
                failed.extend([status] * (status != 200))

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        for plan_now, config in ((eager, live_config(eager, deployed)), (live.plan, deployed)):
            _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config))
            wait_for_plan(live, plan_now)
            routing = route(plan_now.cascade, live.table)
            for start in range(0, 480, 40):
                items = [{"id": f"{plan_now.name}-{row}", "input": [row]} for row in range(start, start + 40)]
                got = httpx.post(f"{live.url}/predict", json={"items": items}, timeout=30).json()["answers"]
                rows = slice(start, start + 40)
                assert [(a["class"], a["tier"]) for a in got] == list(
                    zip(routing.answer[rows].tolist(), routing.tier[rows].tolist(), strict=True)
                )
    finally:
        stop.set()
        asking.join()
    assert not failed
    assert router_id(ray_session) == before
    eagers = read_ledger(live.ledger, eager.fingerprint()).records
    assert sum(isinstance(r, Answer) and r.query_id.startswith("eager") for r in eagers) == len(live.table)


def router_id(address: str) -> str:
    """The replica of the router."""
    assert address
    details = ray.get(_get_global_client()._controller.get_serve_instance_details.remote())
    (replica,) = details["applications"]["coe"]["deployments"]["router"]["replicas"]
    return str(replica["replica_id"])


def wait_for_plan(live: Live, wanted: Plan, timeout_s: float = 30.0) -> None:
    """Until the service says that it serves this plan."""
    deadline = time.monotonic() + timeout_s
    while True:
        response = httpx.get(f"{live.url}/plan")
        if (
            response.status_code == 200
            and Plan.model_validate_json(response.text).fingerprint() == wanted.fingerprint()
        ):
            break
        assert time.monotonic() < deadline, "the plan has not changed"
        time.sleep(0.2)
    time.sleep(1.0)  # the proxy has the route again
