"""Which layers a sparse layer can do the work of besides its own."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.fx import Node, Tracer
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fuse_conv_bn_eval

from prunus.runtime.attention import OpenAttention

__all__ = ["Chain", "chains", "fits_pool", "square"]

_Layer = nn.Linear | nn.Conv1d | nn.Conv2d


@dataclass(frozen=True)
class Chain:
    """A layer, and those after it that may become a part of it.

    Attributes:
        name: Of the layer in the model.
        layer: It.
        names: Of those after it: a batch norm, a rectifier, a max pooling, in this order or the
            latter two the other way round, or none.
        others: They.
    """

    name: str
    layer: _Layer
    names: tuple[str, ...] = ()
    others: tuple[nn.Module, ...] = ()

    @property
    def rectified(self) -> bool:
        """Whether a rectifier is among them."""
        return any(isinstance(other, nn.ReLU) for other in self.others)

    @property
    def pool(self) -> nn.MaxPool2d | None:
        """The max pooling among them."""
        return next((other for other in self.others if isinstance(other, nn.MaxPool2d)), None)

    @torch.no_grad()
    def merged(self) -> _Layer:
        """Return the layer with what the batch norm after it does, or itself if there is none."""
        layer = self.layer
        for norm in self.others:
            if isinstance(norm, _BatchNorm) and not isinstance(layer, nn.Linear):
                layer = fuse_conv_bn_eval(layer, norm)
        return layer


def chains(model: nn.Module, names: Collection[str]) -> Iterator[Chain]:
    """Yield these layers of a model, in the order of its modules, each with what follows it.

    What follows is known if the model can be traced by ``torch.fx``. A module is fused if it is
    called in one place only, and reads what nobody else reads. A module that stands in the model
    under several names is yielded by itself, under its first one.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten())
        >>> [(chain.name, chain.names) for chain in chains(model.eval(), {"0"})]
        [('0', ('1', '2'))]
    """
    following = _following(model)
    for name, module in model.named_modules():
        if name not in names or not isinstance(module, _Layer):
            continue
        found: list[str] = []
        kinds: tuple[type[nn.Module], ...] = (nn.ReLU,)
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            kinds += (nn.BatchNorm1d, nn.BatchNorm2d)
        if isinstance(module, nn.Conv2d):
            kinds += (nn.MaxPool2d,)
        after = following.get(name)
        while after is not None and type(after_module := model.get_submodule(after)) in kinds:
            if after_module._forward_hooks or after_module._forward_pre_hooks:
                break
            if isinstance(after_module, _BatchNorm) and not _foldable(after_module):
                break
            if isinstance(after_module, nn.MaxPool2d) and not fits_pool(after_module):
                break
            found.append(after)
            # A rectifier and a pooling may change places; a norm must be next to the layer.
            gone = (type(after_module), nn.BatchNorm1d, nn.BatchNorm2d)
            kinds = tuple(kind for kind in kinds if kind not in gone)
            after = following.get(after)
        yield Chain(name, module, tuple(found), tuple(map(model.get_submodule, found)))


def _foldable(norm: nn.Module) -> bool:
    return getattr(norm, "running_mean", None) is not None and not norm.training


def fits_pool(pool: nn.MaxPool2d) -> bool:
    """Tell whether a sparse convolution can do the work of a pooling after it."""
    return (
        square(pool.padding) == (0, 0)
        and square(pool.dilation) == (1, 1)
        and square(pool.stride)[1] in (1, 2)
        and not pool.return_indices
        and not pool.ceil_mode
    )


def square(size: int | tuple[int, ...]) -> tuple[int, int]:
    """Return a size that may be one number for both dimensions as two.

    Example:
        >>> square(3), square((1, 2))
        ((3, 3), (1, 2))
    """
    return (size, size) if isinstance(size, int) else (size[0], size[-1])


class _Tracer(Tracer):
    """Goes into no layer and no attention, also of classes that are not torch's own."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, _Layer | OpenAttention | nn.MultiheadAttention)
        return whole or super().is_leaf_module(m, module_qualified_name)


def _following(model: nn.Module) -> dict[str, str]:
    """Return which module alone reads what another one returns, of modules called once."""
    try:
        graph = _Tracer().trace(model)
    except Exception:  # whatever a model's own code raises on what is no tensor
        return {}
    calls: dict[str, list[Node]] = {}
    modules = dict(model.named_modules())
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(_first_name(modules, str(node.target)), []).append(node)
    single = {own[0]: name for name, own in calls.items() if len(own) == 1}
    found = {}
    for node, name in single.items():
        users = list(node.users)
        if len(users) == 1 and users[0] in single and users[0].args == (node,):
            found[name] = single[users[0]]
    return found


def _first_name(modules: dict[str, nn.Module], target: str) -> str:
    """Return the first of a module's names; tracing knows a shared module by each of them."""
    wanted = modules.get(target)
    return next((name for name, module in modules.items() if module is wanted), target)
