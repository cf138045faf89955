"""From a data file and a pool to the prediction table."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coe.errors import InvalidInput
from coe.files import read_predictions, write_predictions
from coe.profiler.predict import DataSet, load_data, predict
from coe.runners.base import fingerprint
from coe.types import Member, Pool

CODE = """
import numpy as np

def by_feature(batch, column):
    sharp = np.exp(5 * np.stack([-batch[:, column], batch[:, column]], axis=1))
    return sharp / sharp.sum(axis=1, keepdims=True)

def logits(batch):
    return np.stack([batch[:, 0], batch[:, 1]], axis=1) * 7

def broken(batch):
    raise KeyError("no such layer")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "members_of_test.py").write_text(CODE)
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    sys.modules.pop("members_of_test", None)


def member(name: str, function: str, **options: Any) -> Member:
    return Member(name=name, runner="callable", model=f"members_of_test:{function}", options=options)


def pool(*members: Member) -> Pool:
    return Pool(classes=("no", "yes"), input_shape=(2,), members=members)


def arrays(n: int = 150, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(n, 2)).astype(np.float32)
    splits = np.array(["train", "calibration", "certification", "test"])[np.arange(n) % 4]
    items = np.array([f"i{i}" for i in range(n)])
    return {"x": x, "y": (x[:, 0] > 0).astype(np.int64), "items": items, "splits": splits, **changes}


def saved(folder: Path, **changes: Any) -> Path:
    np.savez(folder / "data.npz", **{k: v for k, v in arrays(**changes).items() if v is not None})
    return folder / "data.npz"


def test_predictions_are_the_members_own_words(folder: Path) -> None:
    data = load_data(saved(folder))
    members = (member("right", "by_feature", column=0), member("guess", "by_feature", column=1))
    seen: list[tuple[int, int]] = []
    table = predict(pool(*members), folder, data, progress=lambda done, total: seen.append((done, total)))

    assert table.members == ("right", "guess")
    assert table.classes == ("no", "yes")
    np.testing.assert_array_equal(table.answers[:, 0], data.y)
    np.testing.assert_array_equal(table.answers[:, 1], data.x[:, 1] > 0)
    assert table.probs is not None
    np.testing.assert_allclose(table.probs[:, 0, 1], 1 / (1 + np.exp(-10 * data.x[:, 0])), rtol=1e-4, atol=1e-6)
    assert table.sources == {m.name: fingerprint(m, folder) for m in members}
    assert seen[-1] == (300, 300)
    assert [done for done, _ in seen] == [64, 128, 150, 214, 278, 300]

    write_predictions(folder / "p.npz", table)
    assert read_predictions(folder / "p.npz").fingerprint() == table.fingerprint()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("logits", "member 'bad': must not return negative|member 'bad': must return rows that sum to 1"),
        ("broken", "member 'bad': failed on the items 'i0' to 'i63', got KeyError: 'no such layer'"),
    ],
)
def test_a_member_that_fails_is_named(folder: Path, function: str, message: str) -> None:
    data = load_data(saved(folder))
    with pytest.raises(InvalidInput, match=message):
        predict(pool(member("bad", function)), folder, data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": None}, "lacks the arrays x.*a data set has x, y, items and splits"),
        ({"y": np.zeros(3, dtype=np.int64)}, r"y: must have shape \(150,\)"),
        ({"y": np.full(150, 0.5)}, "must hold class indices"),
        ({"y": np.full(150, -1)}, "must not be negative"),
        ({"items": np.array(["same"] * 150)}, "'same' more than once"),
        ({"splits": np.array(["dev"] * 150)}, "must be among train, calibration, certification, test, got dev"),
        ({"x": np.full((150, 2), np.nan)}, "must not hold NaN or infinity, got one in item 'i0'"),
        ({"x": np.zeros((0, 2))}, "at least one item"),
        ({"x": np.zeros(150)}, "at least one item"),
    ],
    ids=["no-x", "short-y", "real-y", "negative-y", "repeated-ids", "unknown-split", "nan", "empty", "no-features"],
)
def test_data_that_are_no_data_set_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        load_data(saved(folder, **changes))


def test_all_mistakes_are_told_at_once(folder: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_data(saved(folder, y=np.full(150, -1), splits=np.array(["dev"] * 150)))
    assert len(caught.value.problems) == 2


def test_data_that_do_not_fit_the_pool_are_refused(folder: Path) -> None:
    data = load_data(saved(folder, classes=np.array(["yes", "no"]), x=np.zeros((150, 5)), y=np.full(150, 2)))
    with pytest.raises(InvalidInput) as caught:
        predict(pool(member("m", "by_feature", column=0)), folder, data)
    assert [p.where for p in caught.value.problems] == ["data: x", "data: y", "data: classes"]


def test_a_split_of_the_data(folder: Path) -> None:
    data = load_data(saved(folder))
    test = data.split("test")
    assert isinstance(test, DataSet)
    assert set(test.splits.tolist()) == {"test"}
    only_train = load_data(saved(folder, splits=np.array(["train"] * 150)))
    with pytest.raises(InvalidInput, match="the split 'test' has no items; splits there: train"):
        only_train.split("test")
