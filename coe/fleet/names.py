"""What providers and Kubernetes call the machines and accelerators of our offers."""

from __future__ import annotations

import re

from coe.prices import accelerators
from coe.types import Offer

AWS = "aws"
GCP = "gcp"

_INSTANCE = {AWS: re.compile(r"[a-z][a-z0-9-]*\.[a-z0-9-]+"), GCP: re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)+")}
_REGION = re.compile(r"[a-z]+(-[a-z]+)+-?[0-9]+")
"""``us-east-1`` and ``us-central1``."""

GOOGLE_ACCELERATORS = {
    "P4": "nvidia-tesla-p4",
    "P100": "nvidia-tesla-p100",
    "V100-16GB": "nvidia-tesla-v100",
    "T4": "nvidia-tesla-t4",
    "L4": "nvidia-l4",
    "A100-40GB": "nvidia-tesla-a100",
    "A100-80GB": "nvidia-a100-80gb",
    "H100-80GB": "nvidia-h100-80gb",
    "H200": "nvidia-h200-141gb",
    "B200": "nvidia-b200",
}
"""Our name -> Google's, the same for Compute Engine and as the value of ``cloud.google.com/gke-accelerator``."""

_GOOGLE_BUILT_IN = re.compile(r"(a[2-4]|g[24])-")
"""Google's machine types that come with their accelerators; to others they are attached."""
_GOOGLE_ATTACHES = re.compile(r"n1-")


def provider(offer: Offer) -> str:
    """The provider in small letters; empty where the offer does not say."""
    return (offer.provider or "").lower()


def instance(offer: Offer) -> str | None:
    """The provider's name of the machine; None where the offer does not tell it."""
    pattern = _INSTANCE.get(provider(offer))
    name = offer.instance_type or offer.node_type
    return name if pattern is not None and pattern.fullmatch(name) else None


def region(offer: Offer) -> str | None:
    """The region as its provider calls it; None where the offer does not tell it."""
    return offer.region if _REGION.fullmatch(offer.region) else None


def known_accelerator(offer: Offer) -> accelerators.Accelerator | None:
    """The accelerator of our catalogue; None for others, and for a node without any."""
    if not offer.accelerators_per_node:
        return None
    return accelerators.find(offer.accelerator, offer.accelerator_memory_gib or None)


def google_accelerator(offer: Offer) -> str | None:
    """What Google calls the offer's accelerator; None where we do not know."""
    found = known_accelerator(offer)
    return None if found is None else GOOGLE_ACCELERATORS.get(found.name)


def google_built_in(machine_type: str) -> bool:
    """True for a machine type of Google's that comes with its accelerators."""
    return _GOOGLE_BUILT_IN.match(machine_type) is not None


def google_attaches(machine_type: str) -> bool:
    """True for a machine type of Google's to which accelerators can be attached."""
    return _GOOGLE_ATTACHES.match(machine_type) is not None


def device_resource(offer: Offer) -> str | None:
    """The Kubernetes resource of the offer's accelerator; None where we do not know it."""
    found = known_accelerator(offer)
    if found is None:
        return None
    return "amd.com/gpu" if found.source.startswith("AMD") else "nvidia.com/gpu"
