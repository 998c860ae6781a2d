"""Files of compact models, with the changes that turn an original model into a compact one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus._distributed.wrappers import unwrap
from prunus._inference.model_calls import copy_model
from prunus._utils.checks import raise_problems, type_problem
from prunus.compaction.input_selection import SELECTING_TYPES
from prunus.compaction.pruned_attention import PrunedMultiheadAttention
from prunus.compaction.report import CompactionReport
from prunus.compaction.surgery import leave_fused_encoders, replace_tensors
from prunus.errors import ArgumentError, PrunusError, SparseFileError, listing
from prunus.export.model_loading import load_state
from prunus.export.sparse_format import COMPACT_KEY
from prunus.export.sparse_reader import MAX_BYTES, SparseFile, load_sparse
from prunus.export.sparse_writer import save_sparse
from prunus.selection import check_model

__all__ = ["load_compact", "save_compact"]

_TYPES: Mapping[str, tuple[type[nn.Module], type[nn.Module]]] = {
    new.__name__: (original, new)
    for original, new in {
        **SELECTING_TYPES,
        nn.MultiheadAttention: PrunedMultiheadAttention,
    }.items()
}
"""The original type and the new type of a module, by the name of the new type."""

_NEW_ATTRIBUTES = frozenset({"inner_dim"})
"""Integer attributes that only modules of a new type have."""


def save_compact(
    model: nn.Module,
    report: CompactionReport,
    path: str | Path,
    *,
    dtype: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a compact model's tensors, and the changes that a model needs to hold them.

    The file is a sparse file, as written by :func:`prunus.save_sparse`, since a compact model still
    contains zeros.

    Args:
        model: The compact model, which may have been trained further.
        report: The report that ``compact(..., return_report=True)`` returned with the model.
        path: The file to write or replace.
        dtype: "int8" to round matrices to 8-bit integers, as :func:`prunus.save_sparse` does, or
            None (default) for a lossless file.
        metadata: Values to store in the file's metadata, which JSON can represent. Default: none.

    Raises:
        PrunusError: The ``state_dict`` lacks a tensor that became smaller, or the file cannot be
            written.

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
    missing = [tensor.name for tensor in report.resized if tensor.name not in state]
    if missing:
        raise PrunusError(
            f"the state_dict lacks tensors that became smaller: {listing(missing)}. Register them "
            "with register_buffer(..., persistent=True)"
        )
    changes = asdict(_Changes.from_report(report))
    save_sparse(state, path, dtype=dtype, metadata={**(metadata or {}), COMPACT_KEY: changes})


def load_compact(path: str | Path, model: nn.Module, *, max_bytes: int = MAX_BYTES) -> nn.Module:
    """Return the compact model that :func:`save_compact` wrote.

    Args:
        path: The file.
        model: A model of the original size, built by the same code; its weights do not matter, and
            it is not changed. It may be within ``torch.compile`` or DistributedDataParallel.
        max_bytes: The largest total size of the tensors. Default 64 GiB.

    Returns:
        The compact model, in evaluation mode.

    Raises:
        SparseFileError: The file is damaged, or its tensors exceed ``max_bytes``.
        ArgumentError: The file is not that of a compact model, or the model does not match it.
        PrunusError: The file does not exist, or the model cannot hold every bit of its tensors.

    Example:
        See :func:`save_compact`.
    """
    with SparseFile(path, max_bytes=max_bytes) as file:
        metadata = file.metadata().get(COMPACT_KEY)
    if metadata is None:
        raise ArgumentError(
            f"{path} is not the file of a compact model: read it with prunus.load_sparse, or write "
            "one with prunus.compaction.save_compact"
        )
    check_model(model)
    changes = _parse_changes(Path(path), metadata)
    state = load_sparse(path, max_bytes=max_bytes)
    small = copy_model(unwrap(model))
    try:
        _apply_changes(small, changes, state)
        load_state(small, state, path)
        _check_selections(small, changes)
    except PrunusError:
        raise  # its message is complete
    except (AttributeError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise ArgumentError(
            f"{path} does not fit {type(model).__name__}, which must be built as the model was "
            f"before it became smaller: {error}"
        ) from error
    return small


@dataclass(frozen=True)
class _Changes:
    """The changes to an original model, as stored in a file's metadata.

    Attributes:
        replaced_types: The new type of modules, by name.
        changed_attributes: The integer attributes that differ, by module and attribute name.
        new_biases: The layers that receive a bias.
        original_shapes: The original shapes of the tensors that become smaller, by name.
    """

    replaced_types: Mapping[str, str]
    changed_attributes: Mapping[str, Mapping[str, int]]
    new_biases: Sequence[str]
    original_shapes: Mapping[str, Sequence[int]]

    @classmethod
    def from_report(cls, report: CompactionReport) -> _Changes:
        """Return the changes that a report lists."""
        return cls(
            replaced_types=report.replaced_types,
            changed_attributes=report.changed_attributes,
            new_biases=list(report.new_biases),
            original_shapes={tensor.name: tensor.before for tensor in report.resized},
        )


def _parse_changes(path: Path, metadata: Any) -> _Changes:
    """Return the changes in a file's metadata, checked for their types."""
    try:
        changes = _Changes(**{field.name: metadata[field.name] for field in fields(_Changes)})
        types, attributes = dict(changes.replaced_types), dict(changes.changed_attributes)
        shapes, biases = dict(changes.original_shapes), list(changes.new_biases)
        valid = (
            all(isinstance(own, dict) for own in attributes.values())
            and all(type(n) is int and n >= 0 for own in attributes.values() for n in own.values())
            and all(isinstance(shape, list) for shape in shapes.values())
            and all(name in _TYPES for name in types.values())
            and all(isinstance(name, str) for name in (*types, *attributes, *biases, *shapes))
        )
    except (KeyError, TypeError, ValueError):
        valid = False
    if not valid:
        raise SparseFileError(
            f"{path} is damaged: its metadata do not describe a compact model. Restore the file "
            "from a copy, or write it again with save_compact"
        )
    return _Changes(types, attributes, biases, shapes)


def _apply_changes(model: nn.Module, changes: _Changes, state: Mapping[str, torch.Tensor]) -> None:
    for name, new_type in changes.replaced_types.items():
        _replace_type(model, name, new_type)
    for name in changes.new_biases:
        _add_bias(model, name)
    for name, attributes in changes.changed_attributes.items():
        _set_attributes(model, name, attributes)
    _resize_tensors(model, changes.original_shapes, state)
    leave_fused_encoders(model)


def _replace_type(model: nn.Module, name: str, type_name: str) -> None:
    module = model.get_submodule(name)
    original, new = _TYPES[type_name]
    attention = new is PrunedMultiheadAttention
    if not (isinstance(module, original) if attention else type(module) is original):
        raise TypeError(f"{name} is a {type(module).__name__}, not a {original.__name__}")
    module.__class__ = new
    if not attention:
        weight: torch.Tensor = module.weight  # type: ignore[assignment]
        selected = torch.empty(0, dtype=torch.int64, device=weight.device)
        module.register_buffer("selected", selected)


def _add_bias(model: nn.Module, name: str) -> None:
    layer = model.get_submodule(name)
    if layer._parameters.get("bias", layer) is not None:
        raise TypeError(f"{name} is not a layer that was built with bias=False")
    weight: torch.Tensor = layer.weight  # type: ignore[assignment]
    layer.bias = nn.Parameter(weight.new_empty(0), requires_grad=weight.requires_grad)


def _set_attributes(model: nn.Module, name: str, attributes: Mapping[str, int]) -> None:
    module = model.get_submodule(name)
    for attribute, value in attributes.items():
        exists = type(vars(module).get(attribute)) is int
        new = attribute in _NEW_ATTRIBUTES and isinstance(module, PrunedMultiheadAttention)
        if not (exists or new):
            raise TypeError(f"{name} has no integer attribute {attribute}")
        setattr(module, attribute, value)


def _resize_tensors(
    model: nn.Module, shapes: Mapping[str, Sequence[int]], state: Mapping[str, torch.Tensor]
) -> None:
    """Allocate the tensors that become smaller, and new ones, in their shapes in a state."""
    mismatched = [
        f"{name} is of shape {tuple(tensor.shape)} and must be {tuple(shapes[name])}"
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if name in shapes and tuple(tensor.shape) != tuple(shapes[name])
    ]
    if mismatched:
        raise ValueError(listing(mismatched))

    def allocate(name: str, old: torch.Tensor) -> torch.Tensor:
        if name in state and (name in shapes or not old.numel()):
            return old.detach().new_empty(state[name].shape)
        return old

    replace_tensors(model, allocate)


def _check_selections(model: nn.Module, changes: _Changes) -> None:
    """Check that the indices of each selecting layer fit its weight and its original inputs."""
    for name, new_type in changes.replaced_types.items():
        if new_type == PrunedMultiheadAttention.__name__:
            continue
        layer: Any = model.get_submodule(name)
        selected, weight = layer.selected, layer.weight
        shape = changes.original_shapes.get(f"{name}.weight".lstrip("."), weight.shape)
        valid = selected.shape == weight.shape[1:2] and bool(
            ((selected >= 0) & (selected < shape[1])).all()
        )
        if not valid:
            raise ValueError(
                f"{name}.selected must hold {weight.shape[1]} indices of {shape[1]} input features"
            )
