"""`rayservice.yaml`: the plan as a RayService of KubeRay, for `kubectl apply`.

The nouns below hold the fields that we write of ``ray.io/v1`` RayService, as in KubeRay 1.5 and 1.6: `labels` of a group
came with 1.5, whose operator refuses them among `rayStartParams`. `coe build` checks the file against the schemas of
KubeRay and Kubernetes that are recorded in ``kuberay.schema.yaml`` and ``pod-template.schema.yaml``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from coe.errors import InvalidInput, Problem
from coe.files import to_yaml
from coe.fleet import names
from coe.fleet.groups import ALL_ADDRESSES, Group, cluster_name, environment, node_groups, slugs
from coe.fleet.labels import NODE_TYPE_LABEL, node_cpus, node_labels
from coe.fleet.setup import Setup
from coe.types import Count, Noun, Offer, Plan

KUBERAY = "1.5"
"""The oldest KubeRay whose custom resource has all these fields."""

REQUESTED = 2 / 3
"""Share of a node's CPUs and memory that its pod asks for: over a half, so that no second pod fits on it, and less than
Kubernetes leaves to pods on the smallest nodes."""

GRPC = "serve-grpc"
"""Ports whose names begin with ``serve-`` are part of KubeRay's service since its pull request 4558 (March 2026)."""
Ports = dict[str, int]
HEAD_PORTS: Ports = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
"""What Ray listens on at the head."""

INSTANCE_LABEL = "node.kubernetes.io/instance-type"
GKE_ACCELERATOR_LABEL = "cloud.google.com/gke-accelerator"
SPOT_LABELS = {names.AWS: ("eks.amazonaws.com/capacityType", "SPOT"), names.GCP: ("cloud.google.com/gke-spot", "true")}
"""Provider -> label and value of spot nodes: EKS managed node groups, GKE node pools."""


class _Camel(Noun):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


Quantity = Annotated[str, Field(pattern=r"^[0-9]+(m|Mi)?$")]
"""The forms of Kubernetes quantities that we write."""
DnsLabel = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63)]
LabelKey = Annotated[str, Field(pattern=r"^([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")]
Labels = dict[LabelKey, LabelValue]


class EnvVar(_Camel):
    """core/v1 EnvVar."""

    name: str
    value: str


class ContainerPort(_Camel):
    """core/v1 ContainerPort."""

    container_port: Annotated[int, Field(ge=1, le=65535)]
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?$")]


class Resources(_Camel):
    """core/v1 ResourceRequirements."""

    requests: dict[str, Quantity]
    limits: dict[str, Quantity] | None = None


class Container(_Camel):
    """core/v1 Container."""

    name: DnsLabel
    image: str
    env: tuple[EnvVar, ...]
    ports: tuple[ContainerPort, ...]
    resources: Resources


class Toleration(_Camel):
    """core/v1 Toleration."""

    key: LabelKey
    operator: Literal["Exists", "Equal"]
    value: LabelValue | None = None
    effect: Literal["NoSchedule"] = "NoSchedule"


class MatchExpression(_Camel):
    """core/v1 NodeSelectorRequirement; NotIn also takes nodes without the label."""

    key: LabelKey
    operator: Literal["NotIn"] = "NotIn"
    values: tuple[LabelValue, ...]


class NodeSelectorTerm(_Camel):
    """core/v1 NodeSelectorTerm."""

    match_expressions: tuple[MatchExpression, ...]


class NodeSelector(_Camel):
    """core/v1 NodeSelector."""

    node_selector_terms: tuple[NodeSelectorTerm, ...]


class NodeAffinity(_Camel):
    """core/v1 NodeAffinity."""

    required_during_scheduling_ignored_during_execution: NodeSelector


class Affinity(_Camel):
    """core/v1 Affinity."""

    node_affinity: NodeAffinity


class PodSpec(_Camel):
    """core/v1 PodSpec."""

    containers: Annotated[tuple[Container, ...], Field(min_length=1)]
    node_selector: Labels
    affinity: Affinity | None = None
    tolerations: tuple[Toleration, ...] | None = None


class PodTemplate(_Camel):
    """core/v1 PodTemplateSpec."""

    spec: PodSpec


class HeadGroup(_Camel):
    """HeadGroupSpec."""

    labels: Labels
    ray_start_params: dict[str, str]
    template: PodTemplate


class WorkerGroup(_Camel):
    """WorkerGroupSpec."""

    group_name: DnsLabel
    replicas: Count
    min_replicas: Count
    max_replicas: Count
    labels: Labels
    ray_start_params: dict[str, str]
    template: PodTemplate


class RayClusterConfig(_Camel):
    """RayClusterSpec."""

    ray_version: str
    head_group_spec: HeadGroup
    worker_group_specs: tuple[WorkerGroup, ...]


class RayServiceSpec(_Camel):
    """RayServiceSpec."""

    serve_config_v2: str = Field(alias="serveConfigV2")
    ray_cluster_config: RayClusterConfig


class Metadata(_Camel):
    """meta/v1 ObjectMeta; KubeRay adds to the name and allows 47 characters."""

    name: Annotated[DnsLabel, Field(max_length=47)]


class RayService(_Camel):
    """The custom resource."""

    api_version: Literal["ray.io/v1"] = "ray.io/v1"
    kind: Literal["RayService"] = "RayService"
    metadata: Metadata
    spec: RayServiceSpec

    def data(self) -> dict[str, Any]:
        """As it is written: Kubernetes' names, nothing that is not set."""
        dumped: dict[str, Any] = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return dumped


def ray_service(plan: Plan, serve: dict[str, Any], setup: Setup) -> RayService:
    """The RayService of a plan, `serve` being what `coe.serving.build.serve_config` made of it.

    Pods of one offer's nodes are told apart from others by machine type and market where the offer names a provider that we
    know, else by our own node label, which is then for the nodes' owner to set. Raises `InvalidInput` for what the plan
    cannot express, and where no Kubernetes resource is known for an accelerator.
    """
    groups = node_groups(plan)
    problems = [
        Problem(
            f"offer {g.offer.node_type}: accelerator", "is not known as a resource of Kubernetes", g.offer.accelerator
        )
        for g in groups
        if g.offer.accelerators_per_node and names.device_resource(g.offer) is None
    ]
    if problems:
        raise InvalidInput(problems)
    ports = service_ports(serve)
    keys = slugs([g.offer.node_type for g in groups])
    config = RayClusterConfig(
        ray_version=setup.ray_version,
        head_group_spec=HeadGroup(
            labels=node_labels(groups[0].offer),
            ray_start_params={"dashboard-host": "0.0.0.0", **_counts(groups[0].offer)},
            template=_pod(plan, groups[0].offer, setup, ports, is_head=True),
        ),
        worker_group_specs=tuple(
            _workers(plan, g, key, setup, ports) for key, g in zip(keys, groups, strict=True) if g.workers
        ),
    )
    text = to_yaml({**serve, **_in_a_pod(serve)})
    return RayService(
        metadata=Metadata(name=cluster_name(plan)),
        spec=RayServiceSpec(serve_config_v2=text, ray_cluster_config=config),
    )


def service_ports(serve: dict[str, Any]) -> Ports:
    """The ports of the service by the names that KubeRay looks for: ``serve``, and ``serve-`` with what it is for.

    Raises `InvalidInput` for a port that Ray itself takes on the head.
    """
    grpc = serve.get("grpc_options")
    ports = {"serve": serve["http_options"]["port"], **({} if grpc is None else {GRPC: grpc["port"]})}
    for name, port in ports.items():
        if port in HEAD_PORTS.values():
            rule = f"is taken by Ray on the head: {', '.join(f'{n} {p}' for n, p in HEAD_PORTS.items())}"
            raise InvalidInput(Problem("--grpc-port" if name == GRPC else "--port", rule, str(port), "choose another"))
    return ports


def _in_a_pod(serve: dict[str, Any]) -> dict[str, Any]:
    """Kubernetes' service reaches a pod at its address, and its probes ask every pod of workers for a proxy."""
    return {"proxy_location": "EveryNode", "http_options": {**serve["http_options"], "host": ALL_ADDRESSES}}


def by_own_label(plan: Plan) -> tuple[str, ...]:
    """Node types whose nodes must carry our own label in Kubernetes, since their offers name no machine that we know."""
    return tuple(g.offer.node_type for g in node_groups(plan) if names.instance(g.offer) is None)


def _workers(plan: Plan, group: Group, name: str, setup: Setup, ports: Ports) -> WorkerGroup:
    return WorkerGroup(
        group_name=name,
        replicas=group.workers,
        min_replicas=group.workers,
        max_replicas=group.workers,
        labels=node_labels(group.offer),
        ray_start_params=_counts(group.offer),
        template=_pod(plan, group.offer, setup, ports, is_head=False),
    )


def _counts(offer: Offer) -> dict[str, str]:
    """What Ray shall count on the node: the offer's CPUs, not what the pod asks for."""
    gpus = offer.accelerators_per_node
    return {"num-cpus": str(node_cpus(offer)), **({"num-gpus": str(gpus)} if gpus else {})}


def _pod(plan: Plan, offer: Offer, setup: Setup, ports: Ports, *, is_head: bool) -> PodTemplate:
    """Every pod lists the ports of the service: KubeRay makes its service of those of the head, and it leads to any."""
    listed = {**(HEAD_PORTS if is_head else {}), **ports}
    container = Container(
        name="ray-head" if is_head else "ray-worker",
        image=setup.image or own_image(plan),
        env=tuple(EnvVar(name=n, value=v) for n, v in environment(plan).items()),
        ports=tuple(ContainerPort(container_port=port, name=name) for name, port in listed.items()),
        resources=_resources(offer),
    )
    tolerations = _tolerations(offer)
    return PodTemplate(
        spec=PodSpec(
            containers=(container,),
            node_selector=_selector(offer),
            affinity=_affinity(offer),
            tolerations=tolerations or None,
        )
    )


def own_image(plan: Plan) -> str:
    """The image that rayservice.yaml names where none was given; it is for the reader to build and push."""
    return f"coe-{cluster_name(plan)}:{plan.fingerprint()[:12]}"


def _resources(offer: Offer) -> Resources:
    device = names.device_resource(offer)
    requests = {
        "cpu": f"{int(1000 * REQUESTED * offer.vcpus)}m",
        "memory": f"{int(1024 * REQUESTED * offer.memory_gib)}Mi",
    }
    return Resources(requests=requests, limits=None if device is None else {device: str(offer.accelerators_per_node)})


def _spot(offer: Offer) -> tuple[str, str] | None:
    """Label and value by which Kubernetes knows spot nodes of the offer's provider."""
    return None if names.instance(offer) is None else SPOT_LABELS[names.provider(offer)]


def _selector(offer: Offer) -> dict[str, str]:
    machine, spot = names.instance(offer), _spot(offer)
    if machine is None or spot is None:
        return {NODE_TYPE_LABEL: offer.node_type}
    selector = {INSTANCE_LABEL: machine}
    google = names.google_accelerator(offer)
    if names.provider(offer) == names.GCP and google is not None:
        selector[GKE_ACCELERATOR_LABEL] = google
    if offer.market == "spot":
        selector[spot[0]] = spot[1]
    return selector


def _affinity(offer: Offer) -> Affinity | None:
    """Keeps pods that pay the full price off spot nodes of the same machine type."""
    spot = _spot(offer)
    if spot is None or offer.market == "spot":
        return None
    term = NodeSelectorTerm(match_expressions=(MatchExpression(key=spot[0], values=(spot[1],)),))
    selector = NodeSelector(node_selector_terms=(term,))
    return Affinity(node_affinity=NodeAffinity(required_during_scheduling_ignored_during_execution=selector))


def _tolerations(offer: Offer) -> tuple[Toleration, ...]:
    """The taints of accelerator nodes, and the one that Google recommends for spot nodes."""
    device = names.device_resource(offer)
    found = [] if device is None else [Toleration(key=device, operator="Exists")]
    spot = _spot(offer)
    if spot is not None and offer.market == "spot":
        found.append(Toleration(key=spot[0], operator="Equal", value=spot[1]))
    return tuple(found)
