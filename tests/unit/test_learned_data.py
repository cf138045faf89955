"""Gates on recorded top-5 outputs of ImageNet models: what is chosen on one part holds, within chance, on another."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from coe.cascade.evaluate import evaluate
from coe.learned.stages import cascade_of, cheapest_within, deployed, stages_of

pytest.importorskip("torch")

from benchmarks.learned import chain_of, imagenet  # needs torch
from coe.learned import gates
from coe.learned.methods import one_thread
from coe.learned.stopping import Settings

DATA = Path(os.environ.get("COE_DATA", Path(__file__).parents[2].parent / "shared" / "data")) / "vision_imagenet"
CHAIN = ("keras/mobilenetV2", "pytorch/resnet152")


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no recorded ImageNet outputs in {DATA}")
def test_a_gate_on_half_known_probabilities_saves_cost_and_keeps_its_accuracy(tmp_path: Path) -> None:
    table, costs = imagenet(DATA, CHAIN, quick=True)
    shape = chain_of(CHAIN)
    train, select = (stages_of(shape, table.split(s), costs) for s in ("train", "calibration"))
    with one_thread():
        gate = gates.train(train, 0.0, objective="cross_entropy", settings=Settings(steps=100))
    bars = np.linspace(0, 1, 101).tolist()
    found = gates.bar_sweep(gate, select, bars)
    number = cheapest_within(found, float(select.accuracy[-1]), 0.01)
    assert number is not None
    cascade = cascade_of(gate, shape, table.split("train"), tmp_path, bar=bars[number])
    assert cascade.top_k == 5
    report = table.split("test")
    stats = evaluate(cascade, report)
    last = stages_of(shape, report, costs).accuracy[-1]
    assert deployed(gate, stages_of(shape, report, costs), bars[number]).accuracy == stats.accuracy
    assert stats.reach[1] < 0.7
    # 1,500 items: the standard error of a difference in accuracy is below one point
    assert stats.accuracy > 0.99 * last - 0.03
