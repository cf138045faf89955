"""Bad input, one case after the other: what is said, which exit code it has, and that nothing is half-written."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from coe import files
from coe.cascade.calibrate import calibrate
from coe.cli.main import run
from coe.errors import InvalidInput, WrongKind
from coe.plugins import import_path
from coe.types import Cascade, Fleet, Plan, Pool, Prices, Profiles, Workload
from tests import factories

CASCADE: dict[str, Any] = {
    "kind": "cascade",
    "version": 1,
    "tiers": [{"members": ["small", "other"], "quorum": 2}, {"members": ["large"]}],
}
OFFER = factories.offer().model_dump(mode="json", exclude_none=True)


def edited(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A deep copy with one place changed; `path` like tiers.0.quorum, value `...` deletes."""
    copy: dict[str, Any] = yaml.safe_load(yaml.safe_dump(data))
    here: Any = copy
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in way:
        here = here[part]
    if value is ...:
        del here[last]
    else:
        here[last] = value
    return copy


def prices(**changes: Any) -> dict[str, Any]:
    return {"kind": "prices", "version": 1, "offers": [{k: v for k, v in {**OFFER, **changes}.items() if v is not ...}]}


CASES: list[tuple[str, dict[str, Any], str]] = [
    (
        "unknown key",
        edited(CASCADE, "tiers.0.quorom", 2),
        "tiers[0].quorom: is not a known key; did you mean 'quorum'?",
    ),
    ("unknown key on top", edited(CASCADE, "tires", []), "tires: is not a known key; did you mean 'tiers'?"),
    ("quorum too high", edited(CASCADE, "tiers.0.quorum", 3), "tiers[0]: quorum 3 is more than the 2 members"),
    ("quorum one", edited(CASCADE, "tiers.0.quorum", 1), "tiers[0]: quorum 1 always accepts"),
    ("quorum as share", edited(CASCADE, "tiers.0.quorum", 0.67), "tiers[0].quorum: input should be a valid integer"),
    ("no gate", edited(CASCADE, "tiers.0.quorum", ...), "tiers[0] always accepts, so tiers[1] is never reached"),
    (
        "gate on the last",
        edited(CASCADE, "tiers.1", {"members": ["a", "b"], "quorum": 2}),
        "tiers[1] is the last and must",
    ),
    (
        "threshold never",
        edited(CASCADE, "tiers.0", {"members": ["a"], "rule": "score", "threshold": 1.5}),
        "threshold must be in (0, 1], got 1.5: it would never accept",
    ),
    (
        "threshold always",
        edited(CASCADE, "tiers.0", {"members": ["a"], "rule": "score", "threshold": 0.0}),
        "it would always accept",
    ),
    ("same member twice", edited(CASCADE, "tiers.1.members", ["small"]), "'small' appears twice"),
    ("no tiers", edited(CASCADE, "tiers", []), "tiers: needs at least 1 entries"),
    ("negative price", prices(usd_per_hour=-1.2), "offers[0].usd_per_hour: must be >= 0, got -1.2"),
    ("missing price", prices(usd_per_hour=...), "offers[0].usd_per_hour: is missing"),
    ("quoted price", prices(usd_per_hour="1.2"), 'offers[0].usd_per_hour: input should be a valid number, got "1.2"'),
    ("NaN price", prices(usd_per_hour=float("nan")), "offers[0].usd_per_hour: must be a finite number"),
    ("no source", prices(source=...), "offers[0].source: is missing"),
    ("no date", prices(date="yesterday"), "offers[0].date: must match"),
    ("other currency", {**prices(), "currency": "EUR"}, "currency: must be 'USD', got \"EUR\""),
    ("wrong version", {**CASCADE, "version": 2}, "version: must be 1, got 2"),
]


@pytest.mark.parametrize(("data", "message"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_mistakes_are_named_with_file_and_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: dict[str, Any], message: str
) -> None:
    path = tmp_path / "input.yaml"
    path.write_text(yaml.safe_dump(data))
    assert run(["validate", str(path)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert str(path) in said


def test_every_mistake_of_a_file_is_reported_at_once_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "cascade.yaml"
    path.write_text(
        "kind: cascade\nversion: 1\ntiers:\n- members: [a, b]\n  quorom: 2\n- members: [c]\n  threshold: '1'\n"
    )
    with pytest.raises(InvalidInput) as caught:
        files.read(path, Cascade)
    assert [str(p).removeprefix(str(path)) for p in caught.value.problems] == [
        ":5: tiers[0].quorom: is not a known key; did you mean 'quorum'?",
        ':7: tiers[1].threshold: input should be a valid number, got "1"',
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: cascade\ntiers: [", "input.yaml:2: is not valid YAML"),
        ("", "must be a YAML mapping with `kind` and `version`, got an empty file"),
        ("- a\n- b\n", "got a list"),
        ("just words", "got a str"),
        ("kind: plan\nversion: 1\n", "must be a file of kind cascade, got kind 'plan'"),
        ("version: 1\n", "must be a file of kind cascade, got no `kind`"),
        ("kind: cascade\nversion: 1\nname: a\nname: b\n", "input.yaml:4: name: appears twice"),
        ("kind: cascade\n\tversion: 1\n", "is not valid YAML"),
        ("\x7fELF", "is not valid YAML"),
        ("kind: cascade\nversion: 1\ntiers: &a [*a]\n", "is no file of ours, got maximum recursion depth"),
        ("kind: cascade\nversion: " + "9" * 5000, "is no file of ours, got Exceeds the limit"),
        ("kind: cascade\nname: !!set {a}\n", "holds a value that is none of ours"),
        ("kind: [cascade]\n", "must be a file of kind cascade"),
    ],
    ids=[
        *("truncated", "empty", "list", "words", "other kind", "no kind", "repeated key", "tab", "binary"),
        *("in itself", "endless number", "set", "list of kinds"),
    ],
)
def test_files_that_are_not_what_is_needed(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "input.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        files.read(path, Cascade)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_missing_file_suggests_a_near_one(tmp_path: Path) -> None:
    (tmp_path / "cascade.yaml").write_text("")
    with pytest.raises(InvalidInput, match="cascad.yaml: does not exist; did you mean .*cascade.yaml"):
        files.read(tmp_path / "cascad.yaml", Cascade)


def test_numbers_like_1e_3_are_numbers_and_dates_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "workload.yaml"
    path.write_text(
        "kind: workload\nversion: 1\nrate_per_s: 1e2\nlatency_s: 5e-1\nreference: large\nmax_accuracy_loss: 1e-2\n"
    )
    work = files.read(path, Workload)
    assert (work.rate_per_s, work.latency_s, work.max_accuracy_loss) == (100.0, 0.5, 0.01)
    offers = tmp_path / "prices.yaml"
    offers.write_text(yaml.safe_dump(prices()).replace("'2026-11-01'", "2026-11-01"))
    assert files.read(offers, Prices).offers[0].date == "2026-11-01"


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_what_is_written_is_read(tmp_path: Path, suffix: str) -> None:
    single = factories.cascade().model_copy(update={"certificate": None})
    for noun in (single, factories.prices(), factories.profiles(), factories.workload(), factories.pool()):
        path = tmp_path / f"file{suffix}"
        files.write(path, noun, "a comment")
        assert files.read(path, type(noun)) == noun


def test_a_fleet_serves_as_a_price_list_with_its_node_counts_as_quota(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    files.write(path, Fleet(name="f", nodes=({"offer": OFFER, "count": 3, "cpu_share": 0.5},)))  # type: ignore[arg-type]
    assert files.read_prices(path).offers[0].quota == 3
    files.write(path, factories.cascade())
    with pytest.raises(WrongKind, match="prices or fleet, got kind 'cascade'"):
        files.read_prices(path)


# --- Writing ---


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("old")

    def fails(_file: object) -> None:
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        files.write_atomically(path, fails)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["plan.yaml"]


def test_a_failed_verb_writes_nothing(tmp_path: Path) -> None:
    bad = tmp_path / "cascade.yaml"
    bad.write_text("kind: cascade\n")
    predictions = tmp_path / "predictions.npz"
    files.write_predictions(predictions, factories.table())
    out = tmp_path / "out.yaml"
    arguments = ["--predictions", str(predictions), "--reference", "large", "--epsilon", "0.04", "-o", str(out)]
    assert run(["calibrate", str(bad), *arguments]) == 2
    assert not out.exists()


def test_a_folder_is_no_file_to_write(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is a folder; name a file in it"):
        files.write(tmp_path, factories.cascade())


def test_writing_into_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="does not exist; create it first"):
        files.write(tmp_path / "no" / "x.yaml", factories.cascade())


# --- Predictions ---


def test_predictions_survive_the_disk(tmp_path: Path) -> None:
    table = factories.table(missing=0.1)
    files.write_predictions(tmp_path / "p.npz", table)
    read = files.read_predictions(tmp_path / "p.npz")
    assert read.fingerprint() == table.fingerprint()
    assert read.sources == table.sources
    with pytest.raises(ValueError, match="read-only"):
        read.labels[0] = 1


def table_with(**changes: Any) -> None:
    table = factories.table(n=40)
    fields = {
        name: getattr(table, name) for name in ("members", "classes", "items", "labels", "splits", "answers", "probs")
    }
    for name, change in changes.items():
        array = fields[name].copy()
        change(array)
        fields[name] = array
    type(table)(**fields)


def put(*index: int, value: float) -> Any:
    def change(array: np.ndarray) -> None:
        array[index] = value

    return change


def repeat_the_first(items: np.ndarray) -> None:
    items[1] = items[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probs": put(3, 1, 0, value=np.nan)}, "item 'item-00003', member 'middle': probabilities must not be NaN"),
        ({"probs": put(4, 0, 2, value=-0.1)}, "item 'item-00004', member 'small': probabilities must not be negative"),
        ({"probs": put(5, 3, 1, value=0.9)}, "item 'item-00005', member 'large': probabilities must sum to 1"),
        ({"labels": put(7, value=9)}, r"item 'item-00007': the label must be in 0\.\.4, got 9"),
        ({"answers": put(2, 1, value=5)}, r"item 'item-00002', member 'middle': the answer must be in 0\.\.4, got 5"),
        ({"items": repeat_the_first}, "every item id must be unique, got 'item-00000' more than once"),
        (
            {"splits": lambda s: s.__setitem__(0, "dev")},
            "must be among train, calibration, certification, test, got dev",
        ),
    ],
)
def test_unusable_predictions_are_refused_with_item_and_member(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        table_with(**changes)


def test_members_must_have_answered_the_same_items() -> None:
    table = factories.table(n=40)
    with pytest.raises(
        InvalidInput, match=r"answers must have shape \(40, 4\), got \(39, 4\); all members need the same"
    ):
        type(table)(table.members, table.classes, table.items, table.labels, table.splits, table.answers[:39])


def test_a_truncated_or_foreign_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    files.write_predictions(path, factories.table(n=40))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InvalidInput, match="is not a readable NPZ file"):
        files.read_predictions(path)
    np.savez(path, x=np.zeros(3))
    with pytest.raises(WrongKind, match="must be a file of kind coe-predictions"):
        files.read_predictions(path)
    np.savez(path, header=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InvalidInput, match="pickled arrays are not read"):
        files.read_predictions(path)


@pytest.mark.parametrize("kind", [Pool, Cascade, Profiles, Prices, Fleet, Workload, Plan])
def test_every_kind_is_known_to_validate(kind: type) -> None:
    assert kind in files.KINDS.values()


def header(**changes: Any) -> np.ndarray:
    known = {"kind": "coe-predictions", "version": 1, "members": ["a"], "classes": ["x", "y"]}
    return np.array(json.dumps({**known, **changes}))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"header": np.array("{")}, "must be a file of kind coe-predictions"),
        ({"header": np.array("[1]")}, "must be a file of kind coe-predictions"),
        ({"header": header(kind="plan")}, "got kind 'plan'"),
        ({"header": header(version=2)}, "header.version: must be 1, got 2"),
        ({"header": header(members=None)}, "header.members: must be a list of names, got null"),
        ({"header": header(classes=[1, 2])}, "header.classes: must be a list of names"),
        ({"labels": np.array([0.5])}, r"labels: must hold class indices \(whole numbers\), got float64"),
        ({"answers": np.array([["0"]])}, r"answers: must hold class indices \(whole numbers\), got <U1"),
        ({"probs": np.array([[[1, 0]]])}, "probs: must hold probabilities"),
    ],
)
def test_an_npz_that_is_nearly_a_prediction_table(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    good = {
        "header": header(),
        "items": np.array(["i"]),
        "labels": np.array([0]),
        "splits": np.array(["test"]),
        "answers": np.array([[0]]),
    }
    np.savez(tmp_path / "good.npz", **good)
    assert len(files.read_predictions(tmp_path / "good.npz")) == 1
    np.savez(tmp_path / "p.npz", **{**good, **arrays})
    with pytest.raises(InvalidInput, match=message):
        files.read_predictions(tmp_path / "p.npz")


# --- Verbs on a folder in which one thing is wrong ---

PROMISED = ("--workload", "workload.yaml")
BOUGHT = ("--profiles", "profiles.yaml", "--prices", "prices.yaml", *PROMISED)
VERBS = {
    "search": ("search", "predictions.npz", *BOUGHT, "--cascade", "chosen.yaml"),
    "calibrate": ("calibrate", "cascade.yaml", "--predictions", "predictions.npz", *PROMISED),
    "plan": ("plan", "ready.yaml", "--pool", "pool.yaml", "--predictions", "predictions.npz", *BOUGHT),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which every verb works, and the current one."""
    monkeypatch.chdir(tmp_path)
    table = dataclasses.replace(factories.table(n=4000), sources={})
    shape = factories.cascade(rule="vote")
    files.write_predictions("predictions.npz", table)
    files.write("pool.yaml", factories.pool())
    files.write("cascade.yaml", shape)
    files.write("ready.yaml", calibrate(shape, table, "large", 0.05, 0.05))
    files.write("profiles.yaml", factories.profiles())
    files.write("prices.yaml", factories.prices())
    files.write("workload.yaml", factories.workload())
    return tmp_path


Change = Callable[[], object]


def in_file(name: str, path: str, value: Any) -> Change:
    """Change one place of a YAML file; `...` deletes it."""
    file = Path(name)
    return lambda: file.write_text(yaml.safe_dump(edited(yaml.safe_load(file.read_text()), path, value)))


def in_arrays(**changes: Callable[[np.ndarray], Any]) -> Change:
    """Replace arrays of the predictions, whatever the result."""

    def change() -> None:
        arrays = dict(np.load("predictions.npz"))
        np.savez("predictions.npz", **{**arrays, **{name: edit(arrays[name]) for name, edit in changes.items()}})

    return change


def with_at(*index: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def edit(array: np.ndarray) -> np.ndarray:
        array[index] = value
        return array

    return edit


def cut(name: str, keep: int) -> Change:
    return lambda: Path(name).write_bytes(Path(name).read_bytes()[:keep])


def without_profiles_of(member: str) -> Change:
    def change() -> None:
        kept = tuple(p for p in factories.profiles().profiles if p.member != member)
        files.write("profiles.yaml", Profiles(profiles=kept))

    return change


def replaced(name: str, text: str) -> Change:
    return lambda: Path(name).write_text(text)


def in_two_classes() -> None:
    table = dataclasses.replace(factories.table(n=4000, classes=2), sources={})
    files.write_predictions("predictions.npz", table)
    in_file("cascade.yaml", "tiers.0.quorum", 2)()


def one_class(labels: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(labels)) < 2000, 3, labels)


def no_calibration(splits: np.ndarray) -> np.ndarray:
    return np.where(splits == "calibration", "train", splits)


TROUBLES: list[tuple[str, str, Change, int, str]] = [
    ("unknown key", "plan", in_file("workload.yaml", "latency_ms", 5), 2, "latency_ms: is not a known key"),
    ("quorum too high", "calibrate", in_file("cascade.yaml", "tiers.0.quorum", 4), 2, "quorum 4 is more than the 3"),
    (
        "a tier that never accepts",
        "calibrate",
        in_file("cascade.yaml", "tiers.0", {"members": ["small"], "rule": "score", "threshold": 1.5}),
        2,
        "it would never accept",
    ),
    (
        "a tier that always accepts",
        "calibrate",
        in_file("cascade.yaml", "tiers.0.quorum", ...),
        2,
        "tiers[0] always accepts, so tiers[1] is never reached",
    ),
    (
        "a tier that always accepts with two classes",
        "calibrate",
        in_two_classes,
        2,
        "tiers[0]: quorum 2 of 3 members always accepts with 2 classes",
    ),
    ("no profile, searching", "search", without_profiles_of("large"), 2, "profiles: large: has no profile on any"),
    ("no profile, planning", "plan", without_profiles_of("large"), 2, "profiles: large: has no profile on any"),
    (
        "no prediction",
        "calibrate",
        in_file("cascade.yaml", "tiers.1.members", ["huge"]),
        2,
        "predictions: no predictions of huge; run `coe predict` for them",
    ),
    (
        "no such reference",
        "search",
        in_file("workload.yaml", "reference", "huge"),
        2,
        "'huge' is not in the predictions; known: small, middle, other, large",
    ),
    ("not in the pool", "plan", in_file("pool.yaml", "members.3.name", "huge"), 2, "no member is called 'large'"),
    (
        "mismatched items",
        "calibrate",
        in_arrays(answers=lambda a: a[:-1]),
        2,
        "answers must have shape (4000, 4), got (3999, 4); all members need the same items",
    ),
    (
        "NaN",
        "search",
        in_arrays(probs=with_at(3, 1, 0, value=np.nan)),
        2,
        "predictions.npz: predictions: item 'item-00003', member 'middle': probabilities must not be NaN",
    ),
    ("negative", "search", in_arrays(probs=with_at(3, 1, 0, value=-0.5)), 2, "probabilities must not be negative"),
    ("sum", "search", in_arrays(probs=lambda p: p * np.float32(0.9)), 2, "probabilities must sum to 1"),
    ("no calibration items", "calibrate", in_arrays(splits=no_calibration), 2, "the split 'calibration' has no items"),
    ("no items to search on", "search", in_arrays(splits=no_calibration), 2, "the split 'calibration' has no items"),
    (
        "one class to calibrate on",
        "calibrate",
        in_arrays(labels=one_class),
        2,
        "the calibration split must hold at least two classes, got only 'class-3'",
    ),
    ("negative price", "plan", in_file("prices.yaml", "offers.1.usd_per_hour", -1), 2, "must be >= 0, got -1"),
    (
        "missing price",
        "search",
        in_file("prices.yaml", "offers.1.usd_per_hour", ...),
        2,
        "offers[1].usd_per_hour: is missing",
    ),
    (
        "no such node type",
        "plan",
        in_file("workload.yaml", "router_node_type", "huge"),
        2,
        "no offer has node_type 'huge'; known: cpu-node, t4-node, a100-node",
    ),
    ("truncated", "plan", replaced("workload.yaml", "kind: workload\nversion: [1"), 2, "is not valid YAML"),
    ("truncated archive", "search", cut("predictions.npz", 500), 2, "is not a readable NPZ file"),
    ("not YAML", "calibrate", replaced("cascade.yaml", "\x7fELF\0\1"), 2, "is not valid YAML"),
    ("not text", "plan", lambda: Path("pool.yaml").write_bytes(b"\xff\xfe\x00"), 2, "cannot be read as text"),
    ("wrong kind", "plan", replaced("pool.yaml", "kind: plan\n"), 2, "must be a file of kind pool, got kind 'plan'"),
    (
        "certificate of other predictions",
        "plan",
        in_arrays(labels=lambda y: np.roll(y, 1)),
        2,
        "the predictions changed after it was certified on them",
    ),
    (
        "certificate of other tiers",
        "plan",
        in_file("ready.yaml", "tiers.0.members", ["other", "middle", "small"]),
        2,
        "its tiers changed after they were certified",
    ),
    ("no certificate", "plan", in_file("ready.yaml", "certificate", ...), 2, "has no certificate; run `coe calibrate`"),
    ("too fast", "plan", in_file("workload.yaml", "latency_s", 0.001), 3, "the latency promise of 0.001 s"),
    ("too many", "plan", in_file("workload.yaml", "rate_per_s", 1e7), 3, "would make a plan possible"),
    ("too exact", "calibrate", in_file("workload.yaml", "max_accuracy_loss", 1e-4), 5, "cannot be claimed at 95%"),
    ("too exact to search", "search", in_file("workload.yaml", "max_accuracy_loss", 1e-4), 5, "label more items"),
]


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_works_where_nothing_is_wrong(folder: Path, verb: str) -> None:
    assert run([*VERBS[verb], "-o", "out.yaml", "--quiet"]) == 0
    assert (folder / "out.yaml").exists()


@pytest.mark.parametrize(("verb", "change", "code", "message"), [t[1:] for t in TROUBLES], ids=[t[0] for t in TROUBLES])
def test_bad_input_is_explained_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], verb: str, change: Change, code: int, message: str
) -> None:
    change()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert run([*VERBS[verb], "-o", "out.yaml"]) == code
    said = capsys.readouterr().err
    assert message in said
    assert "fault in coe" not in said
    if message == "label more items":  # what was found is worth keeping; only the cascade is not there
        (folder / "out.yaml").unlink()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_key_that_appears_twice_in_json_is_refused(tmp_path: Path) -> None:
    """Front files are JSON, in which the last of two equal keys would win."""
    (tmp_path / "front.json").write_text('{"kind": "front", "version": 1, "version": 2}')
    with pytest.raises(InvalidInput, match="version: appears twice"):
        files.read_any(tmp_path / "front.json")


def test_a_module_that_fails_to_import_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_rules.py").write_text("raise RuntimeError('no licence')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InvalidInput, match="RuntimeError: no licence"):
        import_path("broken_rules:mine", "rule")
