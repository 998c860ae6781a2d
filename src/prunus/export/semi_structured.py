"""Layers whose weights fit the semi-structured (2:4) format of PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from prunus._distributed.wrappers import unwrap
from prunus._utils.checks import choice_problem, raise_problems
from prunus._utils.conversions import check_not_converted
from prunus.selection import check_model

__all__ = ["SemiStructuredLayers", "semi_structured_layers"]


@dataclass(frozen=True)
class _Format:
    """The format of one type.

    Attributes:
        kept: How many weights of a group may be non-zero.
        group: The size of a group of consecutive inputs.
        rows: What the number of outputs must be a multiple of.
        columns: What the number of inputs must be a multiple of.
    """

    kept: int
    group: int
    rows: int
    columns: int


_FORMATS: Mapping[torch.dtype, _Format] = {
    torch.float16: _Format(2, 4, 32, 64),
    torch.bfloat16: _Format(2, 4, 32, 64),
    torch.float32: _Format(1, 2, 32, 32),
}
"""What ``torch.sparse.to_sparse_semi_structured`` accepts, in the stricter of its two backends."""


@dataclass(frozen=True)
class SemiStructuredLayers:
    """The linear layers of a model, by whether their weights fit the format.

    Attributes:
        ready: The names of the layers whose weights fit.
        problems: Why the weights of the other layers do not, by the name of the layer.
    """

    ready: tuple[str, ...]
    problems: Mapping[str, str]


def semi_structured_layers(
    model: nn.Module, dtype: torch.dtype = torch.float16
) -> SemiStructuredLayers:
    """Return which linear layers ``torch.sparse.to_sparse_semi_structured`` can hold exactly.

    That function does not check the pattern: of a group with too many non-zero weights it drops
    some. Convert only the layers that are ready.

    Args:
        model: A module, possibly inside ``torch.compile`` or DistributedDataParallel.
        dtype: The type that the weights will have: ``torch.float16`` (default) or
            ``torch.bfloat16``, in which at most 2 of 4 consecutive inputs may be non-zero, or
            ``torch.float32``, at most 1 of 2.

    Raises:
        ArgumentError: The type has no such format.
        PrunusError: The model is not a module, or is quantized.

    Source: Mishra et al., "Accelerating sparse deep neural networks", arXiv 2104.08378.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> _ = model[0].weight.data.view(-1, 4)[:, ::2].zero_()
        >>> layers = semi_structured_layers(model)
        >>> layers.ready
        ('0',)
        >>> layers.problems
        {'2': 'its 10 outputs are not a multiple of 32'}
    """
    check_model(model)
    check_not_converted(model)
    raise_problems(choice_problem("dtype", dtype, tuple(_FORMATS)))
    ready: list[str] = []
    problems: dict[str, str] = {}
    for name, layer in unwrap(model).named_modules():
        if isinstance(layer, nn.Linear):
            problem = _problem(layer.weight.detach(), _FORMATS[dtype])
            if problem is None:
                ready.append(name)
            else:
                problems[name] = problem
    return SemiStructuredLayers(tuple(ready), problems)


def _problem(weight: torch.Tensor, accepted: _Format) -> str | None:
    """Return why a weight does not fit a format, or None if it does."""
    rows, columns = weight.shape
    if rows == 0 or rows % accepted.rows:
        return f"its {rows:,} outputs are not a multiple of {accepted.rows}"
    if columns == 0 or columns % accepted.columns:
        return f"its {columns:,} inputs are not a multiple of {accepted.columns}"
    counts = (weight != 0).reshape(-1, accepted.group).sum(dim=1)
    wrong = int((counts > accepted.kept).sum())
    if wrong:
        return (
            f"{wrong:,} of {len(counts):,} groups of {accepted.group} inputs have more than "
            f"{accepted.kept} non-zero weights"
        )
    return None
