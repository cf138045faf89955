"""`serve.yaml` and the folder of cluster files from a plan, checked before they are written.

Serve's own schema lets misspelt keys pass, and Ray's of cluster files says nothing of the clouds' fields; so both are checked
by us, too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # comes with Ray
import numpy as np
import ray
from ray.serve.schema import ServeDeploySchema

import coe
from coe.errors import InvalidInput, Problem
from coe.files import to_yaml, write_atomically, write_text
from coe.fleet.folder import MARK, NAMES, cluster_files, comment, first_line
from coe.fleet.groups import gate_files, gates
from coe.fleet.labels import NODE_TYPE_LABEL, SERVE_ENV, replica_options
from coe.fleet.setup import Setup
from coe.placement.together import as_served
from coe.prices.catalog import provenance
from coe.report.quality import claim_in_words
from coe.router.audits import Accounts
from coe.router.changing import changeable
from coe.serving.ray_service_schema import check_ray_service
from coe.serving.scaling_policy import ROUTER, application_policy
from coe.serving.v2_messages import SERVICER
from coe.types import Access, Audits, Gears, LedgerLimits, Plan, Scaling, Tracing

IMPORT_PATH = "deployments.app:build"
APPLICATION = "coe"


def serve_config(
    plan: Plan,
    *,
    ledger_dir: str | None,
    access: Access | None = None,
    scaling: Scaling | None = None,
    audits: Audits | None = None,
    ledger: LedgerLimits | None = None,
    tracing: Tracing | None = None,
    gears: Gears | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    grpc_port: int | None = None,
) -> dict[str, Any]:
    """What `serve run` deploys. It carries the whole plan, so it needs no file beside it but weights and ledger folder.

    gears: as `coe.placement.together` has them served by `plan`.   grpc_port: where it also listens for gRPC; None for nowhere.

    Raises `InvalidInput` for hosted models without a price in the plan, for node types that cannot be labels, for two
    ports that are one, and for audits that cannot be of this plan or of these gears.
    """
    if audits is not None:
        Accounts(audits, gears or plan, np.random.default_rng(0), 0.0)  # refuses what the router would refuse
    if grpc_port == port:
        rule, remedy = "must be another port than that of HTTP", "choose another --grpc-port"
        raise InvalidInput(Problem("--grpc-port", rule, str(grpc_port), remedy))
    latency_s = max(p.workload.latency_s for p in (plan, *(() if gears is None else (g.plan for g in gears.gears))))
    timeout_s = max(10.0, 10 * latency_s)
    for placement in plan.placements:
        if placement.api is not None:
            plan.api(placement.api)  # refuses what could not be billed
    policy = None if scaling is None else application_policy(scaling)
    config: dict[str, Any] = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": host, "port": port, "request_timeout_s": timeout_s},
        **({} if grpc_port is None else {"grpc_options": grpc_options(grpc_port, timeout_s)}),
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                # a line per request and per member call costs a twentieth of the router's time, also one that is made and then
                # dropped, as below WARNING; `--access` has a better one
                "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
                **({} if policy is None else {"autoscaling_policy": policy}),
                "args": {
                    "plan": plan.model_dump(mode="json", exclude_none=True),
                    **({} if ledger_dir is None else {"ledger_dir": str(Path(ledger_dir).resolve())}),
                    **({} if ledger is None else {"ledger": ledger.model_dump(mode="json", exclude_none=True)}),
                    **({} if tracing is None else {"tracing": tracing.model_dump(mode="json", exclude_none=True)}),
                    **({} if access is None else {"access": access.model_dump(mode="json", exclude_none=True)}),
                    **({} if scaling is None else {"scaling": scaling.model_dump(mode="json")}),
                    **({} if audits is None else {"audits": audits.model_dump(mode="json", exclude_none=True)}),
                    **({} if gears is None else {"gears": gears.model_dump(mode="json", exclude_none=True)}),
                },
            }
        ],
    }
    _check_keys(config, ServeDeploySchema, "serve.yaml")
    ServeDeploySchema.model_validate(config)
    for placement in plan.placements:
        replica_options(plan.offer(placement.node_type), placement.share)  # refuses labels that Ray would not take
    return config


def grpc_options(port: int, timeout_s: float) -> dict[str, Any]:
    """The part of `serve.yaml` that has Serve listen for gRPC. Its reflection only finds services in protobuf's default pool."""
    return {
        "port": port,
        "grpc_servicer_functions": [SERVICER],
        "request_timeout_s": timeout_s,
        "enable_reflection": False,
    }


def live_config(plan: Plan, deployed: dict[str, Any]) -> dict[str, Any]:
    """A deployed `serve.yaml` with another plan for its router to go over to without a restart, for `serve deploy`. Where it has
    gears the plan is pinned: it is served whatever the load is, by the replicas that stand.

    Raises `InvalidInput` where that is no such file, for a plan that needs other deployments, and for one that cannot be
    audited as deployed.
    """
    served, gears = _deployed(deployed)
    if gears is not None:
        plan = as_served(plan, served, plan.name)
    if reasons := changeable(plan, served):
        remedy = "deploy a serve.yaml that `coe build` writes without --live: members restart one after the other"
        raise InvalidInput(Problem("--live", f"this plan cannot be served live: {'; '.join(reasons)}", remedy=remedy))
    if (audits := deployed["applications"][0]["args"].get("audits")) is not None:
        Accounts(Audits.model_validate(audits).of_gear(None), plan, np.random.default_rng(0), 0.0)
    return _with_user_config(deployed, {"plan": plan.model_dump(mode="json", exclude_none=True)})


def pinned_config(gears: Gears, gear: str | None, deployed: dict[str, Any]) -> dict[str, Any]:
    """A deployed `serve.yaml` of these gears whose router stays in one of them, or follows the load (None), for `serve deploy`.

    Raises `InvalidInput` where that is no such file, and for a gear that it does not have.
    """
    _, there = _deployed(deployed)
    if there is None or there.fingerprint() != gears.fingerprint():
        remedy = "deploy a serve.yaml that `coe build` writes of them without --live"
        raise InvalidInput(Problem("--live", "must be a serve.yaml of the same gears", remedy=remedy))
    if gear is not None and gear not in gears.names:
        known = f"there are: {', '.join(gears.names)}"
        raise InvalidInput(Problem("--pin", "must be a gear of the deployed file", gear, known))
    return _with_user_config(deployed, None if gear is None else {"gear": gear})


def _deployed(config: dict[str, Any]) -> tuple[Plan, Gears | None]:
    """The plan and gears of a file that `coe build` wrote; `InvalidInput` where it is none."""
    try:
        (application,) = config["applications"]
        args = application["args"]
        gears = args.get("gears")
        return Plan.model_validate(args["plan"]), None if gears is None else Gears.model_validate(gears)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        rule, remedy = "must be a serve.yaml that `coe build` wrote", "give the file that was deployed"
        raise InvalidInput(Problem("--live", rule, f"{type(error).__name__}: {error}"[:200], remedy)) from None


def _with_user_config(deployed: dict[str, Any], user_config: dict[str, Any] | None) -> dict[str, Any]:
    """The deployed file with another `user_config` of its router, or with none."""
    application = {key: value for key, value in deployed["applications"][0].items() if key != "deployments"}
    if user_config is not None:
        application["deployments"] = [{"name": ROUTER, "user_config": user_config}]
    config = {**deployed, "applications": [application]}
    _check_keys(config, ServeDeploySchema, "serve.yaml")
    ServeDeploySchema.model_validate(config)
    return config


def gears_header(plan: Plan, gears: Gears) -> str:
    """Comment lines for the top of the `serve.yaml` of gears: what each is for and promises."""
    bands = "\n".join(
        f"  {g.name}: up to {g.up_to_per_s:g}/s, back below {g.back_below_per_s:g}/s. {claim_in_words(g.plan)}"
        for g in gears.gears
    )
    rules = f"loads are means over {gears.look_back_s:g} s; down no sooner than {gears.dwell_s:g} s after a change"
    return f"{len(gears.gears)} gears, {rules}:\n{bands}\n{header(plan)}"


def header(plan: Plan) -> str:
    """Comment lines for the top of `serve.yaml`: what it deploys, what the cluster must offer."""
    settings = "\n".join(f"  {name}={value}" for name, value in SERVE_ENV.items())
    needed = "\n".join(f"  {n.count} x {n.node_type}" for n in plan.nodes)
    return (
        f"{plan.cascade.name}: ${plan.cost.usd_per_hour_allocation:.3f} per hour at {plan.workload.rate_per_s:g} queries/s.\n"
        f"Prices: {provenance(plan.offers)}\n"
        f"Plan: {plan.fingerprint()}\n"
        f"Run it with: serve run serve.yaml\n"
        f"The cluster needs these nodes, each with the label {NODE_TYPE_LABEL}=<node type>:\n{needed}\n"
        f"Set these in the environment of every node before Ray starts; Serve cannot set them from here:\n{settings}"
    )


def setup_here(
    *,
    image: str | None = None,
    machine_image: str | None = None,
    zone: str | None = None,
    project: str | None = None,
    is_traced: bool = False,
) -> Setup:
    """Versions of Ray and Python as they are here, and the folder of the program's source where it runs from one."""
    source = Path(coe.__file__).resolve().parents[1]
    return Setup(
        ray_version=ray.__version__,
        python=f"py{sys.version_info.major}{sys.version_info.minor}",
        image=image,
        source=str(source) if (source / "pyproject.toml").is_file() else None,
        machine_image=machine_image,
        zone=zone,
        project=project,
        is_traced=is_traced,
    )


def write_folder(
    plan: Plan, config: dict[str, Any], folder: Path, setup: Setup, gears: Gears | None = None
) -> tuple[str, ...]:
    """Write `serve.yaml` (of `config`), the cluster files and the gate files of a plan, or of the gears that it is the deployment
    of, to `folder`, which is made if need be.

    Returns what the reader should know. Files of an earlier plan that this one does not have are removed if we wrote them.
    Raises `InvalidInput` for a plan that no cluster file can express and for gates that are missing, and `Stale` for
    gates that have changed; nothing is written then.
    """
    found = cluster_files(plan, config, setup)
    gate_files_here = gate_paths(plan)
    for gear in () if gears is None else gears.gears:
        gate_files_here |= gate_paths(gear.plan)
    if found.launcher is not None:
        check_launcher(found.launcher)
    if found.service is not None:
        check_ray_service(found.service)
    serve = first_line(plan, "the service, for serve run and serve deploy") + comment(*_top(plan, gears).splitlines())
    texts = {"serve.yaml": serve + to_yaml(config), **found.texts}
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        write_text(folder / name, text)
    for name, path in gate_files_here.items():
        content = path.read_bytes()
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / name, lambda file, content=content: file.write(content))  # type: ignore[misc]
    gone = [name for name in NAMES if name not in texts and _is_ours(folder / name)]
    for name in gone:
        (folder / name).unlink()
    copied = (
        [f"gate files, which every node needs on its import path: {', '.join(gate_files_here)}"]
        if gate_files_here
        else []
    )
    return (*found.notes, *copied, *(f"removed {folder / name}, which was of another plan" for name in gone))


def _top(plan: Plan, gears: Gears | None) -> str:
    return header(plan) if gears is None else gears_header(plan, gears)


def _is_ours(path: Path) -> bool:
    return path.is_file() and path.read_bytes().startswith(MARK.encode())


def gate_paths(plan: Plan) -> dict[str, Path]:
    """Gate file as the cascade names it -> where it is: beside the pool, or where the service would look for it here.

    Raises `InvalidInput` for a name that leads to another place on other machines and for a file that is not there or no
    gate, `Stale` for one that has changed since, `Unavailable` without safetensors.
    """
    from coe.learned import gate_rule

    outside = [name for name in gate_files(plan) if not _travels(name)]
    if outside:
        rule = (
            "must be named by a path that leads down from the working directory, since other machines have another one"
        )
        remedy = "name it so in the cascade file, then calibrate and plan again"
        raise InvalidInput(Problem(f"gate '{name}'", rule, remedy=remedy) for name in outside)
    paths = {}
    for name, digest in gates(plan):
        beside = Path(plan.python_path) / name
        path = beside if plan.python_path and beside.is_file() else gate_rule.located(name)
        gate_rule.load(f"{path}#{digest}")  # refuses another file than the certificate holds for
        paths[name] = path
    return paths


def _travels(name: str) -> bool:
    path = PurePosixPath(name)
    return name != "" and not path.is_absolute() and ".." not in path.parts and not name.startswith("~")


def check_launcher(data: dict[str, Any]) -> None:
    """Refuse a cluster file that Ray's own schema (``ray/autoscaler/ray-schema.json``) refuses."""
    path = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    schema = json.loads(path.read_text(encoding="utf-8"))
    try:
        jsonschema.validate(data, schema)
    except jsonschema.ValidationError as error:
        where = ".".join(str(part) for part in error.absolute_path) or "cluster file"
        raise InvalidInput(Problem(where, "breaks Ray's schema of cluster files", error.message)) from None


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
