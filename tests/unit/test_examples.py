"""The examples in `deployments`: their files fit together, their members answer, and without data they say so."""

from __future__ import annotations

import csv
import gzip
import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from coe.errors import InvalidInput
from coe.files import read, read_prices
from coe.placement.candidates import hosted_model
from coe.plugins import import_path
from coe.profiler.predict import DataSet, load_data, predict
from coe.runners.base import make_runner
from coe.table import SPLITS
from coe.types import Fleet, Member, Pool, Workload
from deployments import steps
from deployments.images import data as images_data
from deployments.images import demo as images_demo
from deployments.llm import demo as llm_demo
from deployments.llm import items
from deployments.llm.replay_endpoint import ITEM
from deployments.text import data as text_data
from deployments.text import demo as text_demo
from deployments.text import members, train
from tests import factories

EXAMPLES = Path(steps.__file__).parent
DATA = Path(os.environ.get("COE_DATA", Path(__file__).parents[3] / "shared" / "data"))


# --- Language models --------------------------------------------------------------------------------------------------


def test_the_language_models_have_prices_and_runners() -> None:
    pool = read(EXAMPLES / "llm" / "pool.yaml", Pool)
    prices = read_prices(EXAMPLES / "llm" / "prices.yaml")
    assert tuple(m.name for m in pool.members) == llm_demo.MEMBERS
    assert read(EXAMPLES / "llm" / "workload.yaml", Workload).reference in llm_demo.MEMBERS
    for member in pool.members:
        assert hosted_model(member, prices) == member.options["model"]
        make_runner(member, pool, EXAMPLES / "llm")
        assert f":{llm_demo.ENDPOINT_PORT}/" in member.options["base_url"]
    fleet = read(EXAMPLES / "llm" / "fleet.yaml", Fleet)
    assert [n.offer for n in fleet.nodes] == list(prices.offers)


def test_items_are_drawn_once_and_their_texts_name_them() -> None:
    table = factories.table(n=50)
    few = items.chosen(table, 20)
    assert len(few) == 20
    assert items.chosen(table, 20).items.tolist() == few.items.tolist()
    assert len(items.chosen(table, 500)) == 50
    found = items.arrays(few)
    assert found["x"][:, 0].tolist() == list(range(20))
    for text, name, label in zip(items.texts(few), few.items, found["y"], strict=True):
        assert ITEM.findall(text) == [name]
        assert table.labels[table.items.tolist().index(name)] == label


# --- Texts ------------------------------------------------------------------------------------------------------------

SAMPLE = {
    "card": [
        "where is my card",
        "my card is late",
        "the new card has not come",
        "card still not here",
        "when comes my card",
    ],
    "rate": [
        "what is the rate today",
        "exchange rate please",
        "is this rate fair",
        "the rate was wrong",
        "rate of euros",
    ],
    "pin": ["i forgot my pin", "change the pin", "my pin is blocked", "how do i set a pin", "wrong pin three times"],
}


def written(folder: Path) -> Path:
    """Sample files in the format of Banking77; a test question repeats one of training, another occurs twice."""
    rows = [(text, label) for label, texts in SAMPLE.items() for text in texts]
    fresh = [(f"{text} now", label) for text, label in rows]
    for name, content in (("train", rows), ("test", [rows[0], *fresh, fresh[0]])):
        with gzip.open(folder / f"{name}.csv.gz", "wt", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "category"])
            writer.writerows(content)
    return folder


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`data.npz` of the sample, and a pool of two members over two views."""
    monkeypatch.setattr(text_data, "SIZES", {"train": 15, "calibration": 5, "certification": 5, "test": 5})
    text_data.main(str(written(tmp_path)), str(tmp_path / "data.npz"))
    (tmp_path / "pool.yaml").write_text(
        "kind: pool\nversion: 1\nclasses: [card, pin, rate]\ninput_dtype: text\ninput_shape: [1]\nmembers:\n"
        + "".join(
            f"  - {{name: {name}, runner: 'deployments.text.members:LinearText', weights: weights/{name}.npz, "
            f"options: {{views: {views}}}}}\n"
            for name, views in (("words", "[words]"), ("both", "[words, pieces-2-4]"), ("pieces", "[pieces-2-4]"))
        )
    )
    return tmp_path


def test_no_question_is_in_two_splits(sample: Path) -> None:
    data = load_data(sample / "data.npz")
    assert data.classes == ("card", "pin", "rate")
    texts = data.x[:, 0].tolist()
    assert len(set(texts)) == len(texts) == 30
    assert set(data.splits.tolist()) == set(SPLITS)
    kind = {text: label for label, ts in SAMPLE.items() for t in ts for text in (t, f"{t} now")}
    assert data.classes is not None
    assert [data.classes[y] for y in data.y] == [kind[text] for text in texts]


def test_the_text_members_learn_and_several_views_are_averaged(sample: Path) -> None:
    train.main(str(sample / "data.npz"), str(sample / "pool.yaml"))
    pool = read(sample / "pool.yaml", Pool)
    table = predict(pool, sample, load_data(sample / "data.npz"))
    assert table.probs is not None
    right = (table.answers == table.labels[:, None]).mean(axis=0)
    assert (right > 0.7).all(), right
    words, both, pieces = (table.probs[:, column] for column in range(3))
    assert both == pytest.approx((words + pieces) / 2, abs=1e-6)
    runner = make_runner(pool.members[0], pool, sample)
    runner.load()
    assert runner.memory_gib() > 0
    assert runner.predict(np.array([[""], ["zzz"]])).shape == (2, 3)


def test_probabilities_are_those_of_the_fitted_model() -> None:
    """Scores of scikit-learn's own model against the arrays that are kept of it."""
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import SGDClassifier

    texts = np.array([t for ts in SAMPLE.values() for t in ts])
    labels = np.repeat([0, 1, 2], 5)
    kept = train.fitted("words", texts, labels)
    raw = members.HashingVectorizer(alternate_sign=False, norm=None, **members.VIEWS["words"]).transform(texts)
    weighed = TfidfTransformer(sublinear_tf=True).fit_transform(raw)
    theirs = SGDClassifier(loss="log_loss", alpha=train.RIGOUR, max_iter=train.PASSES, tol=None, random_state=0)
    theirs.fit(weighed.astype(np.float32), labels)
    found = members.counts("words", texts)
    found.data *= kept["idf"][found.indices]
    ours = members.unit_rows(found) @ kept["slope"] + kept["offset"]
    assert ours == pytest.approx(theirs.decision_function(weighed), rel=1e-3, abs=1e-2)


@pytest.mark.parametrize("options", [{}, {"views": []}, {"views": ["letters"]}, {"views": ["words"], "c": 1}])
def test_text_members_check_their_options(options: dict[str, Any]) -> None:
    member = Member(name="m", runner="deployments.text.members:LinearText", weights="w.npz", options=options)
    pool = Pool(classes=("a", "b"), input_shape=(1,), input_dtype="text", members=(member,))
    with pytest.raises(InvalidInput, match="member 'm': takes the option views: a list of words, word-pairs"):
        make_runner(member, pool, Path())


def test_the_text_pool_is_that_of_the_data() -> None:
    folder = DATA / "text_banking77"
    if not folder.is_dir():
        pytest.skip(f"no {folder}; set COE_DATA")
    found = text_data.arrays(folder)
    pool = read(EXAMPLES / "text" / "pool.yaml", Pool)
    assert pool.classes == tuple(found["classes"].tolist())
    assert {name: int((found["splits"] == name).sum()) for name in text_data.SIZES} == text_data.SIZES
    assert len(set(found["x"][:, 0].tolist())) == len(found["x"])
    assert DataSet(found["x"], found["y"], found["items"], found["splits"]).split("test").x.dtype.kind == "U"
    for member in pool.members:
        make_runner(member, pool, EXAMPLES / "text")


# --- Pictures ---------------------------------------------------------------------------------------------------------


def test_the_nets_answer_about_pictures_and_the_workload_names_one() -> None:
    pool = read(EXAMPLES / "images" / "pool.yaml", Pool)
    assert read(EXAMPLES / "images" / "workload.yaml", Workload).reference in [m.name for m in pool.members]
    assert pool.classes == images_data.CLASSES
    sizes = []
    for member in pool.members:
        net = import_path(member.model, "model")(**member.options).eval()
        assert net(torch.zeros(2, *pool.input_shape)).shape == (2, len(pool.classes))
        sizes.append(sum(p.numel() for p in net.parameters()))
    assert sizes == sorted(sizes), "cheapest first"


def test_pictures_are_drawn_once_decoded_and_named(tmp_path: Path) -> None:
    made, label = [], []
    for number in range(6):
        out = io.BytesIO()
        Image.new("RGB", (32, 32), (40 * number, 0, 255)).save(out, format="JPEG")
        made.append(np.frombuffer(out.getvalue(), dtype=np.uint8))
        label.append(number)
    offset = np.concatenate([[0], np.cumsum([len(jpeg) for jpeg in made])])
    np.savez(tmp_path / "train_0.npz", jpeg=np.concatenate(made), offset=offset, label=np.array(label, dtype=np.uint8))
    x, y, items = images_data.drawn([tmp_path / "train_0.npz"], 4, "train")
    assert x.shape == (4, 3, 32, 32)
    assert len(set(items)) == 4
    for picture, number in zip(x, y, strict=True):  # the label says which red it had
        assert picture[0].mean() == pytest.approx(40 * number / 255, abs=0.02)
        assert picture[2].mean() == pytest.approx(1.0, abs=0.02)


# --- Without data -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("demo", [llm_demo, text_demo, images_demo], ids=["llm", "text", "images"])
def test_an_example_without_its_data_says_so_and_does_nothing(
    demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COE_DATA", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["demo"])
    monkeypatch.setattr(steps, "run", lambda *_: pytest.fail("no step may run"))
    assert demo.main() == steps.NO_DATA
    assert f"needs the folder {demo.DATA} of recorded data: set COE_DATA" in capsys.readouterr().err


def test_a_step_that_fails_tells_its_command_and_code(capsys: pytest.CaptureFixture[str]) -> None:
    step = steps.Steps(2)
    step("say nothing", sys.executable, "-c", "pass")
    with pytest.raises(steps.StepFailed, match="ended with exit code 3") as failed:
        step("fail", sys.executable, "-c", "import sys; sys.exit(3)")
    assert failed.value.code == 3
    told = capsys.readouterr().err
    assert "[ 1/2] say nothing" in told
    assert "[ 2/2] fail" in told
