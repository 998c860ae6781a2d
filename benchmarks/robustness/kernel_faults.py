"""Faults to plant into the sparse runtime, and its import with one of them.

Mutation tools do not reach the kernels, because Numba compiles them from generated code.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.robustness.planting import PlantedFault, PlantingFinder

__all__ = ["FAULTS", "Fault", "freshly_imported"]


@dataclass(frozen=True)
class Fault(PlantedFault):
    """A fault of the sparse runtime.

    Attributes:
        case: Name of the comparison in ``tests/runtime/test_planted_faults.py`` that finds it.
    """

    package: ClassVar[str] = "prunus.runtime"

    case: str

    @property
    def in_kernel(self) -> bool:
        """Whether the fault changes compiled code, so that kernels on disk must not be used."""
        return self.module.startswith("kernels.")

    @property
    def in_convolution(self) -> bool:
        """Whether the comparison that finds the fault is one of a convolution."""
        return "image" in self.case or "padding" in self.case

    @property
    def in_rounding(self) -> bool:
        """Whether the comparison that finds the fault is one of a layer in bfloat16 or int8."""
        return "bfloat16" in self.case or "int8" in self.case


FAULTS: Sequence[Fault] = (
    Fault(
        "wrong tail lane",
        "tiling",
        "4 * (items - tile.lanes) - table[-1, 1]",
        "4 * max(0, items - tile.lanes - 1) - table[-1, 1]",
        "items in place",
    ),
    Fault(
        "first lane of a vector reads its neighbour",
        "kernels.arithmetic",
        "self.code.multiply_add(weight, self.code.load(address), total)",
        "self.code.multiply_add(weight, self.code.shuffle(self.code.load(address), "
        "self.code.load(address), [1, *range(1, self.code.lanes)]), total)",
        "items in place",
    ),
    Fault(
        "dropped last row",
        "kernels.matrix",
        "stop = min(start + product.chunk, last)",
        "stop = min(start + product.chunk, last - 1)",
        "items in place",
    ),
    Fault(
        "dropped last row of a product with a vector",
        "kernels.matrix",
        "for row in range(first, last):\n            begin",
        "for row in range(first, last - 1):\n            begin",
        "single item",
    ),
    Fault(
        "off-by-one offset of a weight in an image",
        "convolution_plan",
        "return as_index(offsets,",
        "return as_index(np.maximum(offsets - 1, 0),",
        "padded image",
    ),
    Fault(
        "swapped row bounds between threads",
        "kernels.matrix",
        "first, last = int_at(bounds, thread), int_at(bounds, thread + 1)",
        "first, last = int_at(bounds, thread + 1), int_at(bounds, thread)",
        "items in two threads",
    ),
    Fault(
        "swapped row bounds between threads of a product with a vector",
        "kernels.matrix",
        "rows(record, int_at(bounds, thread), int_at(bounds, thread + 1), x, y)",
        "rows(record, int_at(bounds, thread + 1), int_at(bounds, thread), x, y)",
        "single item in two threads",
    ),
    Fault(
        "swapped channel bounds between threads",
        "kernels.convolution",
        "first, last = int_at(bounds, thread), int_at(bounds, thread + 1)",
        "first, last = int_at(bounds, thread + 1), int_at(bounds, thread)",
        "image in two threads",
    ),
    Fault(
        "row between two threads left out",
        "kernels.matrix",
        "first, last = int_at(bounds, thread), int_at(bounds, thread + 1)",
        "first, last = int_at(bounds, thread) + min(thread, 1), int_at(bounds, thread + 1)",
        "items in two threads",
    ),
    Fault(
        "image between two threads left out",
        "kernels.convolution",
        "thread * total // threads, (thread + 1) * total // threads",
        "thread * total // threads + min(thread, 1), (thread + 1) * total // threads",
        "images in two threads",
    ),
    Fault(
        "missing bias",
        "kernels.matrix",
        "tail, float_at(weight.bias, row), floor,",
        "tail, np.float32(0), floor,",
        "items in place",
    ),
    Fault(
        "missing bias of a product with a vector",
        "kernels.matrix",
        "total += float_at(weight.bias, row)",
        "total += np.float32(0)",
        "single item",
    ),
    Fault(
        "bias added to every partial sum",
        "kernels.instructions",
        "many = sums + zeros * (times - 1)",
        "many = sums * times",
        "items in place",
    ),
    Fault(
        "products after the last full round left out",
        "kernels.instructions",
        "total: list[Any] = self.loop(k, end, 1, many[:count], body)[0]",
        "total: list[Any] = many[:count]",
        "single item",
    ),
    Fault(
        "wrong index width in the plan",
        "rows",
        "if limit <= 1 << 16:",
        "if limit <= 1 << 17:",
        "32-bit indices",
    ),
    Fault(
        "wrong index width in the kernel",
        "kernels.instructions",
        "index_type = ir.IntType(bits)",
        "index_type = ir.IntType(min(bits, 16))",
        "32-bit indices",
    ),
    Fault(
        "wrong padding above an image",
        "convolution_plan",
        "top=geometry.padding[0][0]",
        "top=0",
        "padded image",
    ),
    Fault(
        "wrong side of an uneven padding",
        "convolution_plan",
        "left=geometry.padding[1][0]",
        "left=geometry.padding[1][1]",
        "uneven padding",
    ),
    Fault(
        "wrong part of a plane divided by a stride",
        "kernels.convolution",
        "offset = (place % down) * along * phase",
        "offset = (place % down) * phase",
        "strided image",
    ),
    Fault(
        "stride ignored within a line",
        "convolution_plan",
        "layout.line + along // stride_along",
        "layout.line + along // 1 % layout.line",
        "strided image",
    ),
    Fault(
        "stride of the other dimension",
        "convolution_plan",
        "stride_along=geometry.stride[1]",
        "stride_along=geometry.stride[0]",
        "strided image of one line",
    ),
    Fault(
        "equal strides assumed",
        "convolution_plan",
        "stride_down=geometry.stride[0]",
        "stride_down=geometry.stride[1]",
        "image with two strides",
    ),
    Fault(
        "dilation ignored",
        "convolution_plan",
        "down, along = down * geometry.dilation[0], along * geometry.dilation[1]",
        "down, along = down * 1, along * 1",
        "dilated image",
    ),
    Fault(
        "all groups read the first one",
        "convolution_plan",
        "channel += np.repeat(group, counts)",
        "channel += 0 * np.repeat(group, counts)",
        "grouped image",
    ),
    Fault(
        "last panel of a batch left out",
        "tiling",
        "torch.arange(math.ceil(items / tile.width))",
        "torch.arange(items // tile.width)",
        "items in panels",
    ),
    Fault(
        "last item of a batch not transposed",
        "kernels.layout",
        "one_by_one(x, x_row, whole_rows, rows, 0,",
        "one_by_one(x, x_row, whole_rows, rows - 1, 0,",
        "items in panels",
    ),
    Fault(
        "last word of whole squares not transposed",
        "kernels.layout",
        "for word in range(first, words):",
        "for word in range(first, words - 1):",
        "items in panels",
    ),
    Fault(
        "square transposed without its last step",
        "kernels.conversion",
        "for _step in range(half.bit_length()):",
        "for _step in range(half.bit_length() - 1):",
        "items in panels",
    ),
    Fault(
        "ReLU not applied",
        "rows",
        "relu=int(relu)",
        "relu=0",
        "items with ReLU",
    ),
    Fault(
        "ReLU always applied",
        "rows",
        "relu=int(relu)",
        "relu=1",
        "items in place",
    ),
    Fault(
        "ReLU keeps the smaller number",
        "kernels.instructions",
        "return self.builder.select(below, floor, value)",
        "return self.builder.select(below, value, floor)",
        "items with ReLU",
    ),
    Fault(
        "pooling keeps the smaller number",
        "kernels.instructions",
        'above = self.builder.fcmp_ordered(">", right, left)',
        'above = self.builder.fcmp_ordered("<", right, left)',
        "pooled image",
    ),
    Fault(
        "pooling reads every line",
        "kernels.convolution",
        "row * down * x_line",
        "row * x_line",
        "pooled image",
    ),
    Fault(
        "pooling takes neighbouring windows",
        "kernels.vectors",
        "range(0, 2 * count, 2)",
        "range(0, count)",
        "pooled image",
    ),
    Fault(
        "activations truncated to bfloat16",
        "kernels.conversion",
        "rounded = builder.add(builder.add(bits, constant(0x7FFF)), is_odd)",
        "rounded = bits",
        "items in bfloat16",
    ),
    Fault(
        "numbers of the last words in reverse order",
        "kernels.layout",
        "<< (i * bits)",
        "<< ((group - 1 - i) * bits)",
        "items in bfloat16",
    ),
    Fault(
        "first number of a word read twice",
        "kernels.arithmetic",
        "first, second = code.builder.shl(words, shift), code.builder.and_(words, mask)",
        "first = second = code.builder.shl(words, shift)",
        "items in bfloat16 without its instruction",
    ),
    Fault(
        "numbers of words from lines in reverse order",
        "kernels.conversion",
        "[32 // count * place] * width",
        "[32 // count * (count - 1 - place)] * width",
        "items in place in int8",
    ),
    Fault(
        "activations in int8 not moved by the zero point",
        "kernels.conversion",
        "moved = builder.fadd(builder.call(nearest, [scaled]), code.broadcast(zero))",
        "moved = builder.call(nearest, [scaled])",
        "items in int8",
    ),
    Fault(
        "activations in int8 wrap around",
        "kernels.conversion",
        "_LARGEST = 255.0",
        "_LARGEST = 511.0",
        "items in int8",
    ),
    Fault(
        "weights in int8 taken as unsigned",
        "kernels.arithmetic",
        "weights = builder.ashr(builder.shl(weight, shift), upper)",
        "weights = builder.lshr(builder.shl(weight, shift), upper)",
        "items in int8 without its instruction",
    ),
    Fault(
        "zero point not subtracted",
        "rows",
        "return [-self.zero_point * sums,",
        "return [0 * self.zero_point * sums,",
        "items in int8",
    ),
    Fault(
        "scale of activations ignored",
        "rows",
        "self.scales * self.input_scale]",
        "self.scales]",
        "items in int8",
    ),
    Fault(
        "sums of integers begin as those of the first row",
        "kernels.matrix",
        "start_sum = int_at(weight.starts, row)",
        "start_sum = int_at(weight.starts, first)",
        "items in int8",
    ),
    Fault(
        "bias left out in int8",
        "kernels.arithmetic",
        "return code.multiply_add(sums, code.broadcast(scale), code.broadcast(bias))",
        "return code.builder.fmul(sums, code.broadcast(scale))",
        "items in int8",
    ),
    Fault(
        "weights truncated to int8",
        "precision",
        "        return quantize_rows(weight)\n",
        "        scales = quantize_rows(weight)[1]\n"
        "        return (weight / scales[:, None]).trunc().to(torch.int8), scales\n",
        "items in int8",
    ),
)
"""The faults. None reads or writes memory that the kernels do not own."""


@contextmanager
def freshly_imported(fault: Fault | None, cache: Path) -> Iterator[tuple[Any, Any]]:
    """Import the sparse runtime once more, with a fault, and compile its kernels into a new cache.

    Args:
        fault: The fault; None for none.
        cache: An empty folder for compiled kernels.

    Yields:
        The classes ``SparseLinear`` and ``SparseConv``.
    """
    import numba

    import prunus

    finders = [] if fault is None else [PlantingFinder(fault)]
    names = [name for name in sys.modules if f"{name}.".startswith(f"{Fault.package}.")]
    former = {name: sys.modules.pop(name) for name in names}
    attribute, folder = prunus.runtime, numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(cache)
    sys.meta_path[:0] = finders
    try:
        # A kernel from the disk is linked by name with those that the process has compiled already,
        # so that none of these may have the name of one without the fault.
        compiling: Any = importlib.import_module(f"{Fault.package}.kernels.compiling")
        planted = "" if fault is None else re.sub(r"\W+", "_", fault.name)
        compiling._SOURCES += f"_{planted}"
        linear = importlib.import_module(f"{Fault.package}.linear")
        convolution = importlib.import_module(f"{Fault.package}.convolution")
        yield linear.SparseLinear, convolution.SparseConv
    finally:
        for finder in finders:
            sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if f"{name}.".startswith(f"{Fault.package}.")]:
            del sys.modules[name]
        sys.modules.update(former)
        prunus.runtime, numba.config.CACHE_DIR = attribute, folder
