"""The RayService against the recorded schemas of KubeRay and Kubernetes, and where the schemas come from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from coe import fleet
from coe.errors import InvalidInput
from coe.fleet import kuberay
from coe.fleet.kuberay import ray_service
from coe.serving.build import serve_config, write_folder
from coe.serving.ray_service_schema import SCHEMAS, check_ray_service
from tests import kubernetes_schema
from tests.fleet_case import ROOT, SETUP, aws_plan, gcp_plan

FOLDER = Path(fleet.__file__).parent


def manifest() -> dict[str, Any]:
    """A RayService of a spot node with an accelerator: every kind of field that we write."""
    plan = gcp_plan()
    return ray_service(plan, serve_config(plan, ledger_dir="/home/ray/ledger"), SETUP).data()


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_the_examples_keep_the_schema(name: str) -> None:
    check_ray_service(yaml.safe_load((ROOT / f"cluster_configs/{name}/rayservice.yaml").read_text()))


def test_more_of_kuberay_and_kubernetes_than_we_write_is_known() -> None:
    data = manifest()
    data["spec"]["excludeHeadPodFromServeSvc"] = True
    data["spec"]["rayClusterConfig"]["autoscalerOptions"] = {"version": "v2", "resources": {"limits": {"cpu": 1}}}
    head = data["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    head["volumes"] = [{"name": "ledger", "persistentVolumeClaim": {"claimName": "ledger"}}]
    head["containers"][0]["volumeMounts"] = [{"name": "ledger", "mountPath": "/home/ray/ledger"}]
    check_ray_service(data)


def cluster(data: dict[str, Any]) -> dict[str, Any]:
    return data["spec"]["rayClusterConfig"]  # type: ignore[no-any-return]


def worker(data: dict[str, Any]) -> dict[str, Any]:
    return cluster(data)["workerGroupSpecs"][0]  # type: ignore[no-any-return]


def pod(data: dict[str, Any]) -> dict[str, Any]:
    return worker(data)["template"]["spec"]  # type: ignore[no-any-return]


def container(data: dict[str, Any]) -> dict[str, Any]:
    return pod(data)["containers"][0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("spoil", "where", "message"),
    [
        (lambda d: d.update(apiVersion="ray.io/v2"), "apiVersion", "'ray.io/v1' was expected"),
        (lambda d: d["metadata"].update(lables={}), "metadata", "'lables' was unexpected"),
        (lambda d: d["spec"].update(serveConfig=""), "spec", "'serveConfig' was unexpected"),
        (lambda d: d["spec"].update(serveConfigV2={}), "spec.serveConfigV2", "is not of type 'string'"),
        (lambda d: d["spec"].pop("rayClusterConfig"), "spec", "'rayClusterConfig' is a required property"),
        (lambda d: cluster(d).update(rayVersion=2.6), "spec.rayClusterConfig.rayVersion", "2.6 is not of type"),
        (lambda d: cluster(d).pop("headGroupSpec"), "spec.rayClusterConfig", "'headGroupSpec' is a required"),
        (lambda d: worker(d).pop("groupName"), "workerGroupSpecs.0", "'groupName' is a required property"),
        (lambda d: worker(d).update(replicas="2"), "workerGroupSpecs.0.replicas", "'2' is not of type 'integer'"),
        (lambda d: worker(d).update(maxReplicas=2**31), "workerGroupSpecs.0.maxReplicas", "greater than the maximum"),
        (lambda d: worker(d)["rayStartParams"].update({"num-gpus": 1}), "num-gpus", "1 is not of type 'string'"),
        (lambda d: worker(d).pop("template"), "workerGroupSpecs.0", "'template' is a required property"),
        (lambda d: pod(d).pop("containers"), "template.spec", "'containers' is a required property"),
        (lambda d: pod(d).update(nodeSelektor={}), "template.spec", "'nodeSelektor' was unexpected"),
        (lambda d: pod(d)["tolerations"][0].update(key=1), "tolerations.0.key", "1 is not of type 'string'"),
        (lambda d: container(d)["ports"][0].pop("containerPort"), "ports.0", "'containerPort' is a required"),
        (lambda d: container(d)["ports"][0].update(containerPort="8000"), "containerPort", "is not of type 'integer'"),
        (lambda d: container(d)["resources"]["requests"].update(cpu="two"), "requests.cpu", "'two' does not match"),
        (lambda d: container(d)["env"][0].update(valueform={}), "env.0", "'valueform' was unexpected"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused(
    spoil: Callable[[dict[str, Any]], object], where: str, message: str
) -> None:
    data = copy.deepcopy(manifest())
    check_ray_service(data)
    spoil(data)
    with pytest.raises(InvalidInput, match="breaks the schema of KubeRay's RayService") as caught:
        check_ray_service(data)
    (problem,) = caught.value.problems
    assert problem.where.endswith(where)
    assert message in str(problem)


def test_build_asks_the_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = aws_plan()
    monkeypatch.setattr(kuberay.RayService, "data", lambda _self: {"apiVersion": "ray.io/v1", "kind": "RayService"})
    with pytest.raises(InvalidInput, match="'metadata' is a required property"):
        write_folder(plan, serve_config(plan, ledger_dir=None), tmp_path / "out", SETUP)
    assert not (tmp_path / "out").exists()


def test_every_reference_of_the_schemas_leads_somewhere() -> None:
    schemas = {name: yaml.safe_load((FOLDER / file).read_text()) for name, file in SCHEMAS.items()}

    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            return own + [r for inner in value.values() for r in references(inner)]
        return [r for inner in value for r in references(inner)] if isinstance(value, list) else []

    followed = 0
    for name, schema in schemas.items():
        for reference in references(schema):
            document, _, path = reference.partition("#")
            found = schemas[document or name]
            for part in filter(None, path.split("/")):
                assert part in found, reference
                found = found[part]
            assert isinstance(found, dict), reference
            followed += 1
    assert followed > 100


def test_the_schema_of_pods_is_that_of_kubernetes() -> None:
    package = pytest.importorskip("kubernetes_validate", reason="needs the schemas of kubernetes-validate")
    text = kubernetes_schema.recorded(Path(package.__file__).parent / "kubernetes-json-schema")
    assert (FOLDER / SCHEMAS["coe:pod-template"]).read_text(encoding="utf-8") == text
