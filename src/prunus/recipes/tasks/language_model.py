"""Predicting running text, judged by bits per character."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from prunus.constraint import Mode
from prunus.errors import DataError
from prunus.recipes.data.tokenizer import train_tokenizer
from prunus.recipes.tasks.language import (
    LanguageConfig,
    adam,
    choose_attention,
    group_into_steps,
    publish,
    set_dropout,
)
from prunus.recipes.tasks.losses import Teacher, cross_entropy
from prunus.recipes.tasks.task import Evaluation, Lesson, fingerprint

__all__ = ["LanguageModel", "LanguageModelConfig"]


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig(LanguageConfig):
    """The settings of language modelling: those of :class:`LanguageConfig`."""

    mode: ClassVar[Mode] = "min"


class LanguageModel:
    """A decoder shaped as GPT-2, whose embedding and head are one tensor.

    An epoch shows every word once, cut at random into pieces of ``length``. A text to be measured
    on is cut into such pieces that overlap by half, and of each only the second half counts, so
    that every word has at least half a length of context (but for the first piece).

    Args:
        config: The settings.
        texts: The data, by split.

    Raises:
        DataError: The training text is shorter than a piece.
    """

    metric = "bits per character"

    def __init__(self, config: LanguageModelConfig, texts: Mapping[str, str]) -> None:
        self._config, self._texts = config, texts
        lines = texts["train"].splitlines(keepends=True)
        self.tokenizer = train_tokenizer(lines, config.vocabulary)
        self._words = {
            split: torch.tensor(self.tokenizer(text)["input_ids"]) for split, text in texts.items()
        }
        pieces = (len(self._words["train"]) - 1) // config.length
        if pieces < 1:
            raise DataError(
                f"the training text has {len(self._words['train']):,} words, fewer than a piece of "
                f"length={config.length} and one more: lower length"
            )
        batches = math.ceil(pieces / config.batch_size)
        self.steps_per_epoch = math.ceil(batches / config.accumulation)
        self.fingerprint = fingerprint([self.tokenizer.backend_tokenizer.to_str(), *texts.values()])
        self.about: Mapping[str, str] = {
            "context": f"{config.length // 2} to {config.length} words of a vocabulary of "
            f"{config.vocabulary}"
        }

    def network(self) -> nn.Module:
        """Build a GPT-2 of the configured size."""
        from transformers import GPT2Config, GPT2LMHeadModel

        config, tokenizer = self._config, self.tokenizer
        model: nn.Module = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=config.vocabulary,
                n_positions=config.length,
                n_embd=config.width,
                n_layer=config.layers,
                n_head=config.heads,
                n_inner=config.feed_forward,
                resid_pdrop=config.dropout,
                embd_pdrop=config.dropout,
                attn_pdrop=0.0,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
        choose_attention(model, config)
        return model

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """Build Adam."""
        return adam(self._config, model, lr)

    def epoch(self, order: torch.Generator) -> Iterator[list[torch.Tensor]]:
        """Yield the text in pieces of one word more than ``length``, in random order."""
        words, length = self._words["train"], self._config.length
        pieces = (len(words) - 1) // length
        room = len(words) - 1 - pieces * length
        start = int(torch.randint(room + 1, (), generator=order))
        shuffled = start + length * torch.randperm(pieces, generator=order)
        batches = (
            words[begins[:, None] + torch.arange(length + 1)]
            for begins in torch.split(shuffled, self._config.batch_size)
        )
        return group_into_steps(batches, self._config.accumulation)

    def size(self, batch: torch.Tensor) -> int:
        """Return the number of words to predict."""
        return batch[:, 1:].numel()

    def loss(
        self, model: nn.Module, batch: torch.Tensor, teacher: Teacher | None = None
    ) -> torch.Tensor:
        """Return the cross-entropy of each next word."""

        def predict(network: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
            logits = network(input_ids=batch[:, :-1], use_cache=False).logits
            return logits.flatten(0, 1), batch[:, 1:].flatten()

        smoothing = self._config.label_smoothing
        return cross_entropy(predict, model, teacher, label_smoothing=smoothing)

    def prepare_pruning(self, model: nn.Module) -> None:
        """Set the dropout."""
        set_dropout(model, self._config.pruning_dropout)

    def lessons(self, dense: Callable[[], nn.Module]) -> Iterator[tuple[float, Lesson]]:
        """Yield nothing."""
        return iter(())

    def learn(self, lessons: Sequence[Lesson]) -> None:
        """Do nothing, for there are none."""

    def validate(self, model: nn.Module) -> Evaluation:
        """Measure on the validation split."""
        return self._evaluate(model, "validation")

    def test(self, model: nn.Module) -> Evaluation:
        """Measure on the test split."""
        return self._evaluate(model, "test")

    @torch.no_grad()
    def _evaluate(self, model: nn.Module, split: str) -> Evaluation:
        model.eval()
        words, length = self._words[split], self._config.length
        # The first word is predicted from the start sign.
        words = torch.cat([torch.tensor([self.tokenizer.bos_token_id]), words])
        half, total, counted = max(1, length // 2), 0.0, 0
        begins = list(range(0, max(1, len(words) - 1), half))
        windows: dict[int, list[tuple[int, torch.Tensor]]] = {}
        end_before = 0
        for begin in begins:
            piece = words[begin : begin + length + 1]
            end = begin + len(piece) - 1
            if end <= end_before:
                break
            windows.setdefault(len(piece), []).append((end_before - begin, piece))
            end_before = end
        for same in windows.values():
            for i in range(0, len(same), 64):
                skips, pieces = zip(*same[i : i + 64], strict=True)
                batch = torch.stack(pieces)
                logits = model(input_ids=batch[:, :-1], use_cache=False).logits
                losses = F.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")
                fresh = torch.arange(losses.shape[1]) >= torch.tensor(skips)[:, None]
                total += float((losses * fresh).sum(dtype=torch.float64))
                counted += int(fresh.sum())
        model.train()
        bits = total / math.log(2) / len(self._texts[split])
        more = {"perplexity": math.exp(min(total / counted, 700.0))}
        return Evaluation(total / counted, bits, more)

    def publish(self, model: nn.Module, directory: Path) -> None:
        """Write model and tokenizer for ``from_pretrained``."""
        publish(model, self.tokenizer, directory)
