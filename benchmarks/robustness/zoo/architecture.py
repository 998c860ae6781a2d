"""Records of architectures: how to build a small random model, and example inputs for it."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import nn

__all__ = [
    "Architecture",
    "Floats",
    "Input",
    "Integers",
    "Kind",
    "Ones",
    "audio",
    "image",
    "text",
    "timm",
]

Kind = Literal[
    "encoder",
    "decoder",
    "encoder-decoder",
    "mixture of experts",
    "state space",
    "vision transformer",
    "convolutional",
    "detection",
    "audio",
    "several modalities",
    "time series",
]

VOCABULARY = 64
"""The number of tokens of the language models."""


@dataclass(frozen=True)
class Integers:
    """Random integers from 2 to ``end`` − 1; smaller ones are often padding or special tokens."""

    shape: tuple[int, ...]
    end: int = VOCABULARY

    def draw(self, generator: torch.Generator) -> torch.Tensor:
        """Return a tensor of such integers."""
        return torch.randint(min(2, self.end - 1), self.end, self.shape, generator=generator)


@dataclass(frozen=True)
class Floats:
    """Normally distributed random numbers."""

    shape: tuple[int, ...]

    def draw(self, generator: torch.Generator) -> torch.Tensor:
        """Return a tensor of such numbers."""
        return torch.randn(self.shape, generator=generator)


@dataclass(frozen=True)
class Ones:
    """Integers 1, as of an attention mask that masks nothing."""

    shape: tuple[int, ...]

    def draw(self, generator: torch.Generator) -> torch.Tensor:
        """Return a tensor of ones."""
        return torch.ones(self.shape, dtype=torch.int64)


Input = Integers | Floats | Ones


@dataclass(frozen=True)
class Architecture:
    """One architecture, small enough for every function to take seconds.

    Attributes:
        name: Its name in the library's documentation.
        kind: What it is.
        library: Where its model class is defined.
        model: The class in transformers; or a class in timm or a name that ``timm.create_model``
            accepts.
        inputs: The inputs of a call, by argument.
        settings: The settings of the configuration, or the arguments of ``timm.create_model``.
    """

    name: str
    kind: Kind
    library: Literal["transformers", "timm"]
    model: str
    inputs: Mapping[str, Input]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """Return a model with random weights, the same on each call, in evaluation mode."""
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the configuration's own
            if self.library == "timm":
                from benchmarks.robustness.zoo.torchvision_stub import import_timm

                library = import_timm()
                if library.is_model(self.model):
                    model = library.create_model(self.model, pretrained=False, **self.settings)
                else:
                    model = getattr(library.models, self.model)(**self.settings)
            else:
                model_class = getattr(importlib.import_module("transformers"), self.model)
                model = model_class(model_class.config_class(**self.settings))
        return cast("nn.Module", model).eval()

    def draw_inputs(self, seed: int) -> dict[str, torch.Tensor]:
        """Return random inputs."""
        generator = torch.Generator().manual_seed(seed)
        return {name: each.draw(generator) for name, each in self.inputs.items()}


def text(
    name: str,
    kind: Kind,
    model: str,
    settings: Mapping[str, Any],
    *,
    decoder: bool = False,
    length: int = 12,
    **inputs: Input,
) -> Architecture:
    """Return an architecture of transformers that reads tokens.

    Args:
        name: Its name.
        kind: What it is.
        model: The class.
        settings: The settings of its configuration, besides the number of tokens.
        decoder: Whether it also reads the tokens of a decoder.
        length: The number of tokens in a sequence.
        inputs: Further inputs.
    """
    tokens: dict[str, Input] = {"input_ids": Integers((2, length))}
    if decoder:
        tokens["decoder_input_ids"] = Integers((2, 7))
    settings = {"vocab_size": VOCABULARY, **settings}
    return Architecture(name, kind, "transformers", model, {**tokens, **inputs}, settings)


def image(
    name: str,
    kind: Kind,
    model: str,
    settings: Mapping[str, Any],
    *,
    size: int = 32,
    **inputs: Input,
) -> Architecture:
    """Return an architecture of transformers that reads images; see :func:`text`."""
    pixels: dict[str, Input] = {"pixel_values": Floats((2, 3, size, size))}
    return Architecture(name, kind, "transformers", model, {**pixels, **inputs}, settings)


def audio(
    name: str, model: str, settings: Mapping[str, Any], inputs: Mapping[str, Input]
) -> Architecture:
    """Return an architecture of transformers that reads sound; see :func:`text`."""
    return Architecture(name, "audio", "transformers", model, inputs, settings)


def timm(name: str, kind: Kind, model: str, *, size: int = 64, **settings: Any) -> Architecture:
    """Return an architecture of timm."""
    settings = {"num_classes": 10, **settings}
    return Architecture(name, kind, "timm", model, {"x": Floats((2, 3, size, size))}, settings)
