"""Networks with example inputs, as export and timing need them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus._inference.model_calls import ExampleInputs
from prunus._utils.extras import missing_extra
from prunus.errors import PrunusError

__all__ = ["EXAMPLE_LENGTH", "ExportableNetwork", "image_network", "language_network"]

EXAMPLE_LENGTH = 32
"""The most tokens in each text of a language network's example inputs."""


@dataclass(frozen=True)
class ExportableNetwork:
    """A network with example inputs.

    Attributes:
        model: The network, in evaluation mode.
        example_inputs: Returns random inputs for a batch size.
    """

    model: nn.Module
    example_inputs: Callable[[int], ExampleInputs]


def image_network(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> ExportableNetwork:
    """Return a network for images of a shape, with new random weights."""
    return ExportableNetwork(build().eval(), lambda batch: torch.rand(batch, *shape))


def language_network(file: Path) -> ExportableNetwork:
    """Return a network of the architecture in ``pretrained/`` beside a run's file.

    Its example inputs are texts of 32 random tokens, or as many as it has positions.

    Args:
        file: The file of the run.

    Raises:
        PrunusError: ``pretrained/`` is missing or damaged, or transformers is not installed.
    """
    folder = file.parent / "pretrained"
    if not folder.is_dir():
        raise PrunusError(
            f"{file} holds the weights of a language model, whose architecture is in the directory "
            f"of its run: {folder} does not exist"
        )
    try:
        import transformers
    except ImportError as missing:
        raise missing_extra("a language recipe", "language", missing) from missing
    try:
        config: Any = transformers.AutoConfig.from_pretrained(folder)
        has_encoder = bool(config.is_encoder_decoder)
        config.use_cache = False  # the cache would be returned too
        architecture: Any = (
            transformers.AutoModelForSeq2SeqLM if has_encoder else transformers.AutoModelForCausalLM
        )
        model: Any = architecture.from_config(config).eval()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, PrunusError) as error:
        raise PrunusError(
            f"{folder} is damaged, or not of a language model: {error}; restore it from a copy"
        ) from error
    names = ["input_ids", *(["decoder_input_ids"] if has_encoder else [])]
    length = min(EXAMPLE_LENGTH, config.max_position_embeddings)

    def example_inputs(batch: int) -> ExampleInputs:
        return {name: torch.randint(config.vocab_size, (batch, length)) for name in names}

    return ExportableNetwork(model, example_inputs)
