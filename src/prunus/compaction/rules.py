"""What is known of ATen's operators: the table, and what holds of those that are not in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from prunus.compaction.contraction import Attention, Layer, Product, operands
from prunus.compaction.elementwise import Elementwise, Filled, Gated, Quotient, Scaling, Slopes
from prunus.compaction.graph import Call, Value
from prunus.compaction.layout import Concatenation, Layout, Padding, Stacking
from prunus.compaction.mixing import (
    BatchNorm,
    Lookup,
    Mixing,
    Normalization,
    given_dims,
    last_dims,
)
from prunus.compaction.units import Units

__all__ = ["RULES", "Rule", "Unknown", "rule_of"]


class Rule(Protocol):
    """What holds of an operator."""

    def forward(self, call: Call, units: Units) -> None:
        """Set ``units`` and ``varies`` of the call's outputs, and tie or freeze units."""

    def backward(self, call: Call) -> None:
        """Add to ``needed`` of the call's inputs, given that of its outputs."""


class Unknown:
    """An operator of which nothing is known: it reads all of its inputs, and their sizes stay."""

    def forward(self, call: Call, units: Units) -> None:
        for value in call.inputs:
            for held in value.units.values():
                units.freeze(held, f"{call}: an operator of which nothing is known")
        for out in call.outputs:
            out.varies = torch.ones(out.shape, dtype=torch.bool)
            if out.static and out.data.dim() == 0:
                out.varies = torch.zeros((), dtype=torch.bool)

    def backward(self, call: Call) -> None:
        # An operator that returns nothing is there for what else it does.
        if not call.outputs or any(bool(out.needed.any()) for out in call.outputs):
            for value in call.inputs:
                value.needed |= True


class Nothing:
    """What torch makes sure of while it traces, which is no part of the model."""

    def forward(self, call: Call, units: Units) -> None:
        """Say nothing."""

    def backward(self, call: Call) -> None:
        """Need nothing."""


_ELEMENTWISE = """
    abs acos acosh add addcdiv addcmul alias alpha_dropout asin asinh atan atan2 atanh bitwise_and
    bitwise_not bitwise_or bitwise_xor ceil celu clamp clamp_max clamp_min clip clone contiguous
    copysign cos cosh deg2rad detach detach_ digamma dropout elu eq erf erfc exp exp2 expm1
    feature_alpha_dropout feature_dropout fill fix float_power floor fmax fmin fmod frac ge gelu gt
    hardshrink hardsigmoid hardswish hardtanh heaviside hypot isclose isfinite isinf isnan le
    leaky_relu lerp lift_fresh_copy log log10 log1p log2 log_sigmoid logaddexp logaddexp2
    logical_and logical_not logical_or logical_xor logit lt masked_fill maximum minimum mish
    nan_to_num ne neg negative pow positive rad2deg reciprocal relu relu6 remainder round rrelu
    rsqrt rsub selu sgn sigmoid sign silu sin sinc sinh softplus softshrink softsign sqrt square
    sub tan tanh tanhshrink threshold to trunc type_as where xlogy _to_copy _conj
"""

_LAYOUT = """
    adjoint atleast_1d atleast_2d atleast_3d chunk expand flatten flip
    moveaxis movedim narrow numpy_T permute pixel_shuffle pixel_unshuffle repeat
    repeat_interleave reshape select slice split split_with_sizes squeeze swapaxes swapdims t
    tensor_split tile transpose unbind unflatten unsqueeze view _unsafe_view mT
"""

_POOLS = """
    adaptive_avg_pool adaptive_max_pool avg_pool max_pool
"""

_RESIZES = """
    upsample_nearest1d:1 upsample_nearest2d:2 upsample_nearest3d:3 upsample_linear1d:1
    upsample_bilinear2d:2 upsample_bicubic2d:2 upsample_trilinear3d:3 reflection_pad1d:1
    reflection_pad2d:2 reflection_pad3d:3 replication_pad1d:1 replication_pad2d:2
    replication_pad3d:3 _upsample_nearest_exact1d:1 _upsample_nearest_exact2d:2
    _upsample_nearest_exact3d:3 _upsample_bilinear2d_aa:2 _upsample_bicubic2d_aa:2
"""


def _table() -> dict[str, Rule]:
    table: dict[str, Rule] = dict.fromkeys(_ELEMENTWISE.split(), Elementwise())
    table |= dict.fromkeys(_LAYOUT.split(), Layout())
    table |= dict.fromkeys(("mul", "multiply"), Scaling())
    table |= dict.fromkeys(("div", "divide", "true_divide"), Quotient())
    table |= dict.fromkeys(("zeros_like", "ones_like", "full_like"), Filled())
    table["glu"] = Gated()
    table["prelu"] = Slopes()
    table["stack"] = Stacking()
    table |= dict.fromkeys(("cat", "concat", "concatenate"), Concatenation())
    table |= dict.fromkeys(
        ("linear", "addmm", "conv1d", "conv2d", "conv3d",
         "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), Layer()
    )  # fmt: skip
    table |= dict.fromkeys(("mm", "bmm", "matmul"), Product())
    table["scaled_dot_product_attention"] = Attention()
    table |= dict.fromkeys(
        ("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training",
         "_batch_norm_with_update"), BatchNorm()
    )  # fmt: skip
    table |= dict.fromkeys(("layer_norm", "rms_norm", "native_layer_norm"), Normalization())
    table["group_norm"] = Normalization(channel=True)
    table["embedding"] = Lookup()
    table |= dict.fromkeys(("pad", "constant_pad_nd"), Padding())
    table |= dict.fromkeys(
        ("mean", "amax", "amin", "max", "min", "median"), Mixing(given_dims, "kept")
    )
    table |= dict.fromkeys(("sum", "cumsum"), Mixing(given_dims, "zero"))
    table |= dict.fromkeys(
        ("softmax", "_softmax", "log_softmax", "_log_softmax", "softmin", "logsumexp", "std", "var",
         "prod", "cumprod", "argmax", "argmin", "any", "all", "norm", "linalg_vector_norm", "sort",
         "argsort", "count_nonzero"),
        Mixing(given_dims),
    )  # fmt: skip
    for pool in _POOLS.split():
        for rank in (1, 2, 3):
            rule = Mixing(last_dims(rank), "kept")
            table |= {f"{pool}{rank}d": rule, f"{pool}{rank}d_with_indices": rule}
    for name, _, rank_text in (entry.partition(":") for entry in _RESIZES.split()):
        table[name] = Mixing(last_dims(int(rank_text)), "kept")
    return table


RULES: Mapping[str, Rule] = _table()
"""The rule of each known operator by its name."""

UNKNOWN = Unknown()
NOTHING = Nothing()


def rule_of(call: Call) -> Rule:
    """Return the rule that holds of a call.

    An operator may be known only in some of its forms: a weight that is itself computed from the
    input, or a cut at positions that a tensor names, is none of them.
    """
    rule = RULES.get(call.op, UNKNOWN)
    if call.op.startswith("_assert"):
        return NOTHING
    if not call.outputs:
        return UNKNOWN
    if call.op in ("max", "min") and len(call.inputs) == 2:
        rule = RULES["maximum"]
    if isinstance(rule, Layer | Product) and (found := operands(call)) is not None:
        call.facts["operands"] = found
        return RULES["linear"]
    if isinstance(rule, Layer):
        return UNKNOWN
    if isinstance(rule, Product):
        known = all(value.data.dim() >= 2 for value in call.inputs) and len(call.inputs) == 2
    elif isinstance(rule, Layout):
        known = len(call.inputs) == 1
    elif isinstance(rule, Mixing):
        known = len(call.inputs) == 1 and _plain_sizes(call)
    elif isinstance(rule, Elementwise):
        known = len(call.outputs) == 1 and _broadcasts(call)
    elif isinstance(rule, Attention):
        known = all(value.data.dim() >= 3 for value in call.inputs[:3])
    elif isinstance(rule, Slopes):
        known = call["self"].data.dim() >= 2 and call["weight"].static
    elif isinstance(rule, BatchNorm):
        known = call["input"].data.dim() >= 2
    elif isinstance(rule, Normalization):
        known = call.get("input") is not None
    else:
        known = True
    return rule if known else UNKNOWN


def _plain_sizes(call: Call) -> bool:
    """Tell whether all outputs have the sizes that a mixing of dimensions gives them."""
    source: Value = call.inputs[0]
    rule = RULES[call.op]
    assert isinstance(rule, Mixing)
    mixed = set(rule.dims(call, source))
    rank = source.data.dim()
    kept = [source.shape[dim] for dim in range(rank) if dim not in mixed]
    return all(
        [size for dim, size in enumerate(out.shape) if dim not in mixed] == kept
        if out.data.dim() == rank
        else list(out.shape) == kept
        for out in call.outputs
    )


def _broadcasts(call: Call) -> bool:
    """Tell whether the output has the shape to which the inputs are broadcast."""
    out = call.out.shape
    shapes = [value.shape for value in call.inputs]
    return bool(shapes) and all(
        len(shape) <= len(out)
        and all(size in (1, most) for size, most in zip(shape[::-1], out[::-1], strict=False))
        for shape in shapes
    )
