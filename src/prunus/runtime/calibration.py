"""The ranges of the inputs of layers, on inputs of the network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from prunus._inference.model_calls import ExampleInputs, call_arguments
from prunus._utils.checks import TypeProblem
from prunus.compaction.input_selection import without_selection
from prunus.errors import ArgumentError, PrunusError, first_line, listing
from prunus.runtime.candidates import call_recording

__all__ = ["calibration_problem", "input_ranges"]


def calibration_problem(calibration: object) -> str | None:
    """Return what is wrong with inputs to calibrate by, or None if nothing is.

    Example:
        >>> calibration_problem(torch.ones(2, 3))
        'calibration must be a list or another iterable of inputs, but is Tensor: pass [inputs]'
    """
    is_one = isinstance(calibration, torch.Tensor | Mapping | str)
    if isinstance(calibration, Iterable) and not is_one:
        return None
    return TypeProblem(
        "calibration must be a list or another iterable of inputs, but is "
        f"{type(calibration).__name__}{': pass [inputs]' * is_one}"
    )


def input_ranges(
    model: nn.Module, layers: Mapping[str, nn.Linear], calibration: Iterable[ExampleInputs]
) -> dict[str, tuple[float, float]]:
    """Return the smallest and the largest input of each layer that is called.

    Features for which a layer has no weights are left out.

    Args:
        model: The network.
        layers: The layers, by name.
        calibration: Inputs of the network.

    Raises:
        ArgumentError: There are no inputs.
        ArgumentTypeError: One of them has the wrong type.
        PrunusError: The network fails on one of them, or a layer receives NaN or infinity.
    """
    ranges: dict[str, tuple[float, float]] = {}
    infinite: dict[str, None] = {}

    def record(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = next(iter([*args, *kwargs.values()]), None)
        if not isinstance(x, torch.Tensor) or x.is_nested or not x.numel():
            return
        layer = without_selection(layers[name], x.shape[-1])
        weight: torch.Tensor = layer.weight  # type: ignore[assignment]
        used = x.detach()[..., (weight != 0).any(dim=0)]
        if not used.numel():
            ranges.setdefault(name, (0.0, 0.0))
            return
        low, high = (float(bound) for bound in used.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            infinite[name] = None
            return
        before = ranges.get(name, (low, high))
        ranges[name] = min(low, before[0]), max(high, before[1])

    count = 0
    for count, inputs in enumerate(calibration, start=1):
        args, kwargs = call_arguments(inputs, f"calibration input {count}")
        try:
            call_recording(model, layers, record, args, kwargs)
        except Exception as error:  # whatever a model's own code raises
            raise PrunusError(
                f"{type(model).__name__} fails on calibration input {count}: "
                f"{type(error).__name__}: {first_line(error)}. Pass what its forward accepts, "
                "without labels"
            ) from error
    if not count:
        raise ArgumentError("calibration has no inputs: pass at least one, or leave it out")
    if infinite:
        raise PrunusError(
            "int8 needs finite inputs, but with the calibration inputs these layers receive NaN or "
            f"infinity: {listing(list(infinite))}. Leave out such inputs, or use bfloat16"
        )
    return ranges
