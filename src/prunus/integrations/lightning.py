"""The pruning callback for Lightning's ``Trainer``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from prunus._distributed.wrappers import deepspeed_problem
from prunus._engine.default_method import DEFAULT_ALLOCATION, DEFAULT_SCORE, PenaltyChoice
from prunus._engine.optimizers import parameter_ids
from prunus._utils.checks import raise_problems, type_problem
from prunus._utils.extras import missing_extra
from prunus.allocation import Allocation
from prunus.constraint import Mode
from prunus.errors import CheckpointError, PrunusError, listing
from prunus.growth import Growth
from prunus.integrations.common import (
    CallbackArguments,
    check_several,
    saved_state,
    select_trained,
    step_and_log,
    warn_of_late_removals,
)
from prunus.patterns.binding import PatternChoice
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
        raise missing_extra("prunus.integrations.lightning", "lightning", error) from error

__all__ = ["PruningCallback"]

OptimizerChoice = int | Sequence[int] | Callable[[torch.optim.Optimizer], bool]
"""The index of an optimizer, a list of indices, or a function that returns True for the chosen."""

_STRATEGIES = ("DDPStrategy", "ModelParallelStrategy")
"""Lightning's strategies of several processes that the callback supports."""

_AVERAGING = {"WeightAveraging", "StochasticWeightAveraging"}
"""Lightning's callbacks that validate or deliver averaged weights; others are subclasses."""


class PruningCallback(Callback):
    """Prunes the model of a ``Trainer`` in training: ``Trainer(callbacks=[this])``.

    At the first batch after each validation the schedule receives the metric and may remove
    weights, so that a checkpoint saved in between holds the weights that were measured. When
    ``fit`` ends the model is the sparsest state that met the floor: save or test that,
    ``trainer.test(model)``, and not ``ckpt_path="best"``, the best by the metric alone, which is
    usually the densest.

    Its state is saved in Lightning's checkpoints, as tensors and plain numbers that
    ``fit(..., weights_only=True)`` accepts. A run resumed from one equals the uninterrupted run bit
    for bit, as far as a run without this callback does: Lightning saves no state of random
    generators, a data loader must be able to resume within an epoch, and if the checkpoint was
    saved between an epoch's last batch and its validation, as ``every_n_train_steps`` may do,
    Lightning skips that validation on resumption.

    The callback clips gradients in place of ``Trainer(gradient_clip_val=...)``, by the same norm
    and rule, but after the relevance of the weights has been measured, which clipping would change.

    It supports automatic and manual optimization, in one process or in several that each hold the
    whole model, with ``strategy="ddp"``, or a shard of it, with ``ModelParallelStrategy`` and
    ``fully_shard`` in ``configure_model``. Then the metric must be logged with ``sync_dist=True``,
    because it must be equal in all of them. In checkpoints of a sharded model the callback's state
    is whole tensors, which the first process gathers in the CPU's memory. ``FSDPStrategy`` and
    DeepSpeed are rejected.

    Callbacks that average weights are rejected, because averages over removals are dense. Several
    of this callback, each for optimizers of its own, are accepted if none has a floor or a metric:
    each would restore another validation. They log ``sparsity_0``, ``sparsity_1`` and so on, in the
    order of the Trainer's callbacks.

    A schedule whose last removal is after the end of the training causes a warning. Not in manual
    optimization, in which the Trainer does not know the number of an optimizer's steps.

    Args:
        penalty: As for :class:`~prunus.Pruner`.
        schedule: As for :class:`~prunus.Pruner`.
        metric: The name of the validation metric, as the module logs it: "val_accuracy". Not needed
            without a floor by schedules that do not use a metric.
        optimizer: The optimizers of the weights to prune, if there are several: an index in
            ``configure_optimizers``, a list of indices, or a function that returns True for those
            that are meant. A step counts once each of them has taken one. Default: the only one
            that holds prunable weights.
        floor: As for :class:`~prunus.Pruner`.
        mode: As for :class:`~prunus.Pruner`.
        dense_metric: As for :class:`~prunus.Pruner`.
        selection: As for :class:`~prunus.Pruner`. Default: the selection of
            :func:`~prunus.select` without the tensors that the optimizers do not train.
        score: As for :class:`~prunus.Pruner`.
        allocation: As for :class:`~prunus.Pruner`.
        masks: As for :class:`~prunus.Pruner`.
        keep_zeros: Start from the masks of the weights that are zero already, to fine-tune a sparse
            model.
        min_density: As for :class:`~prunus.Pruner`.
        keep_best: As for :class:`~prunus.Pruner`.
        growth: As for :class:`~prunus.Pruner`.
        pattern: As for :class:`~prunus.Pruner`.

    Attributes:
        pruner: The :class:`~prunus.Pruner` of the training; None before.

    Raises:
        ArgumentError: An argument is out of range, the schedule or the floor needs a metric and
            none is named, or the metric is a loss and ``mode`` is "max".
        ArgumentTypeError: Arguments have the wrong type.

    Example:
        >>> from prunus import IterativePruning, RelevancePenalty
        >>> schedule = IterativePruning(fraction=0.1)
        >>> callback = PruningCallback(
        ...     RelevancePenalty(1e-5), schedule, metric="val_accuracy", floor=0.98
        ... )
    """

    def __init__(
        self,
        penalty: PenaltyChoice = "auto",
        schedule: Schedule | None = None,
        *,
        metric: str | None = None,
        optimizer: OptimizerChoice | None = None,
        floor: float | str | None = None,
        mode: Mode = "max",
        dense_metric: float | None = None,
        selection: Selection | Callable[[nn.Module], Selection] | None = None,
        score: Score = DEFAULT_SCORE,
        allocation: Allocation = DEFAULT_ALLOCATION,
        masks: Mapping[str, torch.Tensor] | None = None,
        keep_zeros: bool = False,
        min_density: float = 1e-4,
        keep_best: bool = True,
        growth: Growth | None = None,
        pattern: PatternChoice = None,
    ) -> None:
        self.pruner: Pruner | None = None
        self._arguments = CallbackArguments(
            penalty=penalty,
            schedule=schedule,
            metric=metric,
            floor=floor,
            mode=mode,
            dense_metric=dense_metric,
            selection=selection,
            score=score,
            allocation=allocation,
            masks=masks,
            keep_zeros=keep_zeros,
            min_density=min_density,
            keep_best=keep_best,
            growth=growth,
            pattern=pattern,
        )
        self._arguments.check('name one that the module logs in its validation, metric="..."')
        raise_problems(
            type_problem(
                "optimizer",
                optimizer,
                (int, list, tuple, Callable),  # type: ignore[arg-type]  # no class to mypy
                "the index of an optimizer, a list of indices, or a function that returns True "
                "for the chosen ones,",
                optional=True,
            )
        )
        self._optimizer = optimizer
        self._fitting = self._starting = False
        self._loaded_state: dict[str, Any] | None = None
        self._resumed = False
        # The metric of the last validation, until the schedule receives it.
        self._pending: list[float | None] = []
        self._trainer_clip_val: Any = None
        # Before setup any key, but another one for each callback, as Lightning requires.
        self._state_key = f"{type(self).__qualname__}{id(self)}"
        self._logged_name = "sparsity"
        # Whether this process writes checkpoints.
        self._writes = True
        # The steps of the Trainer before the pruner's first.
        self._earlier_steps = 0
        self._last_callback = _AfterCheckpoints(self._step_pruner)

    @property
    def state_key(self) -> str:
        """The key in Lightning's checkpoints: the class, and from the second on the position."""
        return self._state_key

    # Lightning's hooks, in order.

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Check the other callbacks, and expect the state of a checkpoint if ``fit`` begins."""
        callbacks = [c for c in trainer.callbacks if isinstance(c, PruningCallback)]
        position = callbacks.index(self)
        self._state_key = type(self).__qualname__ + (f"[{position}]" if position else "")
        self._logged_name = f"sparsity_{position}" if len(callbacks) > 1 else "sparsity"
        self._writes = trainer.is_global_zero
        self._fitting = self._starting = stage == "fit"
        if self._fitting:
            _check_strategy(trainer)
            _check_averaging(self, trainer.callbacks)
            check_several([callback._arguments for callback in callbacks])
            self._loaded_state, self._pending = None, []

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of a checkpoint, or keep it until the optimizer exists."""
        if self._starting:  # and not testing with the weights of a checkpoint, for example
            self._loaded_state = state_dict
        elif self._fitting:  # by strategies that shard the model first, or a tuner
            self._load(state_dict)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Build the pruner, and load its state if training is resumed."""
        self._check_trainer(trainer)
        loaded = self._loaded_state
        self._resumed = loaded is not None
        self._check_resumed(trainer)
        resumed = loaded is not None and loaded["pruner"] is not None
        chosen = self._choose_optimizers(trainer.optimizers, pl_module)
        self.pruner = self._arguments.attach(
            trainer.model,  # inside DistributedDataParallel if there are several processes
            chosen,
            module=pl_module,
            default_selection=_selection_of(chosen),
            earlier=self.pruner,
            resumed=resumed,
            max_grad_norm=self._disable_clipping(trainer, pl_module),
        )
        if loaded is not None:
            self._load(loaded)
        self._loaded_state, self._starting = None, False
        self._earlier_steps = 0 if resumed else trainer.global_step
        trainer.callbacks.append(self._last_callback)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Warn if the schedule removes weights after the end of the training."""
        self._check_resumed(trainer)  # again, as the checkpoint may have been loaded since
        # Not before the data are loaded, which the number of steps depends on.
        if self.pruner is not None and pl_module.automatic_optimization:
            steps = trainer.estimated_stepping_batches
            # A data loader without a length leaves max_steps, which is -1 if it is not set.
            known = steps - self._earlier_steps if steps >= 0 else math.inf
            warn_of_late_removals(self.pruner.schedule, known)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Check that there are validation batches, if the data are loaded already."""
        self._check_batches(trainer)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Pass the last validation to the schedule, now that its weights may have been saved."""
        self._step_pruner()

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the sparsity of the weights that were validated."""
        if self._is_counted(trainer):
            assert self.pruner is not None
            pl_module.log(self._logged_name, self.pruner.sparsity, sync_dist=True)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Keep the metric for the schedule."""
        if not self._is_counted(trainer):
            return
        metric, logged = self._arguments.metric, trainer.callback_metrics
        if metric is not None and metric not in logged:
            names = sorted(logged.keys() - {self._logged_name})
            raise PrunusError(
                f"the validation logged no metric {metric!r}; it logged "
                f"{listing(names) or 'nothing'}: pass one of these "
                f"as metric=..., or call self.log({metric!r}, ...) in validation_step or "
                "on_validation_epoch_end"
            )
        self._pending = [None if metric is None else float(logged[metric])]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of a resumed run, for Lightning's checkpoints."""
        # A tuner saves and loads a checkpoint before training begins: keep the loaded state in it.
        if self._starting and self._loaded_state is not None:
            return self._loaded_state
        pruner = None if self._starting else self.pruner
        state = None if pruner is None else saved_state(pruner, writes=self._writes)
        return {"pruner": state, "pending": list(self._pending)}

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Check that there were validation batches."""
        self._check_batches(trainer)  # again, as the data may have been loaded during training

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Restore the sparsest state that met the floor."""
        self._end(trainer)
        assert self.pruner is not None
        for metric in self._pending:  # of a run that was complete when it was resumed
            if metric is not None:
                self.pruner.consider(metric)
        self.pruner.finish()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Restore the Trainer's clipping."""
        self._end(trainer)

    # Helpers of the hooks.

    def _end(self, trainer: Any) -> None:
        """Restore what was changed in the Trainer."""
        self._restore_clipping(trainer)
        self._fitting = False
        if self._last_callback in trainer.callbacks:
            trainer.callbacks.remove(self._last_callback)

    def _load(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        self._resumed = True
        if state["pruner"] is not None:
            assert self.pruner is not None
            self.pruner.load_state_dict(state["pruner"])
            self._pending = list(state["pending"])

    def _check_resumed(self, trainer: Any) -> None:
        """Check that the checkpoint that the Trainer has loaded had this callback's state.

        Raises:
            CheckpointError: It had not.
        """
        if trainer.ckpt_path is not None and not self._resumed:
            raise CheckpointError(
                f"training is resumed, but {trainer.ckpt_path} has no state of a "
                f"{type(self).__name__}: it was saved without this callback. To start from its "
                "weights alone, load them into the module and call fit without ckpt_path"
            )

    def _is_counted(self, trainer: Any) -> bool:
        """Return whether a validation belongs to the training, so that the schedule receives it."""
        return self._fitting and not trainer.sanity_checking

    def _step_pruner(self) -> None:
        """Pass the last validation to the schedule, unless it has received it already."""
        pending, self._pending = self._pending, []
        for metric in pending:
            assert self.pruner is not None
            step_and_log(self.pruner, self._arguments.metric, metric)

    def _check_batches(self, trainer: Any) -> None:
        batches = trainer.num_val_batches  # empty until the data are loaded
        if self._arguments.metric is not None and batches and not any(batches):
            raise PrunusError(
                f"there are no batches to validate on, so the metric {self._arguments.metric!r} is "
                "never measured: add rows to the validation data"
            )

    def _check_trainer(self, trainer: Any) -> None:
        """Check that the Trainer's arguments fit the callback's."""
        problems = []
        if self._arguments.metric is not None and not trainer.enable_validation:
            problems.append(
                f"there is no validation, so the metric {self._arguments.metric!r} is never "
                "measured: define validation_step in the module, pass validation data to fit, and "
                "leave limit_val_batches=0 out"
            )
        if problems:
            raise PrunusError("; ".join(problems))

    def _choose_optimizers(
        self, optimizers: Sequence[torch.optim.Optimizer], module: nn.Module
    ) -> Sequence[torch.optim.Optimizer]:
        """Return the optimizers of the weights to prune.

        Raises:
            PrunusError: There is none, or there are several and none was chosen.
        """
        if self._optimizer is not None:
            return _chosen(optimizers, self._optimizer)
        if len(optimizers) == 1:
            return optimizers
        selection = self._arguments.selection
        selected = as_selection(select_trained if selection is None else selection, module)
        prunable = {id(tensor.parameter) for tensor in selected.values()}
        fit = [i for i, optimizer in enumerate(optimizers) if prunable & parameter_ids(optimizer)]
        if len(fit) != 1:
            names = _names(optimizers)
            raise PrunusError(
                f"exactly one optimizer must hold prunable weights. Optimizers: {listing(names)}; "
                f"with prunable weights: {listing([names[i] for i in fit]) or 'none'}. Choose one "
                "with optimizer=0, or several with optimizer=[0, 1] or a function that returns "
                "True for them; the weights of the others are not pruned"
            )
        return [optimizers[fit[0]]]

    def _disable_clipping(self, trainer: Any, module: Any) -> float | None:
        """Disable Lightning's clipping before relevance is measured; return its norm.

        Raises:
            PrunusError: Lightning clips by value, which a pruner cannot.
        """
        if not self._arguments.uses_gradient:
            return None  # Lightning may clip
        hook = type(module).configure_gradient_clipping
        if hook.__module__.partition(".")[0] not in ("lightning", "pytorch_lightning"):
            warnings.warn(
                f"{type(module).__name__}.configure_gradient_clipping runs before the relevance of "
                "the weights is measured: if it clips, by other values than the Trainer's "
                "gradient_clip_val, weights look less relevant than they are; pass the value to "
                "the Trainer, or choose a coefficient with relative=True",
                stacklevel=2,
            )
        value = trainer.gradient_clip_val
        if not value:
            return None
        algorithm = str(getattr(trainer.gradient_clip_algorithm, "value", "norm"))
        if algorithm != "norm":
            raise PrunusError(
                f"gradient_clip_algorithm={algorithm!r} changes gradients before the relevance of "
                "the weights is measured, and the pruner cannot clip by it: choose "
                'Trainer(gradient_clip_algorithm="norm")'
            )
        self._trainer_clip_val, trainer.gradient_clip_val = value, None
        return float(value)

    def _restore_clipping(self, trainer: Any) -> None:
        if self._trainer_clip_val is not None:
            trainer.gradient_clip_val, self._trainer_clip_val = self._trainer_clip_val, None


def _check_strategy(trainer: Any) -> None:
    """Check that the weights of each process can be found in the module's parameters.

    Raises:
        PrunusError: They cannot.
    """
    raise_problems(deepspeed_problem(trainer.strategy), error=PrunusError)
    # By name: the strategies that shard may be subclasses, and there are two packages.
    strategy = type(trainer.strategy).__name__
    several = trainer.world_size > 1 and strategy not in _STRATEGIES
    if several or strategy == "FSDPStrategy":
        raise PrunusError(
            f"this callback works with the strategies {listing(_STRATEGIES)}, but the strategy is "
            f'{strategy}: Trainer(strategy="ddp"), or ModelParallelStrategy() with fully_shard '
            "from torch.distributed.fsdp in the module's configure_model"
        )


class _AfterCheckpoints(Callback):
    """Passes the last validation to the schedule after all callbacks have saved at the end."""

    def __init__(self, step_pruner: Callable[[], None]) -> None:
        self._step_pruner = step_pruner

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._step_pruner()


def _check_averaging(pruning: PruningCallback, callbacks: Sequence[Callback]) -> None:
    """Check that no callback averages weights.

    Raises:
        PrunusError: One does.
    """
    # By name: older versions lack some of them, and there are two packages.
    averaging = [
        type(callback).__name__
        for callback in callbacks
        if any(
            base.__name__ in _AVERAGING
            and base.__module__.partition(".")[0] in ("lightning", "pytorch_lightning")
            for base in type(callback).__mro__
        )
    ]
    if averaging:
        raise PrunusError(
            f"{type(pruning).__name__} does not work beside {listing(averaging)}: averages over "
            "steps with different masks are dense, and would be validated or delivered in place of "
            f"the sparse weights. Remove {listing(averaging)} from the Trainer's callbacks, or "
            "average in a second training without this callback: masks = Masks.from_zeros(...) "
            "before it, and masks.apply_() on the averages after it"
        )


def _chosen(
    optimizers: Sequence[torch.optim.Optimizer], choice: OptimizerChoice
) -> Sequence[torch.optim.Optimizer]:
    """Return the optimizers that the user chose.

    Raises:
        PrunusError: The choice fits none.
    """
    if callable(choice):
        fit = [optimizer for optimizer in optimizers if choice(optimizer)]
        if not fit:
            raise PrunusError(
                "the function passed as optimizer= must return True for one of "
                f"{listing(_names(optimizers))}, but does for none"
            )
        return fit
    indices = [choice] if isinstance(choice, int) else choice
    if not indices or not all(index in range(len(optimizers)) for index in indices):
        raise PrunusError(
            f"optimizer={choice} is none of those that configure_optimizers returned: "
            f"{listing(_names(optimizers))}"
        )
    return [optimizers[index] for index in indices]


def _names(optimizers: Sequence[torch.optim.Optimizer]) -> list[str]:
    return [f"{i} ({type(optimizer).__name__})" for i, optimizer in enumerate(optimizers)]


def _selection_of(
    optimizers: Sequence[torch.optim.Optimizer],
) -> Callable[[nn.Module], Selection]:
    """Return a function that selects the tensors of a model that optimizers train."""
    ids = set().union(*map(parameter_ids, optimizers))
    return lambda module: select_trained(module, lambda p: p.requires_grad and id(p) in ids)
