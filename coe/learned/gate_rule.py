"""A trained gate as a deferral rule: numpy alone, from a safetensors file, without pickle and without torch.

A tier of a cascade file names its gate by file and, so that a certificate holds for these weights and no others, by the
first digits of the file's SHA-256:

    tiers:
    - members: [small]
      rule: gate:gates/small.safetensors#3f9a61c20b7d4e85
      threshold: 0.5

The file is looked for in the working directory and then on the import path, as the module of a dotted rule would be.
The score is the gate's probability that the tier should answer: 1 - h for an IDK gate and pi for a stop policy, so
`threshold: 0.5` hardens either as its paper does, and any other threshold, calibrated and certified, is as valid as for
every rule.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from coe.cascade.rules import Rule, Scored, rule_of, score, vote
from coe.errors import InvalidInput, Problem, Stale, Unavailable
from coe.files import dotted, write_atomically
from coe.learned.features import matrix
from coe.table import Outputs, PredictionTable
from coe.types import MISSING_VOTE, Cascade, FloatArray, IntArray, Noun

HARD = 0.5
"""Both papers harden their gates here."""

SCHEME = "gate"
DIGITS = 16
"""Of the SHA-256 in a rule's name."""

Layer = tuple[FloatArray, FloatArray]
"""Weight (outputs, inputs) and bias (outputs,)."""


@dataclass(frozen=True, eq=False)
class Gate:
    """A small network over the features of one tier: standardise, tanh layers, one log-odds of answering.

    features: names for `coe.learned.features.matrix`.      mean, scale: (columns,) of the training items.
    layers: weight and bias each, the last with one output.
    members: how many outputs it was trained on, carried ones included; None for any number.
    classes: how many it was trained with, 0 for members that only answer; None for any form of output.
    top_k: how many of the classes each output lists; None for all.
    method, trade: how it was trained, and the price of cost in units of loss (lambda or alpha).
    """

    features: tuple[str, ...]
    mean: FloatArray
    scale: FloatArray
    layers: tuple[Layer, ...]
    members: int | None = None
    classes: int | None = None
    top_k: int | None = None
    method: str = ""
    trade: float = 0.0
    where: str = "gate"
    """What errors call it."""
    seen: IntArray | None = None
    """Hashes (see `hashes`) of the items it was trained on; None where nobody wrote them down."""

    def __post_init__(self) -> None:
        width = len(self.mean)
        if self.scale.shape != self.mean.shape or self.mean.ndim != 1 or not (self.scale > 0).all():
            raise ValueError(f"mean {self.mean.shape} and scale {self.scale.shape} must be alike, and scale positive")
        for weight, bias in self.layers:
            if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
                raise ValueError(f"a layer of weight {weight.shape} and bias {bias.shape} does not take {width} inputs")
            width = len(bias)
        if width != 1 or not self.layers:
            raise ValueError("the last layer must have one output")
        for array in (self.mean, self.scale, *(a for layer in self.layers for a in layer)):
            if not np.isfinite(array).all():
                raise ValueError("a gate must hold finite numbers only")
            array.flags.writeable = False

    def log_odds(self, outputs: Outputs) -> FloatArray:
        """(items,): log-odds that the tier should answer; `InvalidInput` for a tier of another form."""
        self._check(outputs)
        x = (matrix(outputs, self.features) - self.mean) / self.scale
        for weight, bias in self.layers[:-1]:
            x = np.tanh(x @ weight.T + bias)
        weight, bias = self.layers[-1]
        result: FloatArray = (x @ weight.T + bias)[:, 0]
        return result

    def __call__(self, outputs: Outputs) -> Scored:
        """The rule: plurality answer, and as score the probability that the tier should answer.

        An item with a missing vote scores 0 and is not certain: the gate was trained on complete votes, and what the
        missing one would have made of the features is anybody's guess.
        """
        whole = (outputs.answers != MISSING_VOTE).all(axis=1)
        answer = answering(outputs)(outputs).answer
        value = np.where(whole, sigmoid(self.log_odds(outputs)), 0.0)
        return Scored(answer, value, whole, np.where(whole, value, 1.0))

    def _check(self, outputs: Outputs) -> None:
        members = outputs.answers.shape[1]
        if self.members not in (None, members):
            raise self._misfit(f"was trained on the outputs of {self.members} members", f"{members}")
        if self.classes is not None and (self.classes, self.top_k) != (found := form(outputs)):
            trained = _form_in_words(self.classes, self.top_k)
            raise self._misfit(f"was trained on {trained}", _form_in_words(*found))

    def _misfit(self, rule: str, found: str) -> InvalidInput:
        return InvalidInput(Problem(self.where, rule, found, "train a gate for this tier"))


def answering(outputs: Outputs) -> Rule:
    """The rule by which a gated tier finds its answer: by votes, ties by probability where there are any."""
    return vote if outputs.probs is None else score


def form(outputs: Outputs) -> tuple[int, int | None]:
    """Classes and top_k as a `Gate` records them."""
    if outputs.probs is None:
        return 0, None
    if outputs.top is None:
        return outputs.probs.shape[2], None
    return outputs.classes, outputs.top.shape[2]


def _form_in_words(classes: int, top_k: int | None) -> str:
    if classes == 0:
        return "answers without probabilities"
    return f"{f'the {top_k} most probable' if top_k is not None else 'all'} of {classes} classes"


def sigmoid(x: FloatArray) -> FloatArray:
    """1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


# --- Files ------------------------------------------------------------------------------------------------------------


class _About(Noun):
    """What a gate file says of itself, beside its tensors."""

    kind: Literal["coe-gate"] = "coe-gate"
    version: Literal[1] = 1
    features: tuple[str, ...]
    members: int | None
    classes: int | None
    top_k: int | None
    method: str
    trade: float


def save(path: str | Path, gate: Gate) -> str:
    """Write a gate and return the rule by which a tier names it: ``gate:PATH#DIGEST``.

    Raises `InvalidInput` where the folder does not exist, `Unavailable` without safetensors.
    """
    tensors = {"mean": gate.mean, "scale": gate.scale}
    for number, (weight, bias) in enumerate(gate.layers):
        tensors |= {f"weight{number}": weight, f"bias{number}": bias}
    about = _About(**{name: getattr(gate, name) for name in _About.model_fields if hasattr(gate, name)})
    # one metadata key: the format leaves the order of several open, and the digest must not vary
    arrays: dict[str, Any] = {n: np.ascontiguousarray(array, dtype=np.float64) for n, array in tensors.items()}
    if gate.seen is not None:
        arrays["seen"] = np.ascontiguousarray(gate.seen, dtype=np.int64)
    content: bytes = _safetensors().save(arrays, metadata={"coe": about.model_dump_json()})
    write_atomically(path, lambda file: file.write(content))
    return f"{SCHEME}:{Path(path).as_posix()}#{_digest(content)}"


def load(argument: str) -> Rule:
    """The rule of a gate file, ``PATH#DIGEST``; read once, and again when the file changes.

    Raises `InvalidInput` without a digest and where there is no such file or it is no gate, `Stale` where its content is
    not what the digest says, `Unavailable` without safetensors.
    """
    name, _, digest = argument.rpartition("#")
    if not name:
        name, digest = argument, ""
    path = located(name)
    state = path.stat()
    return _loaded(path, digest, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=256)
def _loaded(path: Path, digest: str, _mtime_ns: int, _size: int) -> Gate:
    content = path.read_bytes()
    true = _digest(content)
    if not digest:
        remedy = f"write {SCHEME}:{path}#{true}"
        raise InvalidInput(Problem(f"gate {path}", "must be named with its digest", "none", remedy))
    if digest != true:
        remedy = "calibrate and certify a cascade with the new gate, or bring the old file back"
        raise Stale(Problem(f"gate {path}", f"must be the file whose SHA-256 starts with {digest}", true, remedy))
    return _parsed(content, str(path))


def read(path: str | Path) -> Gate:
    """The gate in a file, whatever its digest."""
    return _parsed(located(str(path)).read_bytes(), str(path))


def _parsed(content: bytes, where: str) -> Gate:
    safetensors = _safetensors()
    try:
        tensors: dict[str, Any] = safetensors.load(content)
        length = int.from_bytes(content[:8], "little")
        # the header: eight bytes of length, little endian, and then JSON
        text = json.loads(content[8 : 8 + length]).get("__metadata__", {}).get("coe", "{}")
    except Exception as error:  # safetensors raises its own family, which is only there with it
        raise InvalidInput(Problem(f"gate {where}", "is not a safetensors file", str(error))) from None
    try:
        about = _About.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        found = f"{dotted(first['loc'])}: {first['msg']}" if first["loc"] else first["msg"]
        raise InvalidInput(Problem(f"gate {where}", "must be a gate of ours, version 1", found)) from None
    try:
        return Gate(
            mean=tensors["mean"],
            scale=tensors["scale"],
            layers=tuple(_layers(tensors)),
            where=f"gate {where}",
            seen=tensors.get("seen"),
            **about.model_dump(exclude={"kind", "version"}),
        )
    except (KeyError, ValueError) as error:
        raise InvalidInput(Problem(f"gate {where}", "is not a whole gate", str(error))) from None


def _layers(tensors: dict[str, Any]) -> Iterator[Layer]:
    number = 0
    while f"weight{number}" in tensors:
        yield tensors[f"weight{number}"], tensors[f"bias{number}"]
        number += 1


def hashes(items: NDArray[np.str_]) -> IntArray:
    """(items,) rising: 64 bits of the hash of every item id, enough to know an item again."""
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in items.tolist()]
    return np.sort(np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64))


def seen_in(cascade: Cascade, table: PredictionTable) -> int:
    """How many items of the table a gate of the cascade was trained on."""
    here = hashes(table.items)
    gates = [rule_of(tier) for tier in cascade.tiers if tier.rule.startswith(f"{SCHEME}:")]
    known = [g.seen for g in gates if isinstance(g, Gate) and g.seen is not None]
    return int(np.isin(here, np.concatenate(known)).sum()) if known else 0


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGITS]


def located(name: str) -> Path:
    """The file of a gate, in the working directory or in a folder of the import path; `InvalidInput` where it is not."""
    given = Path(name).expanduser()
    for folder in dict.fromkeys(["", *sys.path]):
        if (Path(folder) / given).is_file():
            return Path(folder) / given
    remedy = "train it, or start where the path leads to it; on a cluster every node needs the file"
    raise InvalidInput(
        Problem(f"gate '{name}'", "is not in the working directory nor on the import path", remedy=remedy)
    )


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise Unavailable(f"gates are kept in safetensors files ({error}): pip install 'coe[torch]'") from error
    return safetensors.numpy
