"""`make demo`: from scikit-learn's digits to a served cascade and its dollar report, with the verbs a user would type.

    python -m deployments.digits.demo [--keep]

Every step is a command that can be repeated by hand; it is printed before it runs. All files land in `.coe/digits`.
Exits non-zero, with the plain message of the step that failed, if a step fails or a promise is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from coe.errors import CoeError
from coe.files import read_npz, write_text
from coe.serving.cluster import load_state
from coe.serving.ready import wait_until_running

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
WORK = Path(".coe/digits")
FLEET = Path("cluster_configs/laptop.yaml")
PORT = 8700
URL = f"http://127.0.0.1:{PORT}"
STEPS = 13


class StepFailed(Exception):
    """A command of the demo failed; it has already said why on stderr."""

    def __init__(self, command: Sequence[str], code: int) -> None:
        super().__init__(f"`{shlex.join(command)}` ended with exit code {code}")
        self.code = code


class Demo:
    """The steps in order; counts them and keeps the time."""

    def __init__(self) -> None:
        self.started_s = time.monotonic()
        self.number = 0

    def step(self, title: str, *command: str | Path, cluster: bool = False) -> None:
        """Announce and run one command; `cluster` gives it the address of the running fleet."""
        self.number += 1
        words = [str(word) for word in command]
        elapsed = time.monotonic() - self.started_s
        say(f"\n[{self.number:2d}/{STEPS}] {title}  ({elapsed:.0f} s so far)\n        $ {shlex.join(words)}")
        run(words, {"RAY_ADDRESS": load_state(WORK).address} if cluster else {})

    def offline(self) -> None:
        """Everything that needs no cluster, up to the predictions."""
        for name in ("pool.yaml", "workload.yaml"):
            shutil.copy2(HERE / name, WORK / name)
        self.step("split the digits", "python", "-m", "deployments.digits.data", WORK / "data.npz")
        self.step("train the pool", "python", "-m", "deployments.digits.train", WORK / "data.npz", WORK / "pool.yaml")
        self.step(
            "record every member's answer to every digit",
            *("coe", "predict", WORK / "pool.yaml", "--data", WORK / "data.npz", "-o", WORK / "predictions.npz"),
        )

    def plan(self) -> None:
        """From profiles on the running fleet to the Serve config."""
        inputs = ("--profiles", WORK / "profiles.yaml", "--prices", FLEET, "--workload", WORK / "workload.yaml")
        self.step(
            "time every member on every node type",
            *("coe", "profile", WORK / "pool.yaml", "--prices", FLEET, "--data", WORK / "data.npz"),
            *("--min-runs", "40", "--max-seconds", "0.3", "-o", WORK / "profiles.yaml"),
            cluster=True,
        )
        self.step(
            "search all cascades",
            *("coe", "search", WORK / "predictions.npz", *inputs, "-o", WORK / "front.json"),
            *("--cascade", WORK / "cascade.yaml", "--plot", WORK / "front.svg"),
        )
        self.step(
            "choose the thresholds, certify the accuracy",
            *("coe", "calibrate", WORK / "cascade.yaml", "--predictions", WORK / "predictions.npz"),
            *("--workload", WORK / "workload.yaml", "-o", WORK / "cascade.calibrated.yaml"),
        )
        self.step(
            "find the cheapest placement",
            *("coe", "plan", WORK / "cascade.calibrated.yaml", "--pool", WORK / "pool.yaml"),
            *("--predictions", WORK / "predictions.npz", *inputs, "-o", WORK / "plan.yaml"),
        )
        self.step("explain it", "coe", "explain", WORK / "plan.yaml")
        self.step(
            "write the Serve config",
            *("coe", "build", WORK / "plan.yaml", "--predictions", WORK / "predictions.npz"),
            *("--ledger", WORK / "ledger", "--port", str(PORT), "-o", WORK / "serve.yaml"),
        )

    def serve(self) -> None:
        """Deploy through plain Ray Serve and wait until the service is ready."""
        shutil.rmtree(WORK / "ledger", ignore_errors=True)
        self.step("deploy it", "serve", "run", "--non-blocking", WORK / "serve.yaml", cluster=True)
        try:
            wait_until_running(load_state(WORK).address, timeout_s=120)
        except CoeError as error:
            say(f"error: {error}")
            raise StepFailed(["serve", "run", str(WORK / "serve.yaml")], error.exit_code) from None

    def measure(self) -> None:
        """Send the whole test split and report; exits non-zero if a promise was missed."""
        self.step(
            "send the test split over HTTP",
            *("coe", "bench", URL, "--data", WORK / "data.npz", "--split", "test"),
            *("--workload", WORK / "workload.yaml", "-o", WORK / "bench.json"),
        )
        time.sleep(1.5)  # the router writes its ledger once a second
        files = ("--plan", WORK / "plan.yaml", "--ledger", WORK / "ledger", "--bench", WORK / "bench.json")
        report = ("coe", "report", *files, "--predictions", WORK / "predictions.npz")
        for kind, name in (("html", "report.html"), ("json", "report.json")):
            run([str(word) for word in (*report, "--format", kind, "-o", WORK / name)], {})
        self.step("report", *report, "--gate")


def run(words: Sequence[str], env: Mapping[str, str]) -> None:
    """Run one command with this environment's programs first on the path; `StepFailed` unless it exits 0."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = {**os.environ, "PATH": path, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1", **env}
    code = subprocess.run(words, cwd=ROOT, env=settings, check=False).returncode
    if code:
        raise StepFailed(words, code)


def say(text: str) -> None:
    """To stderr: stdout carries the report alone."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Run the demo; the exit code of the first step that failed, else 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--keep", action="store_true", help="leave the service up and print a curl line")
    keep = parser.parse_args().keep
    os.chdir(ROOT)
    WORK.mkdir(parents=True, exist_ok=True)
    demo, code, up = Demo(), 0, False
    try:
        demo.offline()
        up = True
        demo.step("start a mixed fleet of raylets", "coe", "cluster", "up", FLEET, "--state", WORK)
        demo.plan()
        demo.serve()
        demo.measure()
    except StepFailed as error:
        say(f"\nThe demo stopped: {error}.")
        code = error.code
    except KeyboardInterrupt:
        say("\nInterrupted.")
        code = 130
    if up and not (keep and code == 0):
        run(["coe", "cluster", "down", "--state", str(WORK)], {})
    took = f"{time.monotonic() - demo.started_s:.0f} s"
    if code == 0:
        say(f"\nEvery promise was kept; it took {took}. Open {WORK / 'report.html'} in a browser.")
        if keep:
            say(curl_line())
    return code


def curl_line() -> str:
    """How to ask the service that was left up, and how to stop it."""
    arrays = read_npz(WORK / "data.npz")
    row = int(np.flatnonzero(arrays["splits"] == "test")[-1])
    item = {"id": str(arrays["items"][row]), "input": arrays["x"][row].tolist()}
    write_text(WORK / "digit.json", json.dumps({"items": [item]}))
    return (
        f"\nThe service is up. Ask it about a handwritten {arrays['y'][row]}:\n"
        f"  curl -s {URL}/predict -H 'content-type: application/json' -d @{WORK / 'digit.json'}\n"
        f"Stop it with: make stop"
    )


if __name__ == "__main__":
    sys.exit(main())
