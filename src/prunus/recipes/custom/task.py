"""The task of a user's recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from prunus._engine.optimizers import Optimizers
from prunus._utils.checks import as_number, raise_problems
from prunus._utils.random_states import seeded
from prunus.errors import ArgumentTypeError, NonFiniteError, RecipeError
from prunus.fitting.steps import loss_problem
from prunus.recipes.config import Config
from prunus.recipes.custom.batches import Loader, Loaders, batch_size, digest_parts
from prunus.recipes.custom.definition import Definition
from prunus.recipes.custom.user_code import reporting_errors
from prunus.recipes.tasks.losses import Teacher
from prunus.recipes.tasks.task import Batch, Evaluation, Task, fingerprint
from prunus.selection import Selection

__all__ = ["CustomTask", "build_network"]


def build_network(definition: Definition, values: Mapping[str, Any]) -> nn.Module:
    """Build the network of a recipe.

    Raises:
        RecipeError: Its code failed, or returned no module.
    """
    network = definition.network(values=values)
    if not isinstance(network, nn.Module):
        raise RecipeError(
            f"{definition.network} must return a torch.nn.Module, but returned {network!r}"
        )
    return network


class CustomTask(Task):
    """The task of a user's recipe.

    Args:
        definition: The recipe.
        config: The settings.
        loaders: The batches.
        values: The values of the arguments that the recipe's functions take by name.

    Raises:
        RecipeError: There are no batches to train, validate or test on.
    """

    def __init__(
        self, definition: Definition, config: Config, loaders: Loaders, values: Mapping[str, Any]
    ) -> None:
        self._definition, self._config = definition, config
        self._loaders, self._values = loaders, values
        self.metric = definition.metric_name  # type: ignore[misc]
        splits = [s for s in (loaders.train, loaders.validation, loaders.test) if s is not None]
        firsts = [loader.first() for loader in splits]
        self.steps_per_epoch = loaders.train.count()
        # Not all of the data, which may be large: the first batches, and how many there are.
        counts = map(str, (self.steps_per_epoch, *(split.count() for split in splits[1:])))
        parts = [part for first in firsts for part in digest_parts(first)]
        self.fingerprint = fingerprint([*counts, *parts])
        if loaders.test is None:
            split = "the validation batches, because the recipe has no others"
            self.about = {"test_split": split}
            self.notes = [
                f"{definition.name} has no batches to test on: the test figures are those of the "
                "validation batches, which decide what is removed"
            ]

    def network(self) -> nn.Module:
        """Build the network."""
        return build_network(self._definition, self._values)

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """Build the recipe's optimizer, or Adam."""
        function = self._definition.optimizer
        if function is None:
            return torch.optim.Adam(model.parameters(), lr=lr, fused=True)
        optimizer = function(model, lr, values=self._values)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise RecipeError(
                f"{function} must return a torch.optim.Optimizer, but returned {optimizer!r}"
            )
        return optimizer

    def batches(self, generator: torch.Generator) -> Iterator[Sequence[Batch]]:
        """Yield the batches of the recipe's loader, one per step.

        Raises:
            RecipeError: There are fewer or more than in the first pass.
        """
        loader, count = self._loaders.train, 0
        for batch in loader.iterate(int(torch.randint(2**62, (), generator=generator))):
            count += 1
            if count > self.steps_per_epoch:
                break
            yield [batch]
        if count != self.steps_per_epoch:
            more = "more than " if count > self.steps_per_epoch else ""
            raise RecipeError(
                f"{loader} must be as many in each epoch: they were to be {self.steps_per_epoch}, "
                f"but are {more}{min(count, self.steps_per_epoch)}"
            )

    def size(self, batch: Batch) -> int:
        """Return the number of items."""
        return batch_size(batch)

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher | None = None) -> torch.Tensor:
        """Return the recipe's loss.

        Raises:
            RecipeError: It failed, or returned no tensor of one element that can be differentiated.
        """
        function = self._definition.loss
        loss = function(model, batch, values={**self._values, "teacher": teacher})
        raise_problems(loss_problem(str(function), loss), error=RecipeError)
        reshaped: torch.Tensor = loss.reshape(())
        return reshaped

    def validate(self, model: nn.Module) -> Evaluation:
        """Evaluate on the validation batches."""
        return self._evaluate(model, self._loaders.validation)

    def test(self, model: nn.Module) -> Evaluation:
        """Evaluate on the test batches; without any, on the validation batches."""
        return self._evaluate(model, self._loaders.test or self._loaders.validation)

    def selection(self, model: nn.Module, *, biases: bool, norms: bool) -> Selection:
        """Return the recipe's selection, or the tensors of all layers."""
        function = self._definition.selection
        if function is None:
            return super().selection(model, biases=biases, norms=norms)
        selection = function(model, values=self._values)
        if not isinstance(selection, Selection):
            raise RecipeError(
                f"{function} must return a Selection, such as prunus.select(model), but returned "
                f"{selection!r}"
            )
        return selection

    def check(self) -> None:
        """Take one step and validate, so that errors of the recipe's code end a run at its start.

        It does so on a network of its own, and changes no random numbers.

        Raises:
            RecipeError: One fails or returns a value of another type.
            PrunusError: The optimizer does not have the weights that pruning removes.
        """
        with seeded(0):
            model = self.network()
            config = self._config
            selection = self.selection(model, biases=config.biases, norms=config.norms)
            optimizer = self.optimizer(model, config.dense_lr)
            Optimizers([optimizer], selection)
            loss = self.loss(model, self._loaders.train.first())
            file = self._definition.file
            with reporting_errors(f"the backward pass of {self._definition.loss}", file):
                loss.backward()  # type: ignore[no-untyped-call]
            with reporting_errors(f"a step of the optimizer of {file.name}", file):
                optimizer.step()
            self._evaluate(model, self._loaders.validation, finite=False)

    def _evaluate(self, model: nn.Module, loader: Loader, *, finite: bool = True) -> Evaluation:
        # The same random numbers each time, so that a network has the same metric each time.
        model.eval()
        try:
            with torch.no_grad(), seeded(0):
                loss = self._mean_loss(model, loader)
                metric = self._metric(model, loader) if self._definition.metric else loss
        finally:
            model.train()
        if finite and not -float("inf") < metric < float("inf"):
            raise NonFiniteError(
                f"{self._definition.metric or self._definition.loss} returned {metric} on {loader}"
            )
        return Evaluation(loss, metric)

    def _mean_loss(self, model: nn.Module, loader: Loader) -> float:
        total, items = 0.0, 0
        for batch in loader.iterate(0):
            size = batch_size(batch)
            total, items = total + self.loss(model, batch).item() * size, items + size
        return total / items

    def _metric(self, model: nn.Module, loader: Loader) -> float:
        function = self._definition.metric
        assert function is not None
        loader.seed_generators(0)
        value = function(model, loader.batches, values=self._values)
        try:
            return as_number(f"the value that {function} returns", value)
        except ArgumentTypeError as error:
            raise RecipeError(str(error)) from error
