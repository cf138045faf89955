"""A member that is a torch module: a factory from the user's code, weights from a safetensors file.

Code never comes from a pickle. The module maps a batch (n, *input_shape) to logits (n, classes). It runs on the GPU
where there is one, and otherwise on one CPU thread, so that a replica uses what it was given and no more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from coe.errors import InvalidInput, Problem, Unavailable
from coe.runners.base import Batch, imported, resolved
from coe.types import Member, Pool, Probabilities

try:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file
except ImportError as error:
    raise Unavailable(f"runner 'torch' needs torch and safetensors ({error}): pip install 'coe[torch]'") from error

GIB = 2**30


class TorchRunner:
    """Calls ``factory(**options)``, loads the weights into what it returns, and applies softmax to its logits."""

    def __init__(self, member: Member, pool: Pool, base_dir: Path) -> None:
        del pool  # the number of classes is checked on the outputs
        self._member = member
        self._base_dir = base_dir
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._module: Any = None

    def load(self) -> None:
        """Build the module and load its weights; `InvalidInput` where the two do not fit."""
        torch.set_num_threads(1)
        module = self._built()
        if self._member.weights is not None:
            self._load_weights(module, resolved(self._member.weights, self._base_dir))
        self._module = module.to(self._device).eval()

    def _built(self) -> Any:
        factory = imported(self._member, self._base_dir)
        try:
            module = factory(**self._member.options)
        except TypeError as error:
            raise self._invalid(f"{self._member.model} does not take its options", str(error)) from error
        if not isinstance(module, torch.nn.Module):
            raise self._invalid(f"{self._member.model} must return a torch.nn.Module", type(module).__name__)
        return module

    def _load_weights(self, module: Any, path: Path) -> None:
        try:
            module.load_state_dict(load_file(path))
        except FileNotFoundError:
            raise self._invalid(f"the weights {path} do not exist", remedy="train the model, or fix the path") from None
        except (SafetensorError, OSError) as error:
            raise self._invalid(f"the weights {path} are not a safetensors file", str(error)) from error
        except RuntimeError as error:  # what torch raises for missing, unexpected and misshapen tensors
            found = " ".join(str(error).split())[:300]
            raise self._invalid(f"the weights {path} do not fit {self._member.model}", found) from error

    def _invalid(self, rule: str, found: str = "", remedy: str = "") -> InvalidInput:
        return InvalidInput(Problem(f"member '{self._member.name}'", rule, found, remedy))

    def predict(self, batch: Batch) -> Probabilities:
        """Softmax over the logits; floating point items are fed as float32, whole numbers as they are."""
        assert self._module is not None, "load() comes first"
        items = np.asarray(batch)
        # a copy, since torch does not take read-only arrays
        inputs = torch.tensor(items.astype(np.float32, copy=False) if items.dtype.kind == "f" else items)
        with torch.inference_mode():
            logits = self._module(inputs.to(self._device))
            if logits.ndim != 2:
                raise self._invalid("must return logits of shape (items, classes)", str(tuple(logits.shape)))
            probabilities: Probabilities = torch.softmax(logits.float(), dim=1).cpu().numpy()
        return probabilities

    def close(self) -> None:
        """Let go of the module and of the memory it took."""
        self._module = None
        if self._device == "cuda":
            torch.cuda.empty_cache()

    def memory_gib(self) -> float:
        """On a GPU the most that torch has reserved; on a CPU the weights and buffers, without activations."""
        if self._device == "cuda":
            return float(torch.cuda.max_memory_reserved()) / GIB
        if self._module is None:
            return 0.0
        tensors = [*self._module.parameters(), *self._module.buffers()]
        return float(sum(t.numel() * t.element_size() for t in tensors)) / GIB
