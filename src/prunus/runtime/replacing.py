"""Replacement of layers by sparse ones, in a copy of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from prunus._inference.model_calls import copy_model
from prunus.compaction.input_selection import without_selection
from prunus.runtime.attention import split_attentions
from prunus.runtime.fusion import Chain
from prunus.runtime.modules import FusedLayer, set_module
from prunus.runtime.precision import FLOAT32, Precision
from prunus.runtime.rounded import RoundedLinear

__all__ = ["Replacement", "replace_layers", "round_layers"]


@dataclass(frozen=True)
class Replacement:
    """A layer to replace, together with the layers that are fused into it.

    Attributes:
        chain: The layer and the layers after it.
        in_features: Features, or channels, of the layer's input. A layer that selects some of its
            features has fewer columns than that.
        precision: The type in which a linear layer computes. Default: float32.
    """

    chain: Chain
    in_features: int
    precision: Precision = FLOAT32

    def sparse_layer(self, *, by_item: bool) -> nn.Module:
        """Return a sparse layer with the outputs of the chain.

        Args:
            by_item: Whether the output is stored as torch stores it: by a linear layer item by
                item instead of feature by feature, by a convolution without gaps between lines.
        """
        from prunus.runtime.convolution import SparseConv  # imports Numba
        from prunus.runtime.linear import SparseLinear

        chain, former = self.chain, self.chain.layer
        layer = without_selection(chain.merged(), self.in_features)
        if isinstance(former, nn.Linear):
            assert isinstance(layer, nn.Linear)
            return SparseLinear(
                layer,
                relu=chain.relu,
                by_item=by_item,
                replaces=former,
                precision=self.precision,
            )
        assert isinstance(layer, nn.Conv1d | nn.Conv2d)
        return SparseConv(
            layer, relu=chain.relu, pool=chain.pool, contiguous=by_item, replaces=former
        )

    def rounded_layer(self) -> nn.Module:
        """Return a dense layer that rounds weights and inputs as the sparse one does."""
        layer = without_selection(self.chain.layer, self.in_features)
        assert isinstance(layer, nn.Linear)
        assert isinstance(self.chain.layer, nn.Linear)
        return RoundedLinear(layer, self.precision, replaces=self.chain.layer)


def replace_layers(
    model: nn.Module,
    replacements: Iterable[Replacement],
    *,
    joint: Mapping[str, bool] | None = None,
    by_item: bool = False,
) -> nn.Module:
    """Return a copy of a network in which the given layers are sparse, whether faster or not.

    :func:`prunus.speed_up` replaces only the layers for which this pays.

    Args:
        model: The network. It is not changed.
        replacements: The layers to replace. Layers fused into them become
            :class:`prunus.runtime.modules.FusedLayer`.
        joint: The attentions among whose projections there are layers to replace, by name, as for
            :func:`prunus.runtime.attention.split_attentions`. Default: none.
        by_item: Whether sparse layers store their outputs as torch does. Default False.

    Returns:
        The copy, in evaluation mode, without gradients.

    Raises:
        PrunusError: The network cannot be copied.

    Example:
        >>> import torch
        >>> from prunus.runtime.fusion import find_chains
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> chains = find_chains(model, {"0", "2"})
        >>> fast = replace_layers(
        ...     model, [Replacement(chain, chain.layer.weight.shape[1]) for chain in chains]
        ... )
        >>> [type(layer).__name__ for layer in fast]
        ['SparseLinear', 'FusedLayer', 'SparseLinear']
        >>> x = torch.randn(5, 4)
        >>> torch.allclose(fast(x), model(x), atol=1e-6)
        True
    """
    return _replaced(
        model, replacements, joint, lambda each: each.sparse_layer(by_item=by_item), fuses=True
    )


def round_layers(
    model: nn.Module,
    replacements: Iterable[Replacement],
    *,
    joint: Mapping[str, bool] | None = None,
) -> nn.Module:
    """Return a copy of a network in which the given layers round as their sparse counterparts do.

    They compute with dense matrices in float32: the network is the reference for one with sparse
    layers in bfloat16 or int8.

    Args:
        model: The network. It is not changed.
        replacements: The layers, of which those in float32 are left as they are.
        joint: As for :func:`replace_layers`.

    Returns:
        The copy, in evaluation mode, without gradients.

    Raises:
        PrunusError: The network cannot be copied.
    """
    rounded = [each for each in replacements if each.precision.group > 1]
    return _replaced(model, rounded, joint, Replacement.rounded_layer, fuses=False)


def _replaced(
    model: nn.Module,
    replacements: Iterable[Replacement],
    joint: Mapping[str, bool] | None,
    build: Callable[[Replacement], nn.Module],
    *,
    fuses: bool,
) -> nn.Module:
    """Return a copy of a network with other layers; if ``fuses``, they do the fused ones' work."""
    wanted = list(replacements)
    parents = {each.chain.name.rpartition(".")[0] for each in wanted}
    needed = {name: value for name, value in (joint or {}).items() if name in parents}
    fast = split_attentions(copy_model(model), needed)
    for each in wanted:
        fast = set_module(fast, each.chain.name, build(each))
        for name in each.chain.fused_names if fuses else ():
            fast = set_module(fast, name, FusedLayer(fast.get_submodule(name)))
    return fast.requires_grad_(False)
