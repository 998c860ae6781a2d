"""Replacement of single modules within a network."""

from __future__ import annotations

from torch import nn

__all__ = ["set_module"]


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
