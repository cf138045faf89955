"""What is installed, what the cluster has, and what will hurt: read before the first deployment, not after.

Looks and never changes anything. Works without a cluster, and then speaks of this machine alone.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from importlib import metadata
from typing import Any, Literal

import ray

from coe.serving.labels import CPU_SHARE_ENV, NODE_TYPE_LABEL, SERVE_ENV
from coe.serving.profile import connected, cpu_name
from coe.types import Noun

REQUIRED = ("coe", "ray", "numpy", "scipy", "pydantic")
EXTRAS = {"torch": "torch", "safetensors": "torch", "scikit-learn": "sklearn", "matplotlib": "report"}
"""Optional package -> the extra of `coe` that brings it."""

TASK_TIMEOUT_S = 30.0


class Finding(Noun):
    """Something that will hurt, and what to do about it."""

    level: Literal["problem", "hint"]
    text: str
    remedy: str


class NodeReport(Noun):
    """One node of the cluster."""

    node_type: str
    """Of its label; empty for a node without one."""
    address: str
    is_head: bool
    cpus: float
    gpus: float
    accelerators: tuple[str, ...]
    cpu_share: str | None
    """Set on simulated nodes: the share of a core that stands in for an accelerator."""
    versions: dict[str, str]
    """Package -> version there; empty where the node did not answer."""
    missing_settings: tuple[str, ...]
    """Throughput settings that its environment lacks."""


class DoctorReport(Noun):
    """What `examine` found."""

    machine: str
    versions: dict[str, str]
    """Package -> version here, "missing" for an optional one that is not installed."""
    address: str | None
    nodes: tuple[NodeReport, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def is_healthy(self) -> bool:
        """True where nothing worse than a hint was found."""
        return all(finding.level != "problem" for finding in self.findings)

    @property
    def text(self) -> str:
        """The report for people."""
        lines = [f"machine   {self.machine}", f"versions  {_listed(self.versions)}"]
        lines += [f"cluster   {self.address}, {len(self.nodes)} nodes" if self.address else "cluster   none looked at"]
        kinds = Counter(_node_line(node) for node in self.nodes)
        lines += [f"          {count} × {line}" for line, count in kinds.items()]
        lines += [f"{finding.level:8}  {finding.text}; {finding.remedy}" for finding in self.findings]
        return "\n".join(lines if self.findings else [*lines, "nothing wrong found"]) + "\n"


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _node_line(node: NodeReport) -> str:
    name = node.node_type or f"unlabelled ({node.address})"
    accelerators = f", {node.gpus:g} × {', '.join(node.accelerators) or 'GPU'}" if node.gpus else ""
    simulated = f", simulated by {node.cpu_share} of a core each" if node.cpu_share and node.gpus else ""
    return f"{name}: {node.cpus:g} CPUs{accelerators}{simulated}{' (head)' if node.is_head else ''}"


def examine(address: str | None = None) -> DoctorReport:
    """Look at this machine and, where `address` is given, at every node of the Ray cluster there.

    Raises `Unavailable` where no cluster answers at `address`.
    """
    versions = _versions()
    nodes: tuple[NodeReport, ...] = ()
    if address is not None:
        with connected(address):
            nodes = _nodes()
    return DoctorReport(
        machine=f"{os.cpu_count()} × {cpu_name()}, {platform.system()} {platform.machine()}",
        versions=versions,
        address=address,
        nodes=nodes,
        findings=(*_findings_here(versions), *(_findings_there(nodes, versions) if address else ())),
    )


def _versions() -> dict[str, str]:
    """Versions of what `coe` needs or can use, here."""
    found = {"python": platform.python_version()}
    for package in (*REQUIRED, *EXTRAS):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def _findings_here(versions: dict[str, str]) -> list[Finding]:
    missing = [package for package in EXTRAS if versions[package] == "missing"]
    return [
        Finding(level="hint", text=f"{package} is not installed", remedy=f"pip install 'coe[{EXTRAS[package]}]'")
        for package in missing
    ]


# --- The cluster ------------------------------------------------------------------------------------------------------


def _nodes() -> tuple[NodeReport, ...]:
    """Every living node, with what a task that runs there sees."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    tasks = [_seen_from(node["NodeID"]) for node in alive]
    ray.wait(tasks, num_returns=len(tasks), timeout=TASK_TIMEOUT_S)
    return tuple(_node(node, _result(task)) for node, task in zip(alive, tasks, strict=True))


def _seen_from(node_id: str) -> Any:
    """A task that looks around on that node."""
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(look_around).options(num_cpus=0, scheduling_strategy=strategy, max_retries=0).remote()


def look_around() -> tuple[dict[str, str], dict[str, str]]:
    """Versions, and those variables of the environment that matter."""
    names = (CPU_SHARE_ENV, *SERVE_ENV)
    return _versions(), {name: os.environ[name] for name in names if name in os.environ}


def _result(task: Any) -> tuple[dict[str, str], dict[str, str]] | None:
    """What the task saw, or None where it has not come back or could not run."""
    try:
        found: tuple[dict[str, str], dict[str, str]] = ray.get(task, timeout=0)
    except ray.exceptions.RayError:
        return None
    return found


def _node(node: dict[str, Any], seen: tuple[dict[str, str], dict[str, str]] | None) -> NodeReport:
    resources = node["Resources"]
    prefix = "accelerator_type:"
    versions, environment = seen if seen is not None else ({}, dict.fromkeys(SERVE_ENV, ""))
    return NodeReport(
        node_type=node["Labels"].get(NODE_TYPE_LABEL, ""),
        address=node["NodeManagerAddress"],
        is_head="node:__internal_head__" in resources,
        cpus=resources.get("CPU", 0),
        gpus=resources.get("GPU", 0),
        accelerators=tuple(sorted(name.removeprefix(prefix) for name in resources if name.startswith(prefix))),
        cpu_share=environment.get(CPU_SHARE_ENV),
        versions=versions,
        missing_settings=tuple(name for name in SERVE_ENV if name not in environment),
    )


def _findings_there(nodes: tuple[NodeReport, ...], here: dict[str, str]) -> list[Finding]:
    """What is wrong with the cluster, each thing once, with the nodes it concerns."""
    found = []
    unlabelled = [n for n in nodes if not n.node_type]
    if unlabelled:
        text = f"{_which(unlabelled)} without the label {NODE_TYPE_LABEL}: no member is placed there"
        found.append(Finding(level="problem", text=text, remedy=f"ray start --labels {NODE_TYPE_LABEL}=NODE_TYPE"))
    silent = [n for n in nodes if not n.versions]
    if silent:
        text = f"{_which(silent)} did not run a task within {TASK_TIMEOUT_S:.0f} s"
        found.append(Finding(level="problem", text=text, remedy="is coe installed there? see Ray's logs"))
    for setting, value in SERVE_ENV.items():
        lacking = [n for n in nodes if setting in n.missing_settings]
        if lacking:
            text = f"{_which(lacking)} started without {setting}: Serve answers many times slower, or fails on large batches"
            remedy = f"set {setting}={value} before `ray start` (head and workers)"
            found.append(Finding(level="problem", text=text, remedy=remedy))
    for package in ("python", "ray", "coe"):
        other = [n for n in nodes if n.versions and n.versions.get(package) != here[package]]
        if other:
            there = ", ".join(sorted({n.versions[package] for n in other}))
            text = f"{_which(other)} run {package} {there}, this machine {here[package]}"
            found.append(Finding(level="problem", text=text, remedy="install the same version everywhere"))
    if nodes and not any(n.gpus or n.node_type for n in nodes if not n.is_head):
        text = "no node beside the head can host members"
        found.append(Finding(level="problem", text=text, remedy="start a fleet: coe cluster up FLEET"))
    return found


def _which(nodes: list[NodeReport]) -> str:
    kinds = Counter(n.node_type or n.address for n in nodes)
    return f"{len(nodes)} node{'s' if len(nodes) > 1 else ''} ({', '.join(kinds)})"
