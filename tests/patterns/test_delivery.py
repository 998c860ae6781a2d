"""Pruned networks as they are delivered: 2:4 formats, and smaller dense networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from helpers.comparisons import assert_outputs_match
from helpers.pruners import magnitude_pruner
from prunus import (
    NM,
    Channels,
    Heads,
    OneShot,
    Pattern,
    Pruner,
    Rows,
    TargetAllocation,
    compact,
    load_sparse,
    save_sparse,
)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05)


@pytest.mark.parametrize(
    ("dtype", "pattern"),
    [(torch.bfloat16, NM(2, 4)), (torch.float16, NM(2, 4)), (torch.float32, NM(1, 2))],
)
def test_the_semi_structured_format_holds_every_weight(dtype: torch.dtype, pattern: NM) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32)).to(dtype)
    optimizer = sgd(model)
    schedule = OneShot(sparsity=0.5, at=2)
    pruner = Pruner(model, optimizer, None, schedule, pattern=pattern)
    for _ in range(4):
        model(torch.randn(8, 128, dtype=dtype)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    pruner.finish()
    for tensor in pruner.selection.values():
        weight = tensor.weight
        if dtype == torch.float32:
            # The conversion on the CPU reads float32 as pairs of float16, some of which are NaN.
            weight = weight.half().float()
        zeros = (weight.view(-1, pattern.m) == 0).sum(dim=1)
        assert bool((zeros >= pattern.m - pattern.n).all())
        stored = sparse_semi_structured_from_dense_cutlass(weight)  # type: ignore[no-untyped-call]
        dense = sparse_semi_structured_to_dense_cutlass(*stored)  # type: ignore[no-untyped-call]
        assert torch.equal(dense, weight)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.second = nn.Conv2d(12, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        y: torch.Tensor = self.head(torch.relu(self.second(x)).mean((2, 3)))
        return y


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [Channels(), Rows()], ids=repr)
def test_removed_channels_vanish(pattern: Pattern) -> None:
    torch.manual_seed(0)
    model = Convolutions()
    pruner = magnitude_pruner(
        model, sgd(model), pattern={"first": pattern, "second": pattern, "head": NM(2, 4)}
    )
    total = pruner.selection.prunable
    # The head loses 20 of its weights first, then channels of 27 and of 108 weights go.
    pruner.prune(kept=total - 20 - 500)
    first, second = (
        int(pruner.masks[f"{n}.weight"].flatten(1).any(1).sum()) for n in ("first", "second")
    )
    assert (first, second) != (12, 8)
    assert 27 * first + 108 * second + 20 == pruner.masks.kept
    model.eval()
    small: Any = compact(model, torch.randn(2, 3, 6, 6))
    assert small.first.weight.shape == (first, 3, 3, 3)
    assert small.second.weight.shape == (second, first, 3, 3)
    assert small.head.weight.shape == (5, second)
    assert_outputs_match(small, model, torch.randn(3, 3, 7, 7))


@pytest.mark.slow
def test_removed_neurons_vanish_beside_a_layer_in_blocks(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 4))
    pruner = magnitude_pruner(
        model, sgd(model), pattern={"0": Channels()}, allocation=TargetAllocation({"2": 0})
    )
    pruner.prune(kept=6 * 10 + 64)
    kept = int(pruner.masks["0.weight"].any(1).sum())
    small: Any = compact(model, torch.randn(2, 10))
    assert small[0].weight.shape == (kept, 10)
    assert kept < 16
    assert_outputs_match(small, model, torch.randn(5, 10))
    save_sparse(model, tmp_path / "model.sparse")
    for name, value in load_sparse(tmp_path / "model.sparse").items():
        assert torch.equal(value, model.state_dict()[name])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.attention(x, x, x, need_weights=False)[0]
        return y


@pytest.mark.slow
def test_removed_heads_vanish() -> None:
    torch.manual_seed(0)
    model: Any = Attention()
    weight = model.attention.out_proj.weight
    weight.data[:, 4:8] *= 0.1
    weight.data[:, 12:] *= 0.2
    pruner = magnitude_pruner(
        model,
        sgd(model),
        pattern={"*.out_proj": Heads(4, along="input")},
        allocation=TargetAllocation({"*.in_proj_weight": 0, "*.out_proj": 0.5}),
    )
    pruner.prune(kept=pruner.selection.prunable - 128)
    heads = pruner.masks["attention.out_proj.weight"].view(16, 4, 4).any(2).any(0)
    assert heads.tolist() == [True, False, True, False]
    model.eval()
    small: Any = compact(model, torch.randn(2, 5, 16))
    assert small.attention.num_heads == 2
    assert small.attention.in_proj_weight.shape == (24, 16)
    assert small.attention.out_proj.weight.shape == (16, 8)
    assert_outputs_match(small, model, torch.randn(3, 6, 16))
