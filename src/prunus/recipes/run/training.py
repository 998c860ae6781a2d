"""Training a recipe: first dense, then sparse, with a checkpoint after every epoch."""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus._engine.removal import least_kept
from prunus._utils.files import keep_as, load_tree, save_tree, write_atomically
from prunus._utils.system_info import system_info
from prunus.errors import (
    CheckpointError,
    FloorNotReachedError,
    NonFiniteError,
    PrunusError,
    listing,
)
from prunus.pruner import Pruner
from prunus.recipes.config import Config
from prunus.recipes.registry import Recipe
from prunus.recipes.run.directory import RunDirectory
from prunus.recipes.run.layer_types import densities_by_layer_type
from prunus.recipes.run.progress import Epoch, Progress
from prunus.recipes.run.weight_file import encode_weights, load_weights
from prunus.recipes.tasks.losses import Teacher
from prunus.recipes.tasks.task import Evaluation, Lesson, Task
from prunus.selection import nonzero_parameters, select, total_parameters

__all__ = ["Stopped", "run"]


class Stopped(Exception):  # noqa: N818 - no error: it was asked for
    """The run was asked to stop, has saved, and can be resumed."""


def run(
    recipe: Recipe,
    config: Config,
    directory: RunDirectory,
    progress: Progress,
    *,
    data: str | None = None,
    seed: int = 0,
    dense: str | None = None,
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run a recipe from start to end, or from its last checkpoint.

    Args:
        recipe: What to train.
        config: Its settings, perhaps changed.
        directory: Where everything is written.
        progress: Who watches.
        data: A folder or Hub name in place of the recipe's own data.
        seed: Of the weights, the data order and the validation split.
        dense: The directory of another run of this recipe, by the same seed, data and settings of
            the dense training, whose dense network to take in place of training one.
        resume: Go on with the run that ``directory`` holds. The result is the same, bit for bit, as
            if it had never stopped.
        stop: Is asked after each step and each epoch whether to save and stop there.

    Returns:
        The summary, as written to summary.json.

    Raises:
        PrunusError: Something the user can mend; what was written so far is intact.
        Stopped: ``stop`` said so.
    """
    identity = {
        "recipe": recipe.name,
        "seed": seed,
        "data": data,
        "dense": dense,
        "config": config.as_dict(),
    }
    with directory.claimed(resume=resume):
        if resume:
            directory.check_config(identity)
            summary = directory.read_summary()
            if summary is not None and directory.delivered():
                progress.say(f"the run in {directory.path} is complete; nothing is left to do")
                return summary
            if summary is not None:
                progress.say(f"{directory.model} is absent or damaged: it is made anew")
        progress.say(f"data: {data or recipe.data}")
        torch.manual_seed(seed)
        task = recipe.prepare(config, data, seed)
        training = _Training(recipe, config, directory, progress, task, identity, stop)
        if dense is not None and not directory.has_checkpoint:
            training.check_donor()
        if not resume:
            directory.write_config(identity)
        if directory.has_checkpoint:
            training.load()
        else:
            if resume:
                # The first line is written before the first checkpoint.
                gone = directory.lines > 1
                why = "its checkpoints are gone" if gone else "no epoch was complete yet"
                progress.say(f"{why}, so the run begins anew")
            directory.cut_metrics(0)
        training.dense()
        training.prune()
        summary = training.summary()
        directory.write_summary(summary)
        return summary


@dataclass
class _Clock:
    """Seconds spent per phase, over all parts of a resumed run."""

    spent: dict[str, float] = field(default_factory=lambda: {"dense": 0.0, "prune": 0.0})
    _since: float = field(default_factory=time.perf_counter)

    def charge(self, phase: str) -> None:
        now = time.perf_counter()
        self.spent[phase] += now - self._since
        self._since = now

    @property
    def total(self) -> float:
        return sum(self.spent.values())


@dataclass(frozen=True)
class _Phase:
    """What trains a network, for as long as one learning rate rises and falls.

    Attributes:
        name: "dense" or "prune".
        optimizer: Moves the weights.
        scheduler: Sets its learning rate.
        pruner: Removes weights; None in the dense training.
    """

    name: str
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LambdaLR
    pruner: Pruner | None


@dataclass(frozen=True)
class _Within:
    """How far an epoch had come when the run was stopped within it.

    Attributes:
        steps: Steps taken.
        total: Sum of their losses, each times its size.
        count: Sum of the sizes.
    """

    steps: int = 0
    total: float = 0.0
    count: int = 0


class _Training:
    """A run in progress."""

    def __init__(
        self,
        recipe: Recipe,
        config: Config,
        directory: RunDirectory,
        progress: Progress,
        task: Task,
        identity: dict[str, Any],
        stop: Callable[[], bool],
    ) -> None:
        self.stop = stop
        self.recipe, self.config, self.directory = recipe, config, directory
        self.progress, self.task, self.identity = progress, task, identity
        self.model = task.network()
        # Settings that do not fit the network are found before anything is trained.
        self.selection = select(self.model, biases=config.biases, norms=config.norms)
        self.kept = self._kept()
        self.order = torch.Generator().manual_seed(identity["seed"])
        self.steps_per_epoch = task.steps_per_epoch
        self.clock = _Clock()
        self.lines = 0
        self.sparsity = 0.0
        self.dense_validation: float | None = None
        self.teacher: Teacher | None = None
        self.resumed: dict[str, Any] | None = None
        self.within: _Within | None = None

    def load(self) -> None:
        """Take over the last checkpoint; the optimizers follow when their phase begins."""
        state = self.directory.load_checkpoint(self.progress.say)
        if state.get("run") != self.identity:
            raise CheckpointError(
                f"{self.directory.checkpoint} is not a checkpoint of this run but of another one, "
                "with other settings or another seed; put its own back, or start anew in another "
                "--out"
            )
        if state.get("data") != self.task.fingerprint:
            raise CheckpointError(
                "the data are not those that the run in "
                f"{self.directory.path} began with: give it its own, or start anew in another --out"
            )
        try:
            if state["phase"] == "prune":  # found now rather than when it is needed, at the end
                load_weights(self.task.network(), self.directory.dense)
            self.model.load_state_dict(state["model"])
            self.order.set_state(state["order"])
            torch.set_rng_state(state["rng"])
            self.clock.spent = dict(state["seconds"])
            self.lines = int(state["lines"])
            self.resumed = {**state, "phase": str(state["phase"]), "epoch": int(state["epoch"])}
            self.dense_validation = state["dense_validation"]
            self.within = None if state["within"] is None else _Within(**state["within"])
        except (KeyError, RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"{self.directory.checkpoint} is not a checkpoint of this recipe: {error}"
            ) from error
        self.directory.cut_metrics(self.lines)

    def dense(self) -> None:
        """Train the dense network, unless a checkpoint is beyond that."""
        if self._resumes("prune"):
            return
        if self.identity["dense"] is not None:
            self._adopt(RunDirectory(Path(self.identity["dense"])))
            return
        phase = _Phase(
            "dense", *self._optimizer(self.config.dense_lr, self.config.dense_epochs), None
        )
        done = self._take_over(phase)
        epochs = self.config.dense_epochs
        self.progress.begin("dense", self.task.metric, epochs, self.steps_per_epoch, done)
        for epoch in range(done + 1, epochs + 1):
            over = self._run_epoch(phase, epoch)
            self.dense_validation = over.validation
            self._close_epoch(phase, over)
        self._keep_dense()

    def _keep_dense(self) -> None:
        """Write the dense network, and what a run that takes it over needs besides."""
        # Overwritten with the same bytes if a run was stopped just after this.
        after = {
            "data": self.task.fingerprint,
            "order": self.order.get_state(),
            "rng": torch.get_rng_state(),
        }
        save_tree(self.directory.after_dense, after)
        write_atomically(self.directory.dense, encode_weights(self.model, recipe=self.recipe.name))

    def check_donor(self) -> None:
        """Make sure that the run whose dense network is to be taken has the same one."""
        other = RunDirectory(Path(self.identity["dense"]))
        identity = other.read_config()
        if identity["recipe"] != self.recipe.name:
            raise PrunusError(
                f"the run in {other.path} is of the recipe {identity['recipe']}, not "
                f"{self.recipe.name}: choose another --dense"
            )
        held = type(self.config).from_dict(identity["config"], other.config).dense_settings()
        wanted = self.config.dense_settings()
        for key in ("seed", "data"):
            held[key], wanted[key] = identity[key], self.identity[key]
        differences = [
            f"{key} is {held[key]!r} there and {wanted[key]!r} here"
            for key in wanted
            if held[key] != wanted[key]
        ]
        if differences:
            raise PrunusError(
                f"the dense network of {other.path} is another one: {listing(differences)}; "
                "choose another --dense, or leave it out to train one"
            )
        if not other.dense.is_file():
            raise PrunusError(f"the run in {other.path} has not finished its dense training")
        if load_tree(other.after_dense).get("data") != self.task.fingerprint:
            raise PrunusError(
                f"the run in {other.path} had other data than those given now: give it the same, "
                "or choose another --dense"
            )

    def _adopt(self, other: RunDirectory) -> None:
        """Take the dense network of another run."""
        load_weights(self.model, other.dense)
        self.progress.say(f"the dense network is that of {other.path}")
        self.dense_validation = self._validate("dense", self.config.dense_epochs).metric
        names = self.config.teacher_settings
        own, others = self.config.as_dict(), other.read_config()["config"]
        if other.lessons.exists() and all(own[name] == others[name] for name in names):
            keep_as(other.lessons, self.directory.lessons)
        # From here on the same bits as if it had been trained here.
        after = load_tree(other.after_dense)
        self.order.set_state(after["order"])
        torch.set_rng_state(after["rng"])
        self._keep_dense()

    def prune(self) -> None:
        """Train the sparse network."""
        assert self.dense_validation is not None
        constraint = self.config.make_constraint(self.dense_validation)
        if not constraint.met(self.dense_validation):
            side, mend = ("below", "lower") if self.config.mode == "max" else ("above", "raise")
            raise FloorNotReachedError(
                f"the dense network reaches a validation {self.task.metric} of "
                f"{self.dense_validation:.4f}, {side} the floor "
                f"{constraint.bound:.4f}, so nothing may be removed: {mend} "
                "the floor or raise dense_epochs"
            )
        self.task.prepare_pruning(self.model)
        dense = functools.cache(self._dense_network)  # loaded once, and only if someone asks
        if self.config.distillation:
            self.teacher = Teacher(dense(), self.config.distillation)
        self.task.learn(self._lessons(dense))
        resumed = self._resumes("prune")
        if self.config.initial_weights == "random" and not resumed:
            self.model.load_state_dict(self.task.network().state_dict())
        optimizer, scheduler = self._optimizer(self.config.lr, self.config.epochs)
        pruner = self._pruner(optimizer)
        phase = _Phase("prune", optimizer, scheduler, pruner)
        done = self._take_over(phase)
        if self.config.initial_weights == "dense" and not resumed:
            # The dense network is the first state that meets the floor, and what is delivered if no
            # sparser one does.
            pruner.consider(self.dense_validation)
        epochs = self.config.epochs
        self.progress.begin("prune", self.task.metric, epochs, self.steps_per_epoch, done)
        for epoch in range(done + 1, epochs + 1):
            if self._gave_up(pruner):
                self.progress.say("done before the last epoch: nothing more can be removed")
                break
            over = self._run_epoch(phase, epoch)
            sparsity, answer = pruner.sparsity, pruner.step(over.validation)
            over = replace(over, floor=pruner.floor, sparsity=sparsity, removed=answer.removed)
            self._close_epoch(phase, over)
        pruner.finish()
        if self.config.ratio and pruner.masks.kept > self.kept:
            self.progress.say(
                f"the ratio {self.config.ratio:g} was not reached: nothing sparser than what is "
                "delivered met the floor"
            )
        content = encode_weights(self.model, recipe=self.recipe.name, sparsity=pruner.sparsity)
        write_atomically(self.directory.model, content)
        self.task.publish(self.model, self.directory.path)
        self.clock.charge("prune")
        self.sparsity = pruner.sparsity

    def _dense_network(self) -> nn.Module:
        """Return the dense network, for the sparse one to learn from."""
        network = copy.deepcopy(self.model)  # a new one would draw from the random numbers
        load_weights(network, self.directory.dense)
        return network.eval().requires_grad_(False)

    def _lessons(self, dense: Callable[[], nn.Module]) -> list[Lesson]:
        """Return what the dense network makes of the training data, if that is to be learnt."""
        path = self.directory.lessons
        if path.exists():
            try:
                held: list[Lesson] = load_tree(path)["lessons"]
                return held
            except CheckpointError as error:
                self.progress.say(f"{error}: it is made anew")
        lessons, told = [], -1
        for done, lesson in self.task.lessons(dense):
            lessons.append(lesson)
            if int(done * 10) > told:
                told = int(done * 10)
                self.progress.say(f"the dense network writes for the sparse one: {done:.0%}")
            if self.stop():
                raise Stopped("stopped before the first epoch (prune)")
        if lessons:
            save_tree(path, {"lessons": lessons})
        return lessons

    def _resumes(self, phase: str) -> bool:
        return self.resumed is not None and self.resumed["phase"] == phase

    def _gave_up(self, pruner: Pruner) -> bool:
        # With the ratio reached the schedule is done too, but the network has yet to recover.
        reached = bool(self.config.ratio) and pruner.masks.kept <= self.kept
        return pruner.done and not reached

    def _pruner(self, optimizer: torch.optim.Optimizer) -> Pruner:
        config = self.config
        assert self.dense_validation is not None
        schedule = config.make_schedule(
            kept=self.kept,
            prunable=self.selection.prunable,
            steps=config.epochs * self.steps_per_epoch,
        )
        return Pruner(
            self.model,
            optimizer,
            config.make_penalty(self.steps_per_epoch),
            schedule,
            floor=config.floor,
            mode=config.mode,
            dense_metric=self.dense_validation,
            score=config.make_score(),
            selection=self.selection,
            min_density=config.min_density,
            max_grad_norm=config.max_grad_norm or None,
        )

    def _kept(self) -> int:
        """Return how many prunable weights the ratio leaves."""
        total, prunable = total_parameters(self.model), self.selection.prunable
        if not self.config.ratio:
            return prunable
        kept = math.floor(total / self.config.ratio) - (total - prunable)
        share = self.config.min_density
        guarded = sum(least_kept(target.prunable, share) for target in self.selection.values())
        least = max(1, guarded)
        if kept < least:
            staying = total - prunable + least
            raise PrunusError(
                f"ratio={self.config.ratio:g} cannot be reached: with biases={self.config.biases} "
                f"and min_density={share:g} at least {staying:,} of {total:,} parameters stay, so "
                f"the most is {total / staying:.1f}"
            )
        return kept

    def _optimizer(
        self, lr: float, epochs: int
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        steps = epochs * self.steps_per_epoch
        rising = max(1, round(self.config.warmup * steps))

        def factor(step: int) -> float:
            if step < rising:
                return (step + 1) / rising
            return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

        optimizer = self.task.optimizer(self.model, lr)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def _take_over(self, phase: _Phase) -> int:
        """Restore the phase from the checkpoint; return how many of its epochs are done."""
        if not self._resumes(phase.name):
            return 0
        state, self.resumed = self.resumed, None
        assert state is not None
        try:
            phase.optimizer.load_state_dict(state["optimizer"])
            phase.scheduler.load_state_dict(state["scheduler"])
            if phase.pruner is not None:
                phase.pruner.load_state_dict(state["pruner"])
        except (KeyError, ValueError, TypeError, PrunusError) as error:
            raise CheckpointError(
                f"{self.directory.checkpoint} is not a checkpoint of this recipe: {error}"
            ) from error
        return int(state["epoch"])

    def _run_epoch(self, phase: _Phase, epoch: int) -> Epoch:
        """Train for an epoch and measure; what pruning makes of it comes on top."""
        loss = self._train_epoch(phase, epoch)
        seen = self._validate(phase.name, epoch)
        return Epoch(
            phase=phase.name,
            epoch=epoch,
            loss=loss,
            validation_loss=seen.loss,
            validation=seen.metric,
            more=dict(seen.more),
        )

    def _train_epoch(self, phase: _Phase, epoch: int) -> float:
        """Train for an epoch; return the mean loss."""
        config, task = self.config, self.task
        optimizer, pruner = phase.optimizer, phase.pruner
        in_loss = pruner is not None and config.penalty != "none" and config.apply == "loss"
        begin = self.order.get_state()
        done, self.within = self.within or _Within(), None
        total, count = done.total, done.count
        for number, batches in enumerate(task.epoch(self.order)):
            if number < done.steps:  # only the order is drawn anew
                self.progress.step()
                continue
            optimizer.zero_grad()
            sizes = [task.size(batch) for batch in batches]
            for batch, size in zip(batches, sizes, strict=True):
                with torch.autocast("cpu", torch.bfloat16, enabled=config.autocast):
                    loss = task.loss(self.model, batch, self.teacher)
                value = loss.item()
                step = (epoch - 1) * self.steps_per_epoch + number + 1
                self._check_finite(value, phase.name, step)
                total, count = total + value * size, count + size
                if in_loss and pruner is not None:
                    loss = loss + pruner.penalty(loss)
                # So that the gradients of several batches add up to that of one large batch.
                share = loss * (size / sum(sizes))
                share.backward()  # type: ignore[no-untyped-call]
            if pruner is None and config.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)
            optimizer.step()
            phase.scheduler.step()
            self.progress.step()
            if self.stop():
                self.clock.charge(phase.name)
                self._save(phase, epoch - 1, begin, _Within(number + 1, total, count))
                raise Stopped(f"stopped after step {number + 1} of epoch {epoch} ({phase.name})")
        return total / count

    def _validate(self, phase: str, epoch: int) -> Evaluation:
        """Measure on the validation split."""
        seen = self.task.validate(self.model)
        # The last step of an epoch may have broken what no training loss has seen yet.
        self._check_finite(seen.loss, phase, epoch * self.steps_per_epoch)
        for line in seen.samples:
            self.progress.say(line)
        return seen

    def _check_finite(self, loss: float, phase: str, step: int) -> None:
        if math.isfinite(loss):
            return
        cause = "lr or strength" if phase == "prune" else "dense_lr"
        raise NonFiniteError(
            f"the loss is {loss} at step {step} (epoch {-(-step // self.steps_per_epoch)}) of the "
            f"{phase} training: lower {cause}. The checkpoint of the last whole epoch, if any, is "
            f"kept in {self.directory.path}"
        )

    def _close_epoch(self, phase: _Phase, epoch: Epoch) -> None:
        """Write the epoch down: its line first, then the checkpoint that counts the lines."""
        self.clock.charge(epoch.phase)
        epoch = replace(epoch, seconds=round(self.clock.total, 3))
        self.directory.append_metrics(asdict(epoch))
        self.lines += 1
        self._save(phase, epoch.epoch, self.order.get_state())
        self.progress.epoch(epoch)
        if self.stop():
            raise Stopped(f"stopped after epoch {epoch.epoch} ({epoch.phase})")

    def _save(
        self, phase: _Phase, epoch: int, order: torch.Tensor, within: _Within | None = None
    ) -> None:
        """Write a checkpoint after so many whole epochs and, if any, some steps of the next."""
        self.directory.save_checkpoint(
            {
                "run": self.identity,
                "phase": phase.name,
                "epoch": epoch,
                "within": None if within is None else asdict(within),
                "model": dict(self.model.state_dict()),
                "optimizer": phase.optimizer.state_dict(),
                "scheduler": phase.scheduler.state_dict(),
                "pruner": None if phase.pruner is None else phase.pruner.state_dict(),
                "order": order,
                "rng": torch.get_rng_state(),
                "seconds": dict(self.clock.spent),
                "lines": self.lines,
                "dense_validation": self.dense_validation,
                "data": self.task.fingerprint,
            },
        )

    def summary(self) -> dict[str, Any]:
        """Measure both networks on the test split, for the first and only time."""
        sparse = self._measured(self.model)
        dense = self._measured(load_weights(self.task.network(), self.directory.dense))
        parameters, nonzero = total_parameters(self.model), nonzero_parameters(self.model)
        return {
            "recipe": self.recipe.name,
            "method": self.config.method,
            "seed": self.identity["seed"],
            "parameters": parameters,
            "nonzero": nonzero,
            "sparsity": self.sparsity,
            "compression_ratio": parameters / nonzero,
            "metric": {"name": self.task.metric, "mode": self.config.mode, **self.task.about},
            "dense": dense,
            "sparse": sparse,
            "kinds": densities_by_layer_type(self.model, self.selection),
            "seconds": {
                **{phase: round(spent, 3) for phase, spent in self.clock.spent.items()},
                "total": round(self.clock.total, 3),
            },
            "bytes": {
                "dense": self.directory.dense.stat().st_size,
                "sparse": self.directory.model.stat().st_size,
            },
            "environment": system_info(),
        }

    def _measured(self, model: nn.Module) -> dict[str, float]:
        figures: dict[str, float] = {}
        for split, measure in (("validation", self.task.validate), ("test", self.task.test)):
            seen = measure(model)
            figures |= {split: seen.metric, f"{split}_loss": seen.loss}
            figures |= {f"{split}_{name}": value for name, value in seen.more.items()}
        return figures
