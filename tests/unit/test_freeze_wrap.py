"""Frozen models of a residual net on digits: what leaves, what it says, what it costs, and as a member of a pool."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from coe import freeze as package
from coe.errors import InvalidInput
from coe.freeze import Frozen, Settings, assemble, every_block, freeze, load, measure, right_labels, save
from coe.freeze.compose import walk
from coe.freeze.curves import Curve, half_saved, left_before, perfect, plot_svg
from coe.runners.base import make_runner
from coe.types import Member, Pool
from deployments.digits.members import residual_conv
from tests.freeze_case import BLOCKS, CHANNELS, KINDS, SETTINGS, explored, items, model

BUDGETS = (0.0, 0.02)


@pytest.fixture(autouse=True)
def one_core() -> None:
    torch.set_num_threads(1)


def reference(x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model()(x)


@pytest.mark.parametrize("kind", KINDS)
def test_no_validation_item_leaves_with_another_label_under_pessimistic_thresholds(kind: str) -> None:
    frozen = every_block(explored(), kind)
    validation = items()["validation"]
    for batch_size in (1, 37, 400):
        traces = [frozen.trace(part) for part in validation.split(batch_size)]
        answer = torch.cat([t.label for t in traces])
        assert torch.equal(answer, reference(validation).argmax(dim=1))
    assert frozen.report is not None
    assert frozen.report.validation_errors == 0
    assert sum(c.left for c in frozen.report.caches) > 100, "or the test says nothing"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_batches_that_are_re_formed_say_what_single_items_say(kind: str, budget: float) -> None:
    frozen = every_block(explored(), kind, budget)
    x = items()["held_out"][:120]
    together = frozen.trace(x)
    alone = [frozen.trace(item.unsqueeze(0)) for item in x]
    assert torch.equal(together.left_after, torch.cat([t.left_after for t in alone]))
    expected = torch.cat([t.log_probabilities for t in alone])
    torch.testing.assert_close(together.log_probabilities, expected, rtol=1e-4, atol=1e-4)
    assert len(together.left_after.unique()) > 2


def test_an_item_that_leaves_is_a_walk_through_blocks_and_caches() -> None:
    """The loop of the paper, written out for one item."""
    frozen = every_block(explored(), "kmeans", 0.02)
    trace = frozen.trace(items()["held_out"][:60])
    for i, item in enumerate(items()["held_out"][:60]):
        here, left = item.unsqueeze(0), BLOCKS + 1
        for number, block in enumerate(frozen.blocks):
            here = block(here)
            if str(number) in frozen.caches:
                cache = frozen.caches[str(number)]
                label, confidence = cache(here)
                if bool(confidence > cache.threshold):
                    assert int(trace.label[i]) == int(label)
                    left = number
                    break
        assert int(trace.left_after[i]) == left


def test_the_report_is_what_the_model_does_on_validation_items() -> None:
    frozen = assemble(explored(), error_budget=0.02)
    report = frozen.report
    assert report is not None
    measured = measure(frozen, items()["validation"], batch_size=400)
    left = dict.fromkeys(range(BLOCKS + 2), 0)
    left |= {cache.after_block: cache.left for cache in report.caches}
    left[BLOCKS + 1] += 400 - sum(left.values())
    assert [round(400 * share) for share in measured.left] == list(left.values())
    assert round(400 * (1 - measured.agreement)) == report.validation_errors
    assert measured.expected_cost == pytest.approx(report.expected_cost)
    assert report.validation_errors <= 0.02 * 400
    assert report.proved
    assert report.bound == report.expected_cost < report.full_cost


def test_composing_costs_no_more_than_any_single_kind_everywhere() -> None:
    composed = assemble(explored()).report
    assert composed is not None
    for kind in KINDS:
        alone = every_block(explored(), kind).report
        assert alone is not None
        assert composed.expected_cost <= alone.expected_cost


def test_a_larger_error_budget_never_costs_more() -> None:
    costs = [r.expected_cost for b in (0.0, 0.005, 0.02, 0.05) if (r := assemble(explored(), error_budget=b).report)]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < costs[0]


@pytest.mark.parametrize("memory_mib", [0.0, 0.02, 0.2])
def test_the_memory_budget_holds(memory_mib: float) -> None:
    frozen = assemble(explored(), memory_mib=memory_mib)
    scalars = 16 * len(frozen.caches)  # a threshold and a probability each
    assert frozen.memory_bytes <= memory_mib * 2**20 + scalars
    assert bool(frozen.caches) == (memory_mib > 0)


def test_kmeans_takes_a_fraction_of_the_memory_of_knn() -> None:
    assert every_block(explored(), "kmeans").memory_bytes < every_block(explored(), "knn").memory_bytes / 4


def test_without_caches_it_is_the_model() -> None:
    frozen = assemble(explored(), memory_mib=0)
    x = items()["held_out"][:50]
    torch.testing.assert_close(frozen(x), torch.log_softmax(reference(x), dim=1))
    torch.testing.assert_close(frozen.whole(x), reference(x))


def test_held_out_items_mostly_agree_and_cost_less() -> None:
    labels = items()["labels"][1300:].numpy()
    for kind in KINDS:
        measured = measure(every_block(explored(), kind), items()["held_out"], labels)
        assert measured.agreement > 0.95
        assert measured.disagreement_upper_bound > 1 - measured.agreement
        assert measured.expected_cost < 0.7 * measured.full_cost
        assert measured.accuracy is not None
        assert measured.whole_accuracy is not None
        assert measured.accuracy > measured.whole_accuracy - 0.03
        assert sum(measured.left) == pytest.approx(1)


def test_probabilities_add_up_and_a_hit_is_as_sure_as_the_model_on_average() -> None:
    frozen = every_block(explored(), "kmeans")
    validation = items()["validation"]
    trace = frozen.trace(validation)
    probabilities = trace.log_probabilities.exp()
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(400))
    model_probs = torch.softmax(reference(validation), dim=1)
    for block, cache in frozen.caches.items():
        here = trace.left_after == int(block)
        if int(here.sum()) > 30:
            given = model_probs[here].gather(1, trace.label[here, None]).mean()
            assert float(probabilities[here].amax(dim=1)[0]) == pytest.approx(float(cache.probability), rel=1e-5)
            assert float(cache.probability) == pytest.approx(float(given), abs=1 / int(here.sum()))


def test_it_stays_in_evaluation_mode() -> None:
    frozen = every_block(explored(), "knn").train()
    assert not any(module.training for module in frozen.modules())


def test_an_empty_batch_has_no_answers() -> None:
    frozen = every_block(explored(), "kmeans")
    assert frozen(items()["held_out"][:0]).shape == (0, 10)


def test_costs_in_seconds_are_measured() -> None:
    frozen = freeze(
        model(),
        cache_items=items()["cached"][:300].numpy(),
        validation_items=items()["validation"][:100].numpy(),
        kinds=("kmeans",),
        settings=Settings(width=8, pool=1, clusters=10, reducer_epochs=2, batch_size=16),
        only_after=[1, 3],
    )
    report = frozen.report
    assert report is not None
    assert report.unit == "seconds"
    assert {cache.after_block for cache in report.caches} <= {1, 3}
    assert 0 < report.expected_cost <= report.full_cost < 0.1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param({"kinds": ("lru",)}, "'lru' is not a known kind", id="kind"),
        pytest.param({"validation_items": np.zeros((3, 8, 8))}, "validation_items: must be at least 20", id="few"),
        pytest.param({"validation_items": np.zeros((40, 8, 8))}, "must not be among the cached", id="blank"),
        pytest.param({"validation_items": items()["cached"][20:60]}, "must not be among the cached", id="overlap"),
        pytest.param({"blocks": ["0+1", "2"]}, "compute together", id="blocks"),
        pytest.param({"error_budget": 1.5}, "must be in", id="budget"),
    ],
)
def test_what_cannot_be_frozen_is_refused(change: dict[str, object], said: str) -> None:
    arguments: dict[str, object] = {
        "cache_items": torch.cat([items()["cached"][:40], torch.zeros(1, 8, 8)]),
        "validation_items": items()["validation"][:40],
        "settings": Settings(width=4, clusters=4, reducer_epochs=1, learned_epochs=1),
        "kinds": ("kmeans",),
        "unit": "macs",
    }
    with pytest.raises(InvalidInput, match=said):
        freeze(model(), **(arguments | change))  # type: ignore[arg-type]


# --- On disk and in a pool --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_says_the_same(kind: str, tmp_path: Path) -> None:
    frozen = every_block(explored(), kind, 0.02)
    save(tmp_path / "frozen.safetensors", frozen)
    again = load(tmp_path / "frozen.safetensors", residual_conv(CHANNELS, BLOCKS))
    x = items()["held_out"][:80]
    one, two = frozen.trace(x), again.trace(x)
    assert torch.equal(one.left_after, two.left_after)
    assert torch.equal(one.log_probabilities, two.log_probabilities)
    assert again.report == frozen.report
    assert again.memory_bytes == frozen.memory_bytes


def test_the_file_names_no_code_and_is_no_pickle(tmp_path: Path) -> None:
    save(tmp_path / "frozen.safetensors", every_block(explored(), "kmeans"))
    spec = bytes(load_file(tmp_path / "frozen.safetensors")["spec"].tolist()).decode()
    assert '"kind": "coe-frozen"' in spec
    assert "residual_conv" not in spec


def test_a_member_of_a_pool_by_its_weights_alone(tmp_path: Path) -> None:
    frozen = assemble(explored(), error_budget=0.02)
    save(tmp_path / "frozen.safetensors", frozen)
    member = Member(
        name="residual-frozen",
        model="coe.freeze:load_frozen",
        weights="frozen.safetensors",
        options={
            "base": "deployments.digits.members:residual_conv",
            "base_options": {"channels": CHANNELS, "blocks": BLOCKS},
        },
    )
    classes = tuple(str(i) for i in range(10))
    runner = make_runner(member, Pool(classes=classes, input_shape=(8, 8), members=(member,)), tmp_path)
    runner.load()
    x = items()["held_out"][:80]
    expected = frozen(x).exp().numpy()
    np.testing.assert_allclose(runner.predict(x.numpy()), expected, rtol=1e-4, atol=1e-6)
    assert runner.memory_gib() * 2**30 > frozen.memory_bytes
    runner.close()


def damaged(path: Path) -> None:
    path.write_bytes(b"not tensors")


def other_tensors(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path)


def broken_spec(path: Path) -> None:
    state = load_file(path)
    state["spec"] = torch.tensor(list(b'{"kind":'), dtype=torch.uint8)
    save_file(state, path)


def other_kind(path: Path) -> None:
    state = load_file(path)
    state["spec"] = torch.tensor(list(b'{"kind": "pool", "version": 1}'), dtype=torch.uint8)
    save_file(state, path)


def missing(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(damaged, "not a safetensors file", id="damaged"),
        pytest.param(other_tensors, "not a frozen model", id="other tensors"),
        pytest.param(broken_spec, "damaged", id="broken configuration"),
        pytest.param(other_kind, "kind coe-frozen", id="other kind"),
        pytest.param(missing, "cannot be read", id="missing"),
    ],
)
def test_a_file_that_is_not_one_is_refused(spoil: object, said: str, tmp_path: Path) -> None:
    path = tmp_path / "frozen.safetensors"
    save(path, every_block(explored(), "kmeans"))
    spoil(path)  # type: ignore[operator]
    with pytest.raises(InvalidInput, match=said):
        load(path, residual_conv(CHANNELS, BLOCKS))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        pytest.param(residual_conv(CHANNELS, BLOCKS + 1), "must have the blocks", id="blocks"),
        pytest.param(residual_conv(CHANNELS + 1, BLOCKS), "does not fit", id="channels"),
    ],
)
def test_another_model_is_refused(other: nn.Module, said: str, tmp_path: Path) -> None:
    save(tmp_path / "frozen.safetensors", every_block(explored(), "kmeans"))
    with pytest.raises(InvalidInput, match=said):
        load(tmp_path / "frozen.safetensors", other)


def test_a_model_that_freeze_did_not_make_cannot_be_measured() -> None:
    with pytest.raises(InvalidInput, match="no report"):
        measure(Frozen(list(residual_conv(4, 2))[:2]), items()["held_out"][:20])


# --- Curves -----------------------------------------------------------------------------------------------------------


def test_the_perfect_bound_lies_above_pessimistic_thresholds() -> None:
    for kind in KINDS:
        frozen = every_block(explored(), kind)
        x = items()["validation"]
        real = np.array(measure(frozen, x).left_before)
        bound = perfect(kind, right_labels(frozen, x))
        assert (bound.left_before >= real - 1e-9).all()
        assert bound.left_before[0] == 0


def test_curves_by_hand() -> None:
    right = np.array([[True, False, False, False], [False, True, False, False], [True, True, True, False]])
    assert left_before(right).tolist() == [0, 0.25, 0.5, 0.75]
    curve = Curve("by hand", np.array([0, 0.1, 0.2, 0.4, 0.8]), 1.0, 0.0)  # four blocks and the output layer
    assert half_saved(curve) == 0.2
    svg = plot_svg([curve, perfect("bound", right)])
    assert svg == plot_svg([curve, perfect("bound", right)])
    assert "by hand (agrees on 100.0%)" in svg


def test_what_the_validation_walk_says_is_what_the_report_says() -> None:
    frozen = every_block(explored(), "knn")
    e = explored()
    options = [None if not here else e.option(here[0], e.threshold(here[0], 0.0)) for here in e.variants]
    assert frozen.report is not None
    assert frozen.report.expected_cost == walk(e.block_costs, options).cost


def test_public_names() -> None:
    assert sorted(package.__all__) == package.__all__
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError):
        package.nothing  # noqa: B018  # asking is the test


def test_choosing_and_drawing_need_no_torch() -> None:
    script = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'safetensors'):\n"
        "            raise ModuleNotFoundError(name + ' is not there')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import coe.freeze.compose, coe.freeze.thresholds, coe.freeze.curves\n"
        "from coe.errors import Unavailable\n"
        "try:\n"
        "    coe.freeze.freeze\n"
        "except Unavailable as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "pip install 'coe[torch]'" in done.stdout


def test_settings_are_the_papers() -> None:
    assert (Settings().width, Settings().clusters) == (1024, 200)
    assert SETTINGS.width < 1024
