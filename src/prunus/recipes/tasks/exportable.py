"""The finished networks of recipes, and what they are called with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus._inference.model_calls import ExampleInputs
from prunus.errors import PrunusError
from prunus.recipes.tasks.language import missing_extra

__all__ = ["ExportableNetwork", "image_network", "language_network"]

_WORDS = 32
"""How many random words, at most, each text of a language network's example has."""


@dataclass(frozen=True)
class ExportableNetwork:
    """A network, and what it is called with.

    Attributes:
        model: The network, in evaluation mode.
        example_inputs: Returns random inputs for a batch of that size.
    """

    model: nn.Module
    example_inputs: Callable[[int], ExampleInputs]


def image_network(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> ExportableNetwork:
    """Return a network of images of that shape, with new random weights."""
    return ExportableNetwork(build().eval(), lambda batch: torch.rand(batch, *shape))


def language_network(file: Path) -> ExportableNetwork:
    """Return a network of the form that ``pretrained/`` beside a run's file describes.

    Its example are texts of 32 random words, or as many as it has positions.

    Raises:
        PrunusError: There is none, it is damaged, or transformers is missing.
    """
    folder = file.parent / "pretrained"
    if not folder.is_dir():
        raise PrunusError(
            f"{file} holds the weights of a language model, whose form is in the directory of its "
            f"run: {folder} is not there"
        )
    try:
        import transformers
    except ImportError as missing:
        raise missing_extra() from missing
    try:
        config: Any = transformers.AutoConfig.from_pretrained(folder)
        two_sided = bool(config.is_encoder_decoder)
        config.use_cache = False  # which would be returned, too
        kind: Any = (
            transformers.AutoModelForSeq2SeqLM if two_sided else transformers.AutoModelForCausalLM
        )
        model: Any = kind.from_config(config).eval()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, PrunusError) as error:
        raise PrunusError(
            f"{folder} is damaged, or not of a language model: {error}; restore it from a copy"
        ) from error
    names = ["input_ids", *(["decoder_input_ids"] if two_sided else [])]
    length = min(_WORDS, config.max_position_embeddings)

    def example_inputs(batch: int) -> ExampleInputs:
        return {name: torch.randint(config.vocab_size, (batch, length)) for name in names}

    return ExportableNetwork(model, example_inputs)
