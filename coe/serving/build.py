"""`serve.yaml` from a plan, checked by us because Serve's own schema lets misspelt keys pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.serve.schema import ServeDeploySchema

from coe.errors import InvalidInput, Problem
from coe.prices.catalog import provenance
from coe.serving.labels import NODE_TYPE_LABEL, SERVE_ENV, replica_options
from coe.types import Access, Plan

IMPORT_PATH = "deployments.app:build"
APPLICATION = "coe"


def serve_config(
    plan: Plan, *, ledger_dir: str | None, access: Access | None = None, host: str = "127.0.0.1", port: int = 8000
) -> dict[str, Any]:
    """What `serve run` deploys. It carries the whole plan, so it needs no file beside it but weights and ledger folder."""
    config: dict[str, Any] = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": host, "port": port, "request_timeout_s": max(10.0, 10 * plan.workload.latency_s)},
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": {
                    "plan": plan.model_dump(mode="json", exclude_none=True),
                    **({} if ledger_dir is None else {"ledger_dir": str(Path(ledger_dir).resolve())}),
                    **({} if access is None else {"access": access.model_dump(mode="json", exclude_none=True)}),
                },
            }
        ],
    }
    _check_keys(config, ServeDeploySchema, "serve.yaml")
    ServeDeploySchema.model_validate(config)
    for placement in plan.placements:
        replica_options(plan.offer(placement.node_type), placement.share)  # refuses labels that Ray would not take
    return config


def header(plan: Plan) -> str:
    """Comment lines for the top of `serve.yaml`: what it deploys, what the cluster must offer."""
    settings = "\n".join(f"  {name}={value}" for name, value in SERVE_ENV.items())
    needed = "\n".join(f"  {n.count} x {n.node_type}" for n in plan.nodes)
    return (
        f"{plan.cascade.name}: ${plan.cost.usd_per_hour_allocation:.3f} per hour at {plan.workload.rate_per_s:g} queries/s.\n"
        f"Prices: {provenance(plan.offers)}\n"
        f"Run it with: serve run serve.yaml\n"
        f"The cluster needs these nodes, each with the label {NODE_TYPE_LABEL}=<node type>:\n{needed}\n"
        f"Set these in the environment of every node before Ray starts; Serve cannot set them from here:\n{settings}"
    )


def _check_keys(value: Any, schema: Any, where: str) -> None:
    """Refuse keys that Ray Serve's schema does not know, where Serve itself would ignore them."""
    known = set(schema.model_fields)
    for key, inner in value.items():
        if key not in known:
            raise InvalidInput(
                Problem(f"{where}: {key}", "is not a key of Ray Serve", remedy=f"known: {', '.join(known)}")
            )
        nested = _nested_schema(schema.model_fields[key].annotation)
        if nested is not None:
            for number, part in enumerate(inner if isinstance(inner, list) else [inner]):
                _check_keys(part, nested, f"{where}: {key}[{number}]" if isinstance(inner, list) else f"{where}: {key}")


def _nested_schema(annotation: Any) -> Any:
    """The schema class inside an annotation like ``List[X]`` or ``Optional[X]``, or None."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if hasattr(candidate, "model_fields"):
            return candidate
    return None
