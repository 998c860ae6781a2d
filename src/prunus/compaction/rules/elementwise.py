"""Rules for operators whose output elements each depend on one element of each input."""

from __future__ import annotations

import torch

from prunus.compaction.coupling import Coupling
from prunus.compaction.graph import Call, Value
from prunus.compaction.rules.base import Rule, operator_names
from prunus.compaction.tensor_ops import sum_to_shape

__all__ = [
    "ConstantFill",
    "Division",
    "Elementwise",
    "ElementwiseExtremum",
    "GatedLinearUnit",
    "Multiplication",
    "ParametricReLU",
    "couple_broadcast",
]


def couple_broadcast(
    coupling: Coupling, inputs: list[Value], out: Value, skip_last: int = 0
) -> None:
    """Couple the units of inputs that are broadcast against each other.

    Args:
        coupling: The coupling to extend.
        inputs: The inputs.
        out: The output, whose units are set.
        skip_last: The number of trailing dimensions to leave out. Default 0.
    """
    for dim in range(out.rank - skip_last):
        units: list[torch.Tensor | None] = []
        for value in inputs:
            own_dim = dim - out.rank + value.rank
            if own_dim < 0:
                continue
            if value.shape[own_dim] == out.shape[dim]:
                units.append(value.units.get(own_dim))
            elif own_dim in value.units:
                coupling.protect(value.units[own_dim])
        if (merged := coupling.merge(units)) is not None:
            out.units[dim] = merged


class Elementwise(Rule):
    """Any elementwise function: the output is constant where all inputs are."""

    operators = operator_names(
        """
        abs acos acosh add addcdiv addcmul alias alpha_dropout asin asinh atan atan2 atanh
        bitwise_and bitwise_not bitwise_or bitwise_xor ceil celu clamp clamp_max clamp_min clip
        clone contiguous copysign cos cosh deg2rad detach detach_ digamma dropout elu eq erf erfc
        exp exp2 expm1 feature_alpha_dropout feature_dropout fill fix float_power floor fmax fmin
        fmod frac ge gelu gt hardshrink hardsigmoid hardswish hardtanh heaviside hypot isclose
        isfinite isinf isnan le leaky_relu lerp lift_fresh_copy log log10 log1p log2 log_sigmoid
        logaddexp logaddexp2 logical_and logical_not logical_or logical_xor logit lt masked_fill
        maximum minimum mish nan_to_num ne neg negative pow positive rad2deg reciprocal relu relu6
        remainder round rrelu rsqrt rsub selu sgn sigmoid sign silu sin sinc sinh softplus
        softshrink sqrt square sub tan tanh threshold to trunc type_as where
        xlogy _to_copy _conj
        """
    )

    @classmethod
    def supports(cls, call: Call) -> bool:
        """Return whether the only output has the shape to which the inputs are broadcast."""
        out = call.out.shape
        shapes = [value.shape for value in call.inputs]
        return (
            len(call.outputs) == 1
            and bool(shapes)
            and all(
                len(shape) <= len(out)
                and all(
                    size in (1, full) for size, full in zip(shape[::-1], out[::-1], strict=False)
                )
                for shape in shapes
            )
        )

    def forward(self, coupling: Coupling) -> None:
        out = self.call.out
        couple_broadcast(coupling, self.call.inputs, out)
        varies = torch.zeros(out.shape, dtype=torch.bool)
        for value in self.call.inputs:
            varies |= self.propagates(value)
        out.varies = varies

    def backward(self) -> None:
        out = self.call.out
        for value in self.call.inputs:
            needed = out.needed & out.varies & self.depends_on(value)
            value.needed |= sum_to_shape(needed, value.shape)

    def propagates(self, value: Value) -> torch.Tensor:
        """Return where the output may vary because an input does."""
        return value.varies

    def depends_on(self, value: Value) -> torch.Tensor:
        """Return where the output depends on an input."""
        return torch.tensor(True)


class ElementwiseExtremum(Elementwise):
    """``max`` and ``min`` of two tensors; of one tensor they are reductions."""

    operators = frozenset(("max", "min"))

    @classmethod
    def supports(cls, call: Call) -> bool:
        return len(call.inputs) == 2 and super().supports(call)


class Multiplication(Elementwise):
    """Products: a factor that is constantly 0 makes the output 0."""

    operators = frozenset(("mul", "multiply"))

    def propagates(self, value: Value) -> torch.Tensor:
        return value.varies & self._other_factor_nonzero(value)

    def depends_on(self, value: Value) -> torch.Tensor:
        return self._other_factor_nonzero(value)

    def _other_factor_nonzero(self, value: Value) -> torch.Tensor:
        """Return where the other one of two factors may be other than 0."""
        first, second = self.call["self"], self.call["other"]
        other = second if value is first else first
        return other.nonzero if isinstance(other, Value) else torch.tensor(bool(other != 0))


class Division(Elementwise):
    """Quotients: a dividend that is constantly 0 makes the output 0."""

    operators = frozenset(("div", "divide", "true_divide"))

    def propagates(self, value: Value) -> torch.Tensor:
        dividend: Value = self.call["self"]
        return value.varies if value is dividend else value.varies & dividend.nonzero

    def depends_on(self, value: Value) -> torch.Tensor:
        dividend: Value = self.call["self"]
        return torch.tensor(True) if value is dividend else dividend.nonzero


class ConstantFill(Elementwise):
    """Tensors filled with a constant: only the size of the input matters."""

    operators = frozenset(("zeros_like", "ones_like", "full_like"))

    def propagates(self, value: Value) -> torch.Tensor:
        return torch.tensor(False)


class ParametricReLU(Rule):
    """``prelu``, with one slope per channel or a single one."""

    operators = frozenset(("prelu",))

    @classmethod
    def supports(cls, call: Call) -> bool:
        return bool(call["self"].rank >= 2 and call["weight"].static)

    def forward(self, coupling: Coupling) -> None:
        source, slopes, out = self.call["self"], self.call["weight"], self.call.out
        out.units = dict(source.units)
        out.varies = source.varies
        if len(slopes.data) == 1:
            return
        channels = coupling.merge([out.units.pop(1, None), slopes.units.get(0)])
        if channels is not None:
            out.units[1] = channels

    def backward(self) -> None:
        self.call["self"].needed |= self.call.out.needed & self.call.out.varies
        self.call["weight"].needed |= len(self.call["weight"].data) == 1


class GatedLinearUnit(Rule):
    """``glu``: one half of a dimension times a function of the other half."""

    operators = frozenset(("glu",))

    def forward(self, coupling: Coupling) -> None:
        (source,) = self.call.inputs
        split_dim = self.call["dim"] % source.rank
        first, second = source.varies.chunk(2, split_dim)
        self.call.out.varies = first | second
        for dim, units in source.units.items():
            if dim == split_dim:
                halves = units.chunk(2)
                coupling.couple(*halves)
                units = halves[0]
            self.call.out.units[dim] = units

    def backward(self) -> None:
        (source,) = self.call.inputs
        needed = self.call.out.needed & self.call.out.varies
        source.needed |= torch.cat([needed, needed], self.call["dim"])
