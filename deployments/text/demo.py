"""From questions of bank customers to a planned cascade of text classifiers and the report that is expected of it.

    python -m deployments.text.demo

Needs the folder `text_banking77` in COE_DATA. All files land in `.coe/text`. Exits 77 where the data are not there, and
non-zero, with the message of the step that failed, if a step fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from coe.errors import CoeError
from coe.serving.cluster import load_state
from deployments.steps import ROOT, StepFailed, Steps, data_folder, run, say, without_data

HERE = Path("deployments/text")
WORK = Path(".coe/text")
FLEET = Path("cluster_configs/laptop.yaml")
DATA = "text_banking77"
STEPS = 11


def offline(step: Steps, folder: Path) -> None:
    """Data, weights, and what every member says."""
    for name in ("pool.yaml", "workload.yaml"):
        shutil.copy2(HERE / name, WORK / name)
    pool, data = WORK / "pool.yaml", WORK / "data.npz"
    step("split the questions", "python", "-m", "deployments.text.data", folder, data)
    step("train the pool", "python", "-m", "deployments.text.train", data, pool)
    step(
        "record every member's answer to every question",
        *("coe", "predict", pool, "--data", data, "-o", WORK / "predictions.npz"),
    )


def profile(step: Steps) -> None:
    """Time the members on a mixed fleet of this machine's making."""
    step("start a mixed fleet of raylets", "coe", "cluster", "up", FLEET, "--state", WORK)
    try:
        step(
            "time every member on every node type",
            *("coe", "profile", WORK / "pool.yaml", "--prices", FLEET, "--data", WORK / "data.npz"),
            *("--min-runs", "40", "--max-seconds", "0.3", "-o", WORK / "profiles.yaml"),
            env={"RAY_ADDRESS": load_state(WORK).address},
        )
    finally:
        run(["coe", "cluster", "down", "--state", str(WORK)])


def plan(step: Steps) -> None:
    """The cascade, its certificate, its placement, and how it does on a virtual clock."""
    table = WORK / "predictions.npz"
    inputs = ("--profiles", WORK / "profiles.yaml", "--prices", FLEET, "--workload", WORK / "workload.yaml")
    step(
        "search all cascades",
        *("coe", "search", table, *inputs, "-o", WORK / "front.json", "--plot", WORK / "front.svg"),
    )
    step(
        "certify the cheapest that keeps the accuracy",
        *("coe", "calibrate", WORK / "front.json", "--predictions", table, "--workload", WORK / "workload.yaml"),
        *("-o", WORK / "cascade.calibrated.yaml"),
    )
    step(
        "find the cheapest placement",
        *("coe", "plan", WORK / "cascade.calibrated.yaml", "--pool", WORK / "pool.yaml"),
        *("--predictions", table, *inputs, "-o", WORK / "plan.yaml"),
    )
    step("explain it", "coe", "explain", WORK / "plan.yaml")
    step(
        "write the Serve config",
        *("coe", "build", WORK / "plan.yaml", "--predictions", table, "-o", WORK / "serve.yaml"),
    )
    step(
        "run it on a virtual clock",
        *("coe", "simulate", WORK / "plan.yaml", "--predictions", table, "--profiles", WORK / "profiles.yaml"),
    )


def main() -> int:
    """Run the example; the exit code of the first step that failed, else 0."""
    argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]).parse_args()
    folder = data_folder(DATA)
    if folder is None:
        return without_data(DATA)
    os.chdir(ROOT)
    WORK.mkdir(parents=True, exist_ok=True)
    step = Steps(STEPS)
    try:
        offline(step, folder.resolve())
        profile(step)
        plan(step)
    except (StepFailed, CoeError) as error:
        say(f"\nThe example stopped: {error}")
        return error.code if isinstance(error, StepFailed) else error.exit_code
    say(f"\nDone in {step.took_s:.0f} s; all files are in {WORK}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
