"""Replacement of layers by sparse ones, in a copy of the network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from prunus._inference.model_calls import copy_model
from prunus.compaction.input_selection import without_selection
from prunus.runtime.attention import split_attentions
from prunus.runtime.fusion import Chain
from prunus.runtime.modules import FusedLayer, set_module

__all__ = ["Replacement", "replace_layers"]


@dataclass(frozen=True)
class Replacement:
    """A layer to replace, together with the layers that are fused into it.

    Attributes:
        chain: The layer and the layers after it.
        in_features: Features, or channels, of the layer's input. A layer that selects some of its
            features has fewer columns than that.
    """

    chain: Chain
    in_features: int

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
            return SparseLinear(layer, relu=chain.relu, by_item=by_item, replaces=former)
        assert isinstance(layer, nn.Conv1d | nn.Conv2d)
        return SparseConv(
            layer, relu=chain.relu, pool=chain.pool, contiguous=by_item, replaces=former
        )


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
    wanted = list(replacements)
    parents = {each.chain.name.rpartition(".")[0] for each in wanted}
    needed = {name: value for name, value in (joint or {}).items() if name in parents}
    fast = split_attentions(copy_model(model), needed)
    for each in wanted:
        fast = set_module(fast, each.chain.name, each.sparse_layer(by_item=by_item))
        for name in each.chain.fused_names:
            fast = set_module(fast, name, FusedLayer(fast.get_submodule(name)))
    return fast.requires_grad_(False)
