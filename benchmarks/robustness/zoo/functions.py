"""The functions of prunus, applied to an architecture in order, and the check of their results.

A result of prunus must equal the model that it was made from, within the library's own tolerance,
or be refused in a ``PrunusError``. Anything else is wrong.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from torch import nn

import prunus
from benchmarks.robustness.zoo.architecture import Architecture
from prunus._inference.model_calls import call_model, own_rounding
from prunus._inference.outputs import (
    LARGEST_ROUNDING,
    ROUNDING_FACTOR,
    TOLERANCE,
    output_tensors,
    output_tolerance,
    relative_difference,
)
from prunus._utils import timing
from prunus.errors import PrunusError
from prunus.export import to_onnx
from prunus.export.onnx_session import OnnxSession

__all__ = ["FUNCTIONS", "REQUIRED", "SPARSITY", "STEPS", "Outcome", "run"]

SPARSITY = 0.9
"""The fraction of the prunable weights that is removed."""

STEPS = 20
"""The number of optimizer steps, of which the last five follow the removal."""

_MASKED = 1e4
"""Outputs from here on are masked scores, and are left out of the loss."""


@dataclass
class Outcome:
    """The outcome of one function.

    Attributes:
        status: "equal", "refused" in a ``PrunusError``, or "wrong": another exception, or a result
            that differs.
        reason: Why it is not equal.
        fix: What had to be left out, as the error said, before the function was equal after all.
        warnings: The warnings given, without duplicates.
        figures: What else the function returned.
    """

    status: Literal["equal", "refused", "wrong"]
    reason: str = ""
    fix: str = ""
    warnings: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


class _WrongError(Exception):
    """A result that differs."""


@dataclass
class _Subject:
    """A model under test, two sets of inputs, and the names of the tensors that are left out."""

    architecture: Architecture
    model: nn.Module
    inputs: dict[str, torch.Tensor]
    other_inputs: dict[str, torch.Tensor]
    exclude: list[str] = field(default_factory=list)


def run(architecture: Architecture, names: Collection[str] | None = None) -> dict[str, Outcome]:
    """Apply functions to an architecture, one after the other, and return their outcomes.

    Args:
        architecture: The architecture.
        names: The functions. Default: all of :data:`FUNCTIONS`.
    """
    inputs, other_inputs = (architecture.draw_inputs(seed) for seed in (0, 1))
    subject = _Subject(architecture, architecture.build(), inputs, other_inputs)
    outcomes = {}
    for name, function in FUNCTIONS.items():
        if names is not None and name not in names:
            continue
        outcome = _apply(function, subject)
        if outcome.status == "refused" and name in _LEFT_OUT:
            left_out = _LEFT_OUT[name](subject.model)
            subject.exclude += left_out
            subject.model = architecture.build()
            repeated = _apply(function, subject)
            if repeated.status == "wrong":
                outcome = repeated
            elif left_out and repeated.status == "equal":
                fix = f"with {len(left_out)} tensors in exclude="
                outcome = Outcome("equal", outcome.reason, fix, repeated.warnings, repeated.figures)
        outcomes[name] = outcome
        subject.model.eval()
    return outcomes


def _apply(function: Callable[[_Subject], dict[str, Any]], subject: _Subject) -> Outcome:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            outcome = Outcome("equal", figures=function(subject))
        except PrunusError as error:
            outcome = Outcome("refused", _without_paths(str(error)))
        except Exception as error:
            outcome = Outcome("wrong", _without_paths(f"{type(error).__name__}: {error}"))
    messages = (
        str(each.message)
        for each in caught
        if issubclass(each.category, UserWarning) and Path(each.filename).is_relative_to(_ROOT)
    )
    outcome.warnings = list(dict.fromkeys(map(_without_paths, messages)))
    return outcome


_ROOT = Path(__file__).resolve().parents[3]


def _without_paths(message: str) -> str:
    """Return a message with paths into installed packages shortened to those packages."""
    return re.sub(r"\S*/site-packages/", "", message)


def _select(subject: _Subject) -> dict[str, Any]:
    selection = prunus.select(subject.model, exclude=subject.exclude)
    trained = [each for each in subject.model.parameters() if each.requires_grad]
    total = sum(each.numel() for each in trained if each.dim() > 1)
    return {"selected": selection.prunable, "in matrices": total}


def _prune(subject: _Subject) -> dict[str, Any]:
    model = subject.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pruner = prunus.Pruner(
        model,
        optimizer,
        floor="dense+1000%",  # any loss meets it
        mode="min",
        selection=lambda model: prunus.select(model, exclude=subject.exclude),
    )
    torch.manual_seed(1)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        loss = _loss(model(**subject.inputs))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step == STEPS - 5:
            pruner.prune(sparsity=SPARSITY)
        elif step % 5 == 0 and step < STEPS:
            pruner.step(loss.item())
    model.eval()
    most = (1 - SPARSITY) * pruner.selection.prunable
    missing = pruner.masks.kept - round(most)
    if missing > len(pruner.selection):  # some of each tensor is never removed
        raise _WrongError(f"{missing} weights too few were removed")
    returned = [
        name
        for name, mask in pruner.masks.items()
        if bool(pruner.selection[name].weight[~mask].any())
    ]
    if returned:
        raise _WrongError(f"removed weights of {returned} are not zero")
    return {"sparsity": pruner.sparsity}


def _loss(output: Any) -> torch.Tensor:
    """Return the mean squares of the differences between all outputs and random targets."""
    generator, terms = torch.Generator().manual_seed(2), [torch.zeros(())]
    for each in output_tensors(output):
        if each.is_floating_point() and each.requires_grad:
            difference = each - torch.randn(each.shape, generator=generator)
            terms.append(difference[each.detach().abs() < _MASKED].square().mean())
    return torch.stack(terms).sum()


def _save(subject: _Subject) -> dict[str, Any]:
    loaded = subject.architecture.build()
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.fill_(0.5)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        prunus.save_sparse(subject.model, path)
        size = path.stat().st_size
        prunus.load_sparse(path, loaded)
    expected, found = subject.model.state_dict(), loaded.state_dict()
    differing = [name for name in expected if not torch.equal(expected[name], found[name])]
    if differing:
        raise _WrongError(f"{differing} differ after loading")
    dense = sum(each.numel() * each.element_size() for each in subject.model.parameters())
    return {"bytes": size, "bytes of the parameters": dense}


def _compact(subject: _Subject) -> dict[str, Any]:
    small, report = prunus.compact(subject.model, subject.inputs, return_report=True)
    for inputs in (subject.inputs, subject.other_inputs):
        expected = call_model(subject.model, (), inputs)
        difference = relative_difference(expected, call_model(small, (), inputs))
        accepted = output_tolerance(expected)
        if difference > accepted:
            rounding = own_rounding(subject.model, (), inputs, expected)
            accepted = max(accepted, min(ROUNDING_FACTOR * rounding, LARGEST_ROUNDING))
        if difference > accepted:
            raise _WrongError(f"an output differs by {difference:.2g}")
    return {"parameters": report.parameters, "before": report.parameters_before}


def _speed_up(subject: _Subject) -> dict[str, Any]:
    with mock.patch.object(timing, "interleaved", _timed_as_faster):
        fast, report = prunus.speed_up(subject.model, subject.inputs, return_report=True)
    for inputs in (subject.inputs, subject.other_inputs):
        expected = call_model(subject.model, (), inputs)
        difference = relative_difference(expected, call_model(fast, (), inputs))
        if difference > TOLERANCE:
            raise _WrongError(f"an output differs by {difference:.2g}")
    return {"layers": len(report.layers), "replaced": len(report.replaced)}


def _timed_as_faster(variants: Mapping[str, object], **_: object) -> dict[str, timing.Seconds]:
    """Return times by which sparse layers are faster, so that no machine decides what is tested."""
    dense, *sparse = variants
    return {dense: np.ones((1, 1)), **{name: np.full((1, 1), 0.5) for name in sparse}}


def _export(subject: _Subject) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        report = to_onnx(subject.model, subject.inputs, path)
        session = OnnxSession(path, threads=1)
        for inputs in (subject.inputs, subject.other_inputs):
            expected = call_model(subject.model, (), inputs)
            difference = relative_difference(expected, session.outputs((), inputs))
            if difference > TOLERANCE:
                raise _WrongError(f"an output differs by {difference:.2g}")
    return {"any batch": report.any_batch}


def _frozen(model: nn.Module) -> list[str]:
    return [name for name, each in model.named_parameters() if not each.requires_grad]


def _without_gradient(model: nn.Module) -> list[str]:
    return [name for name, each in model.named_parameters() if each.grad is None]


FUNCTIONS: Mapping[str, Callable[[_Subject], dict[str, Any]]] = {
    "select": _select,
    "train and remove": _prune,
    "sparse file": _save,
    "compact": _compact,
    "speed_up": _speed_up,
    "ONNX": _export,
}
"""The functions in the order in which they are applied, by the heading of their column."""

REQUIRED = ("select", "train and remove")
"""The functions that prepare the model for the others."""

_LEFT_OUT: Mapping[str, Callable[[nn.Module], list[str]]] = {
    "select": _frozen,
    "train and remove": _without_gradient,
}
"""The tensors that a refusal of a function asks to leave out."""
