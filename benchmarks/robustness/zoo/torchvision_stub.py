"""Import of timm without torchvision, of which its models use nothing."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["import_timm"]

_MODULES = (
    "torchvision",
    "torchvision.datasets",
    "torchvision.models",
    "torchvision.models.feature_extraction",
    "torchvision.ops",
    "torchvision.ops.misc",
    "torchvision.transforms",
    "torchvision.transforms.functional",
)
"""What timm imports for data sets, transforms and frozen batch norms."""


class _Names(type):
    """Type of classes whose attributes are their own names."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class _Stub(ModuleType):
    """A module in which every name is an empty class."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Names(name, (), {})


def import_timm() -> Any:
    """Return timm, imported with a stub of torchvision if that is not installed.

    Raises:
        ImportError: timm is not installed.
    """
    if "timm" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return importlib.import_module("timm")
    stubs = {name: _Stub(name) for name in _MODULES}
    for name, stub in stubs.items():
        stub.__spec__ = ModuleSpec(name, None, is_package=True)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(stubs[parent], child, stub)
    sys.modules.update(stubs)
    try:
        return importlib.import_module("timm")
    finally:
        for name in stubs:  # other libraries look there whether torchvision is installed
            del sys.modules[name]
