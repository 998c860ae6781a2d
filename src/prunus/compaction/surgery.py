"""Making a model smaller as a plan says."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import nn

from prunus.compaction.analysis import Plan, Resize
from prunus.compaction.attention import SmallerAttention
from prunus.compaction.selecting import SELECTING

__all__ = ["exchange", "operate", "readings"]

_SIZES: dict[type[nn.Module], dict[str, tuple[str, int]]] = {
    nn.Linear: {"out_features": ("weight", 0), "in_features": ("weight", 1)},
    nn.modules.batchnorm._NormBase: {"num_features": ("running_mean", 0)},
    nn.Embedding: {"embedding_dim": ("weight", 1)},
    nn.PReLU: {"num_parameters": ("weight", 0)},
}
"""Of modules that write down the sizes of their tensors: which attribute is which size."""

_COUNTS = re.compile(r"head|num_features", re.IGNORECASE)
_PLAIN_SIZES = re.compile(r"dim|size|width", re.IGNORECASE)


def readings(model: nn.Module, resizes: Sequence[Resize]) -> Iterator[frozenset[str]]:
    """Yield which numbers that modules write down may be sizes that change, likely ones first.

    Args:
        model: The model as it was.
        resizes: The sizes that change.

    Yields:
        Names of attributes.
    """
    written = [
        name
        for resize in resizes
        for name, value in vars(model.get_submodule(resize.module)).items()
        if type(value) is int and value == resize.before
    ]
    names = list(dict.fromkeys(written))
    likely = [name for name in names if _COUNTS.search(name) and not _PLAIN_SIZES.search(name)]
    # If numbers that are equal by chance are meant differently, one of them alone may do.
    yield from dict.fromkeys(frozenset(some) for some in (likely, names, *([n] for n in names)))


def operate(model: nn.Module, plan: Plan, sizes: Collection[str]) -> None:
    """Make a model smaller, in place.

    Args:
        model: The model.
        plan: What to do.
        sizes: Attributes of modules that are sizes which change.
    """
    changed = exchange(model, lambda name, old: _smaller(old, plan, name))
    for name, added in plan.created.items():
        layer = model.get_submodule(name)
        weight: torch.Tensor = layer.weight  # type: ignore[assignment]
        rows = plan.kept.get(plan.aliases[f"{name}.weight".lstrip(".")], {}).get(0)
        bias = added if rows is None else added[rows]
        layer.bias = nn.Parameter(
            bias.to(weight.dtype).to(weight.device), requires_grad=weight.requires_grad
        )
    for name, selected in plan.selected.items():
        layer = model.get_submodule(name)
        layer.__class__ = SELECTING[type(layer)]
        layer.register_buffer("selected", selected.to(layer.weight.device))  # type: ignore[arg-type]
    for module in changed:
        _note_sizes(module)
    _resize(model, plan.resizes, sizes)


def exchange(
    model: nn.Module, made_of: Callable[[str, torch.Tensor], torch.Tensor]
) -> set[nn.Module]:
    """Put other tensors in the place of a model's own; tied ones stay tied, parameters parameters.

    Args:
        model: The model.
        made_of: Returns what shall take a tensor's place, given its first name and it; itself for
            no change.

    Returns:
        The modules that hold another tensor now.
    """
    names: dict[int, str] = {}
    tensors = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    for name, tensor in tensors:
        names.setdefault(id(tensor), name)
    made: dict[int, torch.Tensor] = {}
    changed: set[nn.Module] = set()
    for module in list(model.modules()):
        for held in (module._parameters, module._buffers):
            for own, old in list(held.items()):
                if old is None:
                    continue
                if id(old) not in made:
                    new = made_of(names[id(old)], old)
                    if new is not old and isinstance(old, nn.Parameter):
                        new = nn.Parameter(new, requires_grad=old.requires_grad)
                    made[id(old)] = new
                if made[id(old)] is not old:
                    setattr(module, own, made[id(old)])
                    changed.add(module)
    return changed


def _smaller(old: torch.Tensor, plan: Plan, name: str) -> torch.Tensor:
    data = old.detach()
    if (added := plan.biases.get(name)) is not None:
        data = (data.double() + added.to(data.device)).to(data.dtype)
    for dim, kept in plan.kept.get(name, {}).items():
        data = data.index_select(dim, kept.to(data.device))
    if data.shape == old.shape and name not in plan.biases:
        return old
    return data.clone()


def _note_sizes(module: nn.Module) -> None:
    for kind, sizes in _SIZES.items():
        if isinstance(module, kind):
            for attribute, (name, dim) in sizes.items():
                tensor = getattr(module, name)
                tensor = module.weight if tensor is None else tensor
                if isinstance(tensor, torch.Tensor):
                    setattr(module, attribute, tensor.shape[dim])
    if isinstance(module, nn.modules.conv._ConvNd):
        weight = module.weight
        out, into = (1, 0) if module.transposed else (0, 1)
        if module.groups > 1:
            module.groups = weight.shape[0] // (module.out_channels // module.groups)
        module.out_channels = weight.shape[out] * (module.groups if module.transposed else 1)
        module.in_channels = weight.shape[into] * (1 if module.transposed else module.groups)
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # of transformers
        weight = module.weight  # type: ignore[assignment]
        module.nx, module.nf = weight.shape  # type: ignore[assignment]
    if isinstance(module, nn.MultiheadAttention):
        SmallerAttention.take(module)


def _resize(model: nn.Module, resizes: Sequence[Resize], sizes: Collection[str]) -> None:
    for name in dict.fromkeys(resize.module for resize in resizes):
        module = model.get_submodule(name)
        if isinstance(module, nn.MultiheadAttention):
            continue  # knows by itself
        own = [resize for resize in resizes if resize.module == name]
        for attribute, value in list(vars(module).items()):
            after = {resize.after for resize in own if resize.before == value}
            if type(value) is int and attribute in sizes and len(after) == 1:
                setattr(module, attribute, after.pop())
