"""Output tensors of a model, the difference between two models' outputs, and its tolerances."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

__all__ = [
    "LARGEST_ROUNDING",
    "ROUNDING_FACTOR",
    "TOLERANCE",
    "TYPE_TOLERANCES",
    "UNSTABLE",
    "argument_tensors",
    "output_tensors",
    "output_tolerance",
    "relative_difference",
    "returning_tensors",
    "widen",
]

TOLERANCE = 1e-4
"""The largest accepted difference between the outputs of two implementations of one network,
relative to the largest magnitude. Sums of float32 in another order round differently, and the
differences grow with the depth of the network."""

TYPE_TOLERANCES: Mapping[torch.dtype, float] = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
"""The same for one implementation of a network in two sizes, as of a compact model, by type."""

ROUNDING_FACTOR = 4.0
"""The accepted difference between one network in two sizes, in multiples of the network's own
rounding, where that is more than the tolerance of its type. Both sizes round as much, so that they
differ by twice that at most; the rounding is measured on a few inputs, and may be twice as large on
others."""

LARGEST_ROUNDING = 1e-3
"""The upper bound of a tolerance that is computed from a network's own rounding: the outputs of a
network that rounds more do not tell a wrong copy from a right one."""


UNSTABLE = (
    "If it is random in evaluation mode, make its forward deterministic there; if it chooses by "
    "comparing numbers (topk, argmax), rounding may choose others where they are nearly equal"
)
"""Why the outputs of two correct implementations may differ, for error messages."""


def output_tolerance(tensors: Iterable[torch.Tensor], *, least: float = 0.0) -> float:
    """Return the tolerance for the least precise type among tensors.

    Args:
        tensors: The tensors; types other than those of :data:`TYPE_TOLERANCES` need no tolerance.
        least: The lower bound of the tolerance: :data:`TOLERANCE` for two implementations.

    Example:
        >>> output_tolerance([torch.ones(1), torch.ones(1, dtype=torch.bfloat16)])
        0.05
        >>> output_tolerance([torch.ones(1)], least=TOLERANCE)
        0.0001
    """
    return max((least, *(TYPE_TOLERANCES.get(tensor.dtype, 0.0) for tensor in tensors)))


def output_tensors(output: Any) -> list[torch.Tensor]:
    """Return the tensors in a model's output, in order, also those in attributes of its objects.

    The tensors of a cache, an object whose class name ends in "Cache", are left out: a model reads
    them only itself, in its next call, and their sizes are those of its own layers.

    Example:
        >>> output_tensors({"a": torch.ones(1), "b": [torch.zeros(1), 3]})
        [tensor([1.]), tensor([0.])]
    """
    return list(_tensors(output, set()))


def argument_tensors(arguments: Any) -> list[torch.Tensor]:
    """Return the tensors in the arguments of a call, in order, inside any sequences and mappings.

    Example:
        >>> argument_tensors(((torch.ones(1),), {"b": [torch.zeros(1), 3]}))
        [tensor([1.]), tensor([0.])]
    """
    return list(_tensors(arguments, None))


def _tensors(tree: Any, seen: set[int] | None) -> Iterator[torch.Tensor]:
    """Yield tensors, and those in attributes of objects unless ``seen``, the objects, is None."""
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif isinstance(leaf, Mapping):  # a mapping class that is not registered with pytree
            yield from _tensors(list(leaf.values()), seen)
        elif seen is not None and id(leaf) not in seen and _may_hold_outputs(leaf):
            seen.add(id(leaf))  # objects may refer to each other
            yield from _tensors(list(vars(leaf).values()), seen)


def _may_hold_outputs(leaf: Any) -> bool:
    """Return whether attributes of an object count as outputs."""
    is_data = hasattr(leaf, "__dict__") and not isinstance(leaf, type | nn.Module | ModuleType)
    return is_data and not callable(leaf) and not type(leaf).__name__.endswith("Cache")


@contextlib.contextmanager
def returning_tensors(model: nn.Module) -> Iterator[None]:
    """Let a model return its output tensors as a list, without objects that exporters reject.

    Args:
        model: The model, whose ``forward`` is replaced for the time being.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> with returning_tensors(model):
        ...     outputs = model(torch.ones(1, 2))
        >>> [output.shape for output in outputs], model(torch.ones(1, 2)).shape
        ([torch.Size([1, 1])], torch.Size([1, 1]))
    """
    before = vars(model).get("forward")
    original = model.forward

    @functools.wraps(original)  # exporters read its signature
    def forward(*args: Any, **kwargs: Any) -> list[torch.Tensor]:
        return output_tensors(original(*args, **kwargs))

    model.forward = forward
    try:
        yield
    finally:
        if before is None:
            del model.forward
        else:
            model.forward = before


def widen(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in double precision, as narrow types do not support every operation."""
    return tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64)


def relative_difference(expected: list[torch.Tensor], actual: list[torch.Tensor]) -> float:
    """Return the largest difference of an output, relative to the largest expected magnitude.

    Args:
        expected: The outputs of the reference model.
        actual: The outputs of the other model.

    Returns:
        The largest quotient over all outputs. Infinity if the outputs differ in number, shape, type
        or non-finite elements, or if integers or booleans differ.

    Example:
        >>> relative_difference([torch.tensor([1.0, -4.0])], [torch.tensor([1.0, -3.0])])
        0.25
    """
    if [(o.shape, o.dtype) for o in expected] != [(o.shape, o.dtype) for o in actual]:
        return float("inf")
    worst = 0.0
    for left, right in zip(expected, actual, strict=True):
        if not (left.is_floating_point() or left.is_complex()):
            worst = worst if torch.equal(left, right) else float("inf")
            continue
        left, right = widen(left), widen(right)
        finite = left.isfinite()
        if not torch.equal(finite, right.isfinite()) or not torch.equal(
            left[~finite].nan_to_num(), right[~finite].nan_to_num()
        ):
            return float("inf")
        if bool(finite.any()):
            largest = float(left[finite].abs().max())
            error = float((left[finite] - right[finite]).abs().max())
            worst = max(worst, error / largest if largest else (float("inf") if error else 0.0))
    return worst
