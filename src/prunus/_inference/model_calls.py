"""Calls of a model on example inputs that leave the inputs and the random state unchanged."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from prunus._distributed.wrappers import check_wrappers, unwrap
from prunus._inference.outputs import (
    argument_tensors,
    output_tensors,
    relative_difference,
    widen,
)
from prunus._utils.conversions import check_not_converted
from prunus.errors import ArgumentTypeError, PrunusError, listing
from prunus.selection import check_model

__all__ = [
    "ExampleInputs",
    "call_arguments",
    "call_model",
    "copy_inputs",
    "copy_model",
    "make_caller",
    "own_rounding",
    "prepare_call",
    "reference_outputs",
]

ExampleInputs = torch.Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
"""Inputs of a model: a tensor, a sequence of positional arguments, or a mapping of keyword
arguments."""


def prepare_call(
    model: nn.Module, example_inputs: ExampleInputs
) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """Return the model inside its wrappers, and the arguments to call it with.

    Args:
        model: The model, possibly inside ``torch.compile`` or DistributedDataParallel.
        example_inputs: Its inputs.

    Returns:
        The unwrapped model, the positional and the keyword arguments.

    Raises:
        ArgumentTypeError: The model is not a module, or the inputs have the wrong type.
        PrunusError: The model has no parameters, has parameters without values, is compiled by
            TorchScript or stores weights in a form of its own, or is sharded by a wrapper that does
            not record which weights it holds.
    """
    _check_usable(model)
    check_wrappers(model)
    args, kwargs = call_arguments(example_inputs)
    return unwrap(model), args, kwargs


def _check_usable(model: nn.Module) -> None:
    check_model(model)
    if next(model.parameters(), None) is None:
        check_not_converted(model)  # a quantized model has none
        raise PrunusError(
            f"{type(model).__name__} has no parameters, so there is nothing to gain: pass the "
            "network that was pruned"
        )
    check_not_converted(model, allowed=["packed", "sparse"])  # they run beside others
    unusable = [
        f"{name} ({'not initialized' if is_lazy(p) else 'no memory'})"
        for name, p in model.named_parameters()
        if is_lazy(p) or p.is_meta
    ]
    if unusable:
        raise PrunusError(
            f"these parameters have no values: {listing(unusable)}. Run the model once, or load "
            "its weights"
        )


def call_arguments(
    example_inputs: ExampleInputs, name: str = "example_inputs"
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and the keyword arguments of a call.

    Args:
        example_inputs: The inputs of the model.
        name: What the message calls them.

    Raises:
        ArgumentTypeError: The inputs are not a tensor, a tuple, a list or a mapping.

    Example:
        >>> call_arguments({"x": 1})
        ((), {'x': 1})
    """
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    raise ArgumentTypeError(
        f"{name} must be a tensor, a tuple of positional arguments or a mapping of keyword "
        f"arguments, but is {type(example_inputs).__name__}"
    )


def copy_model(model: nn.Module) -> nn.Module:
    """Return a copy of a model in evaluation mode.

    Tensors that its forward has stored in attributes of modules, as the state of a recurrent layer,
    are copied without their gradient's history, which cannot be copied.

    Raises:
        PrunusError: The model cannot be copied.
    """
    copies: dict[int, Any] = {id(t): t.detach().clone() for t in _stored_outputs(model)}
    try:
        return copy.deepcopy(model, copies).eval()
    except Exception as error:
        raise PrunusError(
            f"{type(model).__name__} cannot be copied: {error}. Attributes that were computed from "
            "parameters are the usual cause: torch.nn.utils.prune.remove and remove_weight_norm "
            "turn them into parameters"
        ) from error


def _stored_outputs(model: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the results of operators that modules hold, except weights that a hook computes."""
    for module in model.modules():
        parameters = module._parameters
        for name, value in vars(module).items():
            computed = f"{name}_orig" in parameters or f"{name}_g" in parameters
            for leaf in () if computed else pytree.tree_leaves(value):
                if isinstance(leaf, torch.Tensor) and leaf.grad_fn is not None:
                    yield leaf


def copy_inputs(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with copies of their tensors, which the model may overwrite.

    A tensor that occurs twice is copied once, because a model may test whether two inputs are the
    same tensor.
    """
    copies: dict[int, torch.Tensor] = {}

    def copied(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            if id(leaf) not in copies:
                copies[id(leaf)] = leaf.clone()
            return copies[id(leaf)]
        if isinstance(leaf, MutableMapping):  # a mapping class that is not registered with pytree
            mapping = copy.copy(leaf)
            mapping.update({key: pytree.tree_map(copied, value) for key, value in leaf.items()})
            return mapping
        return leaf

    args, kwargs = pytree.tree_map(copied, (args, dict(kwargs)))
    return args, dict(kwargs)


def make_caller(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Callable[[], Any]:
    """Return a function that calls a model, with the same inputs each time.

    The model is called on copies of the inputs. If it overwrites them they are restored before each
    call; otherwise the work of a call would depend on the calls before it.
    """
    own_args, own_kwargs = copy_inputs(args, kwargs)
    with torch.no_grad():
        model(*own_args, **own_kwargs)
    copies, originals = argument_tensors((own_args, own_kwargs)), argument_tensors((args, kwargs))
    overwritten = [
        (copied, original)
        for copied, original in zip(copies, originals, strict=True)
        if not torch.equal(copied, original)
    ]
    if not overwritten:
        return partial(model, *own_args, **own_kwargs)

    def restore_and_call() -> Any:
        for copied, original in overwritten:
            copied.copy_(original)
        return model(*own_args, **own_kwargs)

    return restore_and_call


def call_model(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], seed: int = 0
) -> list[torch.Tensor]:
    """Return the output tensors of a model, in order.

    The state of torch's random generators and the inputs stay as they are, even if the model
    changes them.
    """
    args, kwargs = copy_inputs(args, kwargs)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return output_tensors(model(*args, **kwargs))


def reference_outputs(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[torch.Tensor]:
    """Return the output tensors of a model, checked to be comparable with another model's.

    Raises:
        PrunusError: The model fails on the inputs, or returns no tensor with a finite element.
    """
    shown = ", ".join(
        [*(_shown(value) for value in args), *(f"{k}={_shown(v)}" for k, v in kwargs.items())]
    )
    try:
        outputs = call_model(model, args, kwargs)
    except Exception as error:
        raise PrunusError(
            f"{type(model).__name__} itself fails on the example inputs ({shown}): "
            f"{type(error).__name__}: {error}. Pass inputs that its forward accepts"
        ) from error
    name = type(model).__name__
    if not outputs:
        raise PrunusError(
            f"{name} returns no tensors on the example inputs, so that there is nothing to "
            "compare: let its forward return them"
        )
    if not any(output.numel() for output in outputs):
        raise PrunusError(
            f"{name} returns tensors without elements on the example inputs ({shown}), so that "
            "there is nothing to compare: pass a batch of at least one"
        )
    if not any(bool(widen(output).isfinite().any()) for output in outputs):
        raise PrunusError(
            f"{name} returns nothing finite on the example inputs ({shown}), so that there is "
            "nothing to compare: pass other inputs"
        )
    return outputs


def own_rounding(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    outputs: list[torch.Tensor],
) -> float:
    """Return how far a model's outputs are from those of its copy in float64.

    Args:
        model: The model, in evaluation mode.
        args: The positional arguments of its forward.
        kwargs: The keyword arguments of its forward.
        outputs: Its outputs for them.

    Returns:
        The relative difference; 0 if the copy does not run in float64, or returns other integers.

    Example:
        >>> layer, x = nn.Linear(64, 8), torch.randn(4, 64)
        >>> 0 < own_rounding(layer, (x,), {}, [layer(x)]) < 1e-5
        True
    """

    def to_double(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
            return leaf.double()
        return leaf

    args, kwargs = pytree.tree_map(to_double, (args, dict(kwargs)))
    try:
        exact = call_model(copy_model(model).double(), args, kwargs)
        difference = relative_difference(exact, [to_double(output) for output in outputs])
    except Exception:  # whatever a model's own code raises in a type that it was not written for
        return 0.0
    return difference if math.isfinite(difference) else 0.0


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return repr(value)[:60]
