"""Replacement of single modules within a network."""

from __future__ import annotations

import copy
from collections.abc import Collection

from torch import nn

__all__ = ["FusedLayer", "keep_settings", "keep_tensors", "set_module"]


class FusedLayer(nn.Identity):
    """A module whose work the layer before it does, with the attributes that it had.

    Args:
        module: The module.

    Example:
        >>> pool = FusedLayer(nn.MaxPool2d(2))
        >>> pool("unchanged"), pool.kernel_size
        ('unchanged', 2)
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        keep_settings(self, module)
        keep_tensors(self, module)


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def keep_settings(module: nn.Module, former: nn.Module) -> None:
    """Set the attributes of a module that another one has, but for its tensors and modules.

    Args:
        module: The module to change. An attribute that its class defines stays.
        former: The module that it replaces.

    Example:
        >>> identity = nn.Identity()
        >>> keep_settings(identity, nn.Linear(3, 2))
        >>> identity.in_features, identity.out_features
        (3, 2)
    """
    for name, value in vars(former).items():
        if name not in _OF_EVERY_MODULE and not hasattr(type(module), name):
            setattr(module, name, value)


def keep_tensors(module: nn.Module, former: nn.Module, excluded: Collection[str] = ()) -> None:
    """Set copies of the parameters, buffers and submodules of another module, but for some.

    Args:
        module: The module to change.
        former: The module that it replaces.
        excluded: Names to leave out.
    """
    for name, parameter in former.named_parameters(recurse=False):
        if name not in excluded:
            copied = nn.Parameter(parameter.detach().clone(), requires_grad=False)
            module.register_parameter(name, copied)
    for name, buffer in former.named_buffers(recurse=False):
        if name not in excluded:
            persistent = name not in former._non_persistent_buffers_set
            module.register_buffer(name, buffer.detach().clone(), persistent=persistent)
    for name, child in former.named_children():
        module.add_module(name, copy.deepcopy(child))


def set_module(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Replace a module in place, under every name that it has, and return the network.

    Args:
        model: The network.
        name: Name of the module to replace; empty for the network itself.
        module: The new module, which is put into evaluation mode.

    Returns:
        The network, or ``module`` if it replaces the network itself.

    Example:
        >>> shared = nn.Linear(2, 2)
        >>> set_module(nn.Sequential(shared, nn.ReLU(), shared), "0", nn.Identity())
        Sequential(
          (0): Identity()
          (1): ReLU()
          (2): Identity()
        )
    """
    module.eval()
    if not name:
        return module
    former = model.get_submodule(name)
    for place, current in list(model.named_modules(remove_duplicate=False)):
        if current is former:
            parent, _, child = place.rpartition(".")
            setattr(model.get_submodule(parent), child, module)
    return model
