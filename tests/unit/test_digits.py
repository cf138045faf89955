"""The digits example: its split, its pool and its training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from coe.files import read
from coe.table import SPLITS
from coe.types import Pool, Workload
from deployments.digits import data, members, train

FOLDER = Path(data.__file__).parent


def test_every_digit_is_in_exactly_one_split() -> None:
    arrays = data.arrays()
    assert len(set(arrays["items"].tolist())) == len(arrays["items"]) == 1797
    assert set(arrays["splits"].tolist()) == set(SPLITS)
    assert arrays["x"].min() == 0
    assert arrays["x"].max() == 1
    assert all((arrays["splits"] == name).sum() == size for name, size in data.SIZES.items())


def test_the_split_is_the_same_every_time() -> None:
    assert (data.arrays()["items"] == data.arrays()["items"]).all()


def test_the_pool_spans_a_wide_range_of_sizes() -> None:
    pool = read(FOLDER / "pool.yaml", Pool)
    assert len(pool.members) >= 6
    cost = {member.name: multiplications(train._untrained(member)) for member in pool.members}
    assert max(cost.values()) > 50 * min(cost.values())
    assert read(FOLDER / "workload.yaml", Workload).reference in cost


def multiplications(model: torch.nn.Module) -> int:
    """Multiplications for one image, counted with hooks on every linear and convolutional layer."""
    total = 0

    def count(layer: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(layer, torch.nn.Linear):
            total += layer.in_features * layer.out_features
        elif isinstance(layer, torch.nn.Conv2d):
            per_pixel = layer.in_channels * layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1]
            total += per_pixel * output.shape[-1] * output.shape[-2]

    for layer in model.modules():
        layer.register_forward_hook(count)
    model.eval()(torch.zeros(1, 8, 8))
    return total


def test_training_learns_and_is_the_same_for_the_same_seed() -> None:
    arrays = data.arrays()
    x, y = torch.from_numpy(arrays["x"][:200]), torch.from_numpy(arrays["y"][:200])
    first = train.train(start(), x, y, epochs=20, seed=1)
    again = train.train(start(), x, y, epochs=20, seed=1)
    with torch.inference_mode():
        assert torch.equal(first(x), again(x))
        assert (first(x).argmax(1) == y).float().mean() > 0.7


def start() -> torch.nn.Module:
    torch.manual_seed(0)
    return members.linear()


def test_shifted_images_keep_their_ink_or_lose_it_at_the_edge() -> None:
    x = torch.zeros(64, 8, 8)
    x[:, 3, 3] = 1
    moved = train._shifted(x, torch.Generator().manual_seed(0))
    assert torch.equal(moved.sum(dim=(1, 2)), torch.ones(64))
    rows, columns = np.nonzero((moved.sum(0) > 0).numpy())
    assert set(rows) <= {2, 3, 4}
    assert set(columns) <= {2, 3, 4}
    assert len(rows) > 1


@pytest.mark.parametrize("age", ["missing", "older", "newer"])
def test_weights_are_trained_again_only_when_something_changed(tmp_path: Path, age: str) -> None:
    weights, source = tmp_path / "w.safetensors", tmp_path / "code.py"
    source.touch()
    if age != "missing":
        weights.touch()
        import os

        stamp = source.stat().st_mtime + (10 if age == "newer" else -10)
        os.utime(weights, (stamp, stamp))
    assert train._is_fresh(weights, [source]) is (age == "newer")
