"""The cluster files of a plan as texts, with what the reader must know before using them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from coe.errors import InvalidInput
from coe.fleet.groups import FOLDER, gate_files, node_groups
from coe.fleet.kuberay import GRPC, KUBERAY, by_own_label, own_image, ray_service, service_ports
from coe.fleet.labels import NODE_TYPE_LABEL
from coe.fleet.launcher import GoogleProvider, Launcher, launcher
from coe.fleet.local import has_own_head, local_fleet
from coe.fleet.setup import Setup
from coe.prices.catalog import provenance
from coe.types import Plan

MARK = "# Written by coe build from plan "
"""How the first line of every file begins; what begins otherwise is not ours."""

NAMES = ("serve.yaml", "aws.yaml", "gcp.yaml", "rayservice.yaml", "local.yaml")
"""Everything that may be written, without gate files."""


@dataclass(frozen=True)
class ClusterFiles:
    """File name -> text, and notes for the reader; what the launcher file and rayservice.yaml hold, where there are such."""

    texts: dict[str, str]
    notes: tuple[str, ...]
    launcher: dict[str, Any] | None
    service: dict[str, Any] | None


def cluster_files(plan: Plan, serve: dict[str, Any], setup: Setup) -> ClusterFiles:
    """Every cluster file that the plan allows, `serve` being the content of its serve.yaml.

    A launcher file needs one cloud that we know, rayservice.yaml accelerators that Kubernetes knows; where one is left out
    a note says why. Raises `InvalidInput` for a plan that no cluster file can express, and for options that do not fit it.
    """
    node_groups(plan)
    texts, notes = {}, []
    launched = deployed = None
    try:
        found = launcher(plan, setup)
    except InvalidInput as error:
        notes += _left_out("aws.yaml and gcp.yaml", error)
    else:
        launched = found.data()
        texts[f"{found.provider.type}.yaml"] = _launcher_text(plan, found, launched, serve)
        notes += _launcher_notes(plan, found, setup)
    try:
        service = ray_service(plan, serve, setup)
    except InvalidInput as error:
        notes += _left_out("rayservice.yaml", error)
    else:
        deployed = service.data()
        texts["rayservice.yaml"] = _kuberay_head(plan) + to_blocks(deployed)
        notes += _kuberay_notes(plan, serve, setup)
    texts["local.yaml"] = _local_text(plan)
    return ClusterFiles(texts, tuple(notes), launched, deployed)


def first_line(plan: Plan, what: str) -> str:
    """What a file is, which plan it came from, in one comment line."""
    return f"{MARK}{plan.fingerprint()[:12]} ({plan.name}): {what}\n"


def comment(*lines: str) -> str:
    """Lines as YAML comments."""
    return "".join(f"# {line}\n" for line in lines)


def _left_out(what: str, error: InvalidInput) -> list[str]:
    """A note, unless it is an option that was wrong: that stays an error."""
    if any(p.where.startswith("--") for p in error.problems):
        raise error
    return [f"left out {what}: {p}" for p in error.problems]


def _bill(plan: Plan) -> Iterator[str]:
    rented = ", ".join(f"{n.count} x {n.node_type}" for n in plan.nodes)
    yield f"Rents {rented}: ${plan.cost.usd_per_hour_allocation:.3f} per hour, without disks and traffic."
    yield f"Prices: {provenance(plan.offers)}"


def _launcher_text(plan: Plan, found: Launcher, data: dict[str, Any], serve: dict[str, Any]) -> str:
    ports = service_ports(serve)
    tunnels = " ".join(f"-p {port}" for port in ports.values())
    file = f"{found.provider.type}.yaml"
    head = first_line(plan, "a cluster for Ray's launcher, ray up")
    lines = [
        *_bill(plan),
        "Use it in its own folder, which is copied to every node:",
        f"  ray up {file}",
        f"  ray exec {file} 'serve deploy {FOLDER}/serve.yaml'",
        f"  ray exec {file} 'serve status'",
        f"  ray attach {file} {tunnels}    # while it is open, the service is at {_here(ports)}",
        f"  ray down {file}",
    ]
    if isinstance(found.provider, GoogleProvider) and found.provider.project_id is None:
        lines.insert(0, "Fill in provider.project_id first; ray up refuses the file without it.")
    return head + comment(*lines) + to_blocks(data)


def _here(ports: dict[str, int]) -> str:
    """Where tunnels lead to the service."""
    grpc = f", gRPC at 127.0.0.1:{ports[GRPC]}" if GRPC in ports else ""
    return f"127.0.0.1:{ports['serve']}{grpc}"


def _launcher_notes(plan: Plan, found: Launcher, setup: Setup) -> Iterator[str]:
    file = f"{found.provider.type}.yaml"
    groups = node_groups(plan)
    if isinstance(found.provider, GoogleProvider):
        if setup.project is None:
            yield f"{file}: provider.project_id is empty; fill it in, or build with --project"
        if setup.zone is None:
            zone = found.provider.availability_zone
            yield f"{file}: zone {zone}, which may lack the accelerators of the plan; choose with --zone"
    elif setup.machine_image is None:
        which = "drivers too old for L4, L40S, H100 and newer" if any(_gpus(plan)) else "of 2022"
        yield f"{file}: no ImageId, so Ray takes its default image ({which}); choose with --machine-image"
    if groups[0].offer.market == "spot":
        yield f"{file}: the head is a spot node, and when it is taken away the cluster ends"


def _gpus(plan: Plan) -> Iterator[bool]:
    return (g.offer.accelerators_per_node > 0 for g in node_groups(plan))


def _kuberay_head(plan: Plan) -> str:
    return first_line(plan, f"a RayService for KubeRay {KUBERAY} or newer") + comment(
        *_bill(plan),
        "Use it with:",
        "  kubectl apply -f rayservice.yaml",
        "Node pools must hold the nodes above; one pod fills one node.",
    )


def _kuberay_notes(plan: Plan, serve: dict[str, Any], setup: Setup) -> Iterator[str]:
    if GRPC in service_ports(serve):
        yield f"rayservice.yaml: KubeRay before its pull request 4558 leaves {GRPC} out of its service; see docs/deploying.md"
    if setup.image is None:
        yield f"rayservice.yaml: the image {own_image(plan)} is for you to build and push; name yours with --image"
    if setup.is_traced:
        yield "rayservice.yaml: the image must hold coe[tracing], for the router's spans"
    if labelled := by_own_label(plan):
        wanted = ", ".join(f"{NODE_TYPE_LABEL}={name}" for name in labelled)
        yield f"rayservice.yaml: no provider's machine type is known, so label the nodes in Kubernetes: {wanted}"
    held = [*filter(None, [plan.python_path]), *(f"{FOLDER}/{name}" for name in gate_files(plan))]
    if held:
        yield f"rayservice.yaml: the image must hold, at the same paths, {', '.join(held)}"


def _local_text(plan: Plan) -> str:
    lines = [
        "Use it in its own folder:",
        "  coe cluster up local.yaml      # prints the address to export as RAY_ADDRESS",
        "  serve run serve.yaml",
        "  coe cluster down",
        "Speeds are shares of one CPU core by the makers' peak rates: it shows that the plan deploys and routes, not how fast.",
        "Keep the sum of the shares that are busy at once below the number of cores.",
    ]
    if has_own_head(plan):
        lines.append("Its first node is a head of its own, which the plan does not rent.")
    data = local_fleet(plan).model_dump(mode="json", exclude_none=True)
    return first_line(plan, "a local fleet that one machine plays") + comment(*lines) + to_blocks(data)


def to_blocks(data: Any) -> str:
    """YAML with key order kept, no aliases, texts of several lines as blocks, commands unbroken."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  # the base class names it
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
