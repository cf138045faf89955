"""The caches against their formulas, computed one item at a time in numpy; splitting models; counting costs."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from coe.errors import InvalidInput
from coe.freeze.blocks import check_same_function, run, split
from coe.freeze.caches import Cache, Reduced, build
from coe.freeze.compose import Cost
from coe.freeze.costs import block_costs, cost
from coe.freeze.kmeans import fit_kmeans
from coe.freeze.knn import NEAREST, fit_knn
from coe.freeze.learned import SHAPES, fit_learned
from coe.freeze.reduce import fit_reducer, pooled
from deployments.digits.members import residual_conv, small_conv

CLASSES = 3


def clouds(n: int = 120, width: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Points around three corners, and which; neighbours of some are of another corner."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, n)
    points = np.eye(width)[label] * 1.5 + rng.normal(0, 0.6, (n, width))
    return torch.tensor(points, dtype=torch.float32), torch.tensor(label)


def test_knn_is_the_formula() -> None:
    k = 7
    points, labels = clouds()
    asked, _ = clouds(n=30, seed=1)
    found = fit_knn(points, labels, CLASSES, k)(asked)
    for i, point in enumerate(asked.double().numpy()):
        distance = np.linalg.norm(points.double().numpy() - point, axis=1)
        nearest = np.argsort(distance)[:k]
        confidence = np.zeros(CLASSES)
        for label in range(CLASSES):
            of_label = nearest[labels.numpy()[nearest] == label]
            confidence[label] = len(of_label) / k * (1 / distance[of_label]).sum()
        assert int(found.label[i]) == confidence.argmax()
        assert float(found.confidence[i]) == pytest.approx(confidence.max(), rel=1e-4)


def test_knn_meets_a_cached_item_again_with_finite_confidence() -> None:
    points, labels = clouds()
    found = fit_knn(points, labels, CLASSES, k=1)(points[:20])
    assert torch.equal(found.label, labels[:20])
    assert found.confidence.tolist() == pytest.approx([1 / NEAREST] * 20)


def test_knn_with_fewer_items_than_neighbours() -> None:
    points, labels = clouds(n=4)
    found = fit_knn(points, labels, CLASSES, k=10)(points)
    assert bool((found.confidence > 0).all())


def test_kmeans_is_the_formula() -> None:
    points, labels = clouds()
    table = fit_kmeans(points, labels, CLASSES, clusters=9, seed=2)
    assigned = torch.cdist(points, table.centres).argmin(dim=1)
    for cluster in range(len(table.centres)):
        votes = torch.bincount(labels[assigned == cluster], minlength=CLASSES)
        assert int(table.labels[cluster]) == int(votes.argmax())
        assert float(table.shares[cluster]) == pytest.approx(float(votes.max() / votes.sum()))
    asked, _ = clouds(n=30, seed=1)
    found = table(asked)
    for i, point in enumerate(asked):
        distance = (table.centres - point).norm(dim=1)
        nearest = int(distance.argmin())
        assert int(found.label[i]) == int(table.labels[nearest])
        assert float(found.confidence[i]) == pytest.approx(float(table.shares[nearest] / distance[nearest]), rel=1e-4)


def test_kmeans_never_keeps_an_empty_cluster() -> None:
    same = torch.ones(50, 4)
    table = fit_kmeans(same, torch.zeros(50, dtype=torch.int64), CLASSES, clusters=8, seed=0)
    assert bool((table.shares > 0).all())
    assert torch.equal(table(same).label, torch.zeros(50, dtype=torch.int64))


def test_kmeans_lowers_the_distance_to_centres() -> None:
    points, labels = clouds(n=400)
    spread = [
        float(
            torch.cdist(points, fit_kmeans(points, labels, CLASSES, 12, seed=1, rounds=r).centres)
            .amin(1)
            .square()
            .sum()
        )
        for r in (0, 1, 20)
    ]
    assert spread[0] > spread[1] > spread[2]


def test_the_reducer_tells_labels_apart() -> None:
    points, labels = clouds(n=400)
    reducer = fit_reducer(points, labels, CLASSES, width=16, epochs=20, seed=0)
    reduced = reducer(points)
    assert reduced.shape == (400, 16)
    asked, truth = clouds(n=200, seed=1)
    right = fit_knn(reduced, labels, CLASSES, 5)(reducer(asked)).label == truth
    assert float(right.float().mean()) > 0.85


def test_training_leaves_the_random_numbers_alone() -> None:
    points, labels = clouds()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one = fit_reducer(points, labels, CLASSES, width=4, epochs=1, seed=7)
    assert torch.equal(torch.rand(3), expected)
    two = fit_reducer(points, labels, CLASSES, width=4, epochs=1, seed=7)
    assert torch.equal(one(points), two(points))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_learned_cache_is_surer_where_it_is_right(shape: str) -> None:
    points, labels = clouds(n=900, width=8)
    images = points[:, :, None, None] + 0.1 * torch.randn(900, 8, 2, 2, generator=torch.Generator().manual_seed(0))
    cache = fit_learned(images, labels, CLASSES, shape=shape, hidden=32, epochs=40, false_hit_weight=5, seed=0)  # type: ignore[arg-type]
    found = cache(images)
    right = found.label == labels
    assert float(right.float().mean()) > 0.85
    assert float(found.confidence[right].median()) > float(found.confidence[~right].median())


def test_wrong_hits_become_rarer_the_more_they_count() -> None:
    points, labels = clouds(n=900, width=4)
    asked, truth = clouds(n=900, width=4, seed=1)
    wrong = []
    for weight in (0.2, 20.0):
        cache = fit_learned(points, labels, CLASSES, shape="fc", hidden=16, epochs=10, false_hit_weight=weight, seed=0)
        found = cache(asked)
        wrong.append(int(((found.confidence > 1) & (found.label != truth)).sum()))
    assert wrong[1] < wrong[0]


@pytest.mark.parametrize(
    ("shape", "pool", "expected"),
    [
        pytest.param((2, 3, 8, 8), 2, (2, 3, 2, 2), id="image"),
        pytest.param((2, 3, 1, 8), 2, (2, 3, 1, 2), id="strip"),
        pytest.param((2, 3, 8, 8), None, (2, 3, 8, 8), id="whole"),
        pytest.param((2, 5, 7), 2, (2, 7), id="sequence"),
        pytest.param((2, 5), 2, (2, 5), id="vector"),
    ],
)
def test_pooling(shape: tuple[int, ...], pool: int | None, expected: tuple[int, ...]) -> None:
    assert pooled(torch.rand(shape), pool).shape == expected


def test_a_hit_says_probabilities_that_add_up() -> None:
    points, labels = clouds()
    reducer = fit_reducer(points, labels, CLASSES, width=4, epochs=1, seed=0)
    cache = Cache("knn", 2, Reduced(reducer, fit_knn(reducer(points), labels, CLASSES, 3)))
    cache.probability.fill_(0.9)
    said = cache.log_probabilities(torch.tensor([2, 0]), CLASSES).exp()
    assert said.tolist()[0] == pytest.approx([0.05, 0.05, 0.9])
    assert said.argmax(dim=1).tolist() == [2, 0]


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InvalidInput, match="'lru'"):
        build({"kind": "lru", "pool": None, "body": {}})


# --- Blocks -----------------------------------------------------------------------------------------------------------


class TorchvisionLike(nn.Module):
    """The names and the forward of torchvision's residual networks, in small."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.maxpool = nn.MaxPool2d(2)
        for stage in range(1, 5):
            setattr(self, f"layer{stage}", nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


@pytest.mark.parametrize(
    ("model", "shape", "blocks"),
    [
        pytest.param(residual_conv(4, 3), (2, 8, 8), 5, id="digits residual"),
        pytest.param(small_conv(2), (2, 8, 8), 3, id="digits conv"),
        pytest.param(TorchvisionLike(), (2, 3, 8, 8), 10, id="torchvision-like"),
    ],
)
def test_a_model_is_split_by_itself(model: nn.Module, shape: tuple[int, ...], blocks: int) -> None:
    found = split(model.eval())
    assert len(found) == blocks
    check_same_function(model, found, torch.rand(shape))


def test_a_model_is_split_by_names_or_modules() -> None:
    model = TorchvisionLike().eval()
    names = ["conv1+bn1+relu+maxpool", "layer1", "layer2+layer3", "layer4", "avgpool+flatten+fc"]
    items = torch.rand(3, 3, 8, 8)
    assert torch.equal(run(split(model, names), items), model(items))
    modules = [nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool), model.layer1]
    assert split(model, modules) == modules


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        pytest.param(["conv1", "nothing"], "no submodule 'nothing'", id="unknown"),
        pytest.param(["fc"], "at least two", id="one"),
        pytest.param([], "at least two", id="none"),
    ],
)
def test_blocks_that_are_not_there_are_refused(blocks: list[str], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        split(TorchvisionLike(), blocks)


def test_a_model_without_an_obvious_order_must_be_told() -> None:
    class Odd(nn.Module):
        pass

    with pytest.raises(InvalidInput, match="must be given"):
        split(Odd())


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        pytest.param(
            ["conv1+bn1+maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool+flatten+fc"], "compute", id="no relu"
        ),
        pytest.param(["conv1", "fc"], "one after the other", id="shapes"),
        pytest.param(["conv1", "layer1"], "compute", id="no logits"),
    ],
)
def test_blocks_that_are_not_the_model_are_refused(blocks: list[str], said: str) -> None:
    torch.manual_seed(0)
    model = TorchvisionLike().eval()
    with pytest.raises(InvalidInput, match=said):
        check_same_function(model, split(model, blocks), torch.rand(3, 3, 8, 8))


# --- Costs ------------------------------------------------------------------------------------------------------------


def test_multiplications_are_counted_per_item() -> None:
    model = nn.Sequential(OrderedDict(a=nn.Conv2d(3, 4, 3, padding=1), b=nn.Flatten(), c=nn.Linear(256, 10)))
    blocks = split(model, ["a", "b+c"])
    assert block_costs(blocks, torch.rand(6, 3, 8, 8), "macs") == [Cost(4 * 3 * 9 * 64), Cost(2560)]


class Clock:
    """A clock that only the work moves: 3 s a call and 0.5 s an item."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def work(self, batch: torch.Tensor) -> torch.Tensor:
        self.now_s += 3 + 0.5 * len(batch)
        return batch


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        pytest.param(32, Cost(0.5, 3 / 32), id="two batch sizes"),
        pytest.param(1, Cost(3.5), id="one item is all or nothing"),
    ],
)
def test_seconds_are_what_an_item_adds_and_what_running_costs(items: int, expected: Cost) -> None:
    clock = Clock()
    found = cost(clock.work, torch.zeros(items, 1), "seconds", clock)
    assert found == pytest.approx(expected)
    assert found.whole * items == pytest.approx(3 + 0.5 * items)
