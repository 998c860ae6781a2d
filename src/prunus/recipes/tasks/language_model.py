"""The language-modelling task, measured in bits per character."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from prunus._inference.model_calls import ExampleInputs
from prunus.constraint import Mode
from prunus.errors import DataError
from prunus.recipes.data.tokenizer import train_tokenizer
from prunus.recipes.tasks.exportable import EXAMPLE_LENGTH
from prunus.recipes.tasks.language import (
    LanguageConfig,
    LanguageTask,
    choose_attention,
    group_into_steps,
)
from prunus.recipes.tasks.losses import Teacher, cross_entropy
from prunus.recipes.tasks.task import Evaluation, fingerprint

__all__ = ["LanguageModel", "LanguageModelConfig", "gpt2"]


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig(LanguageConfig):
    """The settings of language modelling: those of :class:`LanguageConfig`."""

    mode: ClassVar[Mode] = "min"


def gpt2(config: LanguageModelConfig, bos_token_id: int, eos_token_id: int) -> nn.Module:
    """Build a GPT-2 of the size of these settings."""
    from transformers import GPT2Config, GPT2LMHeadModel

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
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
        )
    )
    return model


class LanguageModel(LanguageTask[LanguageModelConfig]):
    """A task for a decoder shaped as GPT-2, whose embedding and head are tied.

    An epoch splits the text into chunks of ``length`` tokens from a random offset; fewer than
    ``length`` tokens at the ends are left out. For evaluation, chunks overlap by half and only the
    second half of each counts, so that every token has at least half a length of context (except
    in the first chunk).

    Args:
        config: The settings.
        texts: The data, by split.

    Raises:
        DataError: The training text is shorter than a chunk.
    """

    metric = "bits per character"
    extra_metrics = ("perplexity",)

    def __init__(self, config: LanguageModelConfig, texts: Mapping[str, str]) -> None:
        self._texts = texts
        lines = texts["train"].splitlines(keepends=True)
        super().__init__(config, train_tokenizer(lines, config.vocabulary))
        self._tokens = {
            split: torch.tensor(self.tokenizer(text)["input_ids"]) for split, text in texts.items()
        }
        chunks = (len(self._tokens["train"]) - 1) // config.length
        if chunks < 1:
            raise DataError(
                f"the training text has {len(self._tokens['train']):,} tokens, fewer than a chunk "
                f"of length={config.length} and one more: lower length"
            )
        batches = math.ceil(chunks / config.batch_size)
        self.steps_per_epoch = math.ceil(batches / config.accumulation)
        self.fingerprint = fingerprint([self.tokenizer.backend_tokenizer.to_str(), *texts.values()])
        self.about = {
            "context": f"{config.length // 2} to {config.length} tokens of a vocabulary of "
            f"{config.vocabulary}"
        }

    def network(self) -> nn.Module:
        """Build a GPT-2 of the configured size."""
        config, tokenizer = self._config, self.tokenizer
        model = gpt2(config, tokenizer.bos_token_id, tokenizer.eos_token_id)
        choose_attention(model, config)
        return model

    def batches(self, generator: torch.Generator) -> Iterator[list[torch.Tensor]]:
        """Yield the text in chunks of one token more than ``length``, in random order."""
        tokens, length = self._tokens["train"], self._config.length
        chunks = (len(tokens) - 1) // length
        remainder = len(tokens) - 1 - chunks * length
        start = int(torch.randint(remainder + 1, (), generator=generator))
        shuffled = start + length * torch.randperm(chunks, generator=generator)
        batches = (
            tokens[begins[:, None] + torch.arange(length + 1)]
            for begins in torch.split(shuffled, self._config.batch_size)
        )
        return group_into_steps(batches, self._config.accumulation)

    def size(self, batch: torch.Tensor) -> int:
        """Return the number of tokens to predict."""
        return batch[:, 1:].numel()

    def loss(
        self, model: nn.Module, batch: torch.Tensor, teacher: Teacher | None = None
    ) -> torch.Tensor:
        """Return the cross-entropy of each next token."""

        def predict(network: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
            logits = network(input_ids=batch[:, :-1], use_cache=False).logits
            return logits.flatten(0, 1), batch[:, 1:].flatten()

        smoothing = self._config.label_smoothing
        return cross_entropy(predict, model, teacher, label_smoothing=smoothing)

    def calibration_inputs(self) -> Sequence[ExampleInputs]:
        """Return eight batches of training text, at most, as long as the example inputs."""
        tokens, length = self._tokens["train"], min(EXAMPLE_LENGTH, self._config.length)
        count = min(512, len(tokens) // length)
        batches = torch.split(tokens[: count * length].reshape(count, length), 64)
        return [{"input_ids": batch} for batch in batches]

    def validate(self, model: nn.Module) -> Evaluation:
        """Evaluate on the validation split."""
        return self._evaluate(model, "validation")

    def test(self, model: nn.Module) -> Evaluation:
        """Evaluate on the test split."""
        return self._evaluate(model, "test")

    @torch.no_grad()
    def _evaluate(self, model: nn.Module, split: str) -> Evaluation:
        model.eval()
        total, count = 0.0, 0
        for windows in self._windows(split).values():
            for i in range(0, len(windows), 64):
                skips, chunks = zip(*windows[i : i + 64], strict=True)
                batch = torch.stack(chunks)
                logits = model(input_ids=batch[:, :-1], use_cache=False).logits
                losses = F.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")
                counts = torch.arange(losses.shape[1]) >= torch.tensor(skips)[:, None]
                total += float((losses * counts).sum(dtype=torch.float64))
                count += int(counts.sum())
        model.train()
        bits = total / math.log(2) / len(self._texts[split])
        extra = {"perplexity": math.exp(min(total / count, 700.0))}
        return Evaluation(total / count, bits, extra)

    def _windows(self, split: str) -> dict[int, list[tuple[int, torch.Tensor]]]:
        """Return the chunks of a split by their length.

        Each comes with the number of its predictions that the chunk before it makes already.
        """
        length = self._config.length
        # The first token is predicted from the start token.
        start = torch.tensor([self.tokenizer.bos_token_id])
        tokens = torch.cat([start, self._tokens[split]])
        windows: dict[int, list[tuple[int, torch.Tensor]]] = {}
        end_before = 0
        for begin in range(0, max(1, len(tokens) - 1), max(1, length // 2)):
            chunk = tokens[begin : begin + length + 1]
            end = begin + len(chunk) - 1
            if end <= end_before:
                break
            windows.setdefault(len(chunk), []).append((end_before - begin, chunk))
            end_before = end
        return windows
