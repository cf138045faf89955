"""`coe build -o FOLDER`: what is written, that Ray's own code reads it as meant, and that the examples are up to date."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ray._private.resource_and_label_spec import ResourceAndLabelSpec
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from coe import files
from coe.cli.main import run
from coe.errors import InvalidInput, Stale
from coe.fleet.folder import MARK, NAMES
from coe.fleet.kuberay import ray_service
from coe.fleet.labels import NODE_TYPE_LABEL, node_labels
from coe.fleet.launcher import launcher
from coe.learned.gate_rule import Gate, save
from coe.serving.build import check_launcher, gate_paths, serve_config, write_folder
from coe.serving.cluster import _check
from coe.types import Cascade, Fleet, Plan, Tier
from tests.fleet_case import ROOT, SETUP, aws_plan, gcp_plan, small_plan, snapshot

EXAMPLES = {"aws": aws_plan, "gcp": gcp_plan}


def build(plan: Plan, folder: Path) -> tuple[str, ...]:
    return write_folder(plan, serve_config(plan, ledger_dir="/home/ray/ledger"), folder, SETUP)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_are_what_build_writes(name: str, tmp_path: Path, golden: Callable[[str, str], None]) -> None:
    build(EXAMPLES[name](), tmp_path / name)
    written = sorted(p.name for p in (tmp_path / name).iterdir())
    assert written == sorted(["serve.yaml", f"{name}.yaml", "rayservice.yaml", "local.yaml"])
    for file in written:
        golden(f"../../cluster_configs/{name}/{file}", (tmp_path / name / file).read_text(encoding="utf-8"))
    assert sorted(p.name for p in (ROOT / "cluster_configs" / name).iterdir()) == written


@pytest.mark.parametrize("name", EXAMPLES)
def test_rays_launcher_takes_the_file_with_its_defaults(name: str) -> None:
    data = yaml.safe_load((ROOT / f"cluster_configs/{name}/{name}.yaml").read_text())
    check_launcher(data)
    prepared = prepare_config(data)
    validate_config(prepared)
    ours = launcher(EXAMPLES[name](), SETUP).data()
    assert prepared["available_node_types"].keys() == ours["available_node_types"].keys()
    assert prepared["provider"] == ours["provider"]  # no default zone slips in


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_node_that_the_launcher_starts_has_the_labels_and_resources_of_its_offer(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = EXAMPLES[name]()
    data = launcher(plan, SETUP).data()
    for kind in data["available_node_types"].values():
        monkeypatch.setenv("RAY_OVERRIDE_LABELS", json.dumps(kind["labels"]))  # as Ray's updater passes them on
        monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", json.dumps(kind["resources"]))
        spec = ResourceAndLabelSpec(num_gpus=kind["resources"].get("GPU"))
        spec.resolve(is_head=False, node_ip_address="127.0.0.1")
        offer = plan.offer(kind["labels"][NODE_TYPE_LABEL])
        assert node_labels(offer).items() <= spec.labels.items()
        assert spec.num_cpus == offer.vcpus
        assert (spec.num_gpus or 0) == offer.accelerators_per_node


@pytest.mark.parametrize("name", EXAMPLES)
def test_rays_reader_of_kuberay_clusters_finds_the_nodes_of_the_plan(name: str) -> None:
    plan = EXAMPLES[name]()
    service = yaml.safe_load((ROOT / f"cluster_configs/{name}/rayservice.yaml").read_text())
    cluster = {"metadata": {"name": "example", "namespace": "default"}, "spec": service["spec"]["rayClusterConfig"]}
    read = _derive_autoscaling_config_from_ray_cr(cluster)
    found = {}
    for kind, entry in read["available_node_types"].items():
        offer = plan.offer(entry["labels"][NODE_TYPE_LABEL])
        assert node_labels(offer).items() <= entry["labels"].items()
        assert entry["resources"]["CPU"] == offer.vcpus
        assert entry["resources"].get("GPU", 0) == offer.accelerators_per_node
        found[offer.node_type] = entry["min_workers"] + (kind == read["head_node_type"])
    assert found == {n.node_type: n.count for n in plan.nodes}


@pytest.mark.parametrize("name", EXAMPLES)
def test_both_service_configs_are_serves_and_carry_the_plan(name: str) -> None:
    folder = ROOT / "cluster_configs" / name
    service = yaml.safe_load((folder / "rayservice.yaml").read_text())
    for text in ((folder / "serve.yaml").read_text(), service["spec"]["serveConfigV2"]):
        config = yaml.safe_load(text)
        ServeDeploySchema.model_validate(config)
        assert Plan.model_validate(config["applications"][0]["args"]["plan"]) == EXAMPLES[name]()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_local_fleet_can_be_started(name: str) -> None:
    fleet = files.read(ROOT / f"cluster_configs/{name}/local.yaml", Fleet)
    _check(fleet)  # what `coe cluster up` refuses
    assert {o.node_type for o in fleet.prices.offers} == {n.node_type for n in EXAMPLES[name]().nodes}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: d.update(min_workers=1), "'min_workers' was unexpected"),
        (lambda d: d.pop("cluster_name"), "'cluster_name' is a required property"),
        (
            lambda d: d["available_node_types"]["m7i-xlarge"]["resources"].update(CPU=0.5),
            "0.5 is not of type 'integer'",
        ),
        (lambda d: d["docker"].update(imaeg="x"), "docker: breaks Ray's schema"),
    ],
)
def test_rays_schema_is_asked(spoil: Callable[[dict[str, Any]], object], message: str) -> None:
    data = launcher(aws_plan(), SETUP).data()
    check_launcher(data)
    spoil(data)
    with pytest.raises(InvalidInput, match=message):
        check_launcher(data)


# --- gRPC ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_second_port_changes_every_file_that_lists_ports(
    name: str, tmp_path: Path, golden: Callable[[str, str], None]
) -> None:
    plan = EXAMPLES[name]()
    build(plan, tmp_path / "http")
    config = serve_config(plan, ledger_dir="/home/ray/ledger", port=8080, grpc_port=9000)
    notes = write_folder(plan, config, tmp_path / "both", SETUP)
    changes = []
    for file in sorted(os.listdir(tmp_path / "http")):
        before, after = ((tmp_path / side / file).read_text().splitlines() for side in ("http", "both"))
        changes += difflib.unified_diff(before, after, file, file, lineterm="", n=0)
    golden(f"fleet_grpc_{name}.diff", "\n".join(changes) + "\n")
    assert any("serve-grpc" in note for note in notes)


def test_every_pod_lists_both_ports_by_names_that_kuberay_looks_for() -> None:
    plan = aws_plan()
    data = ray_service(plan, serve_config(plan, ledger_dir=None, grpc_port=9000), SETUP).data()
    config = data["spec"]["rayClusterConfig"]
    for group in (config["headGroupSpec"], *config["workerGroupSpecs"]):
        ports = {p["name"]: p["containerPort"] for p in group["template"]["spec"]["containers"][0]["ports"]}
        assert ports["serve"] == 8000
        assert ports["serve-grpc"] == 9000
        assert len(set(ports.values())) == len(ports)
    embedded = yaml.safe_load(data["spec"]["serveConfigV2"])
    assert embedded["grpc_options"]["port"] == 9000


@pytest.mark.parametrize("taken", [6379, 8265, 10001])
def test_a_port_that_ray_takes_on_the_head_is_refused(taken: int) -> None:
    plan = aws_plan()
    for option, ports in (("--port", {"port": taken}), ("--grpc-port", {"grpc_port": taken})):
        with pytest.raises(InvalidInput, match=f"{option}: is taken by Ray on the head"):
            ray_service(plan, serve_config(plan, ledger_dir=None, **ports), SETUP)


# --- Folders ----------------------------------------------------------------------------------------------------------


def test_a_file_of_another_plan_goes_and_one_of_yours_stays(tmp_path: Path) -> None:
    build(aws_plan(), tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    notes = build(gcp_plan(), tmp_path)
    assert any(note == f"removed {tmp_path / 'aws.yaml'}, which was of another plan" for note in notes)
    assert not (tmp_path / "aws.yaml").exists()
    (tmp_path / "aws.yaml").write_text("# my own cluster\n")
    build(gcp_plan(), tmp_path)
    assert (tmp_path / "aws.yaml").read_text() == "# my own cluster\n"
    assert all((tmp_path / n).read_text().startswith(MARK) for n in NAMES if n != "aws.yaml")


def test_nothing_is_written_for_a_plan_that_is_refused(tmp_path: Path) -> None:
    serverless = small_plan(snapshot("m7i.xlarge"), snapshot("modal-1xT4"), snapshot("g5.xlarge"))
    with pytest.raises(InvalidInput, match="billed by the second"):
        build(serverless, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_hosted_models_without_a_price_are_refused_for_one_file_too() -> None:
    plan = aws_plan()
    hosted = plan.placements[0].model_copy(update={"api": "gpt-9"})
    with pytest.raises(InvalidInput, match="no hosted model is called 'gpt-9'"):
        serve_config(plan.model_copy(update={"placements": (hosted, *plan.placements[1:])}), ledger_dir=None)


# --- Gates ------------------------------------------------------------------------------------------------------------


def gated(rule: str, **changes: Any) -> Plan:
    tiers = (Tier(members=("middle", "other", "small"), rule=rule, threshold=0.5), Tier(members=("large",)))
    return aws_plan(cascade=Cascade(tiers=tiers), **changes)


def saved_gate(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The rule of a gate file in `folder`, named relative to it."""
    pytest.importorskip("safetensors")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(folder)
    return save(name, Gate(("max_prob",), np.zeros(1), np.ones(1), ((np.ones((1, 1)), np.zeros(1)),)))


def test_gates_are_copied_where_the_service_looks_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = gated(saved_gate(tmp_path, "gates/one.safetensors", monkeypatch))
    notes = build(plan, tmp_path / "out")
    copied = tmp_path / "out/gates/one.safetensors"
    assert copied.read_bytes() == (tmp_path / "gates/one.safetensors").read_bytes()
    assert "gate files, which every node needs on its import path: gates/one.safetensors" in notes
    assert any("the image must hold, at the same paths, /home/ray/deploy/gates/one.safetensors" in n for n in notes)
    data = yaml.safe_load((tmp_path / "out/aws.yaml").read_text())
    assert data["setup_commands"] == ["pip install '/home/ray/coe[torch]'"]  # safetensors comes with it
    assert "PYTHONPATH=/home/ray/deploy" in data["worker_start_ray_commands"][-1]
    build(plan, tmp_path)  # onto itself
    assert copied.read_bytes() == (tmp_path / "gates/one.safetensors").read_bytes()


def test_a_gate_beside_the_pool_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = saved_gate(tmp_path / "project", "one.safetensors", monkeypatch)
    monkeypatch.chdir(tmp_path)
    plan = gated(rule, python_path=str(tmp_path / "project"))
    assert gate_paths(plan) == {"one.safetensors": tmp_path / "project/one.safetensors"}
    with pytest.raises(InvalidInput, match="gate 'one.safetensors': is not in the working directory"):
        gate_paths(gated(rule))


def test_a_gate_that_has_changed_or_cannot_travel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = saved_gate(tmp_path, "one.safetensors", monkeypatch)
    with pytest.raises(Stale, match="must be the file whose SHA-256 starts with 0000"):
        build(gated("gate:one.safetensors#0000"), tmp_path / "out")
    with pytest.raises(InvalidInput, match="must be named with its digest"):
        build(gated("gate:one.safetensors"), tmp_path / "out")
    for name in (str(tmp_path / "one.safetensors"), "../one.safetensors", "~/one.safetensors"):
        with pytest.raises(InvalidInput, match="must be named by a path that leads down"):
            build(gated(f"gate:{name}#{rule.rpartition('#')[2]}"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- The verb ---------------------------------------------------------------------------------------------------------


def test_build_writes_a_folder_and_says_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files.write(tmp_path / "plan.yaml", aws_plan())
    arguments = ["build", str(tmp_path / "plan.yaml"), "--uncertified"]
    assert run([*arguments, "-o", str(tmp_path / "deploy")]) == 0
    said = capsys.readouterr().err
    assert "aws.yaml: no ImageId" in said
    assert "wrote" in said
    assert sorted(os.listdir(tmp_path / "deploy")) == ["aws.yaml", "local.yaml", "rayservice.yaml", "serve.yaml"]
    written = yaml.safe_load((tmp_path / "deploy/aws.yaml").read_text())
    assert written["file_mounts"]["/home/ray/coe"] == str(ROOT)
    assert run([*arguments, "--machine-image", "ami-1", "--image", "repo/coe:1", "-o", str(tmp_path / "deploy")]) == 0
    assert capsys.readouterr().err.count("\n") == 2  # that it is uncertified, and what was written
    kinds = yaml.safe_load((tmp_path / "deploy/aws.yaml").read_text())["available_node_types"].values()
    assert {k["node_config"]["ImageId"] for k in kinds} == {"ami-1"}


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("missing/deploy", [], "missing does not exist; create it first"),
        ("plan.yaml/deploy", [], "does not exist"),
        ("deploy.json", [], "must end in .yaml, or be a folder"),
        ("a-file", [], "is a file; name a folder, or a file that ends in .yaml"),
        ("deploy", ["--ledger", "ledger"], "--ledger: must be absolute in files for other machines"),
        ("deploy", ["--zone", "nowhere"], ""),
    ],
)
def test_build_refuses_places_and_options_that_cannot_work(
    out: str, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a-file").write_text("")
    plan = gcp_plan() if "--zone" in options else aws_plan()
    files.write(tmp_path / "plan.yaml", plan)
    assert run(["build", str(tmp_path / "plan.yaml"), "--uncertified", *options, "-o", str(tmp_path / out)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "deploy").exists()


@pytest.mark.parametrize("name", ["serve.yaml", "serve.yml"])
def test_a_yaml_path_is_one_file_as_before(name: str, tmp_path: Path) -> None:
    files.write(tmp_path / "plan.yaml", aws_plan())
    assert run(["build", str(tmp_path / "plan.yaml"), "--uncertified", "-o", str(tmp_path / name)]) == 0
    assert sorted(os.listdir(tmp_path)) == sorted(["plan.yaml", name])
    ServeDeploySchema.model_validate(yaml.safe_load((tmp_path / name).read_text()))
