"""Linear layers under training that compute densely or sparsely, whichever is faster."""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd import forward_ad

from prunus.masks import attached_mask
from prunus.runtime.candidates import MAX_DENSITY
from prunus.runtime.linear_training import KeptWeight, sparse_linear
from prunus.runtime.report import LayerTiming
from prunus.runtime.sparse_layer import available_threads
from prunus.runtime.training_choice import time_training

__all__ = ["LayerTraining", "SparselyTrainedLinear"]

_WORTH_TIMING = 0.9
"""Fraction of the density at which a layer was slower sparsely, from which it is timed again.

A heuristic: a timing takes as long as many steps, which a schedule of many small removals would not
make up for.
"""

_REPEAT_AFTER = 50
"""Calls after which a timing that other processes disturbed is repeated, and then twice as many.

A heuristic: on a busy machine a layer would otherwise stay with a choice by chance.
"""


class _Call(NamedTuple):
    """What the time of a call depends on, besides the density.

    Attributes:
        size: The number of items, rounded up to a power of two, as its logarithm.
        threads: Number of threads.
        for_x: Whether the gradient of the input is computed later.
        for_weight: Whether the gradient of the weight is computed later.
        whole_gradient: Whether that includes removed weights.
    """

    size: int
    threads: int
    for_x: bool
    for_weight: bool
    whole_gradient: bool


class LayerTraining:
    """The choice of one layer, for each call, between its dense and its kept weights.

    Args:
        name: Name of the layer.
        max_density: The density up to which it computes with its kept weights; None to decide by
            timing.
        needs_whole_gradient: Returns whether the gradient of the weight must include removed
            weights.

    Attributes:
        timings: The last timing for each size of batch and kind of call.
        is_sparse: Whether the last call computed with the kept weights.
    """

    def __init__(
        self,
        name: str,
        max_density: float | None,
        needs_whole_gradient: Callable[[], bool] = lambda: False,
    ) -> None:
        self.name = name
        self.needs_whole_gradient = needs_whole_gradient
        self.timings: dict[_Call, LayerTiming] = {}
        self.is_sparse = False
        self._max_density = max_density
        self._mask: torch.Tensor | None = None
        self._version, self._density = -1, 1.0
        self._kept: KeptWeight | None = None
        self._calls: dict[_Call, int] = {}
        self._waits: dict[_Call, int] = {}

    def compute(self, layer: nn.Linear, x: torch.Tensor) -> torch.Tensor | None:
        """Return x Wᵀ + b computed with the kept weights, or None if the call is to be dense.

        Args:
            layer: The layer.
            x: Its input.
        """
        self.is_sparse = False
        mask = attached_mask(layer.weight) if _can_be_sparse(layer, x) else None
        if mask is None:
            return None
        self._follow(mask)
        whole_gradient = torch.is_grad_enabled() and self.needs_whole_gradient()
        if not self._is_wanted(layer, x, whole_gradient):
            return None
        kept = self._structure()
        if not kept.read(layer.weight, layer.bias):
            return None  # weights were loaded of which the pruner is yet to remove some
        self.is_sparse = True
        return sparse_linear(x, layer.weight, layer.bias, kept, whole_gradient=whole_gradient)

    def _follow(self, mask: torch.Tensor) -> None:
        """Note a mask, if it is another one or was written to."""
        if mask is not self._mask or mask._version != self._version:
            self._mask, self._version, self._kept = mask, mask._version, None
            self._density = int(mask.count_nonzero()) / mask.numel()

    def _structure(self) -> KeptWeight:
        if self._kept is None:
            assert self._mask is not None
            self._kept = KeptWeight(self._mask)
        return self._kept

    def _is_wanted(self, layer: nn.Linear, x: torch.Tensor, whole_gradient: bool) -> bool:
        if self._max_density is not None:
            return self._density <= self._max_density
        if self._density > MAX_DENSITY:
            return False
        for_x, for_weight = x.requires_grad, layer.weight.requires_grad
        if not torch.is_grad_enabled():
            for_x = for_weight = False
        items = x.numel() // x.shape[-1]
        size, threads = (items - 1).bit_length(), available_threads()
        call = _Call(size, threads, for_x, for_weight, whole_gradient and for_weight)
        timing = self.timings.get(call)
        if timing is None or self._is_outdated(call, timing):
            timing = self.timings[call] = time_training(
                self.name,
                layer,
                self._structure(),
                x,
                self._density,
                for_x=for_x,
                for_weight=for_weight,
                whole_gradient=whole_gradient,
            )
            self._calls[call] = 0
        if not any(each.replaced for each in self.timings.values()):
            self._kept = None
        return timing.replaced

    def _is_outdated(self, call: _Call, timing: LayerTiming) -> bool:
        """Return whether a timing is to be repeated, and count the calls since a disturbed one."""
        if timing.disturbed:
            self._calls[call] += 1
            wait = self._waits.setdefault(call, _REPEAT_AFTER)
            if self._calls[call] >= wait:
                self._waits[call] = 2 * wait
                return True
        if timing.replaced:
            return self._density > timing.density
        return self._density <= _WORTH_TIMING * timing.density


_ATTRIBUTE = "_sparse_training"


class SparselyTrainedLinear(nn.Linear):
    """A linear layer that computes with its kept weights where this is faster.

    A layer becomes one, and an ordinary layer again, in place; its tensors and hooks stay as they
    are. Copies and pickles of it are ordinary layers.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> SparselyTrainedLinear.convert(layer, LayerTraining("", None))
        >>> layer(torch.ones(3, 4)).shape
        torch.Size([3, 2])
        >>> SparselyTrainedLinear.restore(layer)
        >>> type(layer).__name__
        'Linear'
    """

    @classmethod
    def convert(cls, layer: nn.Linear, training: LayerTraining) -> None:
        """Let an ordinary layer compute with its kept weights where this is faster."""
        assert type(layer) is nn.Linear
        layer.__dict__[_ATTRIBUTE] = training
        layer.__class__ = cls

    @classmethod
    def restore(cls, layer: nn.Module) -> None:
        """Make a layer an ordinary one again."""
        # A parametrization added since then has made it one of another class, which stays.
        layer.__dict__.pop(_ATTRIBUTE, None)
        if type(layer) is cls:
            layer.__class__ = nn.Linear  # type: ignore[assignment]

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's own name
        """Return x Wᵀ + b."""
        training: LayerTraining | None = self.__dict__.get(_ATTRIBUTE)
        if training is None or torch.compiler.is_compiling() or torch._C._get_tracing_state():
            return super().forward(input)
        y = training.compute(self, input)
        return super().forward(input) if y is None else y

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., Any], tuple[Any, ...], Any]:
        """Return how to copy or pickle the layer, as an ordinary one."""
        state = {name: value for name, value in self.__dict__.items() if name != _ATTRIBUTE}
        # pickle lets the usual function, __newobj__, only rebuild objects of the same class.
        return copyreg._reconstructor, (nn.Linear, object, None), state  # type: ignore[attr-defined]


def _can_be_sparse(layer: nn.Linear, x: torch.Tensor) -> bool:
    """Return whether the kernels can compute a call, with the same gradients as torch."""
    if type(x) not in (torch.Tensor, nn.Parameter) or type(layer.weight) is not nn.Parameter:
        return False  # a tensor of another type, such as a symbol while a network is traced
    weight, bias = layer.weight, layer.bias
    return (
        all(
            tensor.dtype is torch.float32 and tensor.is_cpu and tensor.layout is torch.strided
            for tensor in ((x, weight) if bias is None else (x, weight, bias))
        )
        and weight.is_contiguous()
        and x.dim() > 0
        and x.shape[-1] == weight.shape[1]
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._get_tracing_state()  # of torch.jit.trace
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0  # without derivatives in forward mode
    )
