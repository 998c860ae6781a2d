"""Planting of a fault into a module while it is imported, without changing its file.

Each fault replaces one passage of one source file: an import hook changes the text.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import ClassVar

__all__ = ["PlantedFault", "PlantingFinder"]


@dataclass(frozen=True)
class PlantedFault:
    """A fault to plant.

    Attributes:
        name: Names the fault.
        module: Module to change, relative to :attr:`package`.
        original: Passage of its source, which occurs once.
        replacement: Passage in its place.
    """

    package: ClassVar[str] = "prunus"
    """The package of the modules."""

    name: str
    module: str
    original: str
    replacement: str

    @property
    def full_module(self) -> str:
        """Full name of the module to change."""
        return f"{self.package}.{self.module}"

    def plant(self, source: str) -> str:
        """Return the source of the module with the fault.

        Raises:
            ValueError: The original passage does not occur exactly once.
        """
        if (found := source.count(self.original)) != 1:
            raise ValueError(
                f"{self.name}: the passage to replace must occur once in {self.full_module}, but "
                f"occurs {found} times: {self.original!r}. Adapt the table of faults"
            )
        return source.replace(self.original, self.replacement)


class _PlantingLoader(SourceFileLoader):
    """A loader of a module's source that plants a fault into it."""

    def __init__(self, name: str, path: str, fault: PlantedFault) -> None:
        super().__init__(name, path)
        self.fault = fault

    def get_code(self, fullname: str) -> CodeType:
        source = self.fault.plant(Path(self.path).read_text(encoding="utf-8"))
        return compile(source, self.path, "exec", dont_inherit=True)


class PlantingFinder(MetaPathFinder):
    """A finder of the module that a fault is planted into."""

    def __init__(self, fault: PlantedFault) -> None:
        self.fault = fault

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to import the module with the fault, or None for another module."""
        if fullname != self.fault.full_module or path is None:
            return None
        file = str(Path(next(iter(path))) / f"{fullname.rpartition('.')[2]}.py")
        return importlib.util.spec_from_file_location(
            fullname, file, loader=_PlantingLoader(fullname, file, self.fault)
        )
