"""What cluster files need beside the plan: where the program comes from, and whose account pays."""

from __future__ import annotations

from dataclasses import dataclass

COE_FOLDER = "/home/ray/coe"
"""Where the program's source lies on a node, where no image brings it."""
DISK_GB = 150
"""The images for accelerators alone unpack to some 20 GB."""


@dataclass(frozen=True)
class Setup:
    """Versions, images and places. Whatever is None is left to Ray's defaults or filled in by hand.

    ray_version: of the nodes, ``2.60.0``.      python: as in the tags of Ray's images, ``py311``.
    image: holds Ray, `coe` and the packages that members import; None: Ray's own images, set up when a node starts.
    source: folder of the program's source here, with ``pyproject.toml``; only needed without `image`.
    machine_image: AMI or source image of the machines.      zone, project: of Google Cloud.
    is_traced: spans are sent, for which routers need OpenTelemetry.
    """

    ray_version: str
    python: str
    image: str | None = None
    source: str | None = None
    machine_image: str | None = None
    zone: str | None = None
    project: str | None = None
    is_traced: bool = False

    @property
    def cpu_image(self) -> str:
        """The container image of nodes without accelerators."""
        return self.image or f"rayproject/ray:{self.ray_version}-{self.python}"

    @property
    def gpu_image(self) -> str:
        """The container image of nodes with accelerators."""
        return self.image or f"rayproject/ray:{self.ray_version}-{self.python}-gpu"
