"""Networks that several tests of compaction use."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from helpers.sparse_models import TiedEmbedding


class FunctionalModel(nn.Module):
    """A model with named layers whose forward is a function of the model and its inputs."""

    def __init__(self, run: Callable[..., torch.Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.run(self, *inputs)


class TiedModel(TiedEmbedding):
    def __init__(self) -> None:
        super().__init__(11, 8)
        self.mix = nn.Linear(8, 8)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        embedded = self.embed(tokens)
        output: torch.Tensor = self.head(embedded + self.mix(embedded))
        return output


class Heads(nn.Module):
    def __init__(self, width: int = 16, heads: int = 4, literal: bool = False) -> None:
        super().__init__()
        self.h, self.size, self.literal = heads, width // heads, literal
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, time, _ = x.shape
        heads = 4 if self.literal else self.h
        q, k, v = (
            layer(x).view(batch, time, heads, self.size).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, time, -1)
        output: torch.Tensor = self.out(mixed)
        return output


class PackedHeads(nn.Module):
    """Self-attention whose queries, keys and values come from one layer, as in timm."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 4, 8
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(dim=-1)
        output: torch.Tensor = self.proj((weights @ v).transpose(1, 2).reshape(b, n, -1))
        return output
