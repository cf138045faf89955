"""The frozen model: blocks with caches behind some of them, out of which items leave as soon as they hit.

What its probabilities mean. An item that runs to the end has the model's own softmax. An item that leaves early has, for
the cached label, the mean probability that the wrapped model gave that label over the validation items that left there,
and the rest in equal parts for the other classes. So on average the frozen model is as sure as the model it stands for,
but all items that leave at one cache are equally sure: a threshold on the score of a tier lets all of them pass or none.
Votes see only the label. In both cases calibrate on the frozen model's own predictions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from coe.errors import InvalidInput, Problem
from coe.freeze.blocks import run
from coe.freeze.caches import Cache, build
from coe.freeze.costs import Unit
from coe.freeze.parts import Part, device_of
from coe.freeze.parts import memory_bytes as bytes_of
from coe.types import Count, Fraction, NotNegative, Noun, Positive

MIB = 2**20


class BatchCost(Noun):
    """Of a block or a lookup, as `compose.Cost` has it: for each item that arrives, and for running at all."""

    per_item: Positive
    fixed: NotNegative


class CacheReport(Noun):
    """One cache that was kept."""

    after_block: Count
    """Counted from 0."""
    kind: str
    threshold: NotNegative
    probability: Fraction
    """What a hit gives to the cached label."""
    lookup_cost: BatchCost
    memory_bytes: Count
    left: Count
    """Validation items that leave here."""
    wrong: Count
    """Those of them that leave with a label other than the model's."""


class FrozenReport(Noun):
    """How a frozen model was made and what it did on its validation items. Costs are per item, in `unit`."""

    kind: Literal["frozen"] = "frozen"
    version: Literal[1] = 1
    unit: Unit
    block_costs: tuple[BatchCost, ...]
    caches: tuple[CacheReport, ...]
    validation_items: Count
    validation_errors: Count
    """Of the items that left; on these items the thresholds were chosen, so expect more elsewhere."""
    expected_cost: NotNegative
    full_cost: NotNegative
    bound: NotNegative
    """No composition of what was explored is cheaper within the budgets; 0 where nothing was searched."""
    proved: bool
    memory_bytes: Count

    @property
    def memory_mib(self) -> float:
        """Of all caches."""
        return self.memory_bytes / MIB


class Trace:
    """How a batch went through: per item log-probabilities (n, classes) and the block it left after (n,)."""

    def __init__(self, log_probabilities: Tensor, left_after: Tensor) -> None:
        self.log_probabilities = log_probabilities
        self.left_after = left_after

    @property
    def label(self) -> Tensor:
        """(n,) the answers."""
        return self.log_probabilities.argmax(dim=1)


class Frozen(Part):
    """Blocks with caches. Maps a batch to log-probabilities (n, classes); always in evaluation mode.

    `caches` maps the index of a block to the cache behind it. All there is to know about it beside the blocks is in its
    state dict, the configuration as JSON in the tensor `spec`: a frozen model without caches becomes any frozen model of
    the same blocks by `load_state_dict`.
    """

    spec: Tensor

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        caches: dict[int, Cache] | None = None,
        report: FrozenReport | None = None,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.caches = nn.ModuleDict({str(block): cache for block, cache in (caches or {}).items()})
        self.report = report
        self.classes = classes
        self.register_buffer("spec", self._spec())
        self.to(device_of(self.blocks)).eval()

    def forward(self, items: Tensor) -> Tensor:
        """Log-probabilities (n, classes) of items (n, *input_shape)."""
        return self.trace(items).log_probabilities

    def trace(self, items: Tensor) -> Trace:
        """Run block by block, let hits leave, and go on with the others as a smaller batch."""
        last = len(self.blocks) - 1
        waiting = torch.arange(len(items), device=items.device)
        left_after = torch.full((len(items),), last, device=items.device)
        answers: list[tuple[Tensor, Tensor]] = []
        with torch.no_grad():
            for i, block in enumerate(self.blocks):
                items = block(items)
                if str(i) not in self.caches:
                    continue
                cache = self.caches[str(i)]
                label, confidence = cache(items)
                hit = confidence > cache.threshold
                if not bool(hit.any()):
                    continue
                leaving = waiting[hit]
                left_after[leaving] = i
                answers.append((leaving, cache.log_probabilities(label[hit], self.classes)))
                items, waiting = items[~hit], waiting[~hit]
                if not len(waiting):
                    break
            if len(waiting) or not answers:
                answers.append((waiting, functional.log_softmax(items.float(), dim=1)))
            outputs = torch.empty(len(left_after), answers[0][1].shape[1], device=waiting.device)
            for rows, log_probabilities in answers:
                outputs[rows] = log_probabilities
        return Trace(outputs, left_after)

    def whole(self, items: Tensor) -> Tensor:
        """Logits (n, classes) of the wrapped model, without looking anything up."""
        with torch.no_grad():
            return run(self.blocks, items)

    def train(self, mode: bool = True) -> Frozen:
        """Stays in evaluation mode: caches of a model that goes on changing would answer for another model."""
        del mode
        super().train(False)
        return self

    @property
    def memory_bytes(self) -> int:
        """Of all caches."""
        return sum(bytes_of(cache) for cache in self.caches.values())

    # --- State: tensors, and the configuration as JSON in one of them ---

    def _spec(self) -> Tensor:
        facts = {
            "kind": "coe-frozen",
            "version": 1,
            "blocks": len(self.blocks),
            "classes": self.classes,
            "caches": {block: cache.config() for block, cache in self.caches.items()},
            "report": None if self.report is None else self.report.model_dump(mode="json"),
        }
        return torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Build the caches that the state dict's configuration names; torch then fills them."""
        spec = state_dict.get(prefix + "spec")
        if spec is not None:
            self._become(_facts(spec))
            self.spec = torch.zeros_like(spec, device=self.spec.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _become(self, facts: dict[str, Any]) -> None:
        if facts["blocks"] != len(self.blocks):
            found = f"{len(self.blocks)} blocks, and the weights are of {facts['blocks']}"
            raise InvalidInput(Problem("frozen model", "must have the blocks it was made from", found))
        device = device_of(self.blocks)
        self.classes = int(facts["classes"])
        self.caches = nn.ModuleDict({block: build(config).to(device) for block, config in facts["caches"].items()})
        self.report = None if facts["report"] is None else FrozenReport.model_validate_json(json.dumps(facts["report"]))


def _facts(spec: Tensor) -> dict[str, Any]:
    """The JSON in a `spec` tensor; `InvalidInput` for anything else."""
    try:
        facts = json.loads(bytes(spec.cpu().to(torch.uint8).tolist()).decode())
        known = facts["kind"] == "coe-frozen" and facts["version"] == 1
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(Problem("frozen model", "the configuration in the weights is damaged", str(error))) from None
    if not known:
        raise InvalidInput(Problem("frozen model", "must be of kind coe-frozen, version 1", str(facts)[:80]))
    return dict(facts)
