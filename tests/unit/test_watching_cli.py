"""`ledger-limits.yaml` and `tracing.yaml` on their way into `serve.yaml`: checked when that is built."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from coe import files
from coe.cli.main import run
from coe.serving.app import CascadeArgs
from coe.types import LedgerLimits, Tracing
from tests import fleet_case, report_case

LIMITS = "kind: ledger_limits\nversion: 1\nmax_part_mib: 64\nkeep_days: 30\n"
TRACING = "kind: tracing\nversion: 1\nendpoint: http://collector:4318/v1/traces\nsample: 0.01\n"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("watching") / "plan.yaml"
    files.write(place, report_case.plan())
    return str(place)


def built(plan: str, tmp_path: Path, *options: str, out: str = "serve.yaml") -> int:
    """`coe build` in a folder that has both files."""
    return run(["build", plan, "--uncertified", *options, "-o", str(tmp_path / out)])


def limits(tmp_path: Path, text: str = LIMITS) -> str:
    (tmp_path / "ledger-limits.yaml").write_text(text)
    return str(tmp_path / "ledger-limits.yaml")


def tracing(tmp_path: Path, text: str = TRACING) -> str:
    (tmp_path / "tracing.yaml").write_text(text)
    return str(tmp_path / "tracing.yaml")


def args(tmp_path: Path, file: str = "serve.yaml") -> CascadeArgs:
    (application,) = files.yaml_mapping(tmp_path / file)["applications"]
    return CascadeArgs.model_validate(application["args"])


def test_what_is_given_is_served(plan: str, tmp_path: Path) -> None:
    options = ["--ledger", str(tmp_path / "l"), "--ledger-limits", limits(tmp_path), "--tracing", tracing(tmp_path)]
    assert built(plan, tmp_path, *options) == 0
    assert args(tmp_path).ledger == LedgerLimits(max_part_mib=64, keep_days=30.0)
    assert args(tmp_path).tracing == Tracing(endpoint="http://collector:4318/v1/traces", sample=0.01)


def test_what_is_not_given_is_left_to_the_defaults(plan: str, tmp_path: Path) -> None:
    assert built(plan, tmp_path, "--ledger", str(tmp_path / "l")) == 0
    assert args(tmp_path).ledger == LedgerLimits()
    assert args(tmp_path).tracing is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (LIMITS + "keep: 3\n", ":5: keep: is not a known key; did you mean 'keep_days'?"),
        (LIMITS.replace("64", "0"), ":3: max_part_mib: must be >= 1, got 0"),
        (LIMITS.replace("30", "-1"), ":4: keep_days: must be > 0, got -1"),
        (LIMITS.replace("64", "'64'"), ":3: max_part_mib: "),
        (LIMITS.replace("ledger_limits", "audits"), "must be a file of kind ledger_limits, got kind 'audits'"),
    ],
    ids=["unknown", "no size", "no time", "text for a number", "another kind"],
)
def test_mistakes_in_limits_are_named(
    plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    assert built(plan, tmp_path, "--ledger", str(tmp_path / "l"), "--ledger-limits", limits(tmp_path, text)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert told in said, said
    assert not (tmp_path / "serve.yaml").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (TRACING.replace("http://collector:4318/v1/traces", "collector:4317"), "must be the URL of OTLP over HTTP"),
        (TRACING.replace("/v1/traces", ""), "must name the path too, got 'http://collector:4318'"),
        (TRACING.replace("0.01", "1.5"), ":4: sample: must be <= 1, got 1.5"),
        (TRACING + "share: 0.1\n", ":5: share: is not a known key"),
    ],
    ids=["no URL", "no path", "beyond all", "unknown"],
)
def test_mistakes_in_tracing_are_named(
    plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    assert built(plan, tmp_path, "--tracing", tracing(tmp_path, text)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert told in said, said


def test_limits_without_a_ledger_are_refused(plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert built(plan, tmp_path, "--ledger-limits", limits(tmp_path)) == 2
    assert "give --ledger FOLDER too" in " ".join(capsys.readouterr().err.split())


def test_a_live_change_leaves_all_of_them_to_the_deployed_file(
    plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert built(plan, tmp_path) == 0
    options = ["--ledger", str(tmp_path / "l"), "--ledger-limits", limits(tmp_path), "--tracing", tracing(tmp_path)]
    assert built(plan, tmp_path, *options, "--live", str(tmp_path / "serve.yaml"), out="new.yaml") == 2
    said = capsys.readouterr().err
    assert "3 problems" in said
    assert all(f"{name}: " in said for name in ("--ledger", "--ledger-limits", "--tracing"))
    assert not (tmp_path / "new.yaml").exists()


def test_validate_knows_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", limits(tmp_path), tracing(tmp_path)]) == 0
    assert "ok (ledger_limits)" in (said := capsys.readouterr().out)
    assert "ok (tracing)" in said


def test_machines_that_are_set_up_install_what_traces_need(tmp_path: Path) -> None:
    files.write(tmp_path / "plan.yaml", fleet_case.aws_plan())
    for folder, options in (("plain", ()), ("traced", ("--tracing", tracing(tmp_path)))):
        assert built(str(tmp_path / "plan.yaml"), tmp_path, *options, out=folder) == 0
        commands = yaml.safe_load((tmp_path / folder / "aws.yaml").read_text())["setup_commands"]
        assert any("tracing" in command for command in commands) is (folder == "traced")
