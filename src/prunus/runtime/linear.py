"""Linear layers that compute with the non-zero elements of their weights only."""

from __future__ import annotations

import torch
from torch import nn

from prunus.runtime.kernels.arithmetic import Arithmetic
from prunus.runtime.linear_product import multiply
from prunus.runtime.precision import FLOAT32, Precision
from prunus.runtime.sparse_layer import SparseLayer

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
        precision: The type to compute in, of inputs and outputs in float32. Default: float32.
        arithmetic: How elements are multiplied. Default None: by the processor's instruction.

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
        precision: Precision = FLOAT32,
        arithmetic: Arithmetic | None = None,
    ) -> None:
        super().__init__(linear, relu, replaces, precision)
        self.arithmetic = arithmetic
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
        y = multiply(
            self.rows,
            x if len(shape) == 2 else x.reshape(-1, self._features),
            relu=self.relu,
            by_item=self.by_item,
            plans=self._plans,
            plan_for=self._plan_for,
            arithmetic=self.arithmetic,
        )
        return y if len(shape) == 2 else y.view(*shape[:-1], self._outputs)
