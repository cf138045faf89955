"""What runs a model: a small protocol, the known runners, and the fingerprint of what a runner runs.

A runner turns a batch of items into probabilities over the pool's classes. `RUNNERS` maps the `runner` of a member to a
factory; a dotted path ``package.module:Class`` names anybody else's, called as ``Class(member, pool, base_dir)``. Every
runner that `make_runner` returns is wrapped in `Checked`, so that a wrong shape or a NaN stops at the member that made
it. Deciding, pacing and timing are left to others.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from coe.errors import InvalidInput, Problem
from coe.plugins import import_path, resolve
from coe.types import IntArray, Member, Pool, Probabilities, Tokens

Batch = NDArray[Any]


class Runner(Protocol):
    """A model that can be loaded, asked and closed. `load` comes first, and construction costs nothing."""

    def load(self) -> None:
        """Read weights and get ready to answer."""

    def predict(self, batch: Batch) -> Probabilities:
        """Probabilities (n, classes) float32 of a batch (n, *input_shape)."""

    def close(self) -> None:
        """Free what `load` took."""

    def memory_gib(self) -> float:
        """Accelerator memory that the loaded model needs."""


@dataclass(frozen=True)
class Said:
    """Answers to a batch, and what they are billed by.

    probs: (n, classes); a row of NaN is no answer, a missing vote, and a row of zeros an output that holds no answer.
    tokens: (n, 2) prompt and completion tokens, or None where nobody counts them.
    """

    probs: Probabilities
    tokens: Tokens | None = None


@runtime_checkable
class Asking(Protocol):
    """A runner whose members may stay silent about an item, and may be billed by token: language models."""

    def ask(self, batch: Batch) -> Said:
        """As `Runner.predict`, with rows of NaN and of zeros, and with tokens."""


Factory = Callable[[Member, Pool, Path], Runner]


def _torch(member: Member, pool: Pool, base_dir: Path) -> Runner:
    from coe.runners.torch_runner import TorchRunner

    return TorchRunner(member, pool, base_dir)


def _table(member: Member, pool: Pool, base_dir: Path) -> Runner:
    from coe.runners.table import TableRunner

    return TableRunner(member, pool, base_dir)


def _onnx(member: Member, pool: Pool, base_dir: Path) -> Runner:
    from coe.runners.onnx_runner import OnnxRunner

    return OnnxRunner(member, pool, base_dir)


def _openai(member: Member, pool: Pool, base_dir: Path) -> Runner:
    from coe.runners.openai_runner import OpenAIRunner

    return OpenAIRunner(member, pool, base_dir)


def _callable(member: Member, pool: Pool, base_dir: Path) -> Runner:
    from coe.runners.callable import CallableRunner

    return CallableRunner(member, pool, base_dir)


RUNNERS: dict[str, Factory] = {
    "torch": _torch,
    "onnx": _onnx,
    "callable": _callable,
    "openai": _openai,
    "table": _table,
}


def blank_batch(pool: Pool, size: int) -> Batch:
    """A batch (size, *input_shape) of items that mean nothing: zeros, or a word each."""
    shape = (size, *pool.input_shape)
    return np.full(shape, "word") if pool.is_text else np.zeros(shape, dtype=np.float32)


def row_numbers(batch: Batch, rows: int, where: str) -> IntArray:
    """(n,) row numbers below `rows` from a batch (n, 1) of them. Raises `InvalidInput` for anything else."""
    numbers = np.asarray(batch, dtype=np.float64).reshape(len(batch), -1)
    if numbers.shape[1] != 1:
        rule = "takes one row number per item, so the pool's input_shape is [1]"
        raise InvalidInput(Problem(where, rule, f"a batch of shape {np.shape(batch)}"))
    column = numbers[:, 0]
    bad = ~(np.isfinite(column) & (column >= 0) & (column < rows) & (column == np.floor(column)))
    if bad.any():
        raise InvalidInput(Problem(where, f"row numbers must be whole and in 0..{rows - 1}", str(column[bad.argmax()])))
    return column.astype(np.int64)


def make_runner(member: Member, pool: Pool, base_dir: Path) -> Checked:
    """The runner of a member, not yet loaded; its outputs are checked.

    `base_dir` is the folder of the pool file: weights are relative to it, and modules beside it can be imported.
    Raises `InvalidInput` for an unknown runner and for what the runner refuses about the member.
    """
    make_importable(base_dir)
    factory = resolve(member.runner, RUNNERS, "runner")
    return Checked(factory(member, pool, base_dir), member.name, len(pool.classes))


class Checked:
    """A runner whose outputs are what the protocol says, or an `InvalidInput` that names the member."""

    def __init__(self, runner: Runner, member: str, classes: int) -> None:
        self._runner = runner
        self._member = member
        self._classes = classes
        self.only_answers = isinstance(runner, Asking)
        """True where its probabilities are certainties, and a row may be silent."""

    def load(self) -> None:
        self._runner.load()

    def predict(self, batch: Batch) -> Probabilities:
        """As the runner, and checked: shape (n, classes), finite, not negative, rows that sum to 1 within 0.001.

        Of an `Asking` runner, rows that are all NaN or all zeros pass too.
        """
        return self.ask(batch).probs

    def ask(self, batch: Batch) -> Said:
        """As `predict`, with the tokens of a runner that counts them."""
        said = self._runner.ask(batch) if isinstance(self._runner, Asking) else Said(self._runner.predict(batch))
        outputs = np.asarray(said.probs)
        problem = _output_problem(outputs, (len(batch), self._classes), self.only_answers)
        if problem is not None:
            rule, found, remedy = problem
            raise InvalidInput(Problem(f"member '{self._member}'", rule, found, remedy))
        return Said(outputs.astype(np.float32, copy=False), said.tokens)

    def close(self) -> None:
        self._runner.close()

    def memory_gib(self) -> float:
        return self._runner.memory_gib()


def _output_problem(outputs: NDArray[Any], shape: tuple[int, int], may_be_silent: bool) -> tuple[str, str, str] | None:
    """Rule, what was found and remedy, where outputs are not probabilities of that shape; silent rows are NaN or zeros."""
    if outputs.shape != shape:
        return f"must return shape {shape}: items, classes", str(outputs.shape), "check the last layer and the pool"
    if outputs.dtype.kind != "f":
        return "must return floating point probabilities", str(outputs.dtype), "return float32"
    total = outputs.sum(axis=1, dtype=np.float64)
    silent = (np.isnan(outputs).all(axis=1) | ~outputs.any(axis=1)) & may_be_silent
    for rule, bad, remedy in (
        ("must not return NaN or infinity", ~np.isfinite(outputs).all(axis=1), "look at the inputs and the weights"),
        ("must not return negative probabilities", (outputs < 0).any(axis=1), "apply softmax"),
        ("must return rows that sum to 1 (within 0.001)", ~(np.abs(total - 1) <= 1e-3), "apply softmax"),
    ):
        bad = bad & ~silent
        if bad.any():
            row = int(bad.argmax())
            return rule, f"{outputs[row].tolist()[:4]}… in row {row} of {len(outputs)}", remedy
    return None


# --- Code and files of the user ---------------------------------------------------------------------------------------


def resolved(path: str, base_dir: Path) -> Path:
    """A path of a pool file, which is relative to the pool file."""
    return base_dir / Path(path).expanduser()


_importable: list[str] = []
"""Folders that `make_importable` has added, the current one last."""


def make_importable(base_dir: Path) -> None:
    """Put a folder first on the import path, so that `models.py` beside the pool file is the one imported.

    Modules of a folder that was added before, and which this folder has too, are forgotten: two pools may each have
    their own `models.py` in one process.
    """
    if not base_dir.is_dir():
        raise InvalidInput(Problem(str(base_dir), "is not a folder here", remedy="it holds the pool file and its code"))
    folder = str(base_dir.resolve())
    if sys.path[:1] == [folder]:
        return
    if folder in sys.path:
        sys.path.remove(folder)
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    earlier = [f for f in _importable if f != folder]
    own = {path.stem for path in base_dir.iterdir() if path.suffix == ".py" or path.is_dir()} if earlier else set()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and name.partition(".")[0] in own and _is_in(file, earlier) and not _is_in(file, [folder]):
            del sys.modules[name]
    _importable[:] = [*earlier, folder]


def _is_in(file: str, folders: list[str]) -> bool:
    path = Path(file).resolve()
    return any(path.is_relative_to(folder) for folder in folders)


def imported(member: Member, base_dir: Path) -> Callable[..., Any]:
    """The factory or function that `member.model` names; `InvalidInput` where there is none."""
    if ":" not in member.model:
        found = f"'{member.model}'" if member.model else "nothing"
        rule = f"runner '{member.runner}' needs `model`, an import path like package.module:name"
        raise InvalidInput(Problem(f"member '{member.name}'", rule, found))
    make_importable(base_dir)
    return import_path(member.model, f"model of member '{member.name}'")


def fingerprint(member: Member, base_dir: Path) -> str:
    """SHA-256 of what decides a member's answers: runner, model, options, and the bytes of weights and source files.

    The source files are the module of `model` and that of a runner given by dotted path; what those import in turn is
    not followed. The predictions that a table member replays count as its weights.
    """
    make_importable(base_dir)
    digest = hashlib.sha256()
    facts = [member.runner, member.model, member.options]
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for path in _files(member, base_dir):
        content = _content(path, member)
        digest.update(str(len(content)).encode() + b":" + content)
    return digest.hexdigest()


def weight_files(member: Member, base_dir: Path) -> list[Path]:
    """The weights, and for an ONNX graph the external data beside it: ``model.onnx.data``, ``model.onnx_data``."""
    if not member.weights:
        return []
    path = resolved(member.weights, base_dir)
    beside = [path.with_name(path.name + ending) for ending in (".data", "_data")] if member.runner == "onnx" else []
    return [path, *(p for p in beside if p.is_file())]


def _files(member: Member, base_dir: Path) -> list[Path]:
    """Weights, replayed predictions and source files of a member, in that order."""
    paths = weight_files(member, base_dir)
    if member.runner == "table" and "predictions" in member.options:
        paths.append(resolved(str(member.options["predictions"]), base_dir))
    if member.runner == "openai" and member.options.get("items_file"):
        paths.append(resolved(str(member.options["items_file"]), base_dir))
    modules = [path.partition(":")[0] for path in (member.model, member.runner) if ":" in path]
    specs = [_spec(module, member) for module in modules]
    return paths + [Path(s.origin) for s in specs if s.has_location and s.origin]


def _spec(module: str, member: Member) -> ModuleSpec:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise InvalidInput(Problem(f"member '{member.name}'", f"module {module} cannot be found", str(error))) from None
    if spec is None:
        remedy = "is it beside the pool file, or installed?"
        raise InvalidInput(Problem(f"member '{member.name}'", f"module {module} cannot be found", remedy=remedy))
    return spec


def _content(path: Path, member: Member) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(Problem(f"member '{member.name}'", f"{path} cannot be read", error.strerror or "")) from None
