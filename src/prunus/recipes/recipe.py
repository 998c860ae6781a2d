"""Recipe: a task, its settings and its network, under the name that the command knows it by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunus.methods import Method
from prunus.methods import method as find_method
from prunus.penalties.strengths import LearningRateStrength
from prunus.recipes.config import Config
from prunus.recipes.tasks.exportable import ExportableNetwork, language_network
from prunus.recipes.tasks.task import Task

__all__ = ["CodeFile", "Recipe"]


@dataclass(frozen=True)
class CodeFile:
    """The Python file that defines a recipe.

    Attributes:
        path: Its absolute path.
        sha256: The digest of its content.
    """

    path: Path
    sha256: str


@dataclass(frozen=True)
class Recipe:
    """A recipe.

    Attributes:
        name: Its name: that of a built-in recipe, of an entry point, or of a Python file.
        summary: One line on what it trains.
        data: The source of its data by default; None if --data is required.
        columns: The contents that a folder passed as --data must have; "" if it accepts none.
        config: Its settings.
        prepare: Loads the data and returns the task, from the settings, the value of --data (or
            None) and the seed.
        network: Builds the network for a file of a run, without its data.
        strengths: The strengths, in multiples of the learning rate, of methods that leave theirs
            open, by the name of the method. Each was chosen on the validation split, with seeds
            that no figure reports.
        metrics: The names of the metrics in a summary, the task's own first; empty if they are not
            known before a run.
        threads: The number of threads that its runs use unless the caller chooses: one for networks
            so small that threads cost more time than they save. None for torch's own number.
        file: The Python file that defines it; None for a built-in recipe.
        path: The path of that file as it was passed to the command; None for a name.
    """

    name: str
    summary: str
    data: str | None
    columns: str
    config: Config
    prepare: Callable[[Any, str | None, int], Task]
    network: Callable[[Path], ExportableNetwork] = language_network
    strengths: Mapping[str, float] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    threads: int | None = None
    file: CodeFile | None = None
    path: str | None = None

    @property
    def argument(self) -> str:
        """The argument of the command that means this recipe: its name, or the path of a file."""
        return self.path or self.name

    @property
    def stem(self) -> str:
        """The name as a part of the names of directories."""
        return self.name.removesuffix(".py")

    @property
    def identity(self) -> dict[str, Any]:
        """The name, and for a recipe that is not built in its file, own settings and mode."""
        if self.file is None:
            return {"recipe": self.name}
        code = {
            "path": str(self.file.path),
            "sha256": self.file.sha256,
            "mode": self.config.mode,
            "settings": self.config.as_dict(),
        }
        return {"recipe": self.name, "recipe_file": code}

    def data_problem(self, source: str | None) -> str | None:
        """Return what is wrong with a value of --data, or None.

        Args:
            source: The value; None if it was not passed.
        """
        if source is not None and not self.columns:
            return f"the recipe {self.name} has {self.data} data: leave out --data {source}"
        if source is None and self.data is None:
            return f"the recipe {self.name} has no data of its own: pass --data FOLDER"
        return None

    def method(self, name: str) -> Method:
        """Return a named method, with the strength for this recipe where the method has none.

        Args:
            name: One of ``prunus.methods``.

        Raises:
            ArgumentError: There is no method of this name.

        Example:
            >>> from prunus.recipes.registry import find_recipe
            >>> find_recipe("digits").method("l2").strength is None
            False
        """
        found = find_method(name)
        if found.leaves_strength_open and name in self.strengths:
            return dataclasses.replace(found, strength=LearningRateStrength(self.strengths[name]))
        return found
