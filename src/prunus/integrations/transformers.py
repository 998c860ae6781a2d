"""The pruning callback for ``Trainer`` and ``Seq2SeqTrainer`` of Hugging Face's transformers."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self
from weakref import WeakSet

import torch
from torch import nn

from prunus._distributed.wrappers import deepspeed_problem
from prunus._engine.default_method import DEFAULT_ALLOCATION, DEFAULT_SCORE, PenaltyChoice
from prunus._utils.extras import missing_extra
from prunus._utils.files import load_tree, save_tree
from prunus.allocation import Allocation
from prunus.constraint import Mode
from prunus.errors import CheckpointError, PrunusError, listing
from prunus.growth import Growth
from prunus.integrations.common import (
    STATE_FILE,
    CallbackArguments,
    check_several,
    saved_state,
    select_trained,
    step_and_log,
    warn_of_late_removals,
)
from prunus.masks import Masks
from prunus.patterns.binding import PatternChoice
from prunus.pruner import Pruner
from prunus.schedules import Schedule
from prunus.scores import Score
from prunus.selection import Selection

try:
    from transformers import TrainerCallback
    from transformers.trainer_utils import IntervalStrategy
except ImportError as error:
    raise missing_extra("prunus.integrations.transformers", "transformers", error) from error

__all__ = ["STATE_FILE", "PruningCallback"]

_LOG = logging.getLogger(__name__)

_callbacks: WeakSet[PruningCallback] = WeakSet()
"""All callbacks of trainings, present and past."""


class PruningCallback(TrainerCallback):
    """Prunes the model of a ``Trainer`` in training: ``Trainer(..., callbacks=[this])``.

    Before the first step after each evaluation, or when training ends, the schedule receives the
    metric and may remove weights, so that a checkpoint saved at the evaluation holds the weights
    that were measured, and all evaluation sets measure the same. At the end of training the model
    is the sparsest state that met the floor, which ``save_model`` and ``save_pretrained`` then
    write. With ``load_best_model_at_end`` that state replaces the checkpoint that the Trainer
    loaded, with a warning.

    Each evaluation that the Trainer logs, to the console, its ``log_history``, TensorBoard and
    others, includes ``eval_sparsity`` and ``eval_kept``, the sparsity and the number of kept
    weights of the model that was measured, and ``eval_floor``, the floor as a number. In
    ``log_history`` it also has ``eval_removed``, how many weights were removed after it. For this,
    ``Trainer.log`` is replaced once by a function that adds these values and calls the original.

    Its state is saved in the Trainer's checkpoints. A run resumed from one equals the uninterrupted
    run bit for bit.

    Several of this callback in one Trainer, for several selections, are accepted if none has a
    floor or a metric: each would restore another validation. They log ``eval_sparsity_0``,
    ``eval_sparsity_1`` and so on, in the order of the Trainer's callbacks.

    A schedule whose last removal is after the end of the training causes a warning.

    The callback clips gradients in place of the Trainer, by the same norm ``max_grad_norm`` and the
    same rule, but after the relevance of the weights has been measured, which clipping would
    change. The ``grad_norm`` that the Trainer logs stays the same.

    In several processes all remove the same weights, because the Trainer averages their gradients
    and computes the metric from the outputs of all of them. Each holds the whole model
    (DistributedDataParallel), or a shard of it, with ``fsdp=True`` and version 2, the default, in
    ``fsdp_config``: then the first process gathers the state that is saved in the CPU's memory.
    Version 1 and DeepSpeed are rejected.

    Args:
        penalty: As for :class:`~prunus.Pruner`.
        schedule: As for :class:`~prunus.Pruner`.
        metric: The name of the validation metric, as ``compute_metrics`` returns it or with the
            Trainer's prefix: "bleu" or "eval_bleu", "loss" for the evaluation's loss. Not needed
            without a floor by schedules that do not use a metric.
        floor: As for :class:`~prunus.Pruner`.
        mode: As for :class:`~prunus.Pruner`.
        dense_metric: As for :class:`~prunus.Pruner`.
        selection: As for :class:`~prunus.Pruner`. Default: the selection of
            :func:`~prunus.select` without frozen tensors. To include biases and norms, as in the
            paper, pass ``functools.partial(select, biases=True, norms=True)``.
        score: As for :class:`~prunus.Pruner`.
        allocation: As for :class:`~prunus.Pruner`.
        masks: As for :class:`~prunus.Pruner`.
        keep_zeros: Start from the masks of the weights that are zero already, to fine-tune a sparse
            model.
        min_density: As for :class:`~prunus.Pruner`.
        keep_best: As for :class:`~prunus.Pruner`.
        growth: As for :class:`~prunus.Pruner`.
        pattern: As for :class:`~prunus.Pruner`.
        resume_from: The checkpoint from which training is resumed. Only needed if it is not in the
            Trainer's ``output_dir``.

    Attributes:
        pruner: The :class:`~prunus.Pruner` of the training; None before.

    Raises:
        ArgumentError: An argument is out of range, the schedule or the floor needs a metric and
            none is named, or the metric is a loss and ``mode`` is "max".
        ArgumentTypeError: Arguments have the wrong type.

    Example:
        >>> from prunus import GradualPruning, RelevancePenalty
        >>> schedule = GradualPruning(sparsity=0.9, end=1000)
        >>> callback = PruningCallback(RelevancePenalty(1e-5), schedule, metric="loss", mode="min")
    """

    def __init__(
        self,
        penalty: PenaltyChoice = "auto",
        schedule: Schedule | None = None,
        *,
        metric: str | None = None,
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
        resume_from: str | Path | None = None,
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
        self._arguments.check('name one that compute_metrics returns, metric="...", or "loss"')
        self._metric = None if metric is None else metric.removeprefix("eval_")
        self._resume_from = None if resume_from is None else Path(resume_from)
        self._training = False
        # The step whose evaluation the schedule is to receive, and the last one it received.
        self._scheduled_step: int | None = None
        self._evaluated_step: int | None = None
        # The names that an evaluation returned without the metric, until another returns it.
        self._other_metrics: list[str] | None = None
        # The step whose state is in the temporary file.
        self._saved_step: int | None = None
        # The metric of the last evaluation, until the schedule receives it.
        self._pending: list[float | None] = []
        # The state of the Trainer in the present training, and the callback's file in checkpoints.
        self._trainer_state: Any = None
        self._file_name = STATE_FILE
        # Its position among those of the Trainer.
        self._position = 0

    # The Trainer's events, in order.

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        *,
        model: nn.Module,
        optimizer: Any,
        **_: Any,
    ) -> None:
        """Build the pruner, and load its state if training is resumed."""
        _restore_clipping(args)  # if an earlier training was interrupted within a step
        self._check_arguments(args, state, model, optimizer)
        earlier = [callback for callback in _callbacks if callback._trainer_state is state]
        try:
            check_several([callback._arguments for callback in (*earlier, self)])
        except PrunusError:
            for callback in earlier:
                callback._detach()
            raise
        # In the order of the Trainer's callbacks, which is the same in a resumed run.
        self._position = position = len(earlier)
        path = Path(STATE_FILE)
        self._file_name = f"{path.stem}-{position}{path.suffix}" if position else STATE_FILE
        self._trainer_state = state
        _callbacks.add(self)
        _check_tied(model)
        resumed = state.global_step > 0
        self.pruner = self._arguments.attach(
            model,
            getattr(optimizer, "optimizer", optimizer),  # the one inside Accelerate's wrapper
            module=model,
            default_selection=select_trained,
            earlier=self.pruner,
            resumed=resumed,
            max_grad_norm=args.max_grad_norm or None,
        )
        self._pending = []
        if resumed:
            self._resume(self.pruner, args, state.global_step)
        warn_of_late_removals(self.pruner.schedule, state.max_steps)
        _extend_log()
        self._training = True
        self._evaluated_step = self._other_metrics = self._saved_step = None
        # An evaluation at the start counts if training begins, but not if it is resumed: the
        # uninterrupted run did not have it.
        self._scheduled_step = 0 if args.eval_on_start and not resumed else None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Pass the last evaluation to the schedule, and disable the clipping within the step."""
        self._check_metric_found()
        self._step_pruner(state)
        if not isinstance(args.max_grad_norm, _DisabledClipping):
            args.max_grad_norm = _DisabledClipping(args.max_grad_norm)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Restore the Trainer's arguments, which are saved as the user passed them."""
        self._after_step(args, state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Restore the Trainer's arguments if an epoch ends within a step."""
        self._after_step(args, state, control)

    def _after_step(self, args: Any, state: Any, control: Any) -> None:
        _restore_clipping(args)
        if control.should_evaluate:
            self._scheduled_step = state.global_step
        self._save_if_due(args, state, control)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, *, metrics: Mapping[str, float], **_: Any
    ) -> None:
        """Keep the metric."""
        if not self._training or self.pruner is None:
            return
        step = state.global_step
        if self._scheduled_step != step:
            _LOG.warning(
                "an evaluation at step %d that the Trainer did not schedule itself is not counted",
                step,
            )
            return
        names = () if self._metric is None else (f"eval_{self._metric}", self._metric)
        found = [metrics[name] for name in names if name in metrics]
        if names and not found:
            # Another evaluation set may have the metric.
            if self._evaluated_step != step:
                self._other_metrics = [*(self._other_metrics or []), *metrics]
            return
        # Without a metric the first of several evaluation sets is enough.
        if not names and self._evaluated_step == step:
            return
        self._evaluated_step, self._other_metrics, self._saved_step = step, None, None
        self._pending = [found[0] if found else None]
        self._save_if_due(args, state, control)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the pruner's state into the checkpoint."""
        temporary = self._temporary_file(args, state.global_step)
        file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / self._file_name
        if self._saved_step != state.global_step:
            self._write(file, args, state)
        elif _is_writer(args, state):
            temporary.replace(file)
        if _is_writer(args, state):
            for leftover in temporary.parent.glob(self._temporary_file(args, "*").name):
                leftover.unlink(missing_ok=True)
        self._saved_step = None

    def on_log(self, args: Any, state: Any, control: Any, *, logs: Any = None, **_: Any) -> None:
        """Pass the last evaluation to the schedule when training has ended."""
        # And not when on_train_end is called, before which load_best_model_at_end loads weights.
        if self._training and "train_runtime" in (logs or {}):
            self._step_pruner(state)

    def on_train_end(
        self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any
    ) -> None:
        """Restore the sparsest state that met the floor."""
        self._training = False
        self._check_metric_found()
        assert self.pruner is not None
        loaded = args.load_best_model_at_end and state.best_model_checkpoint
        if not loaded:
            self._step_pruner(state)  # if the Trainer logged nothing at the end
        before = Masks.from_zeros(self.pruner.selection).sparsity if loaded else 0.0
        self.pruner.finish()
        after = Masks.from_zeros(self.pruner.selection).sparsity if loaded else 0.0
        if after != before:
            _LOG.warning(
                "load_best_model_at_end loaded %s, of sparsity %.4f; the sparsest state that met "
                "the floor, of sparsity %.4f, is delivered instead",
                state.best_model_checkpoint,
                before,
                after,
            )

    # Helpers of the hooks.

    def _step_pruner(self, state: Any) -> None:
        """Pass the last evaluation to the schedule, unless it has received it already."""
        pending, self._pending = self._pending, []
        for metric in pending:
            assert self.pruner is not None
            validation = step_and_log(self.pruner, self._metric, metric)
            self._scheduled_step = None
            sparsity, removed = self._logged_name("sparsity"), self._logged_name("removed")
            for entry in reversed(state.log_history):  # the last one, if there are several sets
                if entry.get("step") == state.global_step and sparsity in entry:
                    entry[removed] = validation.removed
                    break

    def _add_values(self, logs: dict[str, float]) -> None:
        """Add to the log of an evaluation what was measured."""
        assert self.pruner is not None
        values = {"sparsity": self.pruner.sparsity, "kept": self.pruner.masks.kept}
        if self.pruner.floor is not None:
            values["floor"] = self.pruner.floor
        logs |= {self._logged_name(name): value for name, value in values.items()}

    def _logged_name(self, name: str) -> str:
        """Return the name of a logged value, with this callback's position if there are several."""
        siblings = [c for c in _callbacks if c._trainer_state is self._trainer_state]
        return f"eval_{name}_{self._position}" if len(siblings) > 1 else f"eval_{name}"

    def _detach(self) -> None:
        """Release the model and the optimizer of a training that does not begin."""
        if self.pruner is not None:
            self.pruner.detach()
            self.pruner = None
        self._trainer_state = None

    def _check_arguments(self, args: Any, state: Any, model: nn.Module, optimizer: Any) -> None:
        """Check that the Trainer's arguments fit the callback's."""
        problems = []
        plugin = getattr(args, "deepspeed_plugin", None)
        if (deepspeed := deepspeed_problem(model, optimizer, plugin)) is not None:
            problems.append(deepspeed)
        if self._metric is not None and args.eval_strategy == IntervalStrategy.NO:
            problems.append(
                f"evaluation is disabled (eval_strategy is 'no'), so the metric {self._metric!r} "
                "is never measured: set eval_strategy to 'epoch' or 'steps'"
            )
        if self._metric is None and args.load_best_model_at_end:
            problems.append(
                "with load_best_model_at_end the callback needs metric=..., or a checkpoint from "
                "before the last removal would be delivered"
            )
        if getattr(args, "enable_jit_checkpoint", None):
            problems.append("this callback does not work with enable_jit_checkpoint: leave it out")
        if state.is_hyper_param_search:
            problems.append(
                "this callback does not work within hyperparameter_search, which keeps its "
                "checkpoints elsewhere: search without it"
            )
        if problems:
            raise PrunusError("; ".join(problems))

    def _resume(self, pruner: Pruner, args: Any, step: int) -> None:
        """Load the pruner's state of a step.

        Raises:
            CheckpointError: There is none, or it is of another step or another run.
        """
        default = Path(args.output_dir) / f"checkpoint-{step}"
        named = args.resume_from_checkpoint
        folder = self._resume_from or (Path(named) if isinstance(named, str) else default)
        file = folder / self._file_name
        if not file.is_file() and folder == default:
            file = self._temporary_file(args, step)
        if not file.is_file():
            raise CheckpointError(
                f"training is resumed at step {step}, but {folder} has no {self._file_name}: if "
                "the checkpoint is elsewhere, pass its path as PruningCallback(resume_from=...); "
                "if it is not, it was saved without this callback"
            )
        content = load_tree(file)
        if content.get("step") != step:
            raise CheckpointError(
                f"training is resumed at step {step}, but {file} is of step {content.get('step')}"
            )
        _check_zeros(pruner.selection, content, file)
        pruner.load_state_dict(content["pruner"])
        self._pending = list(content["pending"])

    def _save_if_due(self, args: Any, state: Any, control: Any) -> None:
        """Write the state to the temporary file if the Trainer will save a checkpoint."""
        # Before the Trainer writes its own files: afterwards it may delete the previous checkpoint,
        # and a kill in between must not leave one without masks as the only one. The file is beside
        # the checkpoint's folder, because the Trainer would take the folder for a checkpoint.
        if control.should_save and self._saved_step != state.global_step:
            self._write(self._temporary_file(args, state.global_step), args, state)
            self._saved_step = state.global_step

    def _write(self, file: Path, args: Any, state: Any) -> None:
        """Write the state, together with the other processes if the model is sharded."""
        if self.pruner is None:
            return
        saved = saved_state(self.pruner, writes=_is_writer(args, state))
        if saved is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            content = {"step": state.global_step, "pruner": saved}
            save_tree(file, {**content, "pending": list(self._pending)})

    def _temporary_file(self, args: Any, step: int | str) -> Path:
        """Return the file of the state until the Trainer has written its part of a checkpoint."""
        return Path(args.output_dir) / f".checkpoint-{step}.{self._file_name}"

    def _check_metric_found(self) -> None:
        """Raise an error if the last evaluation returned no metric of the callback's name."""
        if self._other_metrics is not None:
            own = {self._logged_name(name) for name in ("sparsity", "kept", "floor")}
            others = listing(sorted(set(self._other_metrics) - own))
            raise PrunusError(
                f"the evaluation returned no metric {self._metric!r}; it returned {others}: pass "
                f"one of these as metric=..., or return {self._metric!r} from compute_metrics"
            )


def _is_writer(args: Any, state: Any) -> bool:
    """Return whether this process writes the state: the first one of all, or of each node."""
    first = state.is_world_process_zero
    return bool(state.is_local_process_zero if args.save_on_each_node else first)


@functools.cache
def _extend_log() -> None:
    """Let ``Trainer.log`` add the values of pruning callbacks to the logs of evaluations."""
    # The Trainer passes its callbacks neither itself nor the others, and logs an evaluation to one
    # after the other: what one adds to it those before it, as of TensorBoard, do not receive.
    from transformers import Trainer

    original = Trainer.log

    @functools.wraps(original)
    def log(self: Any, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if any(name.startswith("eval_") for name in logs):
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, PruningCallback) and callback._training:
                    callback._add_values(logs)
        original(self, logs, *args, **kwargs)

    Trainer.log = log


class _DisabledClipping(float):
    """The value of ``args.max_grad_norm`` within a step: 0, so that the Trainer does not clip."""

    def __new__(cls, original: float) -> Self:
        return super().__new__(cls, 0.0)

    def __init__(self, original: float) -> None:
        self.original = original

    def __reduce__(self) -> tuple[type[float], tuple[float]]:  # pickled as the original value
        return float, (self.original,)


def _restore_clipping(args: Any) -> None:
    if isinstance(args.max_grad_norm, _DisabledClipping):
        args.max_grad_norm = args.max_grad_norm.original


def _check_zeros(selection: Selection, content: Mapping[str, Any], file: Path) -> None:
    """Check that the weights that a state removed are zero in the model.

    Raises:
        CheckpointError: They are not, so that the state is of another run.
    """
    masks = Masks(selection)
    masks.load_packed(content["pruner"]["masks"])
    nonzero = masks.revived()
    if nonzero:
        raise CheckpointError(
            f"{file} is of another run than the model that was loaded: weights that it removed are "
            f"not zero in {listing(list(nonzero))}; pass the path of the right checkpoint as "
            "PruningCallback(resume_from=...)"
        )


def _check_tied(model: nn.Module) -> None:
    """Check that the head is tied to an embedding if the model's configuration requires it.

    Raises:
        PrunusError: It is not.
    """
    config = getattr(model, "config", None)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None or not getattr(config, "tie_word_embeddings", False):
        return
    embeddings = [layer for layer in model.modules() if isinstance(layer, nn.Embedding)]
    if embeddings and all(layer.weight is not head.weight for layer in embeddings):
        raise PrunusError(
            "the configuration of this model has tie_word_embeddings=True, but its input and "
            "output embeddings are two tensors, which would get two masks: call "
            "model.tie_weights(), or set model.config.tie_word_embeddings = False"
        )
