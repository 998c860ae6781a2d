"""Tests of the callback for the Trainer in two processes, compared with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from transformers import GPT2LMHeadModel, TrainerCallback

from helpers.errors import message_of
from helpers.pruners import coupled_penalty
from helpers.states import same
from integrations.processes import launched, shard_on_cpu, whole
from integrations.transformers_trainers import Stop, gpt2, make_trainer
from prunus import ExponentialRelevance, FisherScore, IterativePruning
from prunus.integrations.transformers import PruningCallback

pytestmark = [pytest.mark.frameworks, pytest.mark.distributed, pytest.mark.slow]

LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {"per_device_train_batch_size": 4},
    "ddp": {"ddp_backend": "gloo"},
    "fsdp": {
        "fsdp": True,
        "fsdp_config": {"transformer_layer_cls_to_wrap": ["GPT2Block"]},
    },
}

CEILING = 2.3


def pruning() -> PruningCallback:
    return PruningCallback(
        coupled_penalty(1e-2, ExponentialRelevance(0.1), smoothing=0.9),
        IterativePruning(fraction=0.9),
        metric="loss",
        score=FisherScore(smoothing=0.9),
        floor=CEILING,
        mode="min",
    )


class Zeros(TrainerCallback):
    """Counts the removed weights that are not zero after each step."""

    def __init__(self, pruning: PruningCallback) -> None:
        self.pruning, self.nonzero, self.steps = pruning, 0, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.pruning.pruner is not None
        self.nonzero += sum(self.pruning.pruner.masks.revived().values())
        self.steps += 1


def trained(folder: Path, layout: str, *stops: Stop) -> dict[str, Any]:
    """Train, from the checkpoint of an earlier call if there is one; return what is delivered."""
    callback = pruning()
    zeros = Zeros(callback)
    changes = {"per_device_train_batch_size": 2, "num_train_epochs": 2.0, **LAYOUTS[layout]}
    trainer = make_trainer(folder, *stops, callback, zeros, model=gpt2(dropout=0.0), **changes)
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))
    assert callback.pruner is not None
    trainer.save_model(str(folder / "delivered"))
    history = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    return {
        "weights": {name: whole(p) for name, p in trainer.model.named_parameters()},
        "sharded": callback.pruner.selection.process_group.sharded,
        "sparsity": callback.pruner.sparsity,
        "steps": zeros.steps,
        "nonzero": zeros.nonzero,
        "loss": trainer.evaluate()["eval_loss"],
        "losses": [entry["eval_loss"] for entry in history],
        "sparsities": [entry["eval_sparsity"] for entry in history],
        "removed": [entry["eval_removed"] for entry in history],
    }


def trained_twice(folder: str, layout: str) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Train without an interruption, and with one."""
    torch.set_num_threads(1)
    if layout == "fsdp":
        shard_on_cpu()
    uninterrupted = trained(Path(folder) / "whole", layout)
    stopped = message_of(lambda: trained(Path(folder) / "stopped", layout, Stop(6)))
    return uninterrupted, stopped, trained(Path(folder) / "stopped", layout)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
def test_two_processes_prune_as_one_and_resume(tmp_path: Path, layout: str) -> None:
    one = trained(tmp_path / "one", "one")
    assert one["losses"][-1] > CEILING > one["loss"]  # not the last state is delivered
    for run, stopped, resumed in launched(2, trained_twice, str(tmp_path), layout):
        assert run["sharded"] == (layout == "fsdp")
        assert (run["nonzero"], run["steps"]) == (0, 16)
        for name in ("sparsity", "sparsities", "removed"):
            assert run[name] == one[name]
        torch.testing.assert_close(run["losses"], one["losses"], rtol=1e-4, atol=0)
        for name, weights in run["weights"].items():
            assert torch.equal(weights == 0, one["weights"][name] == 0), name
            torch.testing.assert_close(weights, one["weights"][name], rtol=1e-2, atol=1e-3)
        # What is delivered met the floor, and is what was measured.
        assert run["loss"] == run["losses"][run["sparsities"].index(run["sparsity"])] <= CEILING
        assert "no validation met the ceiling" in stopped
        assert same(run["weights"], resumed["weights"])
        assert resumed["removed"] == run["removed"]
    saved = GPT2LMHeadModel.from_pretrained(tmp_path / "whole" / "delivered")
    for name, parameter in saved.named_parameters():
        assert torch.equal(parameter.detach(), run["weights"][name])
