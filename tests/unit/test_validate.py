"""The verb validate: what takes two files to see. Mistakes of a single file are in test_files.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from coe import files
from coe.cascade.calibrate import calibrate
from coe.cli.main import run
from coe.cli.validating import cross_problems
from coe.types import Cascade, Fleet, FleetNode, Noun, Prices, Tier
from tests import factories


def said(**contents: object) -> list[str]:
    """Every cross-file problem among the contents, as text; keyword names stand for file names."""
    return [str(p) for p in cross_problems({Path(name): c for name, c in contents.items()})]  # type: ignore[misc]


def cascade(*members: str, quorum: int = 2, last: str = "large") -> Cascade:
    return Cascade(tiers=(Tier(members=members, quorum=quorum), Tier(members=(last,))))


def test_files_that_fit_together_have_no_problems() -> None:
    assert not said(
        pool=factories.pool(),
        cascade=factories.cascade(),
        predictions=factories.table(),
        profiles=factories.profiles(),
        prices=factories.prices(),
        workload=factories.workload(),
    )


def test_a_member_that_the_pool_lacks() -> None:
    (only,) = said(cascade=cascade("small", "smal"), pool=factories.pool())
    assert only.startswith("cascade: tiers[0].members: names the member 'smal', which pool does not have; it has: ")


def test_a_member_without_predictions() -> None:
    (only,) = said(cascade=cascade("small", "smal"), predictions=factories.table())
    assert only.startswith(
        "cascade: tiers[0].members: names the member 'smal', of which predictions has no predictions"
    )


def test_a_member_without_profile() -> None:
    profiles = factories.profiles()
    some = profiles.model_copy(update={"profiles": tuple(p for p in profiles.profiles if p.member != "large")})
    (only,) = said(cascade=cascade("small", "other"), profiles=some)
    assert only.startswith("cascade: tiers[1].members: names the member 'large', of which profiles has no profile")


def test_a_member_profiled_only_on_accelerators_that_nobody_offers() -> None:
    found = said(
        cascade=cascade("small", "other"),
        profiles=factories.profiles(),
        prices=Prices(offers=(factories.offer(accelerator="H100"),)),
    )
    assert len(found) == 3, "one per member"
    assert "cascade: tiers: profiles has no profile of 'small' on any accelerator of prices, got only " in found[0]
    assert "run `coe profile` for it on one of: H100" in found[0]


def test_a_reference_that_nobody_knows() -> None:
    work = factories.workload(reference="oracle")
    (in_pool,) = said(workload=work, pool=factories.pool())
    assert "workload: reference: names the member 'oracle', which pool does not have" in in_pool
    (predicted,) = said(workload=work, predictions=factories.table())
    assert "of which predictions has no predictions" in predicted


def test_a_router_on_a_node_type_that_no_node_offers() -> None:
    work = factories.workload(router_node_type="huge")
    fleet = Fleet(name="f", nodes=(FleetNode(offer=factories.offer(), count=1, cpu_share=1.0),))
    for priced in (factories.prices(), fleet):
        (only,) = said(workload=work, prices=priced)
        assert "workload: router_node_type: names the node type 'huge', which prices does not have" in only


def test_classes_in_another_order() -> None:
    pool = factories.pool()
    turned = pool.model_copy(update={"classes": pool.classes[::-1]})
    (only,) = said(predictions=factories.table(), pool=turned)
    assert only.startswith("predictions: classes: must have the classes of pool in the same order")


def test_a_gate_that_always_accepts_with_these_classes_is_told_once() -> None:
    table = factories.table(classes=2)
    pool = factories.pool().model_copy(update={"classes": table.classes})
    gate = cascade("small", "other", "middle", quorum=2)
    (only,) = said(cascade=gate, predictions=table, pool=pool)
    assert only.startswith("cascade: tiers[0]: quorum 2 of 3 members always accepts with 2 classes")
    assert not said(cascade=cascade("small", "other", "middle", quorum=3), predictions=table, pool=pool)


def test_scores_where_there_are_only_answers() -> None:
    table = factories.table()
    answers = type(table)(table.members, table.classes, table.items, table.labels, table.splits, table.answers)
    gate = Cascade(tiers=(Tier(members=("small",), rule="score", threshold=0.8), Tier(members=("large",))))
    (only,) = said(cascade=gate, predictions=answers)
    assert only.startswith("cascade: tiers[0].rule: rule 'score' needs probabilities")


def test_a_certificate_of_other_predictions() -> None:
    table = factories.table(n=4000)
    certified = calibrate(cascade("small", "other"), table, "large", 0.3, 0.05)
    assert not said(cascade=certified, predictions=table)
    (only,) = said(cascade=certified, predictions=factories.table(n=4000, seed=9))
    assert "the predictions changed after it was certified on them; run `coe calibrate` again" in only


def test_all_mistakes_of_all_files_come_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def written(name: str, noun: Noun) -> str:
        files.write(tmp_path / name, noun)
        return str(tmp_path / name)

    broken, foreign = tmp_path / "broken.yaml", tmp_path / "foreign.npz"
    broken.write_text("kind: workload\nversion: 1\nrate_per_s: -1\n")
    foreign.write_bytes(b"not an archive")
    good = [written("pool.yaml", factories.pool()), written("cascade.yaml", cascade("small", "smal"))]
    assert run(["validate", *good, str(broken), str(foreign), str(tmp_path / "missing.yaml")]) == 2
    out, err = capsys.readouterr()
    assert out == "", "a list with mistakes is not called ok in part"
    for message in (
        "names the member 'smal'",
        "broken.yaml:3: rate_per_s: must be > 0, got -1",
        "broken.yaml:1: latency_s: is missing",
        "foreign.npz: is not a readable NPZ file",
        "missing.yaml: does not exist",
    ):
        assert message in err


def test_what_is_right_is_said_with_its_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files.write(tmp_path / "pool.yaml", factories.pool())
    files.write_predictions(tmp_path / "p.npz", factories.table(n=40))
    paths = [str(tmp_path / "pool.yaml"), str(tmp_path / "p.npz")]
    assert run(["validate", *paths]) == 0
    assert capsys.readouterr().out == f"{paths[0]}: ok (pool)\n{paths[1]}: ok (predictions)\n"
