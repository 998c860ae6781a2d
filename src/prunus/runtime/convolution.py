"""Convolutions that compute with the non-zero elements of their weights only."""

from __future__ import annotations

import torch
from torch import nn

from prunus.runtime.convolution_plan import (
    ConvolutionPlan,
    Geometry,
    Images,
    Window,
    plan_images,
)
from prunus.runtime.fusion import as_pair
from prunus.runtime.sparse_layer import SparseLayer, available_threads

__all__ = ["SparseConv"]


class SparseConv(SparseLayer):
    """A convolution over one or two dimensions, for inference on the CPU.

    Every element of the weight is multiplied by a shifted plane of its input channel, so that the
    innermost loop runs over pixels, without unfolding the input. With padding or strides, each
    image is first copied onto planes with a border.

    Args:
        conv: The layer to copy: nn.Conv1d or nn.Conv2d with zero padding, float32.
        relu: Whether the layer also applies a ReLU. Default False.
        pool: A max pooling that the layer also applies, for which
            :func:`prunus.runtime.fusion.is_fusible_pool` is true. Default None.
        contiguous: Whether the output is contiguous, as torch's own, rather than with gaps between
            lines where that saves a copy. Default False.
        replaces: The layer whose attributes to have, see :class:`SparseLayer`. Default: ``conv``.

    Raises:
        ArgumentError: The layer is of another type, has another padding mode, or is not float32 on
            the CPU; on a call, the input has other channels, is smaller than the kernel, or is not
            float32 on the CPU.

    Example:
        >>> conv = nn.Conv2d(2, 3, kernel_size=3, padding=1)
        >>> _ = nn.init.zeros_(conv.weight[:, 1])
        >>> x = torch.randn(5, 2, 8, 8)
        >>> torch.allclose(SparseConv(conv)(x), conv(x), atol=1e-6)
        True
    """

    layer_types = (nn.Conv1d, nn.Conv2d)

    def __init__(
        self,
        conv: nn.Conv1d | nn.Conv2d,
        *,
        relu: bool = False,
        pool: nn.MaxPool2d | None = None,
        contiguous: bool = False,
        replaces: nn.Conv1d | nn.Conv2d | None = None,
    ) -> None:
        super().__init__(conv, relu, replaces)
        self.pool = pool
        self.contiguous = contiguous
        self.dimensions = conv.weight.dim() - 2
        before = conv._reversed_padding_repeated_twice  # the last dimension comes first
        ends = [(before[i], before[i + 1]) for i in range(0, len(before), 2)][::-1]
        self.geometry = Geometry(
            in_channels=conv.in_channels,
            out_channels=conv.out_channels,
            groups=conv.groups,
            kernel_size=_two_dimensional(conv.kernel_size),
            stride=_two_dimensional(conv.stride),
            dilation=_two_dimensional(conv.dilation),
            padding=(ends[0], ends[1]) if self.dimensions == 2 else ((0, 0), ends[0]),
        )

    def extra_repr(self) -> str:
        """Return the sizes and the density."""
        geometry = self.geometry
        return (
            f"{geometry.in_channels}, {geometry.out_channels}, kernel_size={geometry.kernel_size}, "
            f"{self._summary()}{', with max pooling' if self.pool else ''}"
        )

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's own name
        """Return the convolution, of shape (items, out_channels, height, width)."""
        x, dimensions, channels = input, self.dimensions, self.geometry.in_channels
        single = x.dim() == dimensions + 1
        fits = x.dim() - dimensions in (1, 2) and x.shape[-dimensions - 1] == channels
        if not fits or x.dtype is not torch.float32 or x.requires_grad or not x.is_cpu:
            sizes = ", ".join(("height", "width")[-dimensions:])
            self._check(x, fits, f"(items, {channels}, {sizes})")
        x = x.unsqueeze(0) if single else x
        y = self._forward_images(x.unsqueeze(2) if dimensions == 1 else x)
        y = y.squeeze(2) if dimensions == 1 else y
        return y.squeeze(0) if single else y

    def _forward_images(self, x: torch.Tensor) -> torch.Tensor:
        if x.stride(3) != 1:
            x = x.contiguous()
        threads = available_threads()
        key = (x.shape, x.stride(), threads)
        plan: ConvolutionPlan = self._plans.get(key) or self._plan_for(
            key, lambda: self._plan(x.shape, x.stride(), threads)
        )
        buffer = plan.buffers.pop() if plan.buffers else plan.new_buffer()
        address = buffer.data_ptr()
        planes = address if plan.planes_size else 0
        y = torch.empty(plan.pooled_shape or plan.stored_shape)
        output = y.data_ptr()
        computed = address + 4 * plan.planes_size if plan.unpooled_size else output
        plan.call(x.data_ptr(), planes, computed, output)
        plan.buffers.append(buffer)
        if plan.pooled_shape is not None:
            return y
        if plan.stored_shape[3] > plan.columns:
            y = y[..., : plan.columns]
            y = y.contiguous() if self.contiguous and self.pool is None else y
        y = y if y.shape == plan.output_shape else y.view(plan.output_shape)
        return y if self.pool is None else self.pool(y)

    def _plan(self, shape: torch.Size, strides: tuple[int, ...], threads: int) -> ConvolutionPlan:
        window = None
        if self.pool is not None:
            size, stride = as_pair(self.pool.kernel_size), as_pair(self.pool.stride)
            window = Window(size=size, stride=stride)
        images = Images(
            count=shape[0],
            height=shape[2],
            width=shape[3],
            image_step=strides[0],
            channel_step=strides[1],
            line_step=strides[2],
        )
        return plan_images(
            self.rows,
            self.geometry,
            images,
            window=window,
            threads=threads,
            relu=self.relu,
        )


def _two_dimensional(sizes: tuple[int, ...]) -> tuple[int, int]:
    return (1, sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])
