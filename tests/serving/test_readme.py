"""The README's commands do what it says. `make demo` is one of them, so this is also the end-to-end test."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def shell_blocks() -> list[str]:
    """The contents of every ```sh block of the README, in order."""
    return re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)


def run(script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a block as a reader would, with this environment's programs first on the path."""
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=cwd,
        env={"PATH": path, "HOME": str(cwd)},
        capture_output=True,
        text=True,
        timeout=420,
        check=False,
    )


@pytest.mark.serving
def test_make_demo_ends_with_a_report_in_which_every_promise_is_kept() -> None:
    """The very program behind `make demo`, run with the environment of the tests."""
    done = run(f"{sys.executable} -m deployments.digits.demo", ROOT)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    report = json.loads((ROOT / ".coe/digits/report.json").read_text())
    assert report["kind"] == "report"
    assert all(promise["kept"] for promise in report["promises"])
    assert "per 1,000" in done.stdout
    html = (ROOT / ".coe/digits/report.html").read_text()
    assert "<svg" in html


def test_the_quickstart_block_is_make_demo() -> None:
    assert shell_blocks()[0].strip() == "make demo"
    assert re.search(r"^demo: .*\n\t.*deployments\.digits\.demo$", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_other_block_runs_as_printed(tmp_path: Path) -> None:
    blocks = shell_blocks()[1:]
    assert blocks
    for block in blocks:
        done = run(block, tmp_path)
        assert done.returncode == 0, f"{block}\n{done.stderr}"


def test_every_verb_of_the_command_line_stands_in_the_table() -> None:
    done = run("coe --help", ROOT)
    assert done.returncode == 0, done.stderr
    verbs = re.findall(r"^[ │]+([a-z]+)  +\S", done.stdout.split("Commands")[1], flags=re.MULTILINE)
    assert len(verbs) >= 12
    for verb in verbs:
        assert f"coe {verb}" in README or f"`{verb}" in README, f"{verb} is missing from the README"
