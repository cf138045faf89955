"""`serve.yaml` from a plan: what it holds, and that misspelt keys do not slip through."""

from __future__ import annotations

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from coe.errors import InvalidInput
from coe.files import to_yaml
from coe.placement.optimize import plan
from coe.serving.app import CascadeArgs, build
from coe.serving.build import _check_keys, header, serve_config
from coe.serving.labels import NODE_TYPE_LABEL
from coe.types import Plan, Prices
from tests import factories


def planned(prices: Prices | None = None) -> Plan:
    return plan(
        factories.pool(),
        [factories.cascade()],
        factories.table(),
        factories.profiles(),
        prices or factories.prices(),
        factories.workload(),
        inputs={},
        uncertified=True,
    )


def test_the_config_survives_yaml_and_carries_the_whole_plan() -> None:
    found = planned()
    config = yaml.safe_load(to_yaml(serve_config(found, ledger_dir=None)))
    ServeDeploySchema.model_validate(config)
    arguments = config["applications"][0]["args"]
    assert CascadeArgs.model_validate(arguments).plan == found
    assert config["http_options"]["host"] == "127.0.0.1"


def test_one_deployment_per_member_and_node_type_pinned_to_it() -> None:
    found = planned()
    application = build(CascadeArgs(plan=found))
    bound = application._bound_deployment
    handles = bound.init_args[2]
    assert set(handles) == {p.deployment for p in found.placements}
    for placement in found.placements:
        deployment = handles[placement.deployment]._bound_deployment
        options = deployment.ray_actor_options
        assert options["label_selector"] == {NODE_TYPE_LABEL: placement.node_type}
        assert deployment.num_replicas == placement.replicas
        if placement.node_type != "cpu-node":
            assert options["num_gpus"] == placement.share
    assert bound.ray_actor_options["label_selector"] == {NODE_TYPE_LABEL: found.router.node_type}
    assert bound.name == "router"


def test_the_header_says_what_the_cluster_needs_and_what_it_costs() -> None:
    found = planned()
    text = header(found)
    assert "RAY_SERVE_THROUGHPUT_OPTIMIZED=1" in text
    assert all(f"{n.count} x {n.node_type}" in text for n in found.nodes)
    assert "a price list for tests (2026-11-01)" in text


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"aplications": []}, "serve.yaml: aplications"),
        ({"http_options": {"prot": 1}}, "serve.yaml: http_options: prot"),
        ({"applications": [{"nmae": "x"}]}, r"serve.yaml: applications\[0\]: nmae"),
    ],
)
def test_keys_that_ray_would_ignore_are_refused(config: dict[str, object], key: str) -> None:
    with pytest.raises(InvalidInput, match=f"{key}: is not a key of Ray Serve"):
        _check_keys(config, ServeDeploySchema, "serve.yaml")


def test_a_node_type_that_ray_takes_for_no_label_is_refused() -> None:
    cpu, t4, _ = factories.prices().offers
    too_long = t4.model_copy(update={"node_type": "t4/" + "x" * 70})
    found = planned(Prices(offers=(cpu, too_long)))
    with pytest.raises(InvalidInput, match="must have at most 63 letters"):
        serve_config(found, ledger_dir=None)
