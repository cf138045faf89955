"""From recorded answers of language models to a served cascade and its dollar report, without a key.

    python -m deployments.llm.demo [--serve]

Needs the folder `llm_mmlu_pro` of recorded data in COE_DATA. The models' endpoint is replayed by `replay_endpoint.py`, which this
starts and ends. Without `--serve` it stops at the plan. All files land in `.coe/llm`. Exits 77 where the data are not there, and
non-zero, with the message of the step that failed, if a step fails or a promise is missed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from coe.errors import CoeError, Unavailable
from coe.serving.cluster import load_state
from coe.serving.ready import wait_until_running
from deployments.steps import ROOT, StepFailed, Steps, data_folder, environment, run, say, without_data

HERE = Path("deployments/llm")
WORK = Path(".coe/llm")
DATA = "llm_mmlu_pro"
MEMBERS = ("gemini-1.5-flash-002", "llama-3.1-70b-instruct", "gemini-1.5-pro-002", "gpt-4o-2024-05-13")
ENDPOINT_PORT, PORT = 8790, 8720
URL = f"http://127.0.0.1:{PORT}"
PLANNING, SERVING = 9, 5


def offline(step: Steps, data: Path) -> None:
    """The record of the models that are asked, the items, and which of their texts each row number stands for."""
    for name in ("pool.yaml", "workload.yaml", "prices.yaml"):
        shutil.copy2(HERE / name, WORK / name)
    step(
        "read the recorded answers",
        *("coe", "import", "predictions", "texts", data, "--complete", "0.99"),
        *(word for member in MEMBERS for word in ("--member", member)),
        *("--cost", "listed", "--costs", WORK / "costs.yaml", "-o", WORK / "recorded.npz"),
    )
    step(
        "choose the items",
        *("python", "-m", "deployments.llm.items", WORK / "recorded.npz", WORK / "data.npz", WORK / "items.json"),
    )


@contextmanager
def endpoint(step: Steps) -> Iterator[None]:
    """The replay endpoint, in a process of its own."""
    words = ["python", "-m", "deployments.llm.replay_endpoint", WORK / "recorded.npz", "--port", ENDPOINT_PORT]
    command = [str(word) for word in (*words, "--latency-ms", 20, "--ms-per-token", 0.2)]
    step.announce("replay them behind OpenAI's protocol", command)
    process = subprocess.Popen(command, cwd=ROOT, env=environment({}))
    try:
        _wait_for(f"http://127.0.0.1:{ENDPOINT_PORT}/v1/models", process)
        yield
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(url: str, process: subprocess.Popen[bytes], timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            httpx.get(url).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise Unavailable(f"nothing answers at {url}: is the port taken?")


def plan(step: Steps) -> None:
    """From the models' answers to the plan."""
    table, profiles, work = WORK / "predictions.npz", WORK / "profiles.yaml", WORK / "workload.yaml"
    pool, prices, data = WORK / "pool.yaml", WORK / "prices.yaml", WORK / "data.npz"
    step("ask every model about every item", "coe", "predict", pool, "--data", data, "-o", table)
    step(
        "time requests",
        *("coe", "profile", pool, "--prices", prices, "--data", data, "--requests", "651", "--yes", "-o", profiles),
    )
    step(
        "search all cascades of up to three tiers",
        *("coe", "search", table, "--costs", WORK / "costs.yaml", "--tiers", "3", "--workload", work),
        *("-o", WORK / "front.json", "--plot", WORK / "front.svg"),
    )
    step(
        "certify the cheapest that keeps the accuracy",
        *("coe", "calibrate", WORK / "front.json", "--predictions", table, "--workload", work),
        *("-o", WORK / "cascade.calibrated.yaml"),
    )
    step(
        "plan it",
        *("coe", "plan", WORK / "cascade.calibrated.yaml", "--pool", pool, "--predictions", table),
        *("--profiles", profiles, "--prices", prices, "--workload", work, "-o", WORK / "plan.yaml"),
    )
    step("explain it", "coe", "explain", WORK / "plan.yaml")


def serve(step: Steps) -> None:
    """Deploy the plan on one machine, send the test split, and report."""
    step("start a machine", "coe", "cluster", "up", HERE / "fleet.yaml", "--state", WORK)
    try:
        cluster = {"RAY_ADDRESS": load_state(WORK).address}
        ledger = WORK / "ledger"
        shutil.rmtree(ledger, ignore_errors=True)
        step(
            "write the Serve config",
            *("coe", "build", WORK / "plan.yaml", "--predictions", WORK / "predictions.npz"),
            *("--ledger", ledger, "--port", str(PORT), "-o", WORK / "serve.yaml"),
        )
        step("deploy it", "serve", "run", "--non-blocking", WORK / "serve.yaml", env=cluster)
        wait_until_running(cluster["RAY_ADDRESS"], timeout_s=120)
        step(
            "send the test split over HTTP",
            *("coe", "bench", URL, "--data", WORK / "data.npz", "--split", "test"),
            *("--workload", WORK / "workload.yaml", "-o", WORK / "bench.json"),
        )
        time.sleep(1.5)  # the router writes its ledger once a second
        step(
            "report",
            *("coe", "report", "--plan", WORK / "plan.yaml", "--ledger", ledger, "--bench", WORK / "bench.json"),
            *("--predictions", WORK / "predictions.npz", "--gate"),
        )
    finally:
        run(["coe", "cluster", "down", "--state", str(WORK)])


def main() -> int:
    """Run the example; the exit code of the first step that failed, else 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--serve", action="store_true", help="also deploy the plan, send queries and report")
    is_served = parser.parse_args().serve
    data = data_folder(DATA)
    if data is None:
        return without_data(DATA)
    os.chdir(ROOT)
    WORK.mkdir(parents=True, exist_ok=True)
    step = Steps(PLANNING + SERVING * is_served)
    try:
        offline(step, data.resolve())
        with endpoint(step):
            plan(step)
            if is_served:
                serve(step)
    except (StepFailed, CoeError) as error:
        say(f"\nThe example stopped: {error}")
        return error.code if isinstance(error, StepFailed) else error.exit_code
    say(f"\nDone in {step.took_s:.0f} s; all files are in {WORK}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
