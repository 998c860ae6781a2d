"""The layers of a network that sparse layers can replace, and their inputs on an example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from prunus._inference.model_calls import call_model
from prunus.compaction.input_selection import SELECTING_TYPES

__all__ = [
    "MAX_DENSITY",
    "RecordCall",
    "call_recording",
    "is_sparse_enough",
    "layer_inputs",
    "unsuitable_tensor",
    "unsupported_setting",
]

MAX_DENSITY = 0.7
"""Density from which on a layer is neither timed nor reported as sparse.

A heuristic that bounds the time spent on timing. In benchmarks/results/kernels.json sparse layers
are faster for 35 of 39 shapes at density 0.3, and at density 0.5, the highest measured, for 15,
by 1.7 times at most; the limit leaves room for machines where they pay above that.
"""

_LAYER_TYPES: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d)
"""Layer types with a sparse counterpart, which their selecting variants have too."""

RecordCall = Callable[[str, tuple[Any, ...], dict[str, Any]], None]
"""Receives the name of a module that is called, its positional and its keyword arguments."""


def layer_inputs(
    model: nn.Module, args: Any, kwargs: Mapping[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the inputs of the layers that can be replaced, and why others cannot be.

    Args:
        model: The network.
        args: Positional arguments of the example.
        kwargs: Keyword arguments of the example.

    Returns:
        The input of the first call of each layer that can be replaced, by the layer's name; and
        the reason why each other module with many zero weights stays dense, by its name.
    """
    inputs: dict[str, torch.Tensor] = {}
    excluded: dict[str, str] = {}
    candidates: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        reason = _unsuitable_layer(module)
        if reason is None:
            candidates[name] = module
        elif is_sparse_enough(module):
            excluded[name] = reason

    def record(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = next(iter([*args, *kwargs.values()]), None)
        if isinstance(x, torch.Tensor) and x.is_nested:
            excluded[name] = (
                "it is called on nested tensors, into which nn.TransformerEncoder converts padded "
                "inputs unless built with enable_nested_tensor=False"
            )
        elif isinstance(x, torch.Tensor) and x.dtype != torch.float32:
            excluded[name] = (
                f"it is called on {str(x.dtype).removeprefix('torch.')} inputs, as under autocast, "
                "and sparse layers read float32"
            )
        elif isinstance(x, torch.Tensor):
            inputs.setdefault(name, x.detach())

    call_recording(model, candidates, record, args, kwargs)
    for name, module in candidates.items():
        if name not in inputs and name not in excluded and is_sparse_enough(module):
            excluded[name] = "it is not called on this example, or only its weight is read"
    # A layer may be called several times, and only some of the calls fit.
    return {name: x for name, x in inputs.items() if name not in excluded}, excluded


def call_recording(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    record: RecordCall,
    args: Any,
    kwargs: Mapping[str, Any],
) -> None:
    """Call a model and record the arguments of every call of some of its modules.

    Args:
        model: The network. It is not called if ``modules`` is empty.
        modules: The modules to record, by name.
        record: Receives each call before it is made.
        args: Positional arguments of the example.
        kwargs: Keyword arguments of the example.
    """
    handles = []
    for name, module in modules.items():

        def hook(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            record(name, args, kwargs)

        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        if handles:
            call_model(model, args, kwargs)
    finally:
        for handle in handles:
            handle.remove()


def is_sparse_enough(module: nn.Module) -> bool:
    """Return whether a matrix of the module itself has a density below :data:`MAX_DENSITY`.

    Example:
        >>> linear = nn.Linear(4, 2)
        >>> _ = nn.init.zeros_(linear.weight[:, 1:])
        >>> is_sparse_enough(linear), is_sparse_enough(nn.Sequential(linear))
        (True, False)
    """
    return any(
        p.dim() > 1 and bool((p == 0).sum() > (1 - MAX_DENSITY) * p.numel())
        for p in module.parameters(recurse=False)
    )


def unsuitable_tensor(module: nn.Module) -> str | None:
    """Return why a parameter's type or device prevents replacement, or None if none does.

    Example:
        >>> unsuitable_tensor(nn.Linear(4, 2, bias=False).double())
        'its weight is torch.float64 on cpu, not float32 on the CPU'
    """
    for name, tensor in module.named_parameters():
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            return f"its {name} is {tensor.dtype} on {tensor.device}, not float32 on the CPU"
    return None


def unsupported_setting(layer: nn.Module) -> str | None:
    """Return why a layer of a supported type cannot be computed sparsely, or None if it can be.

    Example:
        >>> unsupported_setting(nn.Conv1d(1, 1, 3, padding=1, padding_mode="reflect"))
        "its padding_mode is 'reflect', not 'zeros'"
    """
    if reason := unsuitable_tensor(layer):
        return reason
    if isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.padding_mode != "zeros":
        return f"its padding_mode is {layer.padding_mode!r}, not 'zeros'"
    return None


def _unsuitable_layer(module: nn.Module) -> str | None:
    """Return why a module cannot be replaced, or None if it can be."""
    layer_type = type(module)
    if layer_type not in (*_LAYER_TYPES, *(SELECTING_TYPES[each] for each in _LAYER_TYPES)):
        return f"a {layer_type.__name__} has no sparse counterpart"
    if reason := unsupported_setting(module):
        return reason
    if "forward" in vars(module):
        return "its forward is replaced by another function"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has hooks"
    return None
