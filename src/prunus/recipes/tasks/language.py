"""What the recipes of translation, dialogue and language modelling share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import nn

from prunus.errors import PrunusError
from prunus.recipes.config import Config

__all__ = [
    "LanguageConfig",
    "adam",
    "bucket_by_length",
    "choose_attention",
    "group_into_steps",
    "missing_extra",
    "publish",
    "set_dropout",
]


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(Config):
    """The settings of language recipes, on top of those of :class:`Config`.

    Args:
        vocabulary: Words of the tokenizer, 256 bytes and a few special ones included.
        length: The most words in a sequence; the model has as many positions.
        width: Features of each word within the model.
        layers: Layers of the decoder, and of the encoder if there is one.
        heads: Attention heads of each layer.
        feed_forward: Width of the feed-forward layers.
        dropout: Probability of dropout.
        pruning_dropout: Probability of dropout in the pruning epochs, where the network has fewer
            weights and so less need of it; none for that of ``dropout``.
        label_smoothing: Share of the target probability that goes to all words alike.
        accumulation: Batches whose gradients make one step.
        beta1: Adam's decay of the mean.
        beta2: Adam's decay of the squares.

    Raises:
        PrunusError: A value is out of range.
    """

    vocabulary: int
    length: int
    width: int
    layers: int
    heads: int
    feed_forward: int
    dropout: float = 0.1
    pruning_dropout: float | None = None
    label_smoothing: float = 0.0
    accumulation: int = 1
    beta1: float = 0.9
    beta2: float = 0.98

    after_dense: ClassVar[tuple[str, ...]] = ("pruning_dropout",)

    def _check(self, check: Callable[[bool, str, str], None]) -> None:
        super()._check(check)
        check(self.vocabulary > 264, "vocabulary", "above 264, for bytes and special words")
        check(self.length > 1, "length", "at least 2")
        for name in ("width", "layers", "heads", "feed_forward", "accumulation"):
            check(getattr(self, name) >= 1, name, "at least 1")
        check(self.heads < 1 or self.width % self.heads == 0, "width", "a multiple of heads")
        for name in ("dropout", "label_smoothing", "beta1", "beta2"):
            check(0 <= getattr(self, name) < 1, name, "from 0 to below 1")
        if self.pruning_dropout is not None:
            check(0 <= self.pruning_dropout < 1, "pruning_dropout", "from 0 to below 1, or none")
            check(
                self.dropout > 0 or self.pruning_dropout == 0,
                "pruning_dropout",
                "0 or none where dropout is 0",
            )


def adam(config: LanguageConfig, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Build the optimizer of the paper's language tasks."""
    return torch.optim.Adam(
        model.parameters(), lr=lr, betas=(config.beta1, config.beta2), eps=1e-8, fused=True
    )


def bucket_by_length(
    lengths: Sequence[tuple[int, ...]],
    size: int,
    order: torch.Generator,
    *,
    pool: int | None = None,
) -> Iterator[list[int]]:
    """Yield the indices of each batch: random order, but batches of like lengths.

    Args:
        lengths: Of all examples: of each its texts' lengths, first that whose padding costs most.
        size: Examples in a batch.
        order: Draws the order.
        pool: Sort within groups of so many batches, drawn anew each time: the more, the less
            padding, and the more alike the batches of one epoch and the next. Default: 200, or a
            quarter of all where that is less.

    Example:
        >>> lengths = [(5,), (1,), (4,), (2,)]
        >>> batches = bucket_by_length(lengths, 2, torch.Generator().manual_seed(0), pool=2)
        >>> sorted(sorted(lengths[i] for i in batch) for batch in batches)
        [[(1,), (2,)], [(4,), (5,)]]
    """
    pool = min(200, max(1, len(lengths) // (4 * size))) if pool is None else pool
    batches = []
    for part in torch.split(torch.randperm(len(lengths), generator=order), size * pool):
        ranked = sorted(part.tolist(), key=lengths.__getitem__)
        batches += [ranked[i : i + size] for i in range(0, len(ranked), size)]
    for i in torch.randperm(len(batches), generator=order).tolist():
        yield batches[i]


def choose_attention(model: Any, config: LanguageConfig) -> None:
    """Choose the attention of a model of `transformers` that is fast in bfloat16.

    torch's fused attention has a backward pass on the CPU that takes five times as long in bfloat16
    as in float32, more than all that autocast gains elsewhere.
    """
    if config.autocast:
        model.set_attn_implementation("eager")


def set_dropout(model: nn.Module, probability: float | None) -> None:
    """Change the dropout of a model of `transformers` wherever it has any; None for no change.

    Example:
        >>> model = nn.Sequential(nn.Dropout(0.1), nn.Dropout(0.0))
        >>> set_dropout(model, 0.05)
        >>> [layer.p for layer in model]
        [0.05, 0.0]
    """
    if probability is None:
        return
    for module in model.modules():
        # Some of its models have modules for it, and others numbers that their layers look up.
        name = "p" if isinstance(module, nn.Dropout) else "dropout"
        if isinstance(getattr(module, name, None), float) and getattr(module, name) > 0:
            setattr(module, name, probability)


def group_into_steps(batches: Iterator[Any], count: int) -> Iterator[list[Any]]:
    """Group batches to steps.

    Example:
        >>> list(group_into_steps(iter("abc"), 2))
        [['a', 'b'], ['c']]
    """
    step: list[Any] = []
    for batch in batches:
        step.append(batch)
        if len(step) == count:
            yield step
            step = []
    if step:
        yield step


def missing_extra() -> PrunusError:
    """Return the error for a library that is not installed."""
    return PrunusError(
        "recipes on language need the 'language' extra: pip install 'prunus[language]'"
    )


def publish(model: Any, tokenizer: Any, directory: Path) -> None:
    """Write ``pretrained/``, for ``from_pretrained`` of models and tokenizers.

    Raises:
        PrunusError: It cannot be written.
    """
    from transformers.utils import logging

    folder = directory / "pretrained"
    logging.disable_progress_bar()  # the command has its own
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        raise PrunusError(
            f"cannot write {folder}: {error}; make room and resume the run"
        ) from error
