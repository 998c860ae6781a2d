"""Linear layers under training that compute with the kept elements of their weights only."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from prunus.runtime.kernels.compiling import run_in_threads
from prunus.runtime.kernels.gradient import gather_elements, reorder_elements, weight_gradient
from prunus.runtime.kernels.records import GradientRecord, Record
from prunus.runtime.kernels.tiles import LANES, Tile
from prunus.runtime.linear_plan import Copy, Items, plan_packing
from prunus.runtime.linear_product import multiply
from prunus.runtime.rows import SparseRows, from_index
from prunus.runtime.sparse_layer import available_threads, is_worth_sharing

__all__ = ["KeptWeight", "sparse_linear"]

_CHUNK_BYTES = 1 << 20
"""Bytes of inputs that are read for all rows of the weight before the next ones.

A heuristic: the second-level cache of recent server processors has 1 or 2 MiB. A larger chunk is
read from beyond it for each element.
"""

_WORTH_SHARING_PASS = 50_000
"""Elements above which threads share a pass over them.

A heuristic: a pass over fewer takes one thread less time than waking another one.
"""

_MAX_PLANS = 32
"""Shapes and layouts of batches whose plans a weight keeps; above it all are dropped.

A heuristic that bounds memory where every batch has another size.
"""


class KeptWeight:
    """The kept elements of the weight of a linear layer, for products and their gradients.

    Args:
        mask: True where an element is kept, of shape (outputs, inputs), on the CPU.

    Example:
        >>> kept = KeptWeight(torch.tensor([[True, False], [True, True]]))
        >>> weight = torch.tensor([[2.0, 0.0], [3.0, 4.0]])
        >>> kept.read(weight, None), kept.outputs(torch.ones(3, 2))[0].tolist()
        (True, [2.0, 7.0])
        >>> x, gradient = torch.ones(3, 2), torch.ones(3, 2)
        >>> kept.weight_gradient(x, gradient).tolist()
        [[3.0, 0.0], [3.0, 3.0]]
        >>> kept.input_gradient(gradient)[0].tolist()
        [5.0, 4.0]
    """

    @torch.inference_mode(False)  # tensors made in that mode could not be written to later
    def __init__(self, mask: torch.Tensor) -> None:
        # The elements are those of the mask until the first call of ``read``.
        self._product = _Product(mask)
        self._buffer = _GradientBuffer(mask.shape)

    @functools.cached_property
    def _transposed(self) -> tuple[_Product, torch.Tensor]:
        """The transpose, and the number of each of its elements among those of the weight."""
        order = np.argsort(from_index(self._product.rows.columns), kind="stable")
        return _Product(self.mask().t()), torch.from_numpy(order.astype(np.int32))

    def mask(self) -> torch.Tensor:
        """Return the mask."""
        rows = self._product.rows
        counts = np.diff(rows.pointers.numpy())
        mask = torch.zeros(len(counts), rows.width, dtype=torch.bool)
        mask[np.repeat(np.arange(len(counts)), counts), from_index(rows.columns)] = True
        return mask

    @torch.no_grad()
    def read(self, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
        """Read the elements of a weight, and a bias; return whether all other elements are zero.

        Args:
            weight: Contiguous, float32 on the CPU.
            bias: Of shape (outputs,), or None for zeros.
        """
        record, threads = self._product.record()
        others = torch.empty(threads, dtype=torch.float32)
        kernel = gather_elements(self._product.rows.index_bits, threads > 1)
        _run(kernel, threads, record, weight, others)
        if bias is not None:
            self._product.rows.bias.copy_(bias)
        return not others.any()

    def outputs(self, x: torch.Tensor) -> torch.Tensor:
        """Return x Wᵀ + b, of shape (items, outputs)."""
        return self._product.multiply(x)

    def input_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the inputs, of shape (items, inputs).

        Args:
            gradient: The gradient of the outputs, of shape (items, outputs).
        """
        product, order = self._transposed
        record, threads = product.record()
        elements, target = self._product.rows.values, product.rows.values
        _run(reorder_elements(threads > 1), threads, record, order, elements, target)
        return product.multiply(gradient)

    def weight_gradient(self, x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the weight, which is zero where an element is not kept.

        Args:
            x: The inputs, of shape (items, inputs).
            gradient: The gradient of the outputs, of shape (items, outputs).
        """
        rows = self._product.rows
        inputs, outputs = self._product.lines(x), self._product.lines(gradient)
        record, threads = self._product.gradient_record(inputs, outputs)
        sums = torch.empty(len(rows.values), dtype=torch.float32)
        result = self._buffer.take()
        kernel = weight_gradient(rows.index_bits, threads > 1)
        _run(kernel, threads, record, inputs.tensor, outputs.tensor, sums, result)
        return result


def sparse_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    kept: KeptWeight,
    *,
    whole_gradient: bool = False,
) -> torch.Tensor:
    """Return x Wᵀ + b, with the gradients of ``torch.nn.functional.linear`` for kept weights.

    A backward pass that is differentiated itself computes with the whole weight.

    Args:
        x: Float32 on the CPU, of shape (..., inputs).
        weight: The weight that ``kept`` has read.
        bias: The bias that ``kept`` has read.
        kept: The kept elements.
        whole_gradient: Whether the gradient of the weight includes the elements that are not kept,
            instead of zeros. Default False.
    """
    if torch.is_grad_enabled():
        y: torch.Tensor = _SparseLinear.apply(x, weight, bias, kept, whole_gradient)  # type: ignore[no-untyped-call]
        return y
    return _outputs(x, kept)


class _SparseLinear(torch.autograd.Function):
    """A product with kept weights, and its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        kept: KeptWeight,
        whole_gradient: bool,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.kept, ctx.whole_gradient = kept, whole_gradient
        return _outputs(x, kept)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,), (x, weight), kept = gradients, ctx.saved_tensors, ctx.kept
        for_x, for_weight, for_bias, *_ = ctx.needs_input_grad
        items, outputs = (each.reshape(-1, each.shape[-1]) for each in (x, gradient))
        of_x = of_weight = of_bias = None
        differentiated = torch.is_grad_enabled()
        if for_x:
            of_x = outputs @ weight if differentiated else kept.input_gradient(outputs)
            of_x = of_x.view(x.shape)
        if for_weight and ctx.whole_gradient:
            of_weight = outputs.t() @ items
        elif for_weight and differentiated:
            of_weight = (outputs.t() @ items) * kept.mask()
        elif for_weight:
            of_weight = kept.weight_gradient(items, outputs)
        if for_bias:
            of_bias = outputs.sum(0)
        return of_x, of_weight, of_bias, None, None


def _outputs(x: torch.Tensor, kept: KeptWeight) -> torch.Tensor:
    y = kept.outputs(x.reshape(-1, x.shape[-1]))
    return y.view(*x.shape[:-1], y.shape[-1])


@dataclass(frozen=True)
class _Lines:
    """Items feature by feature; a line is a feature of all items, and zeros after a last one.

    Attributes:
        tensor: Holds the lines.
        step: Floats from line to line.
        length: Floats of a line, a multiple of ``LANES``.
    """

    tensor: torch.Tensor
    step: int
    length: int


class _Product:
    """The product of a sparse matrix, whose elements change, with the items of a batch.

    Args:
        mask: True where the matrix has an element.
    """

    def __init__(self, mask: torch.Tensor) -> None:
        self.rows = SparseRows(mask.float(), None)
        self._plans: dict[Any, Any] = {}

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product with items, item by item, as torch stores them."""
        return multiply(
            self.rows, x, relu=False, by_item=True, plans=self._plans, plan_for=self._plan_for
        )

    def lines(self, x: torch.Tensor) -> _Lines:
        """Return items feature by feature, copied if they are not stored that way."""
        count = x.shape[0]
        length = LANES * -(-count // LANES)
        if x.stride(0) == 1 and length == count and x.stride(1) >= count:
            return _Lines(x, x.stride(1), length)
        if 1 not in x.stride():
            x = x.contiguous()
        key = "lines", x.shape, x.stride(), available_threads()
        copy: Copy = self._plans.get(key) or self._plan_for(key, lambda: _plan_lines(x, length))
        lines = torch.empty(copy.size, dtype=torch.float32)
        copy.call(x.data_ptr(), lines.data_ptr())
        return _Lines(lines, length, length)

    def record(self) -> tuple[Record, int]:
        """Return the record for one pass over the elements, and the number of threads."""
        shared = len(self.rows.values) > _WORTH_SHARING_PASS
        threads = available_threads() if shared else 1
        key = "pass", threads
        record: Record = self._plans.get(key) or self._plan_for(key, lambda: self._record(threads))
        return record, threads

    def gradient_record(self, x: _Lines, y: _Lines) -> tuple[Record, int]:
        """Return the record for the gradient of the elements, and the number of threads.

        Args:
            x: The inputs of the product.
            y: The gradients of its outputs.
        """
        # As costly as the product with a tile of four vectors, see prunus.runtime.tiling.
        cost = self.rows.work() * x.length / (4 * LANES)
        threads = available_threads() if is_worth_sharing(cost, available_threads()) else 1
        key = "gradient", x.length, x.step, y.step, threads
        vectors = max(1, _CHUNK_BYTES // (4 * LANES * self.rows.width))
        record: Record = self._plans.get(key) or self._plan_for(
            key,
            lambda: self._record(
                threads,
                x_step=4 * x.step,
                y_step=4 * y.step,
                line=4 * x.length,
                chunk=4 * LANES * vectors,
            ),
        )
        return record, threads

    def _record(
        self, threads: int, *, x_step: int = 0, y_step: int = 0, line: int = 0, chunk: int = 0
    ) -> Record:
        weight = self.rows.record(threads=threads, relu=False)
        fields = GradientRecord(
            weight=weight.address,
            columns=self.rows.width,
            x_step=x_step,
            y_step=y_step,
            line=line,
            chunk=chunk,
        )
        return Record(fields, weight)

    def _plan_for(self, key: Any, make_plan: Callable[[], Any]) -> Any:
        if len(self._plans) >= _MAX_PLANS:
            self._plans.clear()
        plan = self._plans[key] = make_plan()
        return plan


class _GradientBuffer:
    """The memory of a gradient, which is used again once no tensor uses it any more.

    New memory of this size would be fetched from the system page by page in each step.

    Args:
        shape: Shape of the gradient.
    """

    def __init__(self, shape: torch.Size) -> None:
        self._shape = shape
        memory = np.empty(shape.numel() + LANES, dtype=np.float32)
        start = -memory.ctypes.data % (4 * LANES) // 4
        self._memory = memory[start : start + shape.numel()].reshape(shape)
        self._unused = self._references()

    def _references(self) -> int:
        return sys.getrefcount(self._memory)

    def take(self) -> torch.Tensor:
        """Return a tensor with arbitrary elements."""
        if self._references() > self._unused:  # a tensor of torch refers to its array
            return torch.empty(self._shape, dtype=torch.float32)
        return torch.from_numpy(self._memory)


def _plan_lines(x: torch.Tensor, length: int) -> Copy:
    items = Items(
        count=x.shape[0],
        features=x.shape[1],
        item_step=x.stride(0),
        feature_step=x.stride(1),
        offset=0,
        padded=False,
    )
    return plan_packing(items, Tile(LANES, length // LANES), available_threads())


def _run(kernel: Callable[..., None], threads: int, record: Record, *tensors: torch.Tensor) -> None:
    addresses = [tensor.data_ptr() for tensor in tensors]
    if threads > 1:
        run_in_threads(kernel, threads, record.address, *addresses)
    else:
        kernel(record.address, *addresses)
