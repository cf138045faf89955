"""The command line from outside: help, exit codes, and the whole offline chain in a starter folder."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from coe import files
from coe.cli.main import app, run
from coe.errors import GateExceeded
from coe.ledger import write_ledger
from coe.records import Answer, BatchRun, NodeSpan
from coe.types import Cascade, Front, Plan, Pool, Profiles
from tests import factories

VERBS = sorted(c.callback.__name__.replace("_", "-") for c in app.registered_commands if c.callback is not None)


@pytest.mark.parametrize("verb", [*VERBS, "cluster up", "cluster down"])
def test_every_verb_shows_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*verb.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert "Example:" in text
    assert f"coe {verb}" in text


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["calibrate"]) == 2
    assert run(["fly"]) == 2
    assert run(["report", "--format", "xml"]) == 2
    assert "No such command" in capsys.readouterr().err


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == "0.1.0"


def test_a_fault_of_ours_is_called_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("coe.files.read_any", broken)
    assert run(["validate", "x.yaml"]) == 1
    assert "fault in coe, not in your files" in capsys.readouterr().err


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("coe.files.read_any", interrupted)
    assert run(["validate", "x.yaml"]) == 130


def test_what_the_machine_refuses_is_no_fault_of_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "plan.yaml")

    monkeypatch.setattr("coe.files.read_any", full)
    assert run(["validate", "x.yaml"]) == 1
    assert capsys.readouterr().err == "error: plan.yaml: No space left on device\n"


def test_output_that_nobody_reads_on_is_no_error(tmp_path: Path) -> None:
    script = "import sys; from coe.cli.main import run; sys.exit(run(['--version']))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_common_flags_are_taken_before_and_after_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", str(tmp_path / "a"), "--quiet"]) == 0
    assert run(["-q", "init", str(tmp_path / "b"), "--no-color"]) == 0
    assert capsys.readouterr().err == ""
    assert run(["init", str(tmp_path / "c")]) == 0
    assert "wrote" in capsys.readouterr().err, "a flag holds for one run"


@pytest.mark.parametrize("option", ["-o", "--cascade", "--plot"])
def test_an_impossible_output_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    needed = ["--profiles", "no.yaml", "--prices", "no.yaml", "--workload", "no.yaml"]
    assert run(["search", "no.npz", *needed, option, str(tmp_path / "no" / "x.json")]) == 2
    assert "does not exist; create it first" in capsys.readouterr().err
    assert run(["search", "no.npz", *needed, option, str(tmp_path)]) == 2
    assert "is a folder; name a file in it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"), [("--epsilon", "0"), ("--epsilon", "1"), ("--delta", "0"), ("--delta", "2")]
)
def test_fractions_without_a_claim_are_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = {"--reference": "large", "--epsilon": "0.01", "--delta": "0.05", option: value}
    words = [word for pair in asked.items() for word in pair]
    assert run(["calibrate", "cascade.yaml", "--predictions", "p.npz", *words]) == 2
    assert f"{option}: must lie between 0 and 1, ends excluded, got {value}" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["profile pool.yaml --prices fleet.yaml", "doctor"])
def test_a_cluster_that_is_not_there_is_noticed_at_once(
    tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray", reason="asking for a cluster imports Ray")
    assert run(["init", str(tmp_path / "s")]) == 0
    monkeypatch.chdir(tmp_path / "s")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        assert run([*verb.split(), "--address", f"127.0.0.1:{taken.getsockname()[1]}"]) == 1
    said = capsys.readouterr().err
    assert "no Ray cluster answers at 127.0.0.1:" in said
    assert "coe cluster up FLEET" in said


# --- The starter, all the way to a plan and a report ---


def profiles_of(pool: Pool) -> Profiles:
    """As if `coe profile` had run: the careful model is far dearer than the rules."""
    cost = {"rule-a": 0.0004, "rule-b": 0.0004, "careful": 0.02}
    speeds = {"SLOW": 0.3, "FAST": 1.0}
    return Profiles(
        profiles=tuple(
            factories.profile(m.name, a, cost[m.name] / s, memory_gib=0.01)
            for m in pool.members
            for a, s in speeds.items()
        )
    )


def in_folder(folder: Path, *words: str) -> list[str]:
    """Arguments with every file name put into the folder."""
    return [str(folder / w) if w.endswith((".yaml", ".npz", ".json", ".svg")) else w for w in words]


KNOWN = ("--pool", "pool.yaml", "--predictions", "predictions.npz")
PRICED = ("--profiles", "profiles.yaml", "--prices", "fleet.yaml", "--workload", "workload.yaml")
STEPS = (
    ("predict", "pool.yaml", "--data", "data.npz", "-o", "predictions.npz"),
    ("search", "predictions.npz", *PRICED, "-o", "front.json", "--cascade", "found.yaml", "--plot", "front.svg"),
    ("calibrate", "found.yaml", *KNOWN[2:], "--workload", "workload.yaml", "-o", "ready.yaml"),
    ("plan", "ready.yaml", *KNOWN, *PRICED, "-o", "plan.yaml"),
    ("explain", "plan.yaml", "--profiles", "profiles.yaml"),
)


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A starter folder in which every offline verb has run; the verbs are the test."""
    folder = tmp_path_factory.mktemp("starter") / "mine"
    assert run(["init", str(folder)]) == 0
    files.write(folder / "profiles.yaml", profiles_of(files.read(folder / "pool.yaml", Pool)))
    for step in STEPS:
        assert run(in_folder(folder, *step)) == 0, step
    return folder


def test_the_starter_gives_a_certified_cascade_and_a_plan(starter: Path) -> None:
    front = files.read(starter / "front.json", Front)
    assert front.evaluated > 100
    ready = files.read(starter / "ready.yaml", Cascade)
    assert ready.certificate is not None
    plan = files.read(starter / "plan.yaml", Plan)
    assert plan.cascade == ready
    assert plan.python_path == str(starter)
    assert "<svg" in (starter / "front.svg").read_text()


def test_the_starter_is_valid_alone_and_together(starter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["pool.yaml", "cascade.yaml", "workload.yaml", "fleet.yaml", "predictions.npz", "plan.yaml", "front.json"]
    assert run(["validate", *(str(starter / n) for n in names)]) == 0
    assert capsys.readouterr().out.count(": ok") == len(names)


def test_validate_finds_names_that_do_not_fit_together(
    starter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stray = tmp_path / "cascade.yaml"
    stray.write_text((starter / "cascade.yaml").read_text().replace("[careful]", "[carefull]"))
    work = tmp_path / "workload.yaml"
    work.write_text((starter / "workload.yaml").read_text() + "router_node_type: huge\n")
    paths = [str(p) for p in (starter / "pool.yaml", starter / "fleet.yaml", stray, work)]
    assert run(["validate", *paths]) == 2
    said = capsys.readouterr().err
    assert "tiers[1].members: names the member 'carefull'" in said
    assert "router_node_type: names the node type 'huge'" in said
    assert "2 problems" in said


def test_init_does_not_touch_a_folder_with_something_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precious").write_text("")
    assert run(["init", str(tmp_path)]) == 2
    assert "must be new or empty" in capsys.readouterr().err


def test_init_makes_no_folder_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes").write_text("mine")
    assert run(["init", str(tmp_path / "notes")]) == 2
    assert "must be new or empty" in capsys.readouterr().err
    assert (tmp_path / "notes").read_text() == "mine"


def test_inputs_of_the_same_name_are_both_in_the_plan(starter: Path, tmp_path: Path) -> None:
    words = in_folder(starter, "calibrate", "found.yaml", *KNOWN[2:], "--workload", "workload.yaml", "--delta", "0.025")
    ready = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        ready.append(tmp_path / name / "ready.yaml")
        assert run([*words, "-o", str(ready[-1])]) == 0
    out = tmp_path / "plan.yaml"
    assert run(["plan", *map(str, ready), *in_folder(starter, *KNOWN, *PRICED), "-o", str(out)]) == 0
    inputs = files.read(out, Plan).inputs
    assert {str(path) for path in ready} <= set(inputs)
    assert "pool.yaml" in inputs


def test_every_file_of_the_starter_is_explained(starter: Path) -> None:
    for name in ("pool.yaml", "cascade.yaml", "workload.yaml", "fleet.yaml"):
        lines = (starter / name).read_text().splitlines()
        keys: dict[str, bool] = {}
        for line in lines:
            key = line.strip().removeprefix("- ").split(":")[0]
            if ":" in line and not line.lstrip().startswith("#"):
                keys[key] = keys.get(key, False) or "#" in line
        told = {"version", "name", "members", "nodes", "vcpus"}  # they say it themselves
        assert not {key for key, explained in keys.items() if not explained} - told, name


def test_changed_code_makes_predictions_stale(
    starter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = starter / "models.py"
    kept = models.read_text()
    models.write_text(kept.replace("looks = [", "looks  = ["))
    try:
        arguments = [str(starter / "plan.yaml"), "--predictions", str(starter / "predictions.npz")]
        assert run(["build", *arguments, "-o", str(tmp_path / "serve.yaml")]) == 2
        assert "changed after these predictions were made" in capsys.readouterr().err
        assert not (tmp_path / "serve.yaml").exists()
    finally:
        models.write_text(kept)


def test_build_refuses_a_plan_without_a_certificate_unless_told(starter: Path, tmp_path: Path) -> None:
    plan = files.read(starter / "plan.yaml", Plan)
    bare = plan.model_copy(update={"cascade": plan.cascade.model_copy(update={"certificate": None})})
    files.write(tmp_path / "plan.yaml", bare)
    out = tmp_path / "serve.yaml"
    assert run(["build", str(tmp_path / "plan.yaml"), "-o", str(out)]) == 2
    assert not out.exists()
    assert run(["build", str(tmp_path / "plan.yaml"), "--uncertified", "-o", str(out)]) == 0
    config = yaml.safe_load(out.read_text())
    assert config["applications"][0]["import_path"] == "deployments.app:build"
    assert "coe.dev/node-type" in out.read_text()


def test_an_impossible_promise_exits_with_3(starter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = tmp_path / "workload.yaml"
    work.write_text((starter / "workload.yaml").read_text().replace("latency_s: 0.5", "latency_s: 0.001"))
    arguments = in_folder(starter, *KNOWN, *PRICED[:4])
    out = tmp_path / "plan.yaml"
    assert run(["plan", str(starter / "ready.yaml"), *arguments, "--workload", str(work), "-o", str(out)]) == 3
    said = capsys.readouterr().err
    assert "the latency promise of 0.001 s" in said
    assert "would make a plan possible" in said
    assert not out.exists()


def test_labels_that_do_not_support_the_claim_exit_with_5(starter: Path, tmp_path: Path) -> None:
    arguments = ["--predictions", str(starter / "predictions.npz"), "--reference", "careful", "--epsilon", "0.001"]
    assert run(["calibrate", str(starter / "found.yaml"), *arguments, "-o", str(tmp_path / "x.yaml")]) == 5


def test_old_prices_are_refused_on_request(starter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text((starter / "fleet.yaml").read_text().replace("date: 2026-11-20", "date: 2020-01-01"))
    arguments = in_folder(starter, *KNOWN, *PRICED[:2], *PRICED[4:])
    code = run(["plan", str(starter / "ready.yaml"), *arguments, "--prices", str(fleet), "--max-price-age", "30"])
    assert code == 2
    assert "must be at most 30 days old" in capsys.readouterr().err


def test_report_gates_on_missed_promises(starter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = files.read(starter / "plan.yaml", Plan)
    nodes = [NodeSpan(n.node_type, n.count, n.usd_per_hour, 0.0, 10.0) for n in plan.nodes]
    runs = [
        BatchRun(t, p.member, p.node_type, p.share, 1, 1.0, 0.01)
        for p in plan.placements
        for t in [_tier(plan, p.member)]
    ]
    slow = [Answer("q", 0.0, 9.0, 0, 1, 0.9, False)]
    write_ledger(tmp_path / "a.jsonl", plan.fingerprint(), 0.0, [*nodes, *runs, *slow])
    arguments = ["report", "--plan", str(starter / "plan.yaml"), "--ledger", str(tmp_path)]
    assert run(arguments) == 0
    assert run([*arguments, "--gate"]) == GateExceeded(()).exit_code == 4
    assert "promises missed" in capsys.readouterr().err
    assert run([*arguments, "--format", "html", "-o", str(tmp_path / "r.html")]) == 0
    assert "<svg" in (tmp_path / "r.html").read_text()


def _tier(plan: Plan, member: str) -> int:
    return next(t for t, tier in enumerate(plan.cascade.tiers) if member in tier.members)


def test_a_ledger_of_another_plan_is_refused(starter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_ledger(tmp_path / "a.jsonl", "another", 0.0, [Answer("q", 0.0, 0.1, 0, 1, 0.9, False)])
    assert run(["report", "--plan", str(starter / "plan.yaml"), "--ledger", str(tmp_path)]) == 2
    assert "ledger of another plan" in capsys.readouterr().err


def test_the_installed_program_speaks_on_the_right_streams(tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "coe"
    done = subprocess.run(
        [program, "validate", "nowhere.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: nowhere.yaml: does not exist; check the path\n"
