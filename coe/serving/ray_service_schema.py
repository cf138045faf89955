"""`rayservice.yaml` against the recorded schemas of KubeRay and Kubernetes, so that a cluster does not have to find the mistake.

The schemas stand beside the nouns that write the file (`coe/fleet/*.schema.yaml`) and say where they are from.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # comes with Ray
import referencing
import yaml
from jsonschema.exceptions import best_match  # type: ignore[import-untyped]

from coe import fleet
from coe.errors import InvalidInput, Problem

SCHEMAS = {"coe:kuberay": "kuberay.schema.yaml", "coe:pod-template": "pod-template.schema.yaml"}


def check_ray_service(data: dict[str, Any]) -> None:
    """Refuse a RayService with an unknown field, a missing one, or a value of another type. Raises `InvalidInput`."""
    error = best_match(_validator().iter_errors(data))
    if error is not None:
        where = ".".join(str(part) for part in error.absolute_path) or "RayService"
        raise InvalidInput(Problem(where, "breaks the schema of KubeRay's RayService", error.message[:300]))


@lru_cache(maxsize=1)
def _validator() -> Any:
    folder = Path(fleet.__file__).parent
    found = {
        name: yaml.load(
            (folder / file).read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        )
        for name, file in SCHEMAS.items()
    }
    resources = [(name, referencing.Resource.from_contents(schema)) for name, schema in found.items()]
    registry: Any = referencing.Registry().with_resources(resources)
    return jsonschema.Draft202012Validator(found["coe:kuberay"], registry=registry)
