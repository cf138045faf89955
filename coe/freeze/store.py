"""A frozen model in one safetensors file, and as a member of a pool. Nothing is pickled, and no code is in the file.

The file holds the blocks' and caches' tensors, and the configuration and report as JSON in the tensor `spec`. The code of
the wrapped model comes from where all code of a pool comes from: a factory that the pool file names.

    - name: residual-96-frozen
      model: coe.freeze:load_frozen
      weights: weights/residual-96-frozen.safetensors
      options: {base: "deployments.digits.members:residual_conv", base_options: {channels: 96, blocks: 4}}

The service time of such a member depends on how many items leave early: profile it with real items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors import torch as tensors
from torch import nn

from coe.errors import InvalidInput, Problem
from coe.files import write_atomically
from coe.freeze.blocks import Blocks, split
from coe.freeze.wrap import Frozen
from coe.plugins import import_path


def load_frozen(
    base: str, base_options: Mapping[str, Any] | None = None, blocks: Sequence[str] | None = None
) -> Frozen:
    """A frozen model without caches, which loading weights of one saved by `save` completes.

    `base` is the import path of the wrapped model's factory and `base_options` its keyword arguments; `blocks` are the
    names that were given to `freeze`, None where it found them by itself.
    """
    factory: Callable[..., object] = import_path(base, "base of a frozen model")
    model = factory(**(base_options or {}))
    if not isinstance(model, nn.Module):
        raise InvalidInput(Problem(f"base '{base}'", "must return a torch.nn.Module", type(model).__name__))
    return Frozen(split(model, blocks))


def save(path: str | Path, frozen: Frozen) -> None:
    """Write a frozen model; `InvalidInput` where the folder does not exist."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in frozen.state_dict().items()}
    content = tensors.save(state)
    write_atomically(path, lambda file: file.write(content))


def load(path: str | Path, model: nn.Module, blocks: Blocks = None) -> Frozen:
    """The frozen model in a file, around a model of the same architecture, whose weights are replaced by the file's.

    Raises `InvalidInput` for a file that cannot be read or that was made from another model or other blocks.
    """
    frozen = Frozen(split(model, blocks))
    try:
        state = tensors.load(Path(path).read_bytes())
        if "spec" not in state:
            raise InvalidInput(Problem(str(path), "is not a frozen model: it has no `spec`"))
        frozen.load_state_dict(state)
    except OSError as error:
        raise InvalidInput(Problem(str(path), "cannot be read", error.strerror or str(error))) from None
    except SafetensorError as error:
        raise InvalidInput(Problem(str(path), "is not a safetensors file", str(error))) from None
    except RuntimeError as error:  # torch's word for missing, unexpected and misshapen tensors
        found = " ".join(str(error).split())[:300]
        raise InvalidInput(Problem(str(path), "does not fit the model and its blocks", found)) from None
    return frozen
