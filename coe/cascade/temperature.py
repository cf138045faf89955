"""Temperatures that make members' probabilities comparable before they are averaged (Guo et al. 2017, arXiv 1706.04599).

A member that is overconfident outvotes a modest one in every mean; one temperature each, fitted on labelled items, puts
them on one scale. Answers do not change, scores and ties do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from scipy.optimize import minimize_scalar

from coe.cascade.beliefs import given_to, need_probabilities, rest, tempered
from coe.table import Outputs, PredictionTable

_LOWEST, _HIGHEST = 0.2, 5.0
_FLOOR = 1e-12


def fitted_temperatures(sample: PredictionTable) -> dict[str, float]:
    """Member -> the temperature of least negative log-likelihood of the labels, between 0.2 and 5.

    Where a label is not among the known probabilities its share of the rest counts, evenly spread. Raises `InvalidInput`
    where members only answer.
    """
    need_probabilities(sample.outputs(sample.members), "temperature")
    return {m: round(_fitted(sample.outputs((m,)), sample), 4) for m in sample.members}


def _fitted(outputs: Outputs, sample: PredictionTable) -> float:
    voted = outputs.answers[:, 0] >= 0
    outputs, labels = outputs.rows(voted), sample.labels[voted]
    if not len(labels):
        return 1.0
    assert outputs.probs is not None
    others = max(len(sample.classes) - outputs.probs.shape[2], 1)

    def loss(log_temperature: float) -> float:
        scaled = tempered(outputs, (float(np.exp(log_temperature)),))
        given = given_to(scaled, labels)[:, 0]
        listed = given > 0
        p = np.where(listed, given, rest(scaled)[:, 0] / others)
        return float(-np.log(np.maximum(p, _FLOOR)).mean())

    found = minimize_scalar(loss, bounds=(np.log(_LOWEST), np.log(_HIGHEST)), method="bounded", options={"xatol": 1e-3})
    return float(np.exp(found.x))


def tempered_table(table: PredictionTable, temperatures: Mapping[str, float]) -> PredictionTable:
    """The table as a cascade with these temperatures reads it."""
    if not temperatures or table.probs is None:
        return table
    scaled = tempered(table.outputs(table.members), [temperatures.get(m, 1.0) for m in table.members])
    return replace(table, probs=scaled.probs)
