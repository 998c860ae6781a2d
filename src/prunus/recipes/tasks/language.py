"""Settings and helpers that all language tasks share."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import torch
from safetensors import SafetensorError
from torch import nn

from prunus._utils.checks import number_problem
from prunus._utils.fields import checked, number
from prunus.errors import PrunusError
from prunus.recipes.config import Config
from prunus.recipes.setting_marks import Affects
from prunus.recipes.tasks.task import Task

__all__ = [
    "LanguageConfig",
    "LanguageTask",
    "bucket_by_length",
    "choose_attention",
    "group_into_steps",
    "set_dropout",
]


def _vocabulary_problem(name: str, value: Any) -> str | None:
    if number_problem(name, value, whole=True, above=264) is None:
        return None
    return f"{name} must be above 264, for 256 bytes and special tokens, but is {value!r}"


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(Config):
    """The settings of language tasks, in addition to those of :class:`Config`."""

    vocabulary: Annotated[int, Affects.DENSE_NETWORK] = checked(
        by=_vocabulary_problem,
        help="Tokens of the tokenizer, including 256 bytes and a few special ones.",
    )
    length: Annotated[int, Affects.DENSE_NETWORK] = number(
        whole=True,
        least=2,
        help="Most tokens in a sequence, which is the number of positions of the model.",
    )
    width: Annotated[int, Affects.DENSE_NETWORK] = number(
        whole=True, least=1, help="Features of each token within the model."
    )
    layers: Annotated[int, Affects.DENSE_NETWORK] = number(
        whole=True, least=1, help="Layers of the decoder, and of the encoder if there is one."
    )
    heads: Annotated[int, Affects.DENSE_NETWORK] = number(
        whole=True, least=1, help="Attention heads of each layer."
    )
    feed_forward: Annotated[int, Affects.DENSE_NETWORK] = number(
        whole=True, least=1, help="Width of the feed-forward layers."
    )
    dropout: Annotated[float, Affects.DENSE_NETWORK] = number(
        0.1, least=0, below=1, help="Probability of dropout."
    )
    pruning_dropout: float | None = number(
        None,
        least=0,
        below=1,
        optional=True,
        help="Probability of dropout in the pruning epochs, where the network has fewer weights "
        "and needs less of it; none for the value of dropout.",
    )
    label_smoothing: Annotated[float, Affects.DENSE_NETWORK] = number(
        0.0,
        least=0,
        below=1,
        help="Fraction of the target probability that is spread evenly over all tokens.",
    )
    accumulation: Annotated[int, Affects.DENSE_NETWORK] = number(
        1, whole=True, least=1, help="Batches whose gradients are accumulated in a step."
    )
    beta1: Annotated[float, Affects.DENSE_NETWORK] = number(
        0.9, least=0, below=1, help="Adam's decay of the mean gradient."
    )
    beta2: Annotated[float, Affects.DENSE_NETWORK] = number(
        0.98, least=0, below=1, help="Adam's decay of the squared gradient."
    )

    @property
    def examples_per_step(self) -> int:
        """The number of sequences whose gradients a step averages."""
        return self.batch_size * self.accumulation

    def _conflicts(self, wrong: Collection[str]) -> Iterator[str | None]:
        yield from super()._conflicts(wrong)
        if not {"width", "heads"} & set(wrong) and self.width % self.heads:
            yield f"width must be a multiple of heads={self.heads}, but is {self.width}"
        known = not {"dropout", "pruning_dropout"} & set(wrong)
        if known and self.dropout == 0 and self.pruning_dropout:
            yield (
                "pruning_dropout must be 0 or none where dropout is 0, but is "
                f"{self.pruning_dropout!r}"
            )


_ConfigT = TypeVar("_ConfigT", bound=LanguageConfig)


class LanguageTask(Task, Generic[_ConfigT]):
    """A task whose network is a ``transformers`` model, trained by Adam.

    Args:
        config: The settings.
        tokenizer: The tokenizer, a ``PreTrainedTokenizerFast``.
    """

    def __init__(self, config: _ConfigT, tokenizer: Any) -> None:
        self._config, self.tokenizer = config, tokenizer

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """Build the optimizer of the paper's language tasks."""
        betas = (self._config.beta1, self._config.beta2)
        return torch.optim.Adam(model.parameters(), lr=lr, betas=betas, eps=1e-8, fused=True)

    def prepare_pruning(self, model: nn.Module) -> None:
        """Set the dropout of the pruning epochs."""
        set_dropout(model, self._config.pruning_dropout)

    def publish(self, model: nn.Module, directory: Path) -> None:
        """Write model and tokenizer to ``pretrained/``, for ``from_pretrained``.

        Raises:
            PrunusError: It cannot be written.
        """
        from transformers.utils import logging

        folder = directory / "pretrained"
        logging.disable_progress_bar()  # the command shows its own
        published: Any = model
        try:
            published.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        except (OSError, SafetensorError) as error:
            raise PrunusError(
                f"cannot write {folder}: {error}; make room and resume the run"
            ) from error


def bucket_by_length(
    lengths: Sequence[tuple[int, ...]],
    size: int,
    generator: torch.Generator,
    *,
    pool: int | None = None,
) -> Iterator[list[int]]:
    """Yield the indices of each batch: in random order, but with similar lengths in a batch.

    Args:
        lengths: For each example the lengths of its texts, first that whose padding costs most.
        size: The number of examples in a batch.
        generator: The random numbers of the data order.
        pool: The number of batches to sort together, in groups drawn again each time. More means
            less padding, and more similar batches from one epoch to the next. Default: 200, or a
            quarter of all batches if that is less.

    Example:
        >>> lengths = [(5,), (1,), (4,), (2,)]
        >>> batches = bucket_by_length(lengths, 2, torch.Generator().manual_seed(0), pool=2)
        >>> sorted(sorted(lengths[i] for i in batch) for batch in batches)
        [[(1,), (2,)], [(4,), (5,)]]
    """
    pool = min(200, max(1, len(lengths) // (4 * size))) if pool is None else pool
    batches = []
    for group in torch.split(torch.randperm(len(lengths), generator=generator), size * pool):
        ranked = sorted(group.tolist(), key=lengths.__getitem__)
        batches += [ranked[i : i + size] for i in range(0, len(ranked), size)]
    for i in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[i]


def choose_attention(model: Any, config: LanguageConfig) -> None:
    """Set the attention of a ``transformers`` model to the one that is fast under autocast.

    The backward pass of torch's fused attention takes five times as long in bfloat16 as in float32
    on the CPU, which is more than autocast gains elsewhere.
    """
    if config.autocast:
        model.set_attn_implementation("eager")


def set_dropout(model: nn.Module, probability: float | None) -> None:
    """Set the probability of every dropout in a ``transformers`` model that has one above 0.

    Args:
        model: The model.
        probability: The new probability; None for no change.

    Example:
        >>> model = nn.Sequential(nn.Dropout(0.1), nn.Dropout(0.0))
        >>> set_dropout(model, 0.05)
        >>> [layer.p for layer in model]
        [0.05, 0.0]
    """
    if probability is None:
        return
    for module in model.modules():
        # Some models have dropout modules, others numbers that their layers read.
        name = "p" if isinstance(module, nn.Dropout) else "dropout"
        if isinstance(getattr(module, name, None), float) and getattr(module, name) > 0:
            setattr(module, name, probability)


def group_into_steps(batches: Iterator[Any], count: int) -> Iterator[list[Any]]:
    """Yield the batches of each step, ``count`` at a time; the last step may have fewer.

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
