"""The choice between dense and sparse training of a linear layer, by timing both."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from prunus._utils.timing import paired_timings
from prunus.runtime.layer_choice import MARGIN, is_certain
from prunus.runtime.linear_training import KeptWeight
from prunus.runtime.report import LayerTiming

__all__ = ["time_training"]

_SECONDS = 0.1
"""Seconds of calls per variant in a set of rounds, if 3 to 20 rounds allow it.

A heuristic: the layer waits for it in the middle of a training.
"""

_MOST_SECONDS = 0.5
"""Seconds of calls per variant after which no further set begins, where the first leaves it open.

A heuristic, as the one above.
"""


@torch.no_grad()
def time_training(
    name: str,
    layer: nn.Linear,
    kept: KeptWeight,
    x: torch.Tensor,
    density: float,
    *,
    for_x: bool,
    for_weight: bool,
    whole_gradient: bool,
) -> LayerTiming:
    """Time the calls of a layer in a training step, dense and sparse.

    Args:
        name: Name of the layer.
        layer: The layer.
        kept: The kept elements of its weight.
        x: Its input.
        density: The fraction of kept elements.
        for_x: Whether the gradient of the input is computed.
        for_weight: Whether the gradient of the weight is computed.
        whole_gradient: Whether it includes removed weights, also if the layer is sparse.
    """
    weight, bias = layer.weight, layer.bias
    items = x.detach().reshape(-1, x.shape[-1])
    # Its own generator, so that the numbers that the training draws stay the same.
    generator = torch.Generator().manual_seed(0)
    gradient = items.new_empty(len(items), len(weight)).normal_(generator=generator)

    def dense() -> object:
        return (
            F.linear(items, weight, bias),
            gradient @ weight if for_x else None,
            gradient.t() @ items if for_weight else None,
        )

    def sparse() -> object:
        kept.read(weight, bias)
        results = [kept.outputs(items), kept.input_gradient(gradient) if for_x else None]
        if for_weight:
            results.append(
                gradient.t() @ items if whole_gradient else kept.weight_gradient(items, gradient)
            )
        return results

    timings = paired_timings(
        {"dense": dense, "sparse": sparse},
        reference="dense",
        seconds=2 * _SECONDS,
        most_seconds=2 * _MOST_SECONDS,
        least=3,
        most=20,
        calls=1,
        threads=torch.get_num_threads(),
        is_certain=lambda timings: is_certain(timings, threshold=MARGIN),
    )
    return LayerTiming(
        name=name,
        layer_type=nn.Linear.__name__,
        shape=tuple(weight.shape),
        density=density,
        dense_ms=timings.milliseconds("dense")["median_ms"],
        sparse_ms=timings.milliseconds("sparse")["median_ms"],
        replaced=timings.ratio("sparse") < MARGIN,
        fused=(),
        disturbed=not is_certain(timings, threshold=MARGIN),
    )
