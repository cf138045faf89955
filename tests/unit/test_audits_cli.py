"""`audits.yaml` on its way into `serve.yaml`: strict, and with an alarm that somebody has set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta

from coe import files
from coe.cascade.evaluate import route
from coe.cascade.expected import differing_bound
from coe.cli.main import run
from coe.errors import InvalidInput
from coe.placement.optimize import plan
from coe.serving.app import CascadeArgs
from coe.types import Audits, Plan
from tests import factories

TABLE = factories.table(n=400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan without a certificate, and its predictions."""
    where = tmp_path_factory.mktemp("audits")
    found = plan(
        factories.pool(),
        [factories.cascade(rule="vote", quorum=2)],
        TABLE,
        factories.profiles(),
        factories.prices(),
        factories.workload(),
        inputs={},
        uncertified=True,
        reasons=False,
    )
    files.write(where / "plan.yaml", found)
    files.write_predictions(where / "predictions.npz", TABLE)
    return where


def built(folder: Path, tmp_path: Path, text: str, *options: str) -> int:
    (tmp_path / "audits.yaml").write_text(text)
    arguments = ["build", str(folder / "plan.yaml"), "--uncertified", "--audits", str(tmp_path / "audits.yaml")]
    return run([*arguments, *options, "-o", str(tmp_path / "serve.yaml")])


def args(tmp_path: Path) -> CascadeArgs:
    (application,) = files.yaml_mapping(tmp_path / "serve.yaml")["applications"]
    return CascadeArgs.model_validate(application["args"])


GIVEN = "kind: audits\nversion: 1\nshare: 0.01\nusd_per_hour: 0.5\n"


def test_what_is_given_is_served(folder: Path, tmp_path: Path) -> None:
    assert built(folder, tmp_path, GIVEN + "alarm_above: 0.03\ntighten: true\n") == 0
    assert args(tmp_path).audits == Audits(share=0.01, usd_per_hour=0.5, alarm_above=0.03, tighten=True)


def test_the_alarm_is_taken_from_the_predictions(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert built(folder, tmp_path, GIVEN, "--predictions", str(folder / "predictions.npz")) == 0
    sample = TABLE.split("certification")
    cascade = files.read(folder / "plan.yaml", Plan).cascade
    routing = route(cascade, sample)
    large = sample.answers[:, sample.members.index("large")]
    differing = int(((routing.answer != large) & (routing.tier == 0)).sum())
    assert 0 < differing < 50
    bound = float(beta.ppf(0.95, differing + 1, len(sample) - differing))
    audits = args(tmp_path).audits
    assert audits is not None
    assert audits.alarm_above == pytest.approx(bound)
    assert differing_bound(cascade, sample, 0.05) == (differing, len(sample), audits.alarm_above)
    assert f"answers {differing} of {len(sample)} certification items differently" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (GIVEN, "alarm_above: must be given"),
        (GIVEN + "alarm_above: 0.03\nbudget: 3\n", "budget"),
        (GIVEN.replace("0.01", "0") + "alarm_above: 0.03\n", "share"),
        (GIVEN.replace("0.01", "'0.01'") + "alarm_above: 0.03\n", "share"),
        (GIVEN.replace("0.5", "1e-12") + "alarm_above: 0.03\n", "usd_per_hour: must pay for one audit an hour"),
        (GIVEN + "alarm_above: 1.5\n", "alarm_above"),
    ],
    ids=["no alarm", "unknown key", "no share", "text for a number", "no money", "beyond all"],
)
def test_mistakes_are_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, why: str
) -> None:
    assert built(folder, tmp_path, text) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert why in said
    assert not (tmp_path / "serve.yaml").exists()


def test_live_changes_leave_the_audits_to_the_deployed_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert built(folder, tmp_path, GIVEN + "alarm_above: 0.03\n") == 0
    assert built(folder, tmp_path, GIVEN, "--live", str(tmp_path / "serve.yaml")) == 2
    assert "are those of the deployed file" in capsys.readouterr().err


def test_the_file_is_known_to_validate(tmp_path: Path) -> None:
    (tmp_path / "audits.yaml").write_text(GIVEN)
    assert files.read_any(tmp_path / "audits.yaml") == Audits(share=0.01, usd_per_hour=0.5)
    assert run(["validate", str(tmp_path / "audits.yaml")]) == 0


def test_a_sample_without_early_answers_that_differ_still_bounds_them() -> None:
    cascade = factories.cascade(rule="vote", quorum=2)
    agreeing = TABLE.rows(np.flatnonzero((TABLE.answers == TABLE.answers[:, :1]).all(axis=1)))
    differing, items, bound = differing_bound(cascade, agreeing, 0.05)
    assert differing == 0
    assert bound == pytest.approx(1 - 0.05 ** (1 / items))


def test_no_split_no_alarm(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = TABLE.rows(TABLE.splits != "certification")
    files.write_predictions(tmp_path / "other.npz", other)
    assert built(folder, tmp_path, GIVEN, "--predictions", str(tmp_path / "other.npz")) == 2
    assert "the split 'certification' has no items" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(InvalidInput):
        other.split("certification")
