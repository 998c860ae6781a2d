"""The choice of a pattern for each tensor of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunus._utils.checks import type_problem
from prunus.errors import ArgumentError, PrunusError, listing
from prunus.patterns.base import Pattern, PrunableMatrix
from prunus.patterns.layout import MatrixLayout
from prunus.patterns.shapes import NM
from prunus.selection import (
    NamePattern,
    PrunableTensor,
    Selection,
    is_of_experts,
    matching_tensors,
    owners,
)

__all__ = ["PatternChoice", "TensorPattern", "bind", "descriptions", "pattern_problem"]

PatternChoice = Pattern | Mapping[NamePattern, Pattern] | None
"""A pattern for all tensors, patterns of tensors by name patterns, or None for single weights."""

_FIX = 'such as pattern=prunus.Block(1, 4), or pattern={"encoder": prunus.NM(2, 4)}'


@dataclass(frozen=True)
class TensorPattern:
    """The pattern of one tensor.

    Attributes:
        pattern: The pattern.
        layout: The layout of the tensor's groups.
        prunable: How many of its weights may be pruned.
        fewest: How many of them the pattern never removes, if all are kept at the beginning.
    """

    pattern: Pattern
    layout: MatrixLayout
    prunable: int
    fewest: int


def pattern_problem(pattern: object) -> str | None:
    """Return what is wrong with the argument ``pattern``, or None."""
    expected = "a Pattern, a mapping of name patterns to patterns"
    if isinstance(pattern, Mapping):
        if not pattern:
            return f"pattern must have an entry, but is empty: {_FIX}"
        problems = [
            type_problem(f"the pattern of {_shown(key)}", value, Pattern, "a Pattern", fix=_FIX)
            for key, value in pattern.items()
        ]
        return next(filter(None, problems), None)
    return type_problem("pattern", pattern, Pattern, expected, fix=_FIX, optional=True)


def bind(choice: PatternChoice, model: nn.Module, selection: Selection) -> dict[str, TensorPattern]:
    """Return the pattern of each selected tensor that has one.

    Tensors with fewer than two dimensions, such as biases, have none.

    Args:
        choice: The patterns. A single one is that of every tensor with two dimensions or more.
        model: The model.
        selection: Tensors of the model; if they are sharded all processes must call this.

    Raises:
        ArgumentError: A name pattern matches no such tensor, a tensor has several patterns, or a
            pattern does not fit; every tensor is listed.
        PrunusError: A group is not within one shard.
        PeerError: Another process did not answer.
    """
    if choice is None:
        return {}
    if isinstance(choice, Pattern):
        chosen = {name: choice for name, t in selection.items() if t.parameter.dim() >= 2}
        if not chosen:
            raise ArgumentError(
                f"pattern={choice!r} needs a tensor of two dimensions or more, but "
                f"{listing(list(selection))} have fewer: select the weights of layers"
            )
    else:
        chosen = _chosen(choice, model, selection)
    layers = owners(model, selection)
    problems, bound = list[str](), dict[str, TensorPattern]()
    for name, pattern in chosen.items():
        tensor = selection[name]
        matrix = _as_matrix(tensor, layers[name])
        if isinstance(matrix, str):
            problems.append(matrix)
        elif (problem := pattern.problem(matrix)) is not None:
            problems.append(f"{pattern!r} {problem}, which {matrix} has not")
        else:
            layout = MatrixLayout(pattern.grouping(matrix), matrix.transposed)
            bound[name] = TensorPattern(
                pattern, layout, tensor.prunable, _fewest(pattern, tensor, matrix)
            )
    if problems:
        raise ArgumentError(
            f"every pattern must fit its tensors, but {'; '.join(problems)}. Name the tensors that "
            'have the pattern: pattern={"name": ...}'
        )
    _check_shards(bound, selection)
    return bound


def _chosen(
    choice: Mapping[NamePattern, Pattern], model: nn.Module, selection: Selection
) -> dict[str, Pattern]:
    """Return the pattern of each tensor by the name patterns that match it.

    Raises:
        ArgumentError: A name pattern matches no tensor of two dimensions or more, or a tensor has
            several patterns.
    """
    matches = matching_tensors(model, selection, "pattern", tuple(choice))
    found: dict[str, dict[Pattern, NamePattern]] = {}
    empty = []
    for (key, pattern), names in zip(choice.items(), matches, strict=True):
        matrices = [name for name in names if selection[name].parameter.dim() >= 2]
        if not matrices:
            empty.append(f"{_shown(key)} ({listing(names)})")
        for name in matrices:
            found.setdefault(name, {}).setdefault(pattern, key)
    if empty:
        raise ArgumentError(
            "patterns are for tensors of two dimensions or more, but only others are matched by "
            f"{listing(empty)}"
        )
    conflicts = [
        f"{_names(selection[name])} ({', '.join(f'{p!r} by {_shown(k)}' for p, k in by.items())})"
        for name, by in found.items()
        if len(by) > 1
    ]
    if conflicts:
        raise ArgumentError(
            "every tensor must have at most one pattern, but several are those of "
            f"{listing(conflicts)}: change the names so that only one matches"
        )
    return {name: next(iter(found[name])) for name in selection if name in found}


def _names(tensor: PrunableTensor) -> str:
    """Return all names of a tensor."""
    return " = ".join((tensor.name, *tensor.aliases))


def _as_matrix(tensor: PrunableTensor, layers: Sequence[nn.Module]) -> PrunableMatrix | str:
    """Return a tensor as a matrix, or why it is none.

    Args:
        tensor: The tensor.
        layers: The modules that own it: several if it is tied.
    """
    name, shape = tensor.name, tuple(tensor.parameter.shape)
    if any(is_of_experts(layer) for layer in layers) and len(shape) > 2:
        return f"{name} is a stack of matrices of experts, whose dimensions are not known"
    stored = {_is_transposed(layer) for layer in layers}
    if len(stored) > 1:
        return f"{_names(tensor)} is tied between layers that store inputs and outputs differently"
    (transposed,) = stored
    if transposed and any(getattr(layer, "groups", 1) > 1 for layer in layers):
        return f"{name} is a transposed convolution in groups, which is not one matrix"
    # The shape of the matrix does not depend on the grouping.
    first, second = shape[:2][:: -1 if transposed else 1]
    kernel = tensor.parameter.numel() // max(1, shape[0] * shape[1])
    return PrunableMatrix(
        name,
        first,
        second * kernel,
        transposed,
        " and ".join(dict.fromkeys(type(layer).__name__ for layer in layers)),
        not any(isinstance(layer, _WITHOUT_UNITS) for layer in layers),
    )


_WITHOUT_UNITS = (nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase)
"""Layers whose rows are entries of a table or gates."""

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _is_transposed(layer: nn.Module) -> bool:
    """Return whether a layer stores its inputs first."""
    is_conv1d = type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")  # of transformers
    return isinstance(layer, _TRANSPOSED) or is_conv1d


def _fewest(pattern: Pattern, tensor: PrunableTensor, matrix: PrunableMatrix) -> int:
    """Return how many weights of a whole tensor the pattern never removes."""
    if not isinstance(pattern, NM):
        return 0
    grouping, along_input = pattern.grouping(matrix), pattern.along == "input"
    kept = torch.ones(matrix.rows, dtype=torch.bool)
    if tensor.padding_row is not None:
        kept[tensor.padding_row] = False
    if along_input:
        return grouping.fewest(torch.ones(1, matrix.columns, dtype=torch.bool)) * int(kept.sum())
    return grouping.fewest(kept[:, None]) * matrix.columns


def _check_shards(bound: Mapping[str, TensorPattern], selection: Selection) -> None:
    """Check that groups are within shards, in all processes.

    Raises:
        PrunusError: Some are not; every tensor is named.
        PeerError: Another process did not answer.
    """
    divided = [int(not bound[name].layout.is_divided_by(selection[name].shard)) for name in bound]
    totals = selection.process_group.sum(torch.tensor(divided, dtype=torch.int64)).tolist()
    cut = [f"{name} ({bound[name].pattern!r})" for name, n in zip(bound, totals, strict=True) if n]
    if cut:
        raise PrunusError(
            f"groups of weights must be within one shard, but the shards of {listing(cut)} cut "
            "some: shard these tensors along another dimension (shard_placement_fn of "
            "fully_shard), over processes among which the groups can be divided, or choose a "
            "pattern whose groups shards do not cut: with shards of rows one such as Rows(), "
            "Block(1, 4) or NM(2, 4)"
        )


def descriptions(bound: Mapping[str, TensorPattern]) -> dict[str, str]:
    """Return the pattern of each tensor as text, for a saved state."""
    return {name: repr(tensor.pattern) for name, tensor in bound.items()}


def _shown(pattern: Any) -> str:
    return pattern.__name__ if isinstance(pattern, type) else repr(pattern)
