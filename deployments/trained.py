"""From labelled data to a planned cascade of members that an example trains: the steps that such examples share."""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from coe.errors import CoeError
from coe.serving.cluster import load_state
from deployments.steps import ROOT, StepFailed, Steps, data_folder, run, say, without_data

FLEET = Path("cluster_configs/laptop.yaml")
STEPS = 11


@dataclass(frozen=True)
class Example:
    """A folder in `deployments` with `data` and `train` modules, `pool.yaml` and `workload.yaml`; all files land in `.coe/NAME`.

    data: the folder of recorded data that it needs.    what: its items, in words.
    """

    name: str
    data: str
    what: str

    @property
    def work(self) -> Path:
        """Where its files land."""
        return Path(".coe") / self.name


def main(example: Example, description: str | None) -> int:
    """Run an example; the exit code of the first step that failed, 77 where its data are not there, else 0."""
    argparse.ArgumentParser(description=(description or "").split("\n")[0]).parse_args()
    folder = data_folder(example.data)
    if folder is None:
        return without_data(example.data)
    os.chdir(ROOT)
    example.work.mkdir(parents=True, exist_ok=True)
    step = Steps(STEPS)
    try:
        offline(example, step, folder.resolve())
        profile(example.work, step)
        plan(example.work, step)
    except (StepFailed, CoeError) as error:
        say(f"\nThe example stopped: {error}")
        return error.code if isinstance(error, StepFailed) else error.exit_code
    say(f"\nDone in {step.took_s:.0f} s; all files are in {example.work}.")
    return 0


def offline(example: Example, step: Steps, folder: Path) -> None:
    """Data, weights, and what every member says."""
    work, package = example.work, f"deployments.{example.name}"
    for name in ("pool.yaml", "workload.yaml"):
        shutil.copy2(Path("deployments") / example.name / name, work / name)
    pool, data = work / "pool.yaml", work / "data.npz"
    step(f"split the {example.what}", "python", "-m", f"{package}.data", folder, data)
    step("train the pool", "python", "-m", f"{package}.train", data, pool)
    step(
        f"record every member's answer to all {example.what}",
        *("coe", "predict", pool, "--data", data, "-o", work / "predictions.npz"),
    )


def profile(work: Path, step: Steps) -> None:
    """Time the members on a mixed fleet of this machine's making."""
    step("start a mixed fleet of raylets", "coe", "cluster", "up", FLEET, "--state", work)
    try:
        step(
            "time every member on every node type",
            *("coe", "profile", work / "pool.yaml", "--prices", FLEET, "--data", work / "data.npz"),
            *("--min-runs", "40", "--max-seconds", "0.3", "-o", work / "profiles.yaml"),
            env={"RAY_ADDRESS": load_state(work).address},
        )
    finally:
        run(["coe", "cluster", "down", "--state", str(work)])


def plan(work: Path, step: Steps) -> None:
    """The cascade, its certificate, its placement, and how it does on a virtual clock."""
    table = work / "predictions.npz"
    inputs = ("--profiles", work / "profiles.yaml", "--prices", FLEET, "--workload", work / "workload.yaml")
    step(
        "search all cascades",
        *("coe", "search", table, *inputs, "-o", work / "front.json", "--plot", work / "front.svg"),
    )
    step(
        "certify the cheapest that keeps the accuracy",
        *("coe", "calibrate", work / "front.json", "--predictions", table, "--workload", work / "workload.yaml"),
        *("-o", work / "cascade.calibrated.yaml"),
    )
    step(
        "find the cheapest placement",
        *("coe", "plan", work / "cascade.calibrated.yaml", "--pool", work / "pool.yaml"),
        *("--predictions", table, *inputs, "-o", work / "plan.yaml"),
    )
    step("explain it", "coe", "explain", work / "plan.yaml")
    step(
        "write the Serve config",
        *("coe", "build", work / "plan.yaml", "--predictions", table, "-o", work / "serve.yaml"),
    )
    step(
        "run it on a virtual clock",
        *("coe", "simulate", work / "plan.yaml", "--predictions", table, "--profiles", work / "profiles.yaml"),
    )
