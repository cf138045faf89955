"""A model as a chain of blocks: split by itself, by names, or as given; and checked to be the same function.

What happens between the blocks is left to others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from coe.errors import InvalidInput, Problem
from coe.freeze.parts import device_of

Blocks = Sequence[nn.Module] | Sequence[str] | None

_WHERE = "blocks"
_RESNET = ("conv1", "bn1", "relu", "maxpool", "layer1", "avgpool", "fc")


def split(model: nn.Module, blocks: Blocks = None) -> list[nn.Module]:
    """The model's blocks in order; each takes what the one before it returns, and the last returns logits.

    `blocks` may be the modules themselves, or names of submodules, several joined by ``+`` where they make up one block:
    ``["conv1+bn1+relu", "layer1.0", "layer1.1", "avgpool+flatten+fc"]`` (``flatten`` stands for `nn.Flatten()` where the
    model has no such submodule, as most call the function instead). By default an `nn.Sequential` is cut after each
    child that has parameters, and a residual network as torchvision builds it after its stem and each residual block.
    Raises `InvalidInput` for a model that needs to be told, for unknown names and for fewer than two blocks.
    """
    if blocks is None:
        found = _by_itself(model)
    elif all(isinstance(block, nn.Module) for block in blocks):
        found = list(blocks)
    else:
        found = [_named(model, str(block)) for block in blocks]
    if len(found) < 2:
        remedy = "an item can only leave between blocks; name them, one after the other"
        raise InvalidInput(Problem(_WHERE, "must be at least two", str(len(found)), remedy))
    return found


def _by_itself(model: nn.Module) -> list[nn.Module]:
    if isinstance(model, nn.Sequential):
        return _cut(list(model))
    if all(hasattr(model, name) for name in _RESNET):
        stages = [name for name, _ in model.named_children() if name.startswith("layer")]
        residual = [f"{stage}.{i}" for stage in stages for i in range(len(getattr(model, stage)))]
        return [_named(model, name) for name in ("conv1+bn1+relu+maxpool", *residual, "avgpool+flatten+fc")]
    rule = "must be given for a model that is neither an nn.Sequential nor a residual network as torchvision builds it"
    names = ", ".join(name for name, _ in model.named_children())
    raise InvalidInput(Problem(_WHERE, rule, type(model).__name__, f"its children: {names or 'none'}"))


def _cut(children: list[nn.Module]) -> list[nn.Module]:
    """Groups that end with a child that has parameters; what follows the last such child belongs to it."""
    groups: list[list[nn.Module]] = [[]]
    for child in children:
        groups[-1].append(child)
        if any(True for _ in child.parameters()):
            groups.append([])
    tail = groups.pop()
    if groups:
        groups[-1] += tail
    return [group[0] if len(group) == 1 else nn.Sequential(*group) for group in groups]


def _named(model: nn.Module, names: str) -> nn.Module:
    parts = [_submodule(model, name.strip()) for name in names.split("+")]
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)


def _submodule(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        if name == "flatten":
            return nn.Flatten()
        children = ", ".join(child for child, _ in model.named_children())
        remedy = f"its children: {children or 'none'}"
        raise InvalidInput(Problem(_WHERE, f"the model has no submodule '{name}'", remedy=remedy)) from None


def run(blocks: Sequence[nn.Module], items: Tensor) -> Tensor:
    """What the chain makes of a batch."""
    for block in blocks:
        items = block(items)
    return items


def check_same_function(model: nn.Module, blocks: Sequence[nn.Module], items: Tensor) -> None:
    """`InvalidInput` unless the chain of blocks and the model say the same about `items`, and say it in logits."""
    device = device_of(model)
    with torch.no_grad():
        expected = model(items.to(device))
        try:
            found = run(blocks, items.to(device))
        except (RuntimeError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InvalidInput(Problem(_WHERE, "do not fit one after the other", reason)) from error
    if getattr(expected, "ndim", 0) != 2:
        raise InvalidInput(Problem("model", "must return logits of shape (items, classes)", str(type(expected))))
    if found.shape != expected.shape or not _as_close_as_rounding(found, expected):
        remedy = "name every step of the model's forward, in order"
        raise InvalidInput(Problem(_WHERE, "must compute together what the model computes", remedy=remedy))


def _as_close_as_rounding(found: Tensor, expected: Tensor) -> bool:
    """Measured by how much the logits of different items differ, since a constant part says nothing."""
    spread = float((expected.amax(dim=0) - expected.amin(dim=0)).max())
    size = float(expected.abs().max())
    return float((found - expected).abs().max()) <= max(1e-3 * spread, 1e-6 * size)
