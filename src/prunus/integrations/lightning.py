"""Pruning inside Lightning's ``Trainer``, by one added callback."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from prunus.constraint import Constraint, Mode
from prunus.errors import CheckpointError, PrunusError, listing
from prunus.integrations.common import check_given, let_go, starting_masks, trained
from prunus.penalties.relevance import RelevancePenalty
from prunus.pruner import Pruner
from prunus.schedules import Schedule
from prunus.scores import Score
from prunus.selection import Selection, as_selection

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError as error:
        raise ImportError(
            "prunus.integrations.lightning needs the 'lightning' extra: "
            "pip install 'prunus[lightning]'"
        ) from error

__all__ = ["PruningCallback"]

_LOG = logging.getLogger(__name__)


class PruningCallback(Callback):
    """Makes the model of a ``Trainer`` sparse while it trains: ``Trainer(callbacks=[this])``.

    After each validation, at the next batch, the schedule sees the metric and may remove weights.
    So a checkpoint that is saved in between holds the weights that were measured. When ``fit`` ends
    the model is the sparsest that met the floor: save or test that, ``trainer.test(model)``, and
    not ``ckpt_path="best"``, which is the best by the metric alone and commonly the densest.

    Its state lies in Lightning's own checkpoints, as tensors and plain numbers, which also
    ``fit(..., weights_only=True)`` accepts. A run resumed from one equals, to the last bit, the run
    that was never stopped, as far as a run without this callback does: Lightning saves no state of
    random generators, a data loader must be able to go on within an epoch, and when resumed from a
    checkpoint that was saved between an epoch's last batch and its validation, as
    ``every_n_train_steps`` may do, Lightning leaves that validation out.

    ``Trainer(gradient_clip_val=...)`` is taken over: the same norm and rule, but applied after the
    relevance of the weights has been read, which clipping would change.

    It works with automatic and manual optimization, in one process or, by ``strategy="ddp"``, in
    several that each have the whole model; the metric must then be logged with ``sync_dist=True``,
    for all have to see the same.

    Args:
        penalty: As for :class:`~prunus.Pruner`.
        schedule: As for :class:`~prunus.Pruner`. Default: remove nothing.
        metric: The name of the validation metric, as the module logs it: "val_accuracy". Not needed
            by schedules that look at none and have no floor.
        optimizer: Which of several optimizers trains what shall be pruned: its number in
            ``configure_optimizers``, or a function that is true for it. Default: the only one that
            holds prunable weights.
        floor: As for :class:`~prunus.Pruner`.
        mode: As for :class:`~prunus.Pruner`.
        dense_metric: As for :class:`~prunus.Pruner`.
        selection: As for :class:`~prunus.Pruner`. Default: what
            :func:`~prunus.select` does, without what the optimizer does not train.
        score: As for :class:`~prunus.Pruner`.
        keep_zeros: Hold the weights that are zero already at zero: for fine-tuning a sparse model.
        min_density: As for :class:`~prunus.Pruner`.

    Attributes:
        pruner: The :class:`~prunus.Pruner` at work; None before training.

    Raises:
        PrunusError: The schedule needs a metric and none is named, or the metric is a loss and the
            schedule maximises it.

    Example:
        >>> from prunus import IterativePruning, RelevancePenalty
        >>> schedule = IterativePruning(fraction=0.1)
        >>> callback = PruningCallback(
        ...     RelevancePenalty(1e-5), schedule, metric="val_accuracy", floor=0.98
        ... )
    """

    def __init__(
        self,
        penalty: RelevancePenalty | None = None,
        schedule: Schedule | None = None,
        *,
        metric: str | None = None,
        optimizer: int | Callable[[torch.optim.Optimizer], bool] | None = None,
        floor: float | str | None = None,
        mode: Mode = "max",
        dense_metric: float | None = None,
        selection: Selection | Callable[[nn.Module], Selection] | None = None,
        score: Score | None = None,
        keep_zeros: bool = False,
        min_density: float = 1e-4,
    ) -> None:
        self.pruner: Pruner | None = None
        self._penalty = penalty
        self._constraint = Constraint(floor, mode, dense_metric)
        self._schedule = check_given(
            penalty=penalty,
            schedule=schedule,
            score=score,
            min_density=min_density,
            selection=selection,
            constraint=self._constraint,
            metric=metric,
            mend='name one that the module logs in its validation, metric="..."',
        )
        if optimizer is not None and not isinstance(optimizer, int) and not callable(optimizer):
            raise PrunusError(
                "optimizer must be the number of an optimizer, or a function that is true for it, "
                f"but is {optimizer!r}"
            )
        self._metric = metric
        self._optimizer = optimizer
        self._selection = selection
        self._score = score
        self._keep_zeros = keep_zeros
        self._min_density = min_density
        self._fitting = self._beginning = False
        self._loaded: dict[str, Any] | None = None
        # The metric of the last validation, while the schedule has not acted upon it.
        self._waiting: list[float | None] = []
        self._clipping: Any = None

    # What Lightning calls, in the order in which it does.

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Await the state in a checkpoint, if ``fit`` is what begins and has one."""
        self._fitting = self._beginning = stage == "fit"
        if self._fitting:
            self._loaded, self._waiting = None, []

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state in a checkpoint; the optimizer that it is for is not there yet."""
        if self._beginning:  # and not testing, say, with the weights of some checkpoint
            self._loaded = state_dict

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach to the module and the optimizer, and go on where a checkpoint left off."""
        self._check_trainer(trainer)
        loaded = self._loaded
        if trainer.ckpt_path is not None and loaded is None:
            raise CheckpointError(
                f"training is resumed, but {trainer.ckpt_path} has no state of a "
                f"{type(self).__name__}: it was saved without this callback. To start from its "
                "weights alone, load them into the module and call fit without ckpt_path"
            )
        resumed = loaded is not None and loaded["pruner"] is not None
        held = let_go(self.pruner, pl_module)
        optimizer = self._choose(trainer.optimizers, pl_module)
        selection = as_selection(self._selection or _trained_by(optimizer), pl_module)
        self.pruner = Pruner(
            trainer.model,  # within DistributedDataParallel, if there are several processes
            optimizer,
            self._penalty,
            self._schedule,
            floor=self._constraint.floor,
            mode=self._constraint.mode,
            dense_metric=self._constraint.dense_metric,
            score=self._score,
            selection=selection,
            # On resumption they are those of the checkpoint.
            masks=None if resumed else starting_masks(held, selection, self._keep_zeros),
            min_density=self._min_density,
            max_grad_norm=self._take_over_clipping(trainer, pl_module),
        )
        if loaded is not None and resumed:
            self.pruner.load_state_dict(loaded["pruner"])
            self._waiting = list(loaded["waiting"])
        self._loaded, self._beginning = None, False

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """See that there is something to validate on, if the data are there by now."""
        self._check_batches(trainer)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let the schedule act upon the validation before, now that it may have been saved."""
        self._act()

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the sparsity of what was validated."""
        if self._counts(trainer) and self._metric is not None:
            assert self.pruner is not None
            pl_module.log("sparsity", self.pruner.sparsity)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Note the metric."""
        if not self._counts(trainer):
            return
        found = trainer.callback_metrics
        if self._metric is not None and self._metric not in found:
            raise PrunusError(
                f"the validation logged no metric {self._metric!r}; what is logged is "
                f"{listing(sorted(found.keys() - {'sparsity'})) or 'nothing'}: give one of these "
                f"as metric=..., or call self.log({self._metric!r}, ...) in validation_step or "
                "on_validation_epoch_end"
            )
        self._waiting = [None if self._metric is None else float(found[self._metric])]

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, for Lightning's checkpoints."""
        # A tuner saves and loads before training begins: give it what is to be gone on with.
        if self._beginning and self._loaded is not None:
            return self._loaded
        pruner = None if self._beginning else self.pruner
        state = None if pruner is None else pruner.state_dict()
        return {"pruner": state, "waiting": list(self._waiting)}

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Let the schedule act upon the last validation."""
        self._check_batches(trainer)  # which may have come in the course of the training
        self._act()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Bring back the sparsest state that met the floor."""
        self._hand_back_clipping(trainer)
        self._fitting = False
        assert self.pruner is not None
        for metric in self._waiting:  # of a run that was at its end when it was resumed
            if metric is not None:
                self.pruner.consider(metric)
        self.pruner.finish()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the Trainer as it was given."""
        self._hand_back_clipping(trainer)
        self._fitting = False

    # What that takes.

    def _counts(self, trainer: Any) -> bool:
        """Say whether this is a validation of the training, of which the schedule is told."""
        return self._fitting and not trainer.sanity_checking

    def _act(self) -> None:
        """Tell the schedule of the last validation, if it was not told yet."""
        waiting, self._waiting = self._waiting, []
        for metric in waiting:
            assert self.pruner is not None
            sparsity, seen = self.pruner.sparsity, self.pruner.step(metric)
            _LOG.info(
                "%s %s at sparsity %.4f; %d weights removed",
                self._metric or "validation",
                "" if metric is None else f"{metric:.6g}",
                sparsity,
                seen.removed,
            )

    def _check_batches(self, trainer: Any) -> None:
        batches = trainer.num_val_batches  # empty before the data are set up
        if self._metric is not None and batches and not any(batches):
            raise PrunusError(
                f"there are no batches to validate on, so the metric {self._metric!r} is never "
                "measured: give the validation data some rows"
            )

    def _check_trainer(self, trainer: Any) -> None:
        problems = []
        if self._metric is not None and not trainer.enable_validation:
            problems.append(
                f"there is no validation, so the metric {self._metric!r} is never measured: give "
                "the module a validation_step, fit its data, and the Trainer no "
                "limit_val_batches=0"
            )
        strategy = type(trainer.strategy).__name__
        if trainer.world_size > 1 and strategy != "DDPStrategy":
            problems.append(
                "in several processes this callback works where each has the whole model, but the "
                f'strategy is {strategy}: Trainer(strategy="ddp") or Trainer(devices=1)'
            )
        if problems:
            raise PrunusError("; ".join(problems))

    def _choose(
        self, optimizers: list[torch.optim.Optimizer], module: nn.Module
    ) -> torch.optim.Optimizer:
        """Return the optimizer that trains what is pruned.

        Raises:
            PrunusError: There is none, or there are several and none was chosen.
        """
        kinds = [f"{i} ({type(optimizer).__name__})" for i, optimizer in enumerate(optimizers)]
        chosen = self._optimizer
        if isinstance(chosen, int):
            if not 0 <= chosen < len(optimizers):
                raise PrunusError(
                    f"optimizer={chosen} is none of those that configure_optimizers returned: "
                    f"{listing(kinds)}"
                )
            return optimizers[chosen]
        if chosen is not None:
            fit = [i for i, optimizer in enumerate(optimizers) if chosen(optimizer)]
            if len(fit) != 1:
                raise PrunusError(
                    f"the function given as optimizer= must be true for one of {listing(kinds)}, "
                    f"but is for {listing([kinds[i] for i in fit]) or 'none'}"
                )
            return optimizers[fit[0]]
        if len(optimizers) == 1:
            return optimizers[0]
        targets = as_selection(self._selection or trained, module).values()
        prunable = {id(target.parameter) for target in targets}
        fit = [i for i, optimizer in enumerate(optimizers) if prunable & _held(optimizer)]
        if len(fit) != 1:
            raise PrunusError(
                "one optimizer must hold the prunable weights, but of "
                f"{listing(kinds)} these do: {listing([kinds[i] for i in fit]) or 'none'}. Choose "
                "one by its number, optimizer=0, or by a function that is true for it; what the "
                "others train is not pruned"
            )
        return optimizers[fit[0]]

    def _take_over_clipping(self, trainer: Any, module: Any) -> float | None:
        """Return the norm to clip to, and keep Lightning from clipping before relevance is read."""
        score, penalty = self._score, self._penalty
        if penalty is None and (score is None or not score.uses_gradient):
            return None  # nothing reads gradients, so let it clip
        hook = type(module).configure_gradient_clipping
        if hook.__module__.partition(".")[0] not in ("lightning", "pytorch_lightning"):
            warnings.warn(
                f"{type(module).__name__}.configure_gradient_clipping runs before the relevance of "
                "the weights is read: if it clips, by other values than the Trainer's own "
                "gradient_clip_val, weights look less relevant than they are; give the value to "
                "the Trainer, or choose a coefficient with relative=True",
                stacklevel=2,
            )
        value = trainer.gradient_clip_val
        if not value:
            return None
        if str(getattr(trainer.gradient_clip_algorithm, "value", "norm")) != "norm":
            raise PrunusError(
                f"gradient_clip_algorithm={trainer.gradient_clip_algorithm.value!r} changes "
                "gradients before the relevance of the weights is read, and cannot be taken over: "
                'choose Trainer(gradient_clip_algorithm="norm")'
            )
        self._clipping, trainer.gradient_clip_val = value, None
        return float(value)

    def _hand_back_clipping(self, trainer: Any) -> None:
        if self._clipping is not None:
            trainer.gradient_clip_val, self._clipping = self._clipping, None


def _held(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}


def _trained_by(optimizer: torch.optim.Optimizer) -> Callable[[nn.Module], Selection]:
    held = _held(optimizer)
    return lambda module: trained(module, lambda p: p.requires_grad and id(p) in held)
