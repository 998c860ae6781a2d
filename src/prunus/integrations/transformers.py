"""Pruning inside Hugging Face's ``Trainer`` and ``Seq2SeqTrainer``, by one added callback."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from prunus._utils.files import load_tree, save_tree
from prunus.constraint import Constraint, Mode
from prunus.errors import CheckpointError, PrunusError, listing
from prunus.integrations.common import (
    STATE_FILE,
    check_given,
    let_go,
    starting_masks,
    trained,
)
from prunus.masks import Masks
from prunus.penalties.relevance import RelevancePenalty
from prunus.pruner import Pruner
from prunus.schedules import Schedule
from prunus.scores import Score
from prunus.selection import Selection, as_selection

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError(
        "prunus.integrations.transformers needs the 'transformers' extra: "
        "pip install 'prunus[transformers]'"
    ) from error

__all__ = ["STATE_FILE", "PruningCallback"]

_LOG = logging.getLogger(__name__)


class PruningCallback(TrainerCallback):
    """Makes the model of a ``Trainer`` sparse while it trains: ``Trainer(..., callbacks=[this])``.

    At each evaluation the schedule sees the metric and may remove weights; at the end of training
    the sparsest state that met the floor is what the model holds, so that ``save_model`` and
    ``save_pretrained`` write that. With ``load_best_model_at_end`` it takes the place of the
    checkpoint that the Trainer loads, and says so.

    Its state is saved in the Trainer's own checkpoints, and a run resumed from one equals, to the
    last bit, the run that was never stopped.

    Clipping is taken over from the Trainer: by the same norm and rule, ``max_grad_norm``, but after
    the relevance of the weights has been read, which clipping would change. What the Trainer logs
    as ``grad_norm`` stays the same.

    In several processes, each of which has the whole model (DistributedDataParallel), all remove
    the same weights, for the Trainer averages their gradients and gathers what the metric is made
    of. Models that are sharded over processes are refused.

    Args:
        penalty: As for :class:`~prunus.Pruner`.
        schedule: As for :class:`~prunus.Pruner`. Default: remove nothing.
        metric: The name of the validation metric, as ``compute_metrics`` returns it or with the
            Trainer's prefix: "bleu" or "eval_bleu", "loss" for the evaluation's loss. Not needed by
            schedules that look at none and have no floor.
        floor: As for :class:`~prunus.Pruner`.
        mode: As for :class:`~prunus.Pruner`.
        dense_metric: As for :class:`~prunus.Pruner`.
        selection: As for :class:`~prunus.Pruner`. Default: what
            :func:`~prunus.select` does, frozen tensors left out. For biases and norms too, as in
            the paper, ``functools.partial(select, biases=True, norms=True)``.
        score: As for :class:`~prunus.Pruner`.
        keep_zeros: Hold the weights that are zero already at zero: for fine-tuning a sparse model.
        min_density: As for :class:`~prunus.Pruner`.
        resume_from: The checkpoint that training is resumed from. Only needed if it lies elsewhere
            than in the Trainer's ``output_dir``.

    Attributes:
        pruner: The :class:`~prunus.Pruner` at work; None before training.

    Raises:
        PrunusError: The schedule needs a metric and none is named, or the metric is a loss and the
            schedule maximises it.

    Example:
        >>> from prunus import GradualPruning, RelevancePenalty
        >>> schedule = GradualPruning(sparsity=0.9, end=1000)
        >>> callback = PruningCallback(RelevancePenalty(1e-5), schedule, metric="loss", mode="min")
    """

    def __init__(
        self,
        penalty: RelevancePenalty | None = None,
        schedule: Schedule | None = None,
        *,
        metric: str | None = None,
        floor: float | str | None = None,
        mode: Mode = "max",
        dense_metric: float | None = None,
        selection: Selection | Callable[[nn.Module], Selection] | None = None,
        score: Score | None = None,
        keep_zeros: bool = False,
        min_density: float = 1e-4,
        resume_from: str | Path | None = None,
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
            mend='name one that compute_metrics returns, metric="...", or metric="loss"',
        )
        self._metric = None if metric is None else metric.removeprefix("eval_")
        self._selection = trained if selection is None else selection
        self._score = score
        self._keep_zeros = keep_zeros
        self._min_density = min_density
        self._resume_from = None if resume_from is None else Path(resume_from)
        self._training = False
        self._due: int | None = None
        self._found: int | None = None
        self._unmet: list[str] | None = None
        self._saved: int | None = None

    # What the Trainer calls, in the order in which it does.

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
        """Attach to the model and the optimizer, and go on where a checkpoint left off."""
        _hand_back(args)  # if an earlier training was broken off within a step
        self._check_arguments(args, state)
        _check_tied(model)
        held = let_go(self.pruner, model)
        selection = as_selection(self._selection, model)
        if selection.process_group.sharded:
            raise PrunusError(
                "this callback works where each process holds the whole model, but this model is "
                "sharded over processes: train it in a loop of your own, with prunus.Pruner"
            )
        resumed = state.global_step > 0
        self.pruner = Pruner(
            model,
            getattr(optimizer, "optimizer", optimizer),  # the one that Accelerate wraps
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
            max_grad_norm=args.max_grad_norm or None,
        )
        if resumed:
            self._resume(self.pruner, args, state.global_step)
        self._training = True
        self._found = self._unmet = self._saved = None
        # The evaluation at the start counts where training begins, but not where it is resumed:
        # it was none of the run that is to be gone on with.
        self._due = 0 if args.eval_on_start and not resumed else None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take over the clipping of the step that begins."""
        self._refuse_unmet()
        if not isinstance(args.max_grad_norm, _TakenOver):
            args.max_grad_norm = _TakenOver(args.max_grad_norm)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Hand the clipping back, so that the arguments are saved as they were given."""
        self._after_step(args, state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Do the same where an epoch ends within a step."""
        self._after_step(args, state, control)

    def _after_step(self, args: Any, state: Any, control: Any) -> None:
        _hand_back(args)
        if control.should_evaluate:
            self._due = state.global_step
        self._save_if_due(args, state, control)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, *, metrics: Mapping[str, float], **_: Any
    ) -> None:
        """Show the metric to the schedule, which may remove weights."""
        if not self._training or self.pruner is None:
            return
        step = state.global_step
        if self._due != step:
            _LOG.warning(
                "an evaluation at step %d that the Trainer did not schedule itself is not counted",
                step,
            )
            return
        names = () if self._metric is None else (f"eval_{self._metric}", self._metric)
        found = [metrics[name] for name in names if name in metrics]
        if names and not found:
            # Of several evaluation sets another may have it.
            if self._found != step:
                self._unmet = [*(self._unmet or []), *metrics]
            return
        if not names and self._found == step:  # of several evaluation sets the first will do
            return
        self._found, self._unmet, self._saved = step, None, None
        sparsity, seen = self.pruner.sparsity, self.pruner.step(*found[:1])
        state.log_history.append({"sparsity": sparsity, "removed": seen.removed, "step": step})
        _LOG.info(
            "%s at sparsity %.4f; %d weights removed",
            f"{self._metric} {found[0]:.6g}" if found else "evaluation",
            sparsity,
            seen.removed,
        )
        self._save_if_due(args, state, control)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Put the pruner's state into the checkpoint."""
        aside = _aside(args, state.global_step)
        if not _writes(args, state):
            return
        inside = Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE_FILE
        if self._saved == state.global_step and aside.is_file():
            aside.replace(inside)
        else:
            self._write(inside, state)
        for leftover in aside.parent.glob(_aside(args, "*").name):
            leftover.unlink(missing_ok=True)
        self._saved = None

    def on_train_end(
        self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any
    ) -> None:
        """Bring back the sparsest state that met the floor."""
        self._training = False
        self._refuse_unmet()
        assert self.pruner is not None
        loaded = args.load_best_model_at_end and state.best_model_checkpoint
        before = _zeros(self.pruner.selection) if loaded else 0
        self.pruner.finish()
        after = _zeros(self.pruner.selection)
        if loaded and after != before:
            prunable = self.pruner.selection.prunable
            _LOG.warning(
                "load_best_model_at_end brought back %s, of sparsity %.4f; the sparsest state that "
                "met the floor, of sparsity %.4f, is delivered instead",
                state.best_model_checkpoint,
                before / prunable,
                after / prunable,
            )

    # What that takes.

    def _check_arguments(self, args: Any, state: Any) -> None:
        problems = []
        if self._metric is not None and str(getattr(args.eval_strategy, "value", "")) == "no":
            problems.append(
                f"evaluation is disabled (eval_strategy is 'no'), so the metric {self._metric!r} "
                "is never measured: set eval_strategy to 'epoch' or 'steps'"
            )
        if self._metric is None and args.load_best_model_at_end:
            problems.append(
                "with load_best_model_at_end the callback needs metric=..., or a checkpoint from "
                "before the last removal would be delivered"
            )
        names = ("deepspeed", "fsdp", "enable_jit_checkpoint")
        unfit = [name for name in names if getattr(args, name, None)]
        if unfit:
            problems.append(f"this callback does not work with {listing(unfit)}: leave it out")
        if state.is_hyper_param_search:
            problems.append(
                "this callback does not work within hyperparameter_search, which keeps its "
                "checkpoints elsewhere: search without it"
            )
        if problems:
            raise PrunusError("; ".join(problems))

    def _resume(self, pruner: Pruner, args: Any, step: int) -> None:
        near = Path(args.output_dir) / f"checkpoint-{step}"
        given = (
            args.resume_from_checkpoint if isinstance(args.resume_from_checkpoint, str) else near
        )
        folder = Path(self._resume_from or given)
        file = folder / STATE_FILE
        if not file.is_file() and folder == near:
            file = _aside(args, step)
        if not file.is_file():
            raise CheckpointError(
                f"training is resumed at step {step}, but {folder} has no {STATE_FILE}: if the "
                "checkpoint lies elsewhere, say so by PruningCallback(resume_from=...); if it does "
                "not, it was made without this callback"
            )
        content = load_tree(file)
        if content.get("step") != step:
            raise CheckpointError(
                f"training is resumed at step {step}, but {file} is of step {content.get('step')}"
            )
        _check_zeros(pruner.selection, content, file)
        pruner.load_state_dict(content["pruner"])

    def _save_if_due(self, args: Any, state: Any, control: Any) -> None:
        # Before the Trainer writes its own part, for when that is done it may delete the checkpoint
        # before: a kill in between must not leave one without masks as the only one. But beside the
        # checkpoint's folder, which the Trainer would take for a whole checkpoint.
        due = control.should_save and self._saved != state.global_step
        if due and _writes(args, state):
            self._write(_aside(args, state.global_step), state)
            self._saved = state.global_step

    def _write(self, file: Path, state: Any) -> None:
        if self.pruner is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_tree(file, {"step": state.global_step, "pruner": self.pruner.state_dict()})

    def _refuse_unmet(self) -> None:
        if self._unmet is not None:
            raise PrunusError(
                f"the evaluation returned no metric {self._metric!r}; it returned "
                f"{listing(sorted(set(self._unmet)))}: give one of these as metric=..., or return "
                f"{self._metric!r} from compute_metrics"
            )


def _writes(args: Any, state: Any) -> bool:
    """Say whether this process writes what is the same in all: the first one, or of each host."""
    first = state.is_world_process_zero
    return bool(state.is_local_process_zero if args.save_on_each_node else first)


def _aside(args: Any, step: int | str) -> Path:
    """Return where the state waits for the Trainer to have written its part of a checkpoint."""
    return Path(args.output_dir) / f".checkpoint-{step}.{STATE_FILE}"


def _zeros(selection: Selection) -> int:
    return sum(
        target.parameter.numel() - int(torch.count_nonzero(target.parameter.detach()))
        for target in selection.values()
    )


class _TakenOver(float):
    """What ``args.max_grad_norm`` is within a step: 0, so that the Trainer does not clip."""

    def __new__(cls, original: float) -> Self:
        return super().__new__(cls, 0.0)

    def __init__(self, original: float) -> None:
        self.original = original

    def __reduce__(self) -> tuple[type[float], tuple[float]]:  # saved, it is what it was
        return float, (self.original,)


def _hand_back(args: Any) -> None:
    if isinstance(args.max_grad_norm, _TakenOver):
        args.max_grad_norm = args.max_grad_norm.original


def _check_zeros(selection: Selection, content: Mapping[str, Any], file: Path) -> None:
    """Refuse the state of another run, whose removed weights are not zero in this model.

    Raises:
        CheckpointError: It is another run's.
    """
    masks = Masks(selection)
    masks.load_packed(content["pruner"]["masks"])
    alive = masks.revived()
    if alive:
        raise CheckpointError(
            f"{file} is of another run than the model that was loaded: weights that it removed are "
            f"not zero in {listing(list(alive))}; say where the right one lies by "
            "PruningCallback(resume_from=...)"
        )


def _check_tied(model: nn.Module) -> None:
    """Refuse a model whose head should be tied to an embedding, by its configuration, and is not.

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
            "the configuration of this model says tie_word_embeddings, but its input and output "
            "embeddings are two tensors, which would get two masks: call model.tie_weights(), or "
            "set model.config.tie_word_embeddings = False"
        )
