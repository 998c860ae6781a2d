"""Pruning in training loops on Hugging Face's ``accelerate``."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn

from prunus._utils.checks import raise_problems, type_problem
from prunus._utils.files import load_tree, save_tree
from prunus.errors import CheckpointError, PrunusError, listing
from prunus.integrations.common import STATE_FILE
from prunus.penalties.relevance import RelevancePenalty
from prunus.pruner import Pruner
from prunus.schedules import Schedule

try:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
except ImportError as error:
    raise ImportError(
        "prunus.integrations.accelerate needs the 'accelerate' extra: "
        "pip install 'prunus[accelerate]'"
    ) from error

__all__ = ["AcceleratedPruner"]


class AcceleratedPruner(Pruner):
    """A :class:`~prunus.Pruner` of what ``accelerator.prepare`` returned.

    It listens to the optimizer within the prepared one, and so to the steps that are really taken:
    to none while ``accelerator.accumulate`` gathers gradients, and to none that the gradient scaler
    skips. In several processes each has a pruner, and all remove the same weights; the metric must
    be the same in all, computed from what ``accelerator.gather_for_metrics`` collects.

    ``accelerator.save_state`` saves its whole state beside the rest, as ``prunus.safetensors`` (of
    a second pruner ``prunus_1.safetensors``), and ``accelerator.load_state`` brings it back: a run
    resumed so equals, to the last bit, the run that was never stopped. It is not registered by
    ``register_for_checkpointing``, which would pickle it. ``save_state`` writes file by file, so a
    run that may be killed should save to a new folder each time.

    Instead of calling ``accelerator.clip_grad_norm_``, which makes weights look less relevant than
    they are, give it ``max_grad_norm``: the same rule, applied after relevance has been read.

    Args:
        accelerator: What prepared the model and the optimizer.
        model: The prepared model.
        optimizer: The prepared optimizer.
        penalty: As for :class:`~prunus.Pruner`.
        schedule: As for :class:`~prunus.Pruner`.
        options: The other arguments of :class:`~prunus.Pruner`, by name.

    Raises:
        PrunusError: As for :class:`~prunus.Pruner`; or the optimizer is not a prepared one, or the
            accelerator shards the model in a way that this class does not know.

    Example:
        >>> accelerator = Accelerator(cpu=True)
        >>> model = nn.Linear(100, 1)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> model, optimizer = accelerator.prepare(model, optimizer)
        >>> pruner = AcceleratedPruner(accelerator, model, optimizer, RelevancePenalty(1e-4))
        >>> pruner.prune(sparsity=0.9)
        90
        >>> accelerator.backward(model(torch.ones(4, 100)).square().mean())
        >>> optimizer.step()
        >>> int(model.weight.count_nonzero())
        10
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        penalty: RelevancePenalty | None = None,
        schedule: Schedule | None = None,
        **options: Any,
    ) -> None:
        _check_prepared(accelerator, optimizer)
        super().__init__(
            model,
            _bare(optimizer),
            penalty,
            schedule,
            **options,
        )
        if self.selection.process_group.sharded:
            super().detach()
            raise PrunusError(
                "AcceleratedPruner works where each process holds the whole model, but this one is "
                "sharded over processes: use prunus.Pruner, and save its state by "
                "torch.distributed.checkpoint"
            )
        self._accelerator = accelerator
        self._file = _enlist(self)
        self._loaded: Path | None = None
        self._handles = [
            accelerator.register_save_state_pre_hook(self._save),
            accelerator.register_load_state_pre_hook(self._load),
            # Away from what the compiler traces, which would compile anew after each load.
            self.optimizer.register_step_pre_hook(
                torch.compiler.disable(self._check_loaded)  # type: ignore[no-untyped-call]
            ),
        ]

    def detach(self) -> None:
        """Stop, and leave the accelerator's checkpoints too."""
        for handle in self._handles:
            handle.remove()
        _pruners[self._accelerator].discard(self)
        super().detach()

    def _save(self, models: list[nn.Module], weights: list[Any], folder: str) -> None:
        del models, weights
        state, accelerator = self.state_dict(), self._accelerator
        on_each_node = accelerator.project_configuration.save_on_each_node
        if accelerator.is_local_main_process if on_each_node else accelerator.is_main_process:
            save_tree(Path(folder) / self._file, state)

    def _load(self, models: list[nn.Module], folder: str) -> None:
        del models
        file = Path(folder) / self._file
        if not file.is_file():
            raise CheckpointError(
                f"{folder} has no {self._file}: it was saved without this pruner. Load it before "
                "you build the pruner, or call detach() on pruners that are no longer used"
            )
        self.load_state_dict(load_tree(file))
        self._loaded = file

    def _check_loaded(self, *_: Any) -> None:
        """Refuse the weights of another moment before the first step hides that they were.

        Not earlier, for the accelerator loads the weights after it has called for the pruner's
        state, or someone else's hook loads them.
        """
        file, self._loaded = self._loaded, None
        revived = self.masks.revived() if file else {}
        if revived:
            raise CheckpointError(
                f"the model's weights are not of the moment when {file} was saved: weights that "
                f"were removed are not zero in {listing(list(revived))}. The process was perhaps "
                "killed as it overwrote this folder: take another one, and save to a new folder "
                "each time"
            )


_pruners: MutableMapping[Accelerator, WeakSet[AcceleratedPruner]] = WeakKeyDictionary()


def _enlist(pruner: AcceleratedPruner) -> str:
    """Return a file name that no other pruner of the accelerator has, numbered as its files are."""
    others = _pruners.setdefault(pruner._accelerator, WeakSet())
    used, path = {other._file for other in others}, Path(STATE_FILE)
    names = (f"{path.stem}_{i}{path.suffix}" if i else STATE_FILE for i in range(len(used) + 1))
    others.add(pruner)
    return next(name for name in names if name not in used)


def _bare(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer


def _check_prepared(accelerator: Accelerator, optimizer: torch.optim.Optimizer) -> None:
    raise_problems(
        type_problem(
            "accelerator",
            accelerator,
            Accelerator,
            "an accelerate.Accelerator",
            fix="AcceleratedPruner(accelerator, model, optimizer, ...)",
        )
    )
    unfit = accelerator.distributed_type.value
    if unfit in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        raise PrunusError(
            f"AcceleratedPruner works where each process holds the whole model, but this is {unfit}"
        )
    if not isinstance(optimizer, AcceleratedOptimizer):
        raise PrunusError(
            "AcceleratedPruner needs the model and the optimizer that accelerator.prepare "
            f"returned, but the optimizer is a bare {type(optimizer).__name__}: call "
            "model, optimizer = accelerator.prepare(model, optimizer) first"
        )
