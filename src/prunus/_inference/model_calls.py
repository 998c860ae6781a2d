"""Example inputs: calling a model on them, and comparing what two models make of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from prunus._distributed.process_group import check_wrappers, unwrap
from prunus.errors import PrunusError, listing
from prunus.selection import check_model

__all__ = [
    "TOLERANCE",
    "ExampleInputs",
    "call_arguments",
    "call_model",
    "copy_inputs",
    "copy_model",
    "make_caller",
    "output_tensors",
    "prepare_call",
    "reference_outputs",
    "relative_difference",
]

TOLERANCE = 1e-4
"""The largest difference of an output to accept where the same network is computed in another way,
relative to its largest magnitude: sums of float32 in another order differ by rounding, the more so
the deeper a network."""

ExampleInputs = torch.Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
"""What a model is called with: a tensor, positional arguments, or keyword arguments."""


def prepare_call(
    model: nn.Module, example_inputs: ExampleInputs
) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """Return a network without what is wrapped around it, and the arguments of a call.

    Args:
        model: Perhaps within ``torch.compile`` or DistributedDataParallel.
        example_inputs: What it is called with.

    Returns:
        The network within, and the positional and the keyword arguments.

    Raises:
        PrunusError: It is no network with parameters that have values, it is sharded by a wrapper
            that does not tell which weights it holds, or the example is of no such kind.
    """
    _check_usable(model)
    check_wrappers(model)
    args, kwargs = call_arguments(example_inputs)
    return unwrap(model), args, kwargs


def _check_usable(model: nn.Module) -> None:
    check_model(model)
    if next(model.parameters(), None) is None:
        raise PrunusError(
            f"{type(model).__name__} has no parameters, so there is nothing to gain: pass the "
            "network that was pruned"
        )
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


def call_arguments(given: ExampleInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and the keyword arguments of a call.

    Raises:
        PrunusError: It is neither a tensor nor a sequence nor a mapping.

    Example:
        >>> call_arguments({"x": 1})
        ((), {'x': 1})
    """
    if isinstance(given, torch.Tensor):
        return (given,), {}
    if isinstance(given, Mapping):
        return (), dict(given)
    if isinstance(given, tuple | list):
        return tuple(given), {}
    raise PrunusError(
        "example_inputs must be a tensor, a tuple of positional arguments or a mapping of keyword "
        f"arguments, but is {type(given).__name__}"
    )


def copy_model(model: nn.Module) -> nn.Module:
    """Return a copy of a model in evaluation mode.

    Raises:
        PrunusError: It cannot be copied.
    """
    try:
        return copy.deepcopy(model).eval()
    except Exception as error:
        raise PrunusError(
            f"{type(model).__name__} cannot be copied: {error}. Attributes that were computed from "
            "parameters are the usual cause: torch.nn.utils.prune.remove and remove_weight_norm "
            "turn them into parameters"
        ) from error


def copy_inputs(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return copies of the tensors of a call, for a model to write into.

    A tensor that is given twice is copied once, for a model may ask whether two are the same.
    """
    made: dict[int, torch.Tensor] = {}

    def copy_of(held: Any) -> Any:
        if isinstance(held, torch.Tensor):
            if id(held) not in made:
                made[id(held)] = held.clone()
            return made[id(held)]
        if isinstance(held, MutableMapping):  # of a kind that torch does not know
            mapping = copy.copy(held)
            mapping.update({key: pytree.tree_map(copy_of, value) for key, value in held.items()})
            return mapping
        return held

    args, kwargs = pytree.tree_map(copy_of, (args, dict(kwargs)))
    return args, dict(kwargs)


def make_caller(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Callable[[], Any]:
    """Return a call of a model, to be made many times.

    It is made on copies of the inputs, and if the model writes into these they are restored before
    each call, or what a call does would depend on those before it.
    """
    its, named = copy_inputs(args, kwargs)
    with torch.no_grad():
        model(*its, **named)
    pairs = zip(output_tensors((its, named)), output_tensors((args, kwargs)), strict=True)
    written = [(own, given) for own, given in pairs if not torch.equal(own, given)]
    if not written:
        return partial(model, *its, **named)

    def restoring() -> Any:
        for own, given in written:
            own.copy_(given)
        return model(*its, **named)

    return restoring


def call_model(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], seed: int = 0
) -> list[torch.Tensor]:
    """Return the tensors that a model returns, in order.

    The state of torch's draws stays, and so do the inputs, whatever the model writes into them.
    """
    args, kwargs = copy_inputs(args, kwargs)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return output_tensors(model(*args, **kwargs))


def reference_outputs(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[torch.Tensor]:
    """Return what a model makes of its example.

    Raises:
        PrunusError: The model fails on it, or returns nothing that is finite.
    """
    shown = ", ".join(
        [*(_shown(held) for held in args), *(f"{k}={_shown(v)}" for k, v in kwargs.items())]
    )
    try:
        outputs = call_model(model, args, kwargs)
    except Exception as error:
        raise PrunusError(
            f"{type(model).__name__} itself fails on the example inputs ({shown}): "
            f"{type(error).__name__}: {error}. Give it inputs as its forward takes them"
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
            "there is nothing to compare: give it a batch of at least one"
        )
    if not any(bool(_wide(output).isfinite().any()) for output in outputs):
        raise PrunusError(
            f"{name} returns nothing finite on the example inputs ({shown}), so that there is "
            "nothing to compare: give it others"
        )
    return outputs


def _shown(held: Any) -> str:
    if isinstance(held, torch.Tensor):
        return f"{str(held.dtype).removeprefix('torch.')} of shape {tuple(held.shape)}"
    return repr(held)[:60]


def output_tensors(returned: Any) -> list[torch.Tensor]:
    """Return the tensors in what a model returns, in order.

    Example:
        >>> output_tensors({"a": torch.ones(1), "b": [torch.zeros(1), 3]})
        [tensor([1.]), tensor([0.])]
    """
    return list(_tensors(returned))


def _tensors(returned: Any) -> Iterator[torch.Tensor]:
    for leaf in pytree.tree_leaves(returned):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif isinstance(leaf, Mapping):  # of a kind that torch does not know
            yield from _tensors(list(leaf.values()))


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in a type that can be computed in, which not all can."""
    return tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64)


def relative_difference(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Return the largest difference of two models' outputs, relative to their largest magnitude.

    Infinite if they differ in number, shape or type, or in where they are not finite.

    Example:
        >>> relative_difference([torch.tensor([1.0, -4.0])], [torch.tensor([1.0, -3.0])])
        0.25
    """
    if [(o.shape, o.dtype) for o in one] != [(o.shape, o.dtype) for o in other]:
        return float("inf")
    worst = 0.0
    for left, right in zip(one, other, strict=True):
        if not (left.is_floating_point() or left.is_complex()):
            worst = worst if torch.equal(left, right) else float("inf")
            continue
        left, right = _wide(left), _wide(right)
        finite = left.isfinite()
        if not torch.equal(finite, right.isfinite()) or not torch.equal(
            left[~finite].nan_to_num(), right[~finite].nan_to_num()
        ):
            return float("inf")
        if bool(finite.any()):
            largest = float(left[finite].abs().max())
            apart = float((left[finite] - right[finite]).abs().max())
            worst = max(worst, apart / largest if largest else (float("inf") if apart else 0.0))
    return worst
