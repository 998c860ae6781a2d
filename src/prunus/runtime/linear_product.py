"""Products of a sparse matrix with the items of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from prunus.errors import PrunusError
from prunus.runtime.kernels.arithmetic import Arithmetic
from prunus.runtime.kernels.tiles import LANES
from prunus.runtime.linear_plan import (
    Items,
    LinearPlan,
    SinglePlan,
    plan_items,
    plan_single,
    vectors_fit_storage,
)
from prunus.runtime.rows import SparseRows
from prunus.runtime.sparse_layer import available_threads

__all__ = ["PlanFor", "multiply"]

PlanFor = Callable[[Any, Callable[[], Any]], Any]
"""Stores the plan that a function returns under a key, and returns it."""


def multiply(
    rows: SparseRows,
    x: torch.Tensor,
    *,
    relu: bool,
    by_item: bool,
    plans: Mapping[Any, Any],
    plan_for: PlanFor,
    arithmetic: Arithmetic | None = None,
) -> torch.Tensor:
    """Return x Wᵀ + b, of shape (items, rows).

    Args:
        rows: The sparse matrix W, with the bias b.
        x: Float32 on the CPU, of shape (items, columns), in any layout.
        relu: Whether to apply a ReLU to the outputs.
        by_item: Whether the output is stored item by item, as torch's own, or feature by feature.
        plans: The plans made so far for inputs of one shape and layout.
        plan_for: Adds one to them.
        arithmetic: How elements are multiplied. Default None: by the processor's instruction.

    Raises:
        PrunusError: An input to round to int8 is NaN.
    """
    count = x.shape[0]
    if count == 0:
        return x.new_empty(0, len(rows.bias))
    if count == 1 and rows.group == 1:
        return _multiply_single(rows, x, relu, plans, plan_for)
    threads, strides, address = available_threads(), x.stride(), x.data_ptr()
    padded = count % LANES != 0 and strides[0] == 1 and vectors_fit_storage(x)
    key = (count, threads, strides, address % (4 * LANES), padded)
    plan: LinearPlan = plans.get(key) or plan_for(key, lambda: _plan(rows, relu, arithmetic, *key))
    packing = plan.packing
    if packing is not None:
        if 1 not in strides:
            x = x.contiguous()
            address = x.data_ptr()
        panels = torch.empty(packing.size, dtype=torch.float32)
        if packing.call(address, panels.data_ptr()):
            raise PrunusError(
                "a sparse layer in int8 received NaN, which int8 cannot represent: find where it "
                "arises in the network in float32, or speed it up in bfloat16"
            )
        address = panels.data_ptr()
    y = torch.empty(len(rows.bias), plan.output_width, dtype=torch.float32)
    plan.call(address, y.data_ptr())
    if not by_item:
        return y.t() if plan.output_width == count else y.t()[:count]
    result = torch.empty(count, len(rows.bias), dtype=torch.float32)
    plan.unpacking.call(y.data_ptr(), result.data_ptr())
    return result


def _multiply_single(
    rows: SparseRows, x: torch.Tensor, relu: bool, plans: Mapping[Any, Any], plan_for: PlanFor
) -> torch.Tensor:
    x, threads = x.contiguous(), available_threads()
    y = torch.empty(1, len(rows.bias), dtype=torch.float32)
    plan: SinglePlan = plans.get((1, threads)) or plan_for(
        (1, threads), lambda: plan_single(rows, threads=threads, relu=relu)
    )
    plan.call(x.data_ptr(), y.data_ptr())
    return y


def _plan(
    rows: SparseRows,
    relu: bool,
    arithmetic: Arithmetic | None,
    count: int,
    threads: int,
    strides: tuple[int, ...],
    offset: int,
    padded: bool,
) -> LinearPlan:
    items = Items(
        count=count,
        features=rows.width,
        item_step=strides[0],
        feature_step=strides[1],
        offset=offset,
        padded=padded,
        group=rows.group,
    )
    return plan_items(rows, items, threads=threads, relu=relu, arithmetic=arithmetic)
