"""What cluster files share: which nodes a plan needs, which of them is the head, and what cannot be put into such files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from coe.errors import InvalidInput, Problem
from coe.fleet.labels import SERVE_ENV, label_value
from coe.types import Offer, Plan

FOLDER = "/home/ray/deploy"
"""Where the built folder lies on every node; on the import path, so that gate files are found there."""

MAX_NAME = 30
"""Of a cluster: Google's instances and KubeRay's services are named by it, with additions, in 63 characters."""

GATE_SCHEME = "gate"
"""How the rules of trained gates begin; see `coe.learned.gate_rule`."""

LOOPBACK = "127.0.0.1"
ALL_ADDRESSES = "0.0.0.0"

_SLUG_LENGTH = 40
_PLAIN_FOLDER = re.compile(r"/[\w.+/-]+")


@dataclass(frozen=True)
class Group:
    """Nodes of one offer. `count` includes the head of the cluster where it is one of them."""

    offer: Offer
    count: int
    is_head: bool

    @property
    def workers(self) -> int:
        """Nodes that are not the head."""
        return self.count - self.is_head


def node_groups(plan: Plan) -> tuple[Group, ...]:
    """One group per node type of the plan; the first is the router's, one of whose nodes is the head of the cluster.

    Raises `InvalidInput` with everything about the plan that cluster files cannot express: hosted models, several sites,
    serverless offers, names that are no labels.
    """
    problems = [*hosted(plan), *_unfit(plan)]
    if problems:
        raise InvalidInput(problems)
    groups = [Group(plan.offer(n.node_type), n.count, n.node_type == plan.router.node_type) for n in plan.nodes]
    for group in groups:
        label_value(group.offer.node_type)
    return tuple(sorted(groups, key=lambda g: not g.is_head))


def hosted(plan: Plan) -> Iterator[Problem]:
    """Placements of hosted models: the router's node needs their keys in its environment, and cluster files carry none."""
    for number, placement in enumerate(plan.placements):
        if placement.api is not None:
            rule = "names a hosted model, whose key no file of ours carries"
            remedy = "build a single serve.yaml, and set the key on the router's node before Ray starts"
            yield Problem(f"plan: placements[{number}].api", rule, placement.api, remedy)


def _unfit(plan: Plan) -> Iterator[Problem]:
    offers = {n.node_type: plan.offer(n.node_type) for n in plan.nodes}
    ingress = "" if plan.workload.sites is None else plan.workload.sites.ingress
    sites = sorted({o.site or ingress for o in offers.values()})
    if len(sites) > 1:
        remedy = "plan each site alone, or join the nodes into one Ray cluster by hand and build a single serve.yaml"
        found = ", ".join(site or "where queries arrive" for site in sites)
        yield Problem("plan: nodes", "must stand at one site, since a cluster file describes one", found, remedy)
    for name, offer in offers.items():
        if offer.market == "serverless":
            rule = "is billed by the second of use and is no node that can join a cluster"
            yield Problem(f"plan: nodes: {name}", rule, "market serverless", "plan with offers of nodes")
    if plan.python_path and not _PLAIN_FOLDER.fullmatch(plan.python_path):
        rule = "must be an absolute path of letters, digits, '.', '_', '+', '-' and '/', to be copied to other machines"
        yield Problem("plan: python_path", rule, plan.python_path, "move the folder of the pool file and plan again")
    if plan.router.node_type not in offers:
        rule = "must be among the plan's nodes"
        yield Problem("plan: router.node_type", rule, plan.router.node_type, "make the plan anew with coe plan")


def slug(text: str, fallback: str = "coe") -> str:
    """`text` as a name that Kubernetes and Google take: small letters, digits and dashes, a letter first."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    named = plain if re.match(r"[a-z]", plain) else f"{fallback}-{plain}"
    return named[:_SLUG_LENGTH].strip("-")


def slugs(names: Sequence[str]) -> tuple[str, ...]:
    """A slug for every name, all different."""
    taken: list[str] = []
    for name in names:
        plain = slug(name, "node")
        number = 1
        found = plain
        while found in taken:
            number += 1
            found = f"{plain}-{number}"
        taken.append(found)
    return tuple(taken)


def listens_on(plan: Plan, asked: str | None) -> str:
    """Where the service must listen: where `asked`, else on the loopback, but on all addresses where that cannot work.

    The proxy on the head calls the router's own port. That is reached over the loopback only where no other node than the
    head can hold a router. Raises `InvalidInput` where the loopback was asked for then.
    """
    apart = any(g.count > 1 for g in node_groups(plan) if g.is_head)
    if not apart:
        return asked or LOOPBACK
    if asked in (LOOPBACK, "localhost", "::1"):
        rule = "must reach routers on other nodes than the head, and the loopback does not"
        raise InvalidInput(Problem("--host", rule, asked, f"leave it out, or give {ALL_ADDRESSES}"))
    return asked or ALL_ADDRESSES


def cluster_name(plan: Plan) -> str:
    """The plan's name as a name of a cluster."""
    return slug(plan.name)[:MAX_NAME].strip("-")


def environment(plan: Plan) -> dict[str, str]:
    """What the environment of every node must hold before Ray starts there."""
    return {**SERVE_ENV, "PYTHONPATH": ":".join([FOLDER, *filter(None, [plan.python_path])])}


def needs_torch(plan: Plan) -> bool:
    """True where a member that is placed runs in torch, or a gate is read from safetensors."""
    runners = {plan.pool.member(p.member).runner for p in plan.placements}
    return "torch" in runners or bool(gate_files(plan))


def gates(plan: Plan) -> tuple[tuple[str, str], ...]:
    """File and digest of every gate that the cascade names; the digest is empty where none is given."""
    found = []
    for tier in plan.cascade.tiers:
        scheme, _, named = tier.rule.partition(":")
        if scheme == GATE_SCHEME:
            name, _, digest = named.rpartition("#") if "#" in named else (named, "", "")
            found.append((name, digest))
    return tuple(dict.fromkeys(found))


def gate_files(plan: Plan) -> tuple[str, ...]:
    """The gate files of the cascade, as it names them."""
    return tuple(dict.fromkeys(name for name, _ in gates(plan)))
