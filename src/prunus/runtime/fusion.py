"""Chains of layers that one sparse layer can replace."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.fx import Node, Tracer
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fuse_conv_bn_eval

from prunus.runtime.attention import SplitAttention

__all__ = ["Chain", "as_pair", "find_chains", "is_fusible_pool"]

_Layer = nn.Linear | nn.Conv1d | nn.Conv2d


@dataclass(frozen=True)
class Chain:
    """A layer and the layers after it that can be fused into it.

    Attributes:
        name: Name of the layer in the model.
        layer: The layer.
        fused_names: Names of the layers after it, in the order of their calls: at most one batch
            norm first, then at most one ReLU and one max pooling in either order.
        fused: Those layers.
    """

    name: str
    layer: _Layer
    fused_names: tuple[str, ...] = ()
    fused: tuple[nn.Module, ...] = ()

    @property
    def relu(self) -> bool:
        """Whether a ReLU is fused."""
        return any(isinstance(module, nn.ReLU) for module in self.fused)

    @property
    def pool(self) -> nn.MaxPool2d | None:
        """The fused max pooling, if any."""
        return next((module for module in self.fused if isinstance(module, nn.MaxPool2d)), None)

    @torch.no_grad()
    def merged(self) -> _Layer:
        """Return the layer with the batch norm folded into its weights, if one is fused."""
        layer = self.layer
        for norm in self.fused:
            if isinstance(norm, _BatchNorm) and not isinstance(layer, nn.Linear):
                layer = fuse_conv_bn_eval(layer, norm)
        return layer


def find_chains(model: nn.Module, names: Collection[str]) -> Iterator[Chain]:
    """Yield the chains of the given layers, in the order of the model's modules.

    The layers after another one are known if ``torch.fx`` can trace the model. A module is fused if
    it is called once and is the only consumer of its input. A module with several names is yielded
    under its first name, with nothing fused.

    Args:
        model: The network.
        names: Names of layers of types that a chain can begin with; other modules are ignored.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten())
        >>> [(chain.name, chain.fused_names) for chain in find_chains(model.eval(), {"0"})]
        [('0', ('1', '2'))]
    """
    only_consumer = _only_consumers(model)
    for name, module in model.named_modules():
        if name not in names or not isinstance(module, _Layer):
            continue
        fused: list[str] = []
        fusible: tuple[type[nn.Module], ...] = (nn.ReLU,)
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            fusible += (nn.BatchNorm1d, nn.BatchNorm2d)
        if isinstance(module, nn.Conv2d):
            fusible += (nn.MaxPool2d,)
        following = only_consumer.get(name)
        while following is not None:
            consumer = model.get_submodule(following)
            if type(consumer) not in fusible or not _is_fusible(consumer):
                break
            fused.append(following)
            # A ReLU and a pooling may change places; a norm must be next to the layer.
            done = (type(consumer), nn.BatchNorm1d, nn.BatchNorm2d)
            fusible = tuple(layer_type for layer_type in fusible if layer_type not in done)
            following = only_consumer.get(following)
        yield Chain(name, module, tuple(fused), tuple(map(model.get_submodule, fused)))


def _is_fusible(module: nn.Module) -> bool:
    """Return whether the settings of a module of a fusible type allow fusion."""
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    if isinstance(module, _BatchNorm):
        return module.running_mean is not None and not module.training
    return not isinstance(module, nn.MaxPool2d) or is_fusible_pool(module)


def is_fusible_pool(pool: nn.MaxPool2d) -> bool:
    """Return whether a sparse convolution can do the work of a pooling after it.

    Example:
        >>> is_fusible_pool(nn.MaxPool2d(2)), is_fusible_pool(nn.MaxPool2d(2, padding=1))
        (True, False)
    """
    return (
        as_pair(pool.padding) == (0, 0)
        and as_pair(pool.dilation) == (1, 1)
        and as_pair(pool.stride)[1] in (1, 2)
        and not pool.return_indices
        and not pool.ceil_mode
    )


def as_pair(size: int | tuple[int, ...]) -> tuple[int, int]:
    """Return a size that may be one number for both dimensions as two numbers.

    Example:
        >>> as_pair(3), as_pair((1, 2))
        ((3, 3), (1, 2))
    """
    return (size, size) if isinstance(size, int) else (size[0], size[-1])


class _Tracer(Tracer):
    """A tracer that treats layers and attentions as one call each, also subclasses of torch's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_leaf = isinstance(m, _Layer | SplitAttention | nn.MultiheadAttention)
        return is_leaf or super().is_leaf_module(m, module_qualified_name)


def _only_consumers(model: nn.Module) -> dict[str, str]:
    """Return the only consumer of each module, by name.

    Modules that are not called exactly once are ignored, as modules and as consumers.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception:  # whatever a model's own code raises on proxies of tensors
        return {}
    calls: dict[str, list[Node]] = {}
    modules = dict(model.named_modules())
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(_first_name(modules, str(node.target)), []).append(node)
    called_once = {nodes[0]: name for name, nodes in calls.items() if len(nodes) == 1}
    consumers = {}
    for node, name in called_once.items():
        users = list(node.users)
        if len(users) == 1 and users[0] in called_once and users[0].args == (node,):
            consumers[name] = called_once[users[0]]
    return consumers


def _first_name(modules: dict[str, nn.Module], target: str) -> str:
    """Return the first of a module's names; a trace names a shared module by each of them."""
    wanted = modules.get(target)
    return next((name for name, module in modules.items() if module is wanted), target)
