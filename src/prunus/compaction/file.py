"""Files of compact models, from which a model of the original size is made as small again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus._distributed.wrappers import unwrap
from prunus._inference.model_calls import copy_model
from prunus._utils.checks import raise_problems, type_problem
from prunus.compaction.attention import SmallerAttention
from prunus.compaction.compact import CompactionReport
from prunus.compaction.selecting import SELECTING
from prunus.compaction.surgery import exchange
from prunus.errors import PrunusError, SparseFileError, listing
from prunus.export.model_loading import load_state
from prunus.export.sparse_reader import MAX_BYTES, SparseFile, load_sparse
from prunus.export.sparse_writer import save_sparse
from prunus.selection import check_model

__all__ = ["load_compact", "save_compact"]

_IN_PLACE_OF: Mapping[type[nn.Module], type[nn.Module]] = {
    **SELECTING,
    nn.MultiheadAttention: SmallerAttention,
}

_KINDS = {own.__name__: (plain, own) for plain, own in _IN_PLACE_OF.items()}
"""Classes that take the place of others, by name, each after the one it takes the place of."""

_OWN_SIZES = frozenset({"width"})
"""Numbers that only modules of these classes have."""


def save_compact(
    model: nn.Module,
    report: CompactionReport,
    path: str | Path,
    *,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a compact model's tensors, and what else must change in a model to hold them.

    It is a sparse file, as of :func:`prunus.save_sparse`, for zeros are left in a compact model.

    Args:
        model: The compact model, which may have been trained since.
        report: What ``compact(..., return_report=True)`` returned with it.
        path: The file to write or replace.
        metadata: Facts to keep in the file's metadata, such as can be said in JSON.

    Raises:
        PrunusError: A tensor became smaller that the ``state_dict`` leaves out, or the file cannot
            be written.

    Example:
        >>> import tempfile
        >>> from prunus import compact
        >>> def build():
        ...     return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> model = build()
        >>> _ = model[2].weight.data[:, 1:].zero_()
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> small, report = compact(model, torch.ones(1, 4), return_report=True)
        >>> save_compact(small, report, path)
        >>> load_compact(path, build())
        Sequential(
          (0): Linear(in_features=4, out_features=1, bias=True)
          (1): ReLU()
          (2): Linear(in_features=1, out_features=2, bias=True)
        )
    """
    raise_problems(
        type_problem(
            "report",
            report,
            CompactionReport,
            "a CompactionReport",
            fix="compact(model, example_inputs, return_report=True) returns it",
        )
    )
    state = model.state_dict()
    unsaved = [removed.name for removed in report.removed if removed.name not in state]
    if unsaved:
        raise PrunusError(
            f"{listing(unsaved)} became smaller, but is not part of the state_dict: register it by "
            "register_buffer(..., persistent=True)"
        )
    held = {
        "kinds": report.kinds,
        "sizes": report.sizes,
        "biases": list(report.biases),
        "shapes": {removed.name: removed.before for removed in report.removed},
    }
    save_sparse(state, path, metadata={**(metadata or {}), "compact": held})


def load_compact(path: str | Path, model: nn.Module, *, max_bytes: int = MAX_BYTES) -> nn.Module:
    """Return the model that :func:`save_compact` wrote.

    Args:
        path: The file.
        model: One as it was before, built by the same code; its weights do not matter, and it is
            not changed. It may be within ``torch.compile`` or DistributedDataParallel.
        max_bytes: The largest total size of the tensors.

    Returns:
        The compact model, in evaluation mode.

    Raises:
        SparseFileError: The file is damaged, or its tensors exceed ``max_bytes``.
        PrunusError: There is no such file, it is not of a compact model, or the model is another
            one.

    Example:
        See :func:`save_compact`.
    """
    with SparseFile(path, max_bytes=max_bytes) as file:
        held = file.metadata().get("compact")
    if held is None:
        raise PrunusError(
            f"{path} is not the file of a compact model: read it by prunus.load_sparse, or write "
            "one by prunus.compaction.save_compact"
        )
    check_model(model)
    changes = _checked(Path(path), held)
    state = load_sparse(path, max_bytes=max_bytes)
    small = copy_model(unwrap(model))
    try:
        for name, kind in changes.kinds.items():
            _change(small, name, kind)
        for name in changes.biases:
            _add_bias(small, name)
        for name, numbers in changes.sizes.items():
            _write_down(small, name, numbers)
        _make_room(small, changes.shapes, state)
        load_state(small, state, path)
        for name, kind in changes.kinds.items():
            if kind != SmallerAttention.__name__:
                _check_selected(name, small.get_submodule(name), changes.shapes)
    except PrunusError:
        raise  # which says it all
    except (AttributeError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise PrunusError(
            f"{path} does not fit {type(model).__name__}, which must be built as the model was "
            f"before it became smaller: {error}"
        ) from error
    return small


@dataclass(frozen=True)
class _Changes:
    """What a file says must change in a model.

    Attributes:
        kinds: The class that takes a module's place, by the module's name.
        sizes: Of each module its attributes that are other whole numbers.
        biases: The layers that get a bias.
        shapes: The shapes, as they were, of the tensors that become smaller.
    """

    kinds: Mapping[str, str]
    sizes: Mapping[str, Mapping[str, int]]
    biases: Sequence[str]
    shapes: Mapping[str, Sequence[int]]


def _checked(path: Path, held: Any) -> _Changes:
    """Return what the metadata say, if it is of the right form."""
    try:
        kinds, sizes, shapes = dict(held["kinds"]), dict(held["sizes"]), dict(held["shapes"])
        biases = list(held["biases"])
        right = (
            all(isinstance(own, dict) for own in sizes.values())
            and all(type(n) is int and n >= 0 for own in sizes.values() for n in own.values())
            and all(isinstance(own, list) for own in shapes.values())
            and all(kind in _KINDS for kind in kinds.values())
            and all(isinstance(name, str) for name in (*kinds, *sizes, *biases, *shapes))
        )
    except (KeyError, TypeError, ValueError):
        right = False
    if not right:
        raise SparseFileError(f"{path} is damaged: its metadata do not describe a compact model")
    return _Changes(kinds, sizes, biases, shapes)


def _change(model: nn.Module, name: str, kind: str) -> None:
    module = model.get_submodule(name)
    plain, own = _KINDS[kind]
    attention = own is SmallerAttention
    if not (isinstance(module, plain) if attention else type(module) is plain):
        raise TypeError(f"{name} is a {type(module).__name__}, not a {plain.__name__}")
    module.__class__ = own
    if not attention:
        weight: torch.Tensor = module.weight  # type: ignore[assignment]
        selected = torch.empty(0, dtype=torch.int64, device=weight.device)
        module.register_buffer("selected", selected)


def _add_bias(model: nn.Module, name: str) -> None:
    layer = model.get_submodule(name)
    if layer._parameters.get("bias", layer) is not None:
        raise TypeError(f"{name} is no layer that has room for a bias and none in it")
    weight: torch.Tensor = layer.weight  # type: ignore[assignment]
    layer.bias = nn.Parameter(weight.new_empty(0), requires_grad=weight.requires_grad)


def _write_down(model: nn.Module, name: str, numbers: Mapping[str, int]) -> None:
    module = model.get_submodule(name)
    for attribute, value in numbers.items():
        known = type(vars(module).get(attribute)) is int
        if not known and not (attribute in _OWN_SIZES and isinstance(module, SmallerAttention)):
            raise TypeError(f"{name} has no number {attribute}")
        setattr(module, attribute, value)


def _make_room(
    model: nn.Module, shapes: Mapping[str, Sequence[int]], state: Mapping[str, torch.Tensor]
) -> None:
    """Give the tensors that become smaller, and new ones, the shapes that they have in a state."""
    unlike = [
        f"{name} is of shape {tuple(tensor.shape)} and must be {tuple(shapes[name])}"
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if name in shapes and tuple(tensor.shape) != tuple(shapes[name])
    ]
    if unlike:
        raise ValueError(listing(unlike))

    def room(name: str, old: torch.Tensor) -> torch.Tensor:
        if name in state and (name in shapes or not old.numel()):
            return old.detach().new_empty(state[name].shape)
        return old

    exchange(model, room)


def _check_selected(name: str, layer: Any, shapes: Mapping[str, Sequence[int]]) -> None:
    selected, weight = layer.selected, layer.weight
    most = shapes.get(f"{name}.weight".lstrip("."), weight.shape)[1]
    within = selected.shape == weight.shape[1:2] and bool(
        ((selected >= 0) & (selected < most)).all()
    )
    if not within:
        raise ValueError(f"{name}.selected are no numbers of features, one for each that is read")
