"""The kinds of variants of a network that can be timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["KINDS", "VariantKind"]


@dataclass(frozen=True)
class VariantKind:
    """A variant of a network.

    Attributes:
        name: Its name in tables.
        advice: The call in Python that builds it.
        exact: Whether its outputs are those of the dense network up to rounding in float32. Others
            are recommended only if their validation metric was measured.
        pruned: Whether it is faster because weights were removed.
    """

    name: str
    advice: str
    exact: bool = True
    pruned: bool = True


KINDS: Mapping[str, VariantKind] = {
    kind.name: kind
    for kind in (
        VariantKind("compact", "prunus.compact(model, example)"),
        VariantKind("sparse", "prunus.speed_up(model, example)"),
        VariantKind("compact, sparse", "prunus.speed_up(prunus.compact(model, example), example)"),
        VariantKind(
            "sparse, bfloat16", "prunus.speed_up(model, example, dtype=torch.bfloat16)", exact=False
        ),
        VariantKind(
            "sparse, int8",
            "prunus.speed_up(model, example, dtype=torch.int8, calibration=inputs)",
            exact=False,
        ),
        VariantKind("onnxruntime", "prunus.export.to_onnx(model, example, path) and onnxruntime"),
        VariantKind("compiled", "torch.compile(model)", pruned=False),
        VariantKind(
            "bfloat16, autocast", 'torch.autocast("cpu", torch.bfloat16)', exact=False, pruned=False
        ),
        VariantKind("bfloat16", "model.to(torch.bfloat16)", exact=False, pruned=False),
        VariantKind(
            "onnxruntime, int8",
            "onnxruntime.quantization.quantize_static after prunus.export.to_onnx",
            exact=False,
            pruned=False,
        ),
    )
}
"""The variants beside the dense network, in the order of preference. Those that are not called
pruned are what one would use without pruning; they too run the compact network if there is one."""
