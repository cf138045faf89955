"""`aws.yaml` and `gcp.yaml`: the plan's nodes for Ray's cluster launcher, `ray up`.

The keys are those of ``ray/autoscaler/ray-schema.json``. It leaves `node_config` open, so the fields that we write there
are described here, as the clouds name them: EC2 RunInstances and Compute Engine instances.insert, v1.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel, to_pascal

from coe.errors import InvalidInput, Problem
from coe.fleet import names
from coe.fleet.groups import FOLDER, Group, cluster_name, environment, needs_torch, node_groups, slugs
from coe.fleet.labels import accelerator_resource, node_cpus, node_labels
from coe.fleet.setup import COE_FOLDER, DISK_GB, Setup
from coe.types import Count, Noun, Offer, Plan, PositiveCount

GOOGLE_IMAGE = "projects/deeplearning-platform-release/global/images/family/common-cu128-ubuntu-2204-nvidia-570"
"""Google's image with Docker and NVIDIA's driver; it also boots machines without accelerators."""


# --- The clouds' own fields -------------------------------------------------------------------------------------------


class _Pascal(Noun):
    model_config = ConfigDict(alias_generator=to_pascal, populate_by_name=True)


class _Camel(Noun):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class AwsMarket(_Pascal):
    """EC2 `InstanceMarketOptions`."""

    market_type: Literal["spot"] = "spot"


class AwsVolume(_Pascal):
    """EC2 `Ebs`."""

    volume_size: PositiveCount
    volume_type: Literal["gp3"] = "gp3"


class AwsDevice(_Pascal):
    """EC2 `BlockDeviceMapping`."""

    device_name: str
    ebs: AwsVolume


class AwsNode(_Pascal):
    """What we say of an EC2 instance."""

    instance_type: str
    image_id: str | None = None
    block_device_mappings: tuple[AwsDevice, ...]
    instance_market_options: AwsMarket | None = None


class GoogleDiskSource(_Camel):
    """Compute Engine `AttachedDiskInitializeParams`."""

    disk_size_gb: PositiveCount
    source_image: str


class GoogleDisk(_Camel):
    """Compute Engine `AttachedDisk`."""

    boot: bool = True
    auto_delete: bool = True
    type: Literal["PERSISTENT"] = "PERSISTENT"
    initialize_params: GoogleDiskSource


class GoogleScheduling(_Camel):
    """Compute Engine `Scheduling`: machines with accelerators cannot migrate, spot machines cannot be restarted."""

    on_host_maintenance: Literal["TERMINATE"] = "TERMINATE"
    automatic_restart: bool | None = None
    provisioning_model: Literal["SPOT"] | None = None
    instance_termination_action: Literal["DELETE"] | None = None


class GoogleAccelerator(_Camel):
    """Compute Engine `AcceleratorConfig`; Ray completes the name to a URL."""

    accelerator_type: str
    accelerator_count: PositiveCount


class GoogleNode(_Camel):
    """What we say of a Compute Engine instance."""

    machine_type: str
    disks: tuple[GoogleDisk, ...]
    guest_accelerators: tuple[GoogleAccelerator, ...] = ()
    scheduling: GoogleScheduling | None = None


# --- Ray's fields -----------------------------------------------------------------------------------------------------


class NodeDocker(Noun):
    """The container of one node type."""

    worker_image: str


class NodeType(Noun):
    """One entry of `available_node_types`."""

    resources: dict[str, Count]
    labels: dict[str, str]
    min_workers: Count
    max_workers: Count
    docker: NodeDocker | None = None
    initialization_commands: tuple[str, ...] = ()
    node_config: AwsNode | GoogleNode


class AwsProvider(Noun):
    """`provider` for EC2."""

    type: Literal["aws"] = "aws"
    region: str
    cache_stopped_nodes: Literal[False] = False
    """`ray down` ends machines, where Ray's default only stops them and their disks go on costing."""


class GoogleProvider(Noun):
    """`provider` for Compute Engine. Ray refuses a file whose project is null."""

    type: Literal["gcp"] = "gcp"
    region: str
    availability_zone: str
    project_id: str | None


class Docker(Noun):
    """The container that all nodes run in, with the network of the machine."""

    image: str
    head_image: str
    container_name: str = "coe"
    pull_before_run: bool = True
    run_options: tuple[str, ...] = ("--ulimit nofile=65536:65536",)


class Auth(Noun):
    """How Ray logs in; the machine images' own user."""

    ssh_user: str = "ubuntu"


class Launcher(Noun):
    """A file for `ray up`."""

    cluster_name: str
    max_workers: Count
    provider: AwsProvider | GoogleProvider = Field(discriminator="type")
    auth: Auth = Auth()
    docker: Docker
    available_node_types: dict[str, NodeType]
    head_node_type: str
    file_mounts: dict[str, str]
    rsync_exclude: tuple[str, ...] = (".git", ".venv", ".coe", "__pycache__")
    setup_commands: tuple[str, ...]
    head_setup_commands: tuple[str, ...]
    worker_setup_commands: tuple[str, ...] = ()
    head_start_ray_commands: tuple[str, ...]
    worker_start_ray_commands: tuple[str, ...]

    def data(self) -> dict[str, Any]:
        """As it is written: the clouds' names, nothing that is not set, but a project that is still to be filled in."""
        dumped: dict[str, Any] = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        for node_type in dumped["available_node_types"].values():
            for empty in ("initialization_commands",):
                if not node_type[empty]:
                    del node_type[empty]
            if not node_type["node_config"].get("guestAccelerators", True):
                del node_type["node_config"]["guestAccelerators"]
        if isinstance(self.provider, GoogleProvider):
            dumped["provider"]["project_id"] = self.provider.project_id
        return dumped


def launcher(plan: Plan, setup: Setup) -> Launcher:
    """The file for `ray up` on the cloud that all nodes of the plan are rented from.

    Raises `InvalidInput` saying what keeps the plan from being launched: an offer without a cloud or machine type that we
    know, several clouds or regions, accelerators that the machine cannot have, a program that cannot be installed.
    """
    groups = node_groups(plan)
    cloud = _agreed([names.provider(g.offer) for g in groups], groups, "provider", (names.AWS, names.GCP))
    region = _agreed([names.region(g.offer) or "" for g in groups], groups, "region", None)
    problems = [p for g in groups for p in _problems(g.offer, cloud)]
    if setup.image is None and setup.source is None:
        rule = "nodes cannot install the program, which runs from no source folder here"
        problems.append(Problem("launcher", rule, remedy="give an image that holds it: --image"))
    if problems:
        raise InvalidInput(problems)
    keys = slugs([g.offer.node_type for g in groups])
    workers = sum(g.workers for g in groups)
    return Launcher(
        cluster_name=cluster_name(plan),
        max_workers=workers,
        provider=_provider(cloud, region, setup),
        docker=Docker(image=setup.cpu_image, head_image=_image(groups[0].offer, setup)),
        available_node_types={k: _node_type(g, cloud, setup) for k, g in zip(keys, groups, strict=True)},
        head_node_type=keys[0],
        file_mounts=_mounts(plan, setup),
        setup_commands=_install(plan, setup),
        head_setup_commands=(_CLOUD_LIBRARY[cloud],),
        head_start_ray_commands=_start(plan, "--head --port=6379 --autoscaling-config=~/ray_bootstrap_config.yaml"),
        worker_start_ray_commands=_start(plan, "--address=$RAY_HEAD_IP:6379"),
    )


def _agreed(values: Sequence[str], groups: Sequence[Group], key: str, known: tuple[str, ...] | None) -> str:
    """The one value that all offers share."""
    for value, group in zip(values, groups, strict=True):
        if not value or (known is not None and value not in known):
            rule = f"must name {'a cloud that we can launch on: ' + ' or '.join(known) if known else 'its region'}"
            found = getattr(group.offer, key) or "nothing"
            raise InvalidInput(Problem(f"offer {group.offer.node_type}: {key}", rule, found))
    if len(set(values)) > 1:
        found = ", ".join(sorted(set(values)))
        raise InvalidInput(Problem(f"offers: {key}", "must be the same for all nodes of one cluster", found))
    return values[0]


def _problems(offer: Offer, cloud: str) -> list[Problem]:
    where = f"offer {offer.node_type}"
    machine = names.instance(offer)
    if machine is None:
        example = "m7i.xlarge" if cloud == names.AWS else "n2-standard-4"
        rule = f"must name a machine type of its provider, like {example}"
        return [Problem(f"{where}: instance_type", rule, offer.instance_type or offer.node_type)]
    if offer.market == "owned":
        return [Problem(f"{where}: market", "must be rented: what is owned cannot be launched", offer.market)]
    if cloud == names.GCP and offer.accelerators_per_node and not names.google_built_in(machine):
        if not names.google_attaches(machine):
            rule = "must come with its accelerators or be an n1, to which they are attached"
            return [Problem(f"{where}: instance_type", rule, machine)]
        if names.google_accelerator(offer) is None:
            known = ", ".join(names.GOOGLE_ACCELERATORS)
            return [Problem(f"{where}: accelerator", "has no name at Google that we know", offer.accelerator, known)]
    return []


def _provider(cloud: str, region: str, setup: Setup) -> AwsProvider | GoogleProvider:
    if cloud == names.AWS:
        return AwsProvider(region=region)
    return GoogleProvider(region=region, availability_zone=zone(region, setup), project_id=setup.project)


def zone(region: str, setup: Setup) -> str:
    """The zone that was asked for, else the region's b: every region of Google's has one."""
    if setup.zone is None:
        return f"{region}-b"
    if not setup.zone.startswith(f"{region}-"):
        raise InvalidInput(Problem("--zone", f"must be in the plan's region, {region}", setup.zone))
    return setup.zone


def _image(offer: Offer, setup: Setup) -> str:
    return setup.gpu_image if offer.accelerators_per_node else setup.cpu_image


def _node_type(group: Group, cloud: str, setup: Setup) -> NodeType:
    offer = group.offer
    gpus = offer.accelerators_per_node
    waits = gpus and cloud == names.GCP
    return NodeType(
        resources={
            "CPU": node_cpus(offer),
            **({"GPU": gpus, accelerator_resource(offer.accelerator): gpus} if gpus else {}),
        },
        labels=node_labels(offer),
        min_workers=group.workers,
        max_workers=group.workers,
        docker=NodeDocker(worker_image=_image(offer, setup)) if gpus else None,
        initialization_commands=("timeout 600 bash -c 'until nvidia-smi; do sleep 5; done'",) if waits else (),
        node_config=_aws_node(offer, setup) if cloud == names.AWS else _google_node(offer, setup),
    )


def _aws_node(offer: Offer, setup: Setup) -> AwsNode:
    return AwsNode(
        instance_type=str(names.instance(offer)),
        image_id=setup.machine_image,
        block_device_mappings=(AwsDevice(device_name="/dev/sda1", ebs=AwsVolume(volume_size=DISK_GB)),),
        instance_market_options=AwsMarket() if offer.market == "spot" else None,
    )


def _google_node(offer: Offer, setup: Setup) -> GoogleNode:
    machine = str(names.instance(offer))
    gpus = offer.accelerators_per_node
    attached = names.google_accelerator(offer) if gpus and not names.google_built_in(machine) else None
    source = GoogleDiskSource(disk_size_gb=DISK_GB, source_image=setup.machine_image or GOOGLE_IMAGE)
    spot = GoogleScheduling(automatic_restart=False, provisioning_model="SPOT", instance_termination_action="DELETE")
    return GoogleNode(
        machine_type=machine,
        disks=(GoogleDisk(initialize_params=source),),
        guest_accelerators=(GoogleAccelerator(accelerator_type=attached, accelerator_count=gpus),) if attached else (),
        scheduling=spot if offer.market == "spot" else GoogleScheduling() if gpus else None,
    )


_CLOUD_LIBRARY = {
    names.AWS: "pip install 'boto3>=1.4.8'",
    names.GCP: "pip install google-api-python-client==1.7.8",
}
"""What the autoscaler on the head calls the cloud with; the versions that Ray's own defaults install."""


def _mounts(plan: Plan, setup: Setup) -> dict[str, str]:
    """Path on the nodes -> path here: the built folder, the members' code and weights, and without an image the program."""
    code = {plan.python_path: plan.python_path} if plan.python_path else {}
    program = {} if setup.image is not None or setup.source is None else {COE_FOLDER: setup.source}
    return {FOLDER: ".", **program, **code}


def _install(plan: Plan, setup: Setup) -> tuple[str, ...]:
    """What a node installs that no image brings: the program, with the extras that the deployment asks for."""
    extras = [*(["torch"] if needs_torch(plan) else []), *(["tracing"] if setup.is_traced else [])]
    named = f"[{','.join(extras)}]" if extras else ""
    return () if setup.image else (f"pip install '{COE_FOLDER}{named}'",)


def _start(plan: Plan, how: str) -> tuple[str, ...]:
    """Serve reads its settings when its processes start, so they are exported before Ray is."""
    exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment(plan).items())
    return "ray stop", f"ulimit -n 65536; export {exports}; ray start {how} --object-manager-port=8076"
