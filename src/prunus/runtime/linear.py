"""Linear layers that compute with the non-zero elements of their weights only."""

from __future__ import annotations

import torch
from torch import nn

from prunus.runtime.kernels.tiles import LANES
from prunus.runtime.linear_plan import (
    Items,
    LinearPlan,
    SinglePlan,
    plan_items,
    plan_single,
    vectors_fit_storage,
)
from prunus.runtime.sparse_layer import SparseLayer, available_threads

__all__ = ["SparseLinear"]


class SparseLinear(SparseLayer):
    """A linear layer, y = x Wᵀ + b, for inference on the CPU.

    The kernels read activations feature by feature, so that the innermost loop runs over the batch.
    An input stored that way is read where it is; any other is transposed first. The output has the
    same shape as that of ``nn.Linear`` and is stored feature by feature, unless ``by_item``.

    Args:
        linear: The layer to copy; float32.
        relu: Whether the layer also applies a ReLU. Default False.
        by_item: Whether the output is stored item by item, as torch's own. Default False.
        replaces: The layer whose attributes to have, see :class:`SparseLayer`. Default: ``linear``.

    Raises:
        ArgumentError: The layer is of another type, or not float32 on the CPU; on a call, the input
            has other features, or is not float32 on the CPU.

    Example:
        >>> linear = nn.Linear(4, 3)
        >>> _ = nn.init.zeros_(linear.weight[:, 1:])
        >>> x = torch.randn(5, 4)
        >>> torch.allclose(SparseLinear(linear)(x), linear(x), atol=1e-6)
        True
    """

    layer_types = (nn.Linear,)

    def __init__(
        self,
        linear: nn.Linear,
        *,
        relu: bool = False,
        by_item: bool = False,
        replaces: nn.Linear | None = None,
    ) -> None:
        super().__init__(linear, relu, replaces)
        self._features, self._outputs = linear.in_features, linear.out_features
        self.by_item = by_item

    def extra_repr(self) -> str:
        """Return the sizes and the density."""
        return f"{self._features}, {self._outputs}, {self._summary()}"

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's own name
        """Return x Wᵀ + b, of shape (..., out_features)."""
        x, shape = input, input.shape
        fits = len(shape) > 0 and shape[-1] == self._features
        if not fits or x.dtype is not torch.float32 or x.requires_grad or not x.is_cpu:
            self._check(x, fits, f"(..., {self._features})")
        flat = x if len(shape) == 2 else x.reshape(-1, self._features)
        count = flat.shape[0]
        if count == 1:
            y = self._forward_single(flat)
        elif count == 0:
            y = x.new_empty(0, self._outputs)
        else:
            y = self._forward_items(flat, count)
        return y if len(shape) == 2 else y.view(*shape[:-1], self._outputs)

    def _forward_single(self, x: torch.Tensor) -> torch.Tensor:
        x, y = x.contiguous(), torch.empty(1, self._outputs)
        threads = available_threads()
        plan: SinglePlan = self._plans.get((1, threads)) or self._plan_for(
            (1, threads),
            lambda: plan_single(self.rows, threads=threads, relu=self.relu),
        )
        plan.call(x.data_ptr(), y.data_ptr())
        return y

    def _forward_items(self, x: torch.Tensor, count: int) -> torch.Tensor:
        threads, strides, address = available_threads(), x.stride(), x.data_ptr()
        padded = count % LANES != 0 and strides[0] == 1 and vectors_fit_storage(x)
        key = (count, threads, strides, address % (4 * LANES), padded)
        plan: LinearPlan = self._plans.get(key) or self._plan_for(key, lambda: self._plan(*key))
        packing = plan.packing
        if packing is not None:
            if 1 not in strides:
                x = x.contiguous()
                address = x.data_ptr()
            panels = torch.empty(packing.size)
            packing.call(address, panels.data_ptr())
            address = panels.data_ptr()
        y = torch.empty(self._outputs, plan.output_width)
        plan.call(address, y.data_ptr())
        if not self.by_item:
            return y.t() if plan.output_width == count else y.t()[:count]
        result = torch.empty(count, self._outputs)
        plan.unpacking.call(y.data_ptr(), result.data_ptr())
        return result

    def _plan(
        self, count: int, threads: int, strides: tuple[int, ...], offset: int, padded: bool
    ) -> LinearPlan:
        items = Items(
            count=count,
            features=self._features,
            item_step=strides[0],
            feature_step=strides[1],
            offset=offset,
            padded=padded,
        )
        return plan_items(self.rows, items, threads=threads, relu=self.relu)
