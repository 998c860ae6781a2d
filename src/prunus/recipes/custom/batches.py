"""Batches of a user's recipe: drawn the same again for the same seed, and apart from the network.

A loader draws its order, and its data set may draw augmentations, from the global random numbers of
torch, Python and NumPy or from generators of its own. Here all of them are seeded at the start of
each pass, so that a resumed run draws the same batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunus._utils.random_states import SeparateStates, seeded
from prunus.errors import RecipeError
from prunus.recipes.custom.definition import Definition
from prunus.recipes.custom.user_code import reporting_errors

__all__ = ["Loader", "Loaders", "batch_size", "digest_parts", "load"]

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Loader:
    """The batches of a split.

    Attributes:
        split: "train", "validation" or "test".
        batches: What the recipe returned: a DataLoader, a list, or any object whose iteration can
            be repeated.
        file: The recipe's file.
    """

    split: str
    batches: Iterable[Any]
    file: Path

    def __str__(self) -> str:
        return f"the {self.split} batches of {self.file.name}"

    def iterate(self, seed: int) -> Iterator[Any]:
        """Yield the batches of one pass; the global random numbers stay as they are.

        Args:
            seed: The seed of the pass.
        """
        states = SeparateStates(seed)
        with states, reporting_errors(str(self), self.file):
            self.seed_generators(seed)
            batches = iter(self.batches)
        while True:
            with states, reporting_errors(str(self), self.file):
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            yield batch

    def seed_generators(self, seed: int) -> None:
        """Seed the generators that the loader holds itself."""
        for holder in (
            self.batches,
            getattr(self.batches, "sampler", None),
            getattr(getattr(self.batches, "batch_sampler", None), "sampler", None),
        ):
            generator = getattr(holder, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(seed)

    def first(self) -> Any:
        """Return the first batch.

        Raises:
            RecipeError: There is none.
        """
        for batch in self.iterate(0):
            return batch
        raise RecipeError(
            f"{self} are empty: let loaders() return at least one; a DataLoader with "
            "drop_last=True has none if there are fewer examples than batch_size"
        )

    def count(self) -> int:
        """Return the number of batches: that of ``len``, or counted in a pass."""
        try:
            return len(self.batches)  # type: ignore[arg-type]
        except TypeError:
            return sum(1 for _ in self.iterate(0))


@dataclass(frozen=True)
class Loaders:
    """The batches of a recipe.

    Attributes:
        train: Those to train on.
        validation: Those that decide what is removed, and which state is delivered.
        test: Those that decide nothing; None if the recipe has none.
    """

    train: Loader
    validation: Loader
    test: Loader | None


def load(definition: Definition, values: Mapping[str, Any], seed: int) -> Loaders:
    """Call the recipe's ``loaders()``.

    Args:
        definition: The recipe.
        values: The values of its arguments.
        seed: The seed of the global random numbers during the call.

    Raises:
        RecipeError: It failed, or did not return two or three loaders.
    """
    with seeded(seed):
        result = definition.loaders(values=values)
    if isinstance(result, Mapping) and {"train", "validation"} <= result.keys() <= {*_SPLITS}:
        result = [result[split] for split in _SPLITS if split in result]
    if not isinstance(result, Sequence) or isinstance(result, str) or len(result) not in (2, 3):
        shown = f"{len(result)} values" if isinstance(result, Sequence) else _named(result)
        raise RecipeError(
            f"{definition.loaders} must return the batches to train on, to validate on and, if "
            f"there are any, to test on: (train, validation) or (train, validation, test), but "
            f"returned {shown}"
        )
    loaders = [
        Loader(split, batches, definition.file)
        for split, batches in zip(_SPLITS, result, strict=False)
    ]
    for loader in loaders:
        _check(loader)
    train, validation, *test = loaders
    return Loaders(train, validation, test[0] if test else None)


def _check(loader: Loader) -> None:
    """Check that the passes over a loader can be repeated.

    Raises:
        RecipeError: They cannot.
    """
    batches = loader.batches
    repeatable = isinstance(batches, Iterable) or hasattr(batches, "__getitem__")
    if not repeatable or isinstance(batches, Iterator):
        raise RecipeError(
            f"{loader} must be a DataLoader, a list, or another object over which each epoch can "
            f"iterate again, but are {_named(batches)}"
            + (", which runs out after one pass" if isinstance(batches, Iterator) else "")
        )
    if getattr(batches, "persistent_workers", False):
        raise RecipeError(
            f"{loader} have workers that keep their random numbers from epoch to epoch, which a "
            "resumed run cannot restore: leave out persistent_workers=True"
        )


def _named(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def batch_size(batch: Any) -> int:
    """Return the number of items of a batch: the length of the first tensor or list in it.

    Example:
        >>> batch_size((torch.zeros(8, 3), torch.zeros(8))), batch_size({"texts": ["a", "b"]})
        (8, 2)
    """
    for leaf in _leaves(batch):
        if isinstance(leaf, torch.Tensor | np.ndarray) and leaf.ndim:
            return int(leaf.shape[0])
    return len(batch) if isinstance(batch, list) else _texts_in(batch)


def _texts_in(batch: Any) -> int:
    values = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(values, Iterable) and not isinstance(values, str):
        for value in values:
            if isinstance(value, list | tuple):
                return len(value)
    return 1


def digest_parts(batch: Any) -> Iterator[torch.Tensor | str]:
    """Yield the parts of a batch that identify it: its tensors, numbers and texts."""
    for leaf in _leaves(batch):
        if isinstance(leaf, torch.Tensor):
            yield leaf.detach().cpu()
        elif isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biuf":
            yield torch.from_numpy(np.ascontiguousarray(leaf))
        elif isinstance(leaf, str | int | float | bool | bytes):
            yield repr(leaf)
        else:
            yield type(leaf).__name__


def _leaves(value: Any) -> Iterator[Any]:
    """Yield what mappings and sequences contain, at any depth."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value
