"""Small transformers models and Trainers; as a program, a training that kills itself."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from prunus import (
    ExponentialRelevance,
    IterativePruning,
    LinearDecayStrength,
    RelevancePenalty,
    TaylorScore,
)
from prunus.integrations.transformers import PruningCallback

VOCABULARY, LENGTH = 19, 8


class Sentences(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Sequences of tokens with a constant difference, which each sequence draws."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        start = torch.randint(VOCABULARY, (count, 1), generator=generator)
        step = torch.randint(1, 4, (count, 1), generator=generator)
        self.tokens = (start + step * torch.arange(LENGTH)) % VOCABULARY

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index].clone()}


def gpt2(dropout: float = 0.1) -> GPT2LMHeadModel:
    """Return a decoder with dropout whose head is tied to its embedding."""
    set_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=LENGTH,
            n_embd=16,
            n_layer=2,
            n_head=2,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def bart() -> BartForConditionalGeneration:
    """Return an encoder and a decoder that share an embedding, tied to the head, with padding."""
    set_seed(0)
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=VOCABULARY,
            max_position_embeddings=LENGTH,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            decoder_start_token_id=2,
            forced_eos_token_id=2,
        )
    )


def make_trainer(
    out: Path,
    *callbacks: TrainerCallback,
    model: Any = None,
    trainer: Any = Trainer,
    **changes: Any,
) -> Trainer:
    """Return a Trainer of 24 steps with an evaluation and a checkpoint every four."""
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 3,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "save_strategy": "steps",
        "save_steps": 4,
        "save_total_limit": 2,
        "logging_steps": 4,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 0,
    }
    return trainer(
        model=gpt2() if model is None else model,
        args=TrainingArguments(str(out), **{**arguments, **changes}),
        train_dataset=Sentences(64, seed=1),
        eval_dataset=Sentences(16, seed=2),
        callbacks=list(callbacks),
    )


def stateful(resume_from: Path | None = None) -> PruningCallback:
    """Return a callback of which every part has a state."""
    return PruningCallback(
        RelevancePenalty(
            LinearDecayStrength(1e-2, steps=6),
            ExponentialRelevance(0.1),
            apply="gradient",
            smoothing=0.9,
        ),
        IterativePruning(fraction=0.2),
        metric="loss",
        score=TaylorScore(),
        resume_from=resume_from,
        floor=10.0,
        mode="min",
    )


class Kill(TrainerCallback):
    """Kills the process, as a power failure would, after a step or within a save."""

    def __init__(self, step: int, event: str) -> None:
        self.step, self.event = step, event

    def _kill(self, state: Any, event: str) -> None:
        if event == self.event and state.global_step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._kill(state, "step")

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._kill(state, "evaluate")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._kill(state, "save")


class Stop(TrainerCallback):
    """Stops the training after a step, as a user would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


class Interrupt(TrainerCallback):
    """Interrupts the training but not the process, as Ctrl-C does in a notebook."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            self.step = -1
            raise KeyboardInterrupt


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # as in the test
    killer = Kill(int(sys.argv[2]), sys.argv[3])
    # The killer is first, so that it kills before the pruner handles the event.
    make_trainer(Path(sys.argv[1]), killer, stateful()).train()
