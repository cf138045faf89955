"""Gears on a real local cluster: the router changes them with the load, up and back, and answers everything."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from ray import serve
from ray.serve._private.api import serve_start
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from coe import files
from coe.bench import run_bench
from coe.cascade.evaluate import route
from coe.cli.main import run as command
from coe.files import write_predictions
from coe.ledger import read_ledger
from coe.placement.standing import gears_on
from coe.placement.together import together
from coe.profiler.predict import DataSet
from coe.records import Answer, Bench, NodeSpan
from coe.report.geared import GearsReport
from coe.serving.cluster import ClusterState, free_port
from coe.serving.ready import wait_until_running
from coe.table import PredictionTable
from coe.types import Audits, Fleet, Gears, Member, Pool
from tests import factories, gears_case
from tests.serving.test_service import rows_of

pytestmark = pytest.mark.serving

SLOW_PER_S, FAST_PER_S = 10.0, 80.0
LOOK_BACK_S, DWELL_S = 2.0, 3.0


@dataclass(frozen=True)
class Geared:
    """Deployed gears, the table that they replay, and where they listen."""

    gears: Gears
    table: PredictionTable
    url: str
    folder: Path

    def live(self) -> dict[str, Any]:
        """The live figures of the gears."""
        seen: dict[str, Any] = httpx.get(f"{self.url}/live.json").json()["gears"]
        return seen


def gears_of(table: PredictionTable, predictions: Path, fleet: Fleet) -> Gears:
    """On the machines of the accurate cascade: it up to 25 queries per second, the fast one above; members replay in no time."""
    accelerators = {n.offer.accelerator: 1.0 for n in fleet.nodes if n.offer.accelerators_per_node}
    members = tuple(Member(name=m, runner="table", options={"predictions": str(predictions)}) for m in table.members)
    cost = {"small": 0.0004, "middle": 0.0005, "other": 0.0004, "large": 0.004}
    small = [p.model_copy(update={"memory_gib": 0.01}) for p in factories.profiles(cost, speeds=accelerators).profiles]
    low = gears_case.planned(
        gears_case.ACCURATE,
        25.0,
        0.1,
        prices=fleet.prices,
        profiles=factories.profiles().model_copy(update={"profiles": tuple(small)}),
        table=table,
        pool=Pool(classes=table.classes, input_shape=(1,), members=members),
        latency_s=1.0,
    )
    found = gears_on(low, [gears_case.certified(gears_case.FAST, 0.2)], table.split("certification"))
    limits = ((25.0, 0.0, "accurate"), (200.0, 20.0, "fast"))  # lower than they need be, so that little is to be sent
    gears = [
        gear.model_copy(update={"up_to_per_s": up, "back_below_per_s": back, "name": name})
        for gear, (up, back, name) in zip(found.gears, limits, strict=True)
    ]
    return Gears(look_back_s=LOOK_BACK_S, dwell_s=DWELL_S, gears=tuple(gears))


@pytest.fixture(scope="module")
def geared(
    fleet_cluster: ClusterState, test_fleet: Fleet, ray_session: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Geared]:
    """The gears, deployed from the file that `coe build` writes of them."""
    folder = tmp_path_factory.mktemp("gears")
    write_predictions(folder / "predictions.npz", gears_case.TABLE)
    gears = gears_of(gears_case.TABLE, folder / "predictions.npz", test_fleet)
    files.write(folder / "gears.yaml", gears)
    audits = Audits(share=0.5, usd_per_hour=100.0, alarms={"accurate": 0.5, "fast": 0.6})
    files.write(folder / "audits.yaml", audits)
    port, ledger = free_port(), str(folder / "ledger")
    built = [
        "build",
        str(folder / "gears.yaml"),
        "--ledger",
        ledger,
        "--audits",
        str(folder / "audits.yaml"),
        "--port",
        str(port),
        "-o",
        str(folder / "serve.yaml"),
    ]
    assert command(built) == 0
    client = serve_start(http_options=HTTPOptions(host="127.0.0.1", port=port), proxy_location="HeadOnly")
    client.deploy_apps(ServeDeploySchema.model_validate(yaml.safe_load((folder / "serve.yaml").read_text())))
    assert ray_session == fleet_cluster.address
    wait_until_running(fleet_cluster.address, 90)
    yield Geared(together(gears).gears, gears_case.TABLE, f"http://127.0.0.1:{port}", folder)
    serve.shutdown()


def sent(geared: Geared, first: int, rate_per_s: float, seconds: float) -> Bench:
    """Rows of the table, from one on, at a rate for so long."""
    every = rows_of(geared.table)
    rows = np.arange(first, first + int(rate_per_s * seconds))
    return run_bench(
        geared.url,
        DataSet(every.x[rows], every.y[rows], every.items[rows], every.splits[rows]),
        "rows",
        rate_per_s,
        seed=1,
    )


def test_the_gear_follows_a_load_step_up_and_back_and_nothing_is_lost(
    geared: Geared, capsys: pytest.CaptureFixture[str]
) -> None:
    assert geared.live()["now"] == "accurate"
    began_s = time.time()
    parts = [sent(geared, 0, SLOW_PER_S, 2.0), sent(geared, 100, FAST_PER_S, 4.0)]
    seen = geared.live()
    assert (seen["now"], seen["changes"], seen["is_pinned"]) == ("fast", 1, False)
    parts.append(sent(geared, 600, SLOW_PER_S, 6.0))
    seen = geared.live()
    assert (seen["now"], seen["changes"]) == ("accurate", 2)
    answers = [a for part in parts for a in part.answers]
    assert [a.http_status for a in answers] == [200] * len(answers)

    # every answer is that of the gear whose ledger has it, and has it once
    time.sleep(1.2)  # a ledger is written twice a second
    held: dict[str, int] = {}
    for number, gear in enumerate(geared.gears.gears):
        routing = route(gear.plan.cascade, geared.table)
        row_of = {item: row for row, item in enumerate(geared.table.items.tolist())}
        records = read_ledger(geared.folder / "ledger", gear.plan.fingerprint()).records
        for record in records:
            if isinstance(record, Answer):
                assert record.query_id not in held
                held[record.query_id] = number
                row = row_of[record.query_id]
                assert (record.answer, record.tier) == (routing.answer[row], routing.tier[row])
        assert {r.node_type for r in records if isinstance(r, NodeSpan)} == {n.node_type for n in gear.plan.nodes}
    assert held.keys() == {a.item for a in answers}
    assert set(held.values()) == {0, 1}

    # node time is there once, from the first query to now
    ledger = geared.folder / "ledger"
    spans = [
        r
        for g in geared.gears.gears
        for r in read_ledger(ledger, g.plan.fingerprint()).records
        if isinstance(r, NodeSpan)
    ]
    router = sorted((s for s in spans if s.node_type == "router"), key=lambda s: s.start_s)
    assert [s.end_s for s in router[:-1]] == pytest.approx([s.start_s for s in router[1:]], abs=1e-5)

    capsys.readouterr()
    assert (
        command(["report", "--plan", str(geared.folder / "gears.yaml"), "--ledger", str(ledger), "--format", "json"])
        == 0
    )
    report = GearsReport.model_validate_json(capsys.readouterr().out)
    assert report.answered == len(answers)
    low, high = report.gears
    assert 0 < high.seconds < time.time() - began_s
    assert low.seconds + high.seconds == pytest.approx(report.window.seconds, abs=0.5)
    assert high.answered == sum(number == 1 for number in held.values())
    metrics = httpx.get(f"{geared.url}/metrics").text
    value = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in metrics.splitlines() if line[0] != "#"}
    assert sum(v for k, v in value.items() if k.startswith("coe_requests_total{")) == len(answers)

    # and each gear's early answers are audited, on its own account
    shown = {g["name"]: g["audits"] for g in geared.live()["gears"]}
    for row in report.gears:
        assert row.audits is not None
        assert row.audits.observed > 5
        assert row.audits.usd > 0
        assert row.audits.alarm_above == {"accurate": 0.5, "fast": 0.6}[row.name]
        audited = sum(v for k, v in value.items() if k.startswith("coe_audits_total") and f'gear="{row.name}"' in k)
        assert audited == row.audits.chosen == shown[row.name]["chosen"]


def test_an_operator_pins_a_gear_and_lets_it_go(geared: Geared) -> None:
    file = geared.folder / "serve.yaml"
    pinned, free = geared.folder / "pinned.yaml", geared.folder / "free.yaml"
    gears = str(geared.folder / "gears.yaml")
    assert command(["build", gears, "--live", str(file), "--pin", "fast", "-o", str(pinned)]) == 0
    assert command(["build", gears, "--live", str(pinned), "-o", str(free)]) == 0
    for path, now, is_pinned in ((pinned, "fast", True), (free, "accurate", False)):
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(yaml.safe_load(path.read_text())))
        due_s = time.monotonic() + 20
        while time.monotonic() < due_s:
            response = httpx.get(f"{geared.url}/live.json")
            if response.status_code == 200:
                seen = response.json()["gears"]
                if (seen["now"], seen["is_pinned"]) == (now, is_pinned):
                    break
            time.sleep(0.2)
        assert (seen["now"], seen["is_pinned"]) == (now, is_pinned)
