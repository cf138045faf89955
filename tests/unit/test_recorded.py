"""Recorded predictions of others: small files of every form, what is wrong with them, and the published folders themselves."""

from __future__ import annotations

import gzip
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from coe import files
from coe.cascade.calibrate import refuse_overlap
from coe.cascade.evaluate import evaluate
from coe.cli.main import run
from coe.cost.calls import call_costs
from coe.errors import InvalidInput
from coe.profiler.recorded import Asked, import_predictions
from coe.profiler.recorded.common import drawn_splits
from coe.profiler.recorded.extract import as_number, as_words, boxed, letter, number
from coe.table import PredictionTable
from coe.types import ABSTAINED, MISSING_VOTE, Cascade, Tier

PUBLISHED = Path(os.environ.get("COE_DATA", Path(__file__).parents[3] / "shared" / "data"))


def texts(folder: Path, **changed: str) -> Path:
    """A folder of free-text answers; keyword arguments replace whole files."""
    content = {
        "questions.csv": "item_id,gold,prompt_tokens\nq1,4,100\nq2,7,200\nq3,9,50\n",
        "answers.csv": "item_id,small@host,large\nq2,7,7\nq1,5,4\nq3,-,9\n",
        "completion_tokens.csv": "item_id,small@host,large\nq1,10,20\nq2,10,20\nq3,10,-1\n",
        "models.csv": "model,price_in_usd_per_mtok,price_out_usd_per_mtok,tier_price_in_usd_per_mtok,"
        "tier_price_out_usd_per_mtok\nsmall@host,,,0.1,0.2\nlarge,5,10,,\n",
    }
    for name, text in (content | changed).items():
        (folder / name).write_text(text)
    return folder


def test_texts_become_a_table_with_prices_by_token(tmp_path: Path) -> None:
    found = import_predictions("texts", texts(tmp_path), Asked(cost="listed-or-size-class"))
    table = found.table
    assert table.members == ("small-host", "large")
    assert table.items.tolist() == ["q1", "q2", "q3"]
    said = [[table.classes[a] if a >= 0 else a for a in row] for row in table.answers.tolist()]
    assert said == [["5", "4"], ["7", "7"], [ABSTAINED, "9"]]
    assert found.costs is not None
    usd = call_costs(found.costs, table).of(table.members, 3)
    assert usd[0].tolist() == pytest.approx([(100 * 0.1 + 10 * 0.2) / 1e6, (100 * 5 + 20 * 10) / 1e6])
    assert usd[2, 1] == pytest.approx(50 * 5 / 1e6)  # no completion was recorded
    assert any("'small@host' is called small-host" in note for note in found.notes)


def test_gzipped_files_and_the_better_extraction_are_preferred(tmp_path: Path) -> None:
    folder = texts(tmp_path)
    (folder / "answers_reextracted.csv.gz").write_bytes(
        gzip.compress(b"item_id,small@host,large\nq1,4,4\nq2,7,7\nq3,9,9\n")
    )
    table = import_predictions("texts", folder, Asked()).table
    assert (table.answers == table.labels[:, None]).all()


@pytest.mark.parametrize(
    ("changed", "asked", "said"),
    [
        ({"answers.csv": "item_id,m\nq1,4\nq1,4\nq3,9\n"}, {}, "answers.csv:3: item_id"),
        ({"answers.csv": "item_id,m\nq1,4\nq2,4\nq9,9\n"}, {}, "'q3' is not in"),
        ({"answers.csv": "item_id,m,m\nq1,4,4\nq2,4,4\nq3,9,9\n"}, {}, "'m' more than once"),
        ({"answers.csv": "item_id,small@host,large\nq1,4,4\nq2,4\nq3,9,9\n"}, {}, "answers.csv:3: must have 3 cells"),
        (
            {"completion_tokens.csv": "item_id,small@host,large\nq1,x,1\nq2,1,1\nq3,1,1\n"},
            {},
            "item 'q1': token counts",
        ),
        ({"questions.csv": "item_id,gold,prompt_tokens\nq1,,1\nq2,7,2\nq3,9,5\n"}, {}, "item 'q1': gold"),
        (
            {"models.csv": "model,price_in_usd_per_mtok,price_out_usd_per_mtok\nlarge,5,10\n"},
            {"cost": "listed"},
            "small-host",
        ),
        (
            {"models.csv": "model,price_in_usd_per_mtok,price_out_usd_per_mtok\nlarge,5,ten\n"},
            {"cost": "listed"},
            ":2: price_out",
        ),
        (
            {"answers.csv": "item_id,small@host,large\nq1,-,4\nq2,-,7\nq3,-,9\n"},
            {},
            "'small-host': has no answer to any item",
        ),
        ({}, {"splits": {"calibration": 0.5}}, "add up to 1"),
        ({}, {"extract": "lettre"}, "not a known extractor"),
    ],
)
def test_what_is_wrong_with_texts_is_said_with_its_place(
    changed: dict[str, str], asked: dict[str, object], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match=said):
        import_predictions("texts", texts(tmp_path, **changed), Asked(**asked))  # type: ignore[arg-type]


def top(folder: Path, **changed: np.ndarray) -> Path:
    arrays = {
        "models": np.array(["a", "b"]),
        "cls": np.array([[[1, 0], [0, 2]], [[2, 0], [2, 1]]], dtype=np.int16),
        "prob": np.array([[[0.7, 0.2], [0.5, 0.3]], [[0.9, 0.05], [0.6, 0.2]]], dtype=np.float16),
    } | changed
    np.savez(folder / "labels.npz", label=np.array([1, 2], dtype=np.int16), val_id=np.array([10, 11]))
    np.savez(folder / "top5.npz", **arrays)
    (folder / "models.csv").write_text("model,img_per_s_x\na,100\nb,\n")
    return folder


def test_most_probable_classes_become_a_table(tmp_path: Path) -> None:
    found = import_predictions("topk", top(tmp_path), Asked(cost="img_per_s_x", uncosted="drop", splits={"test": 1.0}))
    assert found.table.members == ("a",)
    assert found.table.top_k == 2
    assert found.table.answers[:, 0].tolist() == [1, 2]
    assert found.costs is not None
    assert found.costs.per_call == {"a": 0.01}
    assert found.costs.unit == "s (x)"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"prob": np.full((2, 2, 2), 0.7, dtype=np.float16)}, "sum to at most 1"),
        ({"prob": np.array([[[0.1, 0.7], [0.5, 0.3]], [[0.9, 0.05], [0.6, 0.2]]])}, "must fall in probability"),
        ({"prob": np.zeros((2, 2, 3))}, "prob must have the shape of cls"),
        ({"cls": np.zeros((3, 2, 2), dtype=np.int16)}, "items must be those of labels.npz"),
        ({"cls": np.array([[[1, 1], [0, 2]], [[2, 0], [2, 1]]])}, "a class must be listed once"),
        ({"models": np.array(["a", "a"])}, "a name of its own"),
    ],
)
def test_what_is_wrong_with_arrays_is_said(changed: dict[str, np.ndarray], said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=said):
        import_predictions("topk", top(tmp_path, **changed), Asked())


def test_a_member_without_a_cost_is_refused_or_left_out_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no cost is recorded for b"):
        import_predictions("topk", top(tmp_path), Asked(cost="img_per_s_x"))


def test_services_with_an_answer_outside_the_labels_abstain(tmp_path: Path) -> None:
    arrays = {"label": np.array([0, 3, 3]), "pred__x": np.array([0, 3, 7]), "conf__x": np.array([0.5, 0.9, 0.2])}
    np.savez(tmp_path / "faces.npz", **arrays)
    (tmp_path / "meta.csv").write_text("dataset,api,usd_per_10k\nFACES,x,15\n")
    found = import_predictions("apis", tmp_path, Asked(task="FACES", cost="usd_per_10k"))
    assert found.table.answers[:, 0].tolist() == [0, 1, ABSTAINED]
    assert found.costs is not None
    assert found.costs.per_call == {"x": 0.0015}
    np.savez(tmp_path / "faces.npz", **(arrays | {"conf__x": np.array([0.5, 90, 0.2])}))
    with pytest.raises(InvalidInput, match=r"conf__x\[1\]"):
        import_predictions("apis", tmp_path / "faces.npz", Asked())


PLAIN = (
    "item,label,answer:a,answer:b,confidence:a,confidence:b,split\n1,cat,cat,dog,0.9,0.6,calibration\n2,dog,,-,,,test\n"
)


@pytest.mark.parametrize("ending", ["csv", "parquet", "npz"])
def test_one_plain_table_in_any_format(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"plain.{ending}"
    rows = [line.split(",") for line in PLAIN.strip().split("\n")]
    columns = {name: [row[c] for row in rows[1:]] for c, name in enumerate(rows[0])}
    if ending == "csv":
        path.write_text(PLAIN)
    elif ending == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet needs pyarrow")
        parquet.write_table(pytest.importorskip("pyarrow").table(columns), path)
    else:
        np.savez(path, **{k: np.array(v) for k, v in columns.items()})
    table = import_predictions("plain", path, Asked()).table
    assert table.classes == ("cat", "dog")
    assert table.answers.tolist() == [[0, 1], [MISSING_VOTE, ABSTAINED]]
    assert table.splits.tolist() == ["calibration", "test"]
    assert table.probs is not None
    assert table.probs[0, :, 0].tolist() == pytest.approx([0.9, 0.6])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (PLAIN.replace("0.9", "9"), "row 1 .*confidence:a"),
        (PLAIN.replace("answer:b", "answr:b"), "answr:b"),
        (PLAIN.replace("2,dog", "1,dog"), "every item id must be unique"),
        (PLAIN.replace(",test", ",tset"), "tset"),
        (PLAIN.replace("2,dog", "2,"), "row 2 .*label"),
    ],
)
def test_what_is_wrong_with_a_plain_table_is_said(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(InvalidInput, match=said):
        import_predictions("plain", tmp_path / "p.csv", Asked())


def test_answers_are_read_out_of_texts() -> None:
    assert [letter(t) for t in ("The answer is (C).", "Answer: b", "A or D", "none")] == ["C", "B", "D", None]
    assert [number(t) for t in ("so 3 + 4 = $1,234.50", "none")] == ["$1,234.50", None]
    assert boxed(r"thus \boxed{\frac{1}{2}} and \boxed{x_{1}}") == "x_{1}"
    assert [as_number(t) for t in ("$1,234.0", "3/4", "18.0", "x")] == ["1234", "0.75", "18", "x"]
    assert as_words("The White-House!") == "white house"


def test_splits_follow_the_items_not_their_order() -> None:
    items = np.array([f"i{n}" for n in range(1000)])
    shares = {"calibration": 0.5, "certification": 0.3, "test": 0.2}
    splits = drawn_splits(items, shares, 7)
    order = np.random.default_rng(0).permutation(1000)
    assert (drawn_splits(items[order], shares, 7) == splits[order]).all()
    assert [(splits == name).sum() for name in shares] == [500, 300, 200]
    assert (drawn_splits(items, shares, 8) != splits).any()


def test_copies_of_one_item_in_two_splits_are_found_by_content() -> None:
    def table(name: str, content: str) -> PredictionTable:
        return PredictionTable(
            ("m",),
            ("x", "y"),
            np.array([name]),
            np.array([0]),
            np.array(["test"]),
            np.array([[0]]),
            content=np.array([content]),
        )

    refuse_overlap(table("a", "1"), table("b", "2"))
    with pytest.raises(InvalidInput, match="'b' is the same as 'a'"):
        refuse_overlap(table("a", "1"), table("b", "1"))


def test_from_the_command_line_to_a_certified_cascade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    n, classes = 3000, 4
    label = rng.integers(0, classes, n)
    lines = ["item,label,answer:small,answer:other,answer:large,confidence:small,confidence:other,confidence:large"]
    hard = rng.random(n)
    for i in range(n):
        cells = [
            (label[i], 1 - hard[i] / 2) if hard[i] < skill else (rng.integers(0, classes), 0.4)
            for skill in (0.6, 0.65, 0.97)
        ]
        lines.append(f"{i},{label[i]},{','.join(str(a) for a, _ in cells)},{','.join(f'{c:.3f}' for _, c in cells)}")
    monkeypatch.chdir(tmp_path)
    Path("answers.csv").write_text("\n".join(lines) + "\n")
    Path("costs.yaml").write_text(
        "kind: costs\nversion: 1\nunit: J\nsource: a meter\nper_call: {small: 1, other: 1.2, large: 20}\n"
    )
    promise = ("--reference", "large", "--epsilon", "0.02")
    for arguments in (
        ("import", "predictions", "plain", "answers.csv"),
        (
            "search",
            "predictions.npz",
            "--costs",
            "costs.yaml",
            *promise,
            "--cascade",
            "c.yaml",
            "--plot",
            "front.svg",
            "--tiers",
            "3",
        ),
        ("calibrate", "c.yaml", "--predictions", "predictions.npz", *promise),
        ("calibrate", "front.json", "--predictions", "predictions.npz", *promise, "-o", "walked.yaml"),
        (
            "search",
            "predictions.npz",
            "--costs",
            "costs.yaml",
            *promise,
            "--method",
            "idk-probability",
            "-o",
            "idk.json",
        ),
    ):
        assert run([*arguments]) == 0, arguments
    for name in ("cascade.calibrated.yaml", "walked.yaml"):
        certificate = files.read(name, files.KINDS["cascade"]).certificate  # type: ignore[attr-defined]
        assert certificate.claim == "excess"
    assert "J per 1,000 queries" in Path("front.svg").read_text()
    assert run(["search", "predictions.npz", "--costs", "costs.yaml", *promise, "--method", "magic"]) == 2


@pytest.mark.parametrize(
    ("kind", "folder", "asked"),
    [
        ("topk", "vision_imagenet", Asked(cost="img_per_s_rtx4090_amp", uncosted="drop")),
        ("topk", "vision_cifar10", Asked(task="label_only")),
        ("texts", "llm_mmlu_pro", Asked(cost="listed-or-size-class", uncosted="drop", complete=0.9)),
        ("texts", "llm_zeroeval", Asked(task="gsm8k", cost="listed-or-size-class", uncosted="drop", complete=0.9)),
        ("apis", "api_frugalml", Asked(task="imdb", cost="usd_per_10k")),
    ],
)
def test_published_folders_are_read_whole(kind: str, folder: str, asked: Asked) -> None:
    if not (PUBLISHED / folder).is_dir():
        pytest.skip(f"no recorded predictions at {PUBLISHED / folder}; set COE_DATA")
    found = import_predictions(kind, PUBLISHED / folder, asked)
    assert len(found.table) > 400
    right = (found.table.answers == found.table.labels[:, None]).mean(axis=0)
    assert right.max() > 0.5
    if asked.cost:
        assert found.costs is not None
        assert (call_costs(found.costs, found.table).of(found.table.members, len(found.table)) >= 0).all()


def test_fifty_thousand_items_of_forty_members_fit_in_a_gibibyte() -> None:
    n, m, k = 50_000, 40, 5
    rng = np.random.default_rng(0)
    tracemalloc.start()
    top = (rng.integers(0, 1000, (n, m, 1)) + np.arange(k)[None, None]).astype(np.int32) % 1000
    probs = np.broadcast_to(np.array([0.5, 0.2, 0.1, 0.05, 0.02], dtype=np.float32), (n, m, k)).copy()
    table = PredictionTable(
        members=tuple(f"m{i}" for i in range(m)),
        classes=tuple(str(c) for c in range(1000)),
        items=np.arange(n).astype(np.str_),
        labels=rng.integers(0, 1000, n),
        splits=np.full(n, "test"),
        answers=top[:, :, 0].astype(np.int64),
        probs=probs,
        top=top,
    )
    tiers = (
        Tier(members=("m0", "m1", "m2"), rule="score", threshold=0.4),
        Tier(members=("m3", "m4"), rule="score", carry=1),
    )
    assert evaluate(Cascade(tiers=tiers, top_k=k), table).items == n
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**30
