"""Which plans a router goes over to live, and how the file for it comes about."""

from __future__ import annotations

from pathlib import Path

import pytest

from coe import files
from coe.cli.main import run as command
from coe.errors import InvalidInput
from coe.ledger import read_ledger, write_ledger
from coe.placement.optimize import plan
from coe.router.changing import changeable
from coe.router.shifting import next_gear
from coe.types import Gear, Gears, Plan
from tests import factories


def planned(**work: float) -> Plan:
    return plan(
        factories.pool(),
        [factories.cascade()],
        factories.table(n=400),
        factories.profiles(),
        factories.prices(),
        factories.workload(**work),
        inputs={},
        uncertified=True,
        reasons=False,
    )


PLAN = planned()


def with_threshold(threshold: float) -> Plan:
    tier = PLAN.cascade.tiers[0].model_copy(update={"threshold": threshold})
    cascade = PLAN.cascade.model_copy(update={"tiers": (tier, *PLAN.cascade.tiers[1:])})
    return PLAN.model_copy(update={"cascade": cascade})


def test_thresholds_change_live_and_placements_do_not() -> None:
    assert changeable(with_threshold(0.9), PLAN) == []
    bigger = planned(rate_per_s=2000.0)
    told = "; ".join(changeable(bigger, PLAN))
    assert "other replicas or shares" in told or "is not deployed" in told
    assert "rents other nodes" in told
    fewer = PLAN.pool.model_copy(update={"classes": PLAN.pool.classes[:-1]})
    assert "classes or inputs differ" in changeable(PLAN.model_copy(update={"pool": fewer}), PLAN)


def test_build_writes_the_change_into_the_deployed_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    served, other = tmp_path / "plan.yaml", tmp_path / "other.yaml"
    files.write(served, PLAN, "")
    files.write(other, with_threshold(0.9), "")
    out = tmp_path / "serve.yaml"
    assert command(["build", str(served), "--uncertified", "-o", str(out)]) == 0
    deployed = files.yaml_mapping(out)
    assert command(["build", str(other), "--uncertified", "--live", str(out), "-o", str(out)]) == 0
    changed = files.yaml_mapping(out)
    (application,) = changed["applications"]
    assert application["args"] == deployed["applications"][0]["args"]  # or Serve would restart everything
    (router,) = application["deployments"]
    assert Plan.model_validate(router["user_config"]["plan"]) == with_threshold(0.9)
    files.write(other, planned(rate_per_s=2000.0), "")
    assert command(["build", str(other), "--uncertified", "--live", str(out), "-o", str(out)]) == 2
    assert "cannot be served live" in capsys.readouterr().err
    assert command(["build", str(served), "--uncertified", "--live", str(served), "-o", str(out)]) == 2
    assert "must be a serve.yaml" in capsys.readouterr().err


def test_a_report_finds_its_plans_ledgers_among_others(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_ledger(tmp_path / f"{name}.jsonl", name, 0.0, [])
    assert read_ledger(tmp_path, "two").plan_fingerprint == "two"
    with pytest.raises(InvalidInput, match="ledgers of different plans"):
        read_ledger(tmp_path)
    with pytest.raises(InvalidInput, match="ledgers of different plans"):
        read_ledger(tmp_path, "three")


def test_gears_go_up_at_their_limit_and_down_below_their_mark() -> None:
    gears = Gears(
        gears=(
            Gear(up_to_per_s=10.0, back_below_per_s=0.0, plan=PLAN),
            Gear(up_to_per_s=20.0, back_below_per_s=8.0, plan=PLAN),
            Gear(up_to_per_s=40.0, back_below_per_s=16.0, plan=PLAN),
        )
    )
    gear, seen = 0, []
    for rate in (5, 10, 11, 9, 8, 7, 35, 17, 15, 100, 0):
        gear = next_gear(gears, gear, rate)
        seen.append(gear)
    assert seen == [0, 0, 1, 1, 1, 0, 2, 2, 1, 2, 0]
