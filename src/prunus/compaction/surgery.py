"""Application of a removal plan to a model, in place."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import nn

from prunus._utils.tied import first_names, named_tensors
from prunus.compaction.input_selection import SELECTING_TYPES
from prunus.compaction.plan import RemovalPlan, SizeChange
from prunus.compaction.pruned_attention import PrunedMultiheadAttention

__all__ = [
    "apply_plan",
    "candidate_size_attributes",
    "leave_fused_encoders",
    "replace_tensors",
]

_SIZE_ATTRIBUTES: dict[type[nn.Module], dict[str, tuple[str, int]]] = {
    nn.Linear: {"out_features": ("weight", 0), "in_features": ("weight", 1)},
    nn.modules.batchnorm._NormBase: {"num_features": ("running_mean", 0)},
    nn.Embedding: {"embedding_dim": ("weight", 1)},
    nn.PReLU: {"num_parameters": ("weight", 0)},
}
"""The attributes in which torch's modules store sizes: the tensor and dimension of each."""

_COUNT_NAME = re.compile(r"head|num_features", re.IGNORECASE)
_WIDTH_NAME = re.compile(r"dim|size|width", re.IGNORECASE)


def candidate_size_attributes(
    model: nn.Module, changes: Sequence[SizeChange]
) -> Iterator[frozenset[str]]:
    """Yield sets of attributes that may store the sizes that change, most likely sets first.

    Args:
        model: The original model.
        changes: The sizes that change.

    Yields:
        Names of attributes.
    """
    matching = [
        name
        for change in changes
        for name, value in vars(model.get_submodule(change.module)).items()
        if type(value) is int and value == change.before
    ]
    names = list(dict.fromkeys(matching))
    likely = [name for name in names if _COUNT_NAME.search(name) and not _WIDTH_NAME.search(name)]
    # Several attributes may be equal to the size by chance.
    sets = (likely, names, *([name] for name in names))
    yield from dict.fromkeys(frozenset(attributes) for attributes in sets)


def apply_plan(model: nn.Module, plan: RemovalPlan, size_attributes: Collection[str]) -> None:
    """Make a model smaller, in place.

    Args:
        model: The model.
        plan: The changes.
        size_attributes: The attributes of modules that store sizes which change.
    """
    changed = replace_tensors(model, lambda name, tensor: _smaller_tensor(tensor, plan, name))
    for name, added in plan.new_biases.items():
        layer = model.get_submodule(name)
        weight: torch.Tensor = layer.weight  # type: ignore[assignment]
        rows = plan.kept_positions.get(plan.first_names[f"{name}.weight".lstrip(".")], {}).get(0)
        bias = added if rows is None else added[rows]
        layer.bias = nn.Parameter(
            bias.to(weight.dtype).to(weight.device), requires_grad=weight.requires_grad
        )
    for name, selected in plan.selected_inputs.items():
        layer = model.get_submodule(name)
        layer.__class__ = SELECTING_TYPES[type(layer)]
        layer.register_buffer("selected", selected.to(layer.weight.device))  # type: ignore[arg-type]
    for module in changed:
        _update_sizes(module)
    _update_size_attributes(model, plan.size_changes, size_attributes)
    leave_fused_encoders(model)


def leave_fused_encoders(model: nn.Module) -> None:
    """Let torch's transformer encoders call their layers of new types, in place.

    In evaluation mode an encoder passes the weights of its layers to one fused kernel instead,
    which assumes the original layers, and converts padded inputs into nested tensors for it.
    """
    new_types: tuple[type[nn.Module], ...] = (
        PrunedMultiheadAttention,
        *SELECTING_TYPES.values(),
    )
    for module in model.modules():
        if not isinstance(module, nn.TransformerEncoder | nn.TransformerEncoderLayer):
            continue
        if any(isinstance(layer, new_types) for layer in module.modules()):
            if isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False
            else:
                module.activation_relu_or_gelu = 0


def replace_tensors(
    model: nn.Module, replacement: Callable[[str, torch.Tensor], torch.Tensor]
) -> set[nn.Module]:
    """Replace parameters and buffers of a model, in place.

    Tied tensors stay tied, and parameters stay parameters.

    Args:
        model: The model.
        replacement: Returns the new tensor, from the first name of a tensor and the tensor; the
            same tensor for no change.

    Returns:
        The modules whose tensors were replaced.
    """
    tensors = named_tensors(model)
    names = {id(tensors[name]): first for name, first in first_names(tensors).items()}
    new_tensors: dict[int, torch.Tensor] = {}
    changed: set[nn.Module] = set()
    for module in list(model.modules()):
        for registry in (module._parameters, module._buffers):
            for attribute, old in list(registry.items()):
                if old is None:
                    continue
                if id(old) not in new_tensors:
                    new = replacement(names[id(old)], old)
                    if new is not old and isinstance(old, nn.Parameter):
                        new = nn.Parameter(new, requires_grad=old.requires_grad)
                    new_tensors[id(old)] = new
                if new_tensors[id(old)] is not old:
                    setattr(module, attribute, new_tensors[id(old)])
                    changed.add(module)
    return changed


def _smaller_tensor(old: torch.Tensor, plan: RemovalPlan, name: str) -> torch.Tensor:
    data = old.detach()
    if (added := plan.bias_additions.get(name)) is not None:
        data = (data.double() + added.to(data.device)).to(data.dtype)
    for dim, kept in plan.kept_positions.get(name, {}).items():
        data = data.index_select(dim, kept.to(data.device))
    if data.shape == old.shape and name not in plan.bias_additions:
        return old
    return data.clone()


def _update_sizes(module: nn.Module) -> None:
    """Set the attributes in which a module of a known type stores the sizes of its tensors."""
    for module_type, attributes in _SIZE_ATTRIBUTES.items():
        if isinstance(module, module_type):
            for attribute, (name, dim) in attributes.items():
                tensor = getattr(module, name)
                tensor = module.weight if tensor is None else tensor
                if isinstance(tensor, torch.Tensor):
                    setattr(module, attribute, tensor.shape[dim])
    if isinstance(module, nn.modules.conv._ConvNd):
        weight = module.weight
        out_dim, in_dim = (1, 0) if module.transposed else (0, 1)
        if module.groups > 1:
            module.groups = weight.shape[0] // (module.out_channels // module.groups)
        module.out_channels = weight.shape[out_dim] * (module.groups if module.transposed else 1)
        module.in_channels = weight.shape[in_dim] * (1 if module.transposed else module.groups)
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # of transformers
        weight = module.weight  # type: ignore[assignment]
        module.nx, module.nf = weight.shape  # type: ignore[assignment]
    if isinstance(module, nn.MultiheadAttention):
        PrunedMultiheadAttention.convert(module)


def _update_size_attributes(
    model: nn.Module, changes: Sequence[SizeChange], size_attributes: Collection[str]
) -> None:
    for name in dict.fromkeys(change.module for change in changes):
        module = model.get_submodule(name)
        if isinstance(module, nn.MultiheadAttention):
            continue  # its sizes are already updated
        own = [change for change in changes if change.module == name]
        for attribute, value in list(vars(module).items()):
            after = {change.after for change in own if change.before == value}
            if type(value) is int and attribute in size_attributes and len(after) == 1:
                setattr(module, attribute, after.pop())
