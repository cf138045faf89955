"""Cluster files: what they hold agrees with the plan and with serve.yaml, and what cannot be expressed is refused."""

from __future__ import annotations

import itertools
import re
import subprocess
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from coe.errors import InvalidInput
from coe.fleet.folder import MARK, cluster_files, to_blocks
from coe.fleet.groups import FOLDER, cluster_name, environment, gates, listens_on, node_groups, slugs
from coe.fleet.kuberay import RayService, ray_service
from coe.fleet.labels import NODE_TYPE_LABEL, SERVE_ENV, replica_options
from coe.fleet.launcher import Launcher, launcher
from coe.fleet.local import HEAD, local_fleet
from coe.fleet.names import google_accelerator, instance
from coe.fleet.setup import Setup
from coe.types import Cascade, Fleet, Link, Offer, Plan, RouterPlacement, Sites, Tier
from tests import factories
from tests.fleet_case import SETUP, aws_plan, gcp_plan, prices, small_plan, snapshot, torch_pool

SERVE: dict[str, Any] = {"proxy_location": "HeadOnly", "http_options": {"host": "127.0.0.1", "port": 8000}}


def demands(plan: Plan) -> list[dict[str, Any]]:
    """Actor options of every replica that the service starts."""
    members = [replica_options(plan.offer(p.node_type), p.share) for p in plan.placements for _ in range(p.replicas)]
    routers = [replica_options(plan.offer(plan.router.node_type), 1.0)] * plan.router.replicas
    return members + routers


def fits(wanted: list[dict[str, Any]], nodes: list[tuple[dict[str, str], dict[str, float]]]) -> bool:
    """True where every replica finds a node whose labels hold its selector and which has enough left (first fit)."""
    left = [(labels, dict(resources)) for labels, resources in nodes]
    for options in sorted(wanted, key=lambda o: -(o["num_gpus"] + o["num_cpus"])):
        for labels, resources in left:
            if not options["label_selector"].items() <= labels.items():
                continue
            needs = {"CPU": options["num_cpus"], "GPU": options["num_gpus"]}
            if all(resources.get(n, 0) >= needs[n] - 1e-9 for n in needs):
                for n, amount in needs.items():
                    resources[n] = resources.get(n, 0) - amount
                break
        else:
            return False
    return True


def launcher_nodes(data: dict[str, Any]) -> list[tuple[dict[str, str], dict[str, float]]]:
    """Labels and resources of every node that `ray up` starts."""
    nodes = []
    for key, kind in data["available_node_types"].items():
        assert kind["min_workers"] == kind["max_workers"]
        count = kind["min_workers"] + (key == data["head_node_type"])
        nodes += [(kind["labels"], kind["resources"])] * count
    return nodes


def pods(service: dict[str, Any]) -> list[dict[str, Any]]:
    """Every group of pods once per pod, the head first."""
    cluster = service["spec"]["rayClusterConfig"]
    workers = [g for g in cluster["workerGroupSpecs"] for _ in range(g["replicas"])]
    return [cluster["headGroupSpec"], *workers]


def pod_node(group: dict[str, Any]) -> tuple[dict[str, str], dict[str, float]]:
    """Labels and resources that Ray sees of a pod."""
    params = group["rayStartParams"]
    return group["labels"], {"CPU": float(params["num-cpus"]), "GPU": float(params.get("num-gpus", 0))}


def with_router(plan: Plan, replicas: int, members_too: int = 0) -> Plan:
    """The plan with so many routers, and so many nodes more of the router's type."""
    nodes = tuple(
        n.model_copy(update={"count": replicas + members_too}) if n.node_type == plan.router.node_type else n
        for n in plan.nodes
    )
    router = RouterPlacement(node_type=plan.router.node_type, replicas=replicas)
    return plan.model_copy(update={"nodes": nodes, "router": router})


PLANS = {
    "aws": aws_plan(),
    "gcp": gcp_plan(),
    "two routers": with_router(aws_plan(), 2),
    "members beside the router": with_router(gcp_plan(), 1, members_too=3),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_every_file_offers_just_the_nodes_that_the_plan_rents_and_all_replicas_fit(plan: Plan) -> None:
    expected = sorted(n.node_type for n in plan.nodes for _ in range(n.count))
    launched = launcher_nodes(launcher(plan, SETUP).data())
    kuberay = [pod_node(group) for group in pods(ray_service(plan, SERVE, SETUP).data())]
    for nodes in (launched, kuberay):
        assert sorted(labels[NODE_TYPE_LABEL] for labels, _ in nodes) == expected
        assert fits(demands(plan), nodes)
        assert not fits(demands(plan) + demands(plan), nodes)  # the check can fail
    local = local_fleet(plan)
    assert (
        sorted(n.offer.node_type for n in local.nodes for _ in range(n.count) if n.offer.node_type != HEAD) == expected
    )


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_servings_settings_are_there_before_ray_starts(plan: Plan) -> None:
    data = launcher(plan, SETUP).data()
    for commands in (data["head_start_ray_commands"], data["worker_start_ray_commands"]):
        before, after = commands[-1].split("ray start")
        assert all(re.search(rf"export .*\b{name}={value}[ ;]", before) for name, value in SERVE_ENV.items())
        assert "export" not in after
    for group in pods(ray_service(plan, SERVE, SETUP).data()):
        env = {e["name"]: e["value"] for e in group["template"]["spec"]["containers"][0]["env"]}
        assert SERVE_ENV.items() <= env.items()


def test_the_first_router_node_is_the_head() -> None:
    plan = PLANS["members beside the router"]
    data = launcher(plan, SETUP).data()
    head = data["available_node_types"][data["head_node_type"]]
    assert head["labels"] == {NODE_TYPE_LABEL: "e2-standard-4"}
    assert head["min_workers"] == 3  # of four
    assert data["max_workers"] == 3 + 1 + 2
    service = ray_service(plan, SERVE, SETUP).data()["spec"]["rayClusterConfig"]
    assert service["headGroupSpec"]["labels"][NODE_TYPE_LABEL] == "e2-standard-4"
    assert [g["replicas"] for g in service["workerGroupSpecs"]] == [3, 1, 2]


def test_machines_markets_and_accelerators_are_those_of_the_offers() -> None:
    aws = launcher(aws_plan(), SETUP).data()["available_node_types"]
    assert aws["g4dn-xlarge"]["node_config"]["InstanceType"] == "g4dn.xlarge"
    assert aws["g4dn-xlarge"]["resources"] == {"CPU": 4, "GPU": 1, "accelerator_type:T4": 1}
    assert "InstanceMarketOptions" not in aws["g4dn-xlarge"]["node_config"]
    gcp = launcher(gcp_plan(), SETUP).data()["available_node_types"]
    spot = gcp["g2-standard-4-spot"]["node_config"]
    assert spot["machineType"] == "g2-standard-4"
    assert spot["scheduling"]["provisioningModel"] == "SPOT"
    assert spot["scheduling"]["automaticRestart"] is False
    assert gcp["a2-highgpu-1g"]["node_config"]["scheduling"] == {"onHostMaintenance": "TERMINATE"}
    assert "scheduling" not in gcp["e2-standard-4"]["node_config"]
    assert "guestAccelerators" not in gcp["a2-highgpu-1g"]["node_config"]


def test_spot_on_aws_and_accelerators_attached_to_machines_of_google() -> None:
    spot = snapshot("g5.xlarge").model_copy(
        update={"node_type": "g5.xlarge-spot", "instance_type": "g5.xlarge", "market": "spot"}
    )
    plan = small_plan(snapshot("m7i.xlarge"), snapshot("g4dn.xlarge"), spot)
    config = launcher(plan, SETUP).data()["available_node_types"]["g5-xlarge-spot"]["node_config"]
    assert config["InstanceType"] == "g5.xlarge"
    assert config["InstanceMarketOptions"] == {"MarketType": "spot"}
    attached = snapshot("g2-standard-4").model_copy(
        update={"node_type": "n1-with-t4", "instance_type": "n1-standard-4", "accelerator": "T4"}
    )
    attached = attached.model_copy(update={"accelerator_memory_gib": 16.0, "accelerators_per_node": 2})
    plan = small_plan(snapshot("e2-standard-4"), attached, snapshot("a2-highgpu-1g"))
    config = launcher(plan, SETUP).data()["available_node_types"]["n1-with-t4"]["node_config"]
    assert config["guestAccelerators"] == [{"acceleratorType": "nvidia-tesla-t4", "acceleratorCount": 2}]


def test_pods_are_told_apart_by_machine_market_and_accelerator() -> None:
    head, spot, a100, _ = pods(ray_service(gcp_plan(), SERVE, SETUP).data())
    wanted = spot["template"]["spec"]
    assert wanted["nodeSelector"] == {
        "node.kubernetes.io/instance-type": "g2-standard-4",
        "cloud.google.com/gke-accelerator": "nvidia-l4",
        "cloud.google.com/gke-spot": "true",
    }
    assert {t["key"] for t in wanted["tolerations"]} == {"nvidia.com/gpu", "cloud.google.com/gke-spot"}
    assert wanted["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert "affinity" not in wanted
    paid = a100["template"]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    expression = paid["nodeSelectorTerms"][0]["matchExpressions"][0]
    assert expression == {"key": "cloud.google.com/gke-spot", "operator": "NotIn", "values": ["true"]}
    assert "limits" not in head["template"]["spec"]["containers"][0]["resources"]
    assert "tolerations" not in head["template"]["spec"]


def test_one_pod_fills_one_node() -> None:
    for group in pods(ray_service(gcp_plan(), SERVE, SETUP).data()):
        offer = gcp_plan().offer(group["labels"][NODE_TYPE_LABEL])
        requests = group["template"]["spec"]["containers"][0]["resources"]["requests"]
        cpus, memory = float(requests["cpu"].rstrip("m")) / 1000, float(requests["memory"].rstrip("Mi")) / 1024
        assert offer.vcpus / 2 < cpus < 0.75 * offer.vcpus
        assert offer.memory_gib / 2 < memory < 0.75 * offer.memory_gib


def test_the_service_config_in_the_ray_service_reaches_pods() -> None:
    embedded = yaml.safe_load(ray_service(aws_plan(), {**SERVE, "applications": []}, SETUP).spec.serve_config_v2)
    assert embedded["proxy_location"] == "EveryNode"
    assert embedded["http_options"] == {"host": "0.0.0.0", "port": 8000}
    assert embedded["applications"] == []
    assert SERVE["http_options"]["host"] == "127.0.0.1"


def test_files_are_read_back_by_their_own_strict_schemas() -> None:
    for plan in PLANS.values():
        found = launcher(plan, SETUP)
        assert Launcher.model_validate(yaml.safe_load(to_blocks(found.data()))) == found
        service = ray_service(plan, SERVE, SETUP)
        assert RayService.model_validate(yaml.safe_load(to_blocks(service.data()))) == service
        assert Fleet.model_validate(
            yaml.safe_load(cluster_files(plan, SERVE, SETUP).texts["local.yaml"])
        ) == local_fleet(plan)


@pytest.mark.parametrize(
    ("where", "key"),
    [
        (("available_node_types", "g4dn-xlarge", "node_config"), "InstanceTyp"),
        (("available_node_types", "g4dn-xlarge", "node_config", "BlockDeviceMappings", 0, "Ebs"), "Size"),
        (("provider",), "zone"),
        (("docker",), "images"),
        ((), "worker_nodes"),
    ],
)
def test_a_key_that_ray_or_a_cloud_would_ignore_is_refused(where: tuple[Any, ...], key: str) -> None:
    data = launcher(aws_plan(), SETUP).data()
    inner: Any = data
    for part in where:
        inner = inner[part]
    inner[key] = "x"
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        Launcher.model_validate(data)


def test_a_key_that_kubernetes_would_refuse_is_refused() -> None:
    data = ray_service(aws_plan(), SERVE, SETUP).data()
    for spoil in (
        lambda d: d["spec"]["rayClusterConfig"]["headGroupSpec"].update(groupName="x"),
        lambda d: d["spec"]["rayClusterConfig"]["workerGroupSpecs"][0].update(groupName="Not-A-Name"),
        lambda d: d["spec"].update(serveConfig="x"),
        lambda d: d.update(apiVersion="ray.io/v1alpha1"),
    ):
        spoiled = yaml.safe_load(to_blocks(data))
        spoil(spoiled)
        with pytest.raises(ValueError, match="validation error"):
            RayService.model_validate(spoiled)


# --- What is refused, and what is left out ----------------------------------------------------------------------------


def test_hosted_models_are_refused() -> None:
    plan = aws_plan()
    hosted = plan.placements[3].model_copy(update={"api": "gpt-9", "node_type": plan.router.node_type})
    plan = plan.model_copy(update={"placements": (*plan.placements[:3], hosted)})
    with pytest.raises(InvalidInput, match=r"placements\[3\].api: names a hosted model.*got gpt-9"):
        node_groups(plan)


def test_several_sites_are_refused_and_one_site_is_not() -> None:
    edge = snapshot("g4dn.xlarge").model_copy(update={"site": "edge"})
    sites = Sites(ingress="edge", links=(Link(to_site="cloud", round_trip_s=0.02),), bytes_per_item=100)
    workload = factories.workload(sites=sites)
    here = [snapshot(n).model_copy(update={"site": s}) for n, s in (("m7i.xlarge", ""), ("g5.xlarge", "edge"))]
    assert node_groups(small_plan(here[0], edge, here[1], workload=workload))
    away = here[1].model_copy(update={"site": "cloud"})
    with pytest.raises(InvalidInput, match="must stand at one site.*got cloud, edge"):
        node_groups(small_plan(here[0], edge, away, workload=workload))


def test_serverless_offers_are_refused() -> None:
    with pytest.raises(InvalidInput, match="modal-1xT4: is billed by the second"):
        node_groups(small_plan(snapshot("m7i.xlarge"), snapshot("modal-1xT4"), snapshot("g5.xlarge")))


def unknown(name: str, accelerator: str = "T4", **changes: Any) -> Offer:
    return factories.offer(name, accelerator, **changes)


@pytest.mark.parametrize(
    ("offers", "why"),
    [
        (
            [snapshot("m7i.xlarge"), snapshot("g4dn.xlarge"), unknown("my-t4")],
            "offer my-t4: provider: must name a cloud",
        ),
        (
            [snapshot("m7i.xlarge"), snapshot("g4dn.xlarge"), snapshot("g2-standard-4")],
            "must be the same for all nodes",
        ),
        (
            [
                snapshot("m7i.xlarge"),
                snapshot("g4dn.xlarge"),
                snapshot("g5.xlarge").model_copy(update={"region": "eu-west-1"}),
            ],
            "region: must be the same for all nodes of one cluster, got eu-west-1, us-east-1",
        ),
        (
            [
                snapshot("m7i.xlarge"),
                snapshot("g4dn.xlarge"),
                snapshot("g5.xlarge").model_copy(update={"region": "all"}),
            ],
            "offer g5.xlarge: region: must name its region, got all",
        ),
        (
            [snapshot("m7i.xlarge"), snapshot("g4dn.xlarge"), unknown("big", provider="aws", region="us-east-1")],
            "offer big: instance_type: must name a machine type of its provider",
        ),
        (
            [
                snapshot("e2-standard-4"),
                snapshot("g2-standard-4"),
                unknown("e2-gpu-1", provider="gcp", region="us-central1"),
            ],
            "must come with its accelerators or be an n1",
        ),
    ],
)
def test_a_launcher_file_that_would_be_a_guess_is_left_out_and_the_note_says_why(offers: list[Offer], why: str) -> None:
    found = cluster_files(small_plan(*offers), SERVE, SETUP)
    assert set(found.texts) == {"rayservice.yaml", "local.yaml"}
    assert found.launcher is None
    (note,) = [n for n in found.notes if n.startswith("left out aws.yaml and gcp.yaml: ")]
    assert why in note


def test_owned_machines_are_not_launched_but_labelled() -> None:
    mine = [
        unknown(n, a, market="owned", **c)
        for n, a, c in (
            ("head", "CPU-x", {"accelerators_per_node": 0}),
            ("t4", "T4", {}),
            ("l4", "L4", {"accelerator_memory_gib": 24.0}),
        )
    ]
    found = cluster_files(small_plan(*mine), SERVE, SETUP)
    assert "aws.yaml" not in found.texts
    assert any("label the nodes in Kubernetes: coe.dev/node-type=head, coe.dev/node-type=t4" in n for n in found.notes)
    selectors = [g["template"]["spec"]["nodeSelector"] for g in pods(yaml.safe_load(found.texts["rayservice.yaml"]))]
    assert selectors[0] == {NODE_TYPE_LABEL: "head"}


def test_an_accelerator_that_kubernetes_does_not_know_leaves_the_ray_service_out() -> None:
    odd = unknown("odd", "Wonder-9", provider="aws", instance_type="w9.large", region="us-east-1")
    found = cluster_files(small_plan(snapshot("m7i.xlarge"), snapshot("g4dn.xlarge"), odd), SERVE, SETUP)
    assert set(found.texts) == {"aws.yaml", "local.yaml"}
    assert any("left out rayservice.yaml: offer odd: accelerator" in n for n in found.notes)
    shares = {
        n.offer.node_type: n.cpu_share for n in Fleet.model_validate(yaml.safe_load(found.texts["local.yaml"])).nodes
    }
    assert shares == {"m7i.xlarge": 1.0, "g4dn.xlarge": 0.1, "odd": 0.1}  # no figure is made up


def test_amd_accelerators_are_their_own_resource() -> None:
    mi300 = unknown("mi300", "MI300X", accelerator_memory_gib=192.0)
    plan = small_plan(snapshot("m7i.xlarge"), snapshot("g4dn.xlarge"), mi300)
    last = pods(ray_service(plan, SERVE, SETUP).data())[-1]
    assert last["template"]["spec"]["containers"][0]["resources"]["limits"] == {"amd.com/gpu": "1"}


def test_options_that_do_not_fit_the_plan_stay_errors() -> None:
    with pytest.raises(InvalidInput, match="--zone: must be in the plan's region, us-central1, got europe-west1-b"):
        cluster_files(gcp_plan(), SERVE, Setup("2.60.0", "py311", source="/s", zone="europe-west1-b"))


def test_what_was_not_given_is_said() -> None:
    bare = cluster_files(gcp_plan(), SERVE, SETUP)
    assert any("project_id is empty" in n for n in bare.notes)
    assert any("zone us-central1-b" in n for n in bare.notes)
    assert "Fill in provider.project_id first" in bare.texts["gcp.yaml"]
    full = Setup("2.60.0", "py311", image="repo/coe:1", zone="us-central1-a", project="mine", machine_image="image")
    told = cluster_files(gcp_plan(), SERVE, full)
    assert told.notes == ()
    assert told.launcher is not None
    assert told.launcher["provider"] == {
        "type": "gcp", "region": "us-central1", "availability_zone": "us-central1-a", "project_id": "mine"
    }  # fmt: skip
    assert told.launcher["setup_commands"] == []
    assert told.launcher["docker"]["image"] == "repo/coe:1"
    assert "repo/coe:1" in told.texts["rayservice.yaml"]
    lone = cluster_files(aws_plan(), SERVE, Setup("2.60.0", "py311"))
    assert any("nodes cannot install the program" in n for n in lone.notes)


def test_members_code_travels_to_the_nodes() -> None:
    plan = aws_plan(python_path="/home/me/project", pool=torch_pool())
    data = launcher(plan, SETUP).data()
    assert data["file_mounts"] == {FOLDER: ".", "/home/ray/coe": "/path/to/coe", "/home/me/project": "/home/me/project"}
    assert data["setup_commands"] == ["pip install '/home/ray/coe[torch]'"]
    assert environment(plan)["PYTHONPATH"] == f"{FOLDER}:/home/me/project"
    assert any(
        "the image must hold, at the same paths, /home/me/project" in n for n in cluster_files(plan, SERVE, SETUP).notes
    )


def test_every_file_says_where_it_is_from_and_how_it_is_used() -> None:
    plan = aws_plan()
    uses = {"aws.yaml": "ray up aws.yaml", "rayservice.yaml": "kubectl apply -f rayservice.yaml",
            "local.yaml": "coe cluster up local.yaml"}  # fmt: skip
    texts = cluster_files(plan, SERVE, SETUP).texts
    assert set(texts) == set(uses)
    for name, text in texts.items():
        assert text.startswith(f"{MARK}{plan.fingerprint()[:12]} (example): ")
        assert uses[name] in "".join(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines(True)))


def test_the_service_listens_where_its_routers_can_be_reached() -> None:
    assert listens_on(aws_plan(), None) == "127.0.0.1"
    assert listens_on(aws_plan(), "10.0.0.1") == "10.0.0.1"
    for plan in (PLANS["two routers"], PLANS["members beside the router"]):
        assert listens_on(plan, None) == "0.0.0.0"
        with pytest.raises(InvalidInput, match="--host: must reach routers on other nodes than the head"):
            listens_on(plan, "127.0.0.1")


@pytest.mark.parametrize("path", ["project", "./project", "/home/me/my project", "/home/me/a:b"])
def test_a_folder_that_cannot_be_copied_to_other_machines_is_refused(path: str) -> None:
    with pytest.raises(InvalidInput, match="plan: python_path: must be an absolute path"):
        node_groups(aws_plan(python_path=path))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_every_command_is_a_command_of_a_shell(plan: Plan) -> None:
    data = launcher(plan.model_copy(update={"python_path": "/home/me/project"}), SETUP).data()
    kinds = data["available_node_types"].values()
    lists = [v for k, v in data.items() if k.endswith("_commands")] + [
        k.get("initialization_commands", []) for k in kinds
    ]
    for command in itertools.chain(*lists):
        subprocess.run(["bash", "-n", "-c", command], check=True)


# --- Smaller parts ----------------------------------------------------------------------------------------------------


def test_the_local_fleet_plays_relative_speeds_and_gets_a_head_where_the_plan_has_none() -> None:
    fleet = local_fleet(gcp_plan())
    assert [n.cpu_share for n in fleet.nodes] == [1.0, round(0.3 * 121 / 312, 3), 0.3]
    assert fleet.nodes[0].offer.node_type == "e2-standard-4"
    two = local_fleet(with_router(gcp_plan(), 2))
    assert [(n.offer.node_type, n.count) for n in two.nodes[:2]] == [(HEAD, 1), ("e2-standard-4", 2)]


def test_gates_of_a_cascade_with_and_without_digests() -> None:
    tiers = (
        Tier(members=("small",), rule="gate:a/b.safetensors#0123", threshold=0.5),
        Tier(members=("middle",), rule="gate:c.safetensors", threshold=0.5),
        Tier(members=("large",)),
    )
    assert gates(aws_plan(cascade=Cascade(tiers=tiers))) == (("a/b.safetensors", "0123"), ("c.safetensors", ""))
    assert gates(aws_plan()) == ()


@given(st.lists(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.+\-/]{0,80}", fullmatch=True), unique=True, max_size=8))
def test_slugs_are_different_names_that_kubernetes_and_google_take(names: list[str]) -> None:
    found = slugs(names)
    assert len(set(found)) == len(names)
    assert all(re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= 63 for name in found)


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.+\-/]{0,99}", fullmatch=True))
def test_any_name_of_a_plan_makes_a_name_of_a_cluster(name: str) -> None:
    found = cluster_name(aws_plan(name=name))
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", found)
    assert len(found) <= 30


def test_every_offer_of_the_snapshot_on_aws_and_google_has_a_machine() -> None:
    offers = prices().offers
    clouds = [o for o in offers if o.provider in ("aws", "gcp")]
    assert len(clouds) == 27
    assert all(instance(o) for o in clouds)
    assert all(google_accelerator(o) for o in clouds if o.provider == "gcp" and o.accelerators_per_node)
    assert not any(instance(o) for o in offers if o not in clouds)
