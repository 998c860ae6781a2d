"""The score's view of the gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from helpers.data import normal
from helpers.peers import PeerGroup
from prunus import (
    FisherScore,
    MagnitudeScore,
    MovementScore,
    Score,
    Selection,
    SensitivityScore,
    TaylorScore,
    select,
)
from prunus._engine.observation import GradientObserver
from prunus._utils.chunks import CPU_CHUNK
from prunus.scores import ScoreMemory


def two_layers(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Selection]:
    model = nn.ModuleDict({"a": nn.Linear(2, 1, bias=False), "b": nn.Linear(1, 1, bias=False)})
    model.to(dtype)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 2.0)
    return model, select(model)


def observe(observer: GradientObserver, selection: Selection, *arguments: Any) -> None:
    """Pass the gradients of all tensors to the score."""
    observer.observe(observer.due(selection.values()), *arguments)


def test_the_memory_of_each_tensor_is_updated_by_each_gradient() -> None:
    _, selection = two_layers()
    observer = GradientObserver(TaylorScore(smoothing=0.5), selection)
    assert observer.active
    assert observer.memory == {}
    a, b = (tensor.parameter for tensor in selection.values())
    a.grad = torch.tensor([[1.0, -3.0]])
    observe(observer, selection, None)
    assert list(observer.memory) == ["a.weight"]
    assert observer.memory["a.weight"]["product"].tolist() == [[2.0, 6.0]]
    a.grad, b.grad = None, torch.tensor([[4.0]])
    observe(observer, selection, None)
    a.grad = torch.tensor([[3.0, 1.0]])
    observe(observer, selection, None)
    # |w · g| is 6 and 2: the averages with 2 and 6 are 4 and 4.
    assert observer.memory["a.weight"]["product"].tolist() == [[4.0, 4.0]]
    assert observer.memory["b.weight"]["product"].tolist() == [[8.0]]
    assert observer.counts == {"a.weight": 2, "b.weight": 2}


def test_a_score_with_every_observes_the_first_and_each_kth_gradient_of_a_tensor() -> None:
    _, selection = two_layers()
    observer = GradientObserver(FisherScore(smoothing=0.999, every=3), selection)
    a, b = (tensor.parameter for tensor in selection.values())
    for step in range(1, 8):
        a.grad = torch.full((1, 2), float(step))
        b.grad = torch.full((1, 1), float(step)) if step % 2 == 0 else None
        with torch.no_grad():
            observe(observer, selection, None)
    # The first, fourth and seventh step, and of the even steps the first only.
    assert observer.memory["a.weight"]["fisher"].tolist() == [[22.0, 22.0]]  # (1 + 16 + 49) / 3
    assert observer.memory["b.weight"]["fisher"].tolist() == [[4.0]]
    assert observer.counts == {"a.weight": 7, "b.weight": 3}


def test_sparse_gradients_are_left_out_and_later_tensors_observed() -> None:
    _, selection = two_layers()
    observer = GradientObserver(TaylorScore(), selection)
    a, b = (tensor.parameter for tensor in selection.values())
    a.grad, b.grad = torch.ones(1, 2).to_sparse(), torch.tensor([[4.0]])
    observe(observer, selection, None)
    assert list(observer.memory) == ["b.weight"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_loss_scale_is_divided_out_in_at_least_32_bits(dtype: torch.dtype) -> None:
    _, selection = two_layers(dtype)
    observer = GradientObserver(TaylorScore(), selection)
    for tensor in selection.values():
        tensor.parameter.grad = torch.full_like(tensor.parameter, 2.0**-20)
    observe(observer, selection, 2.0**12)
    for memory in observer.memory.values():
        # 2 · 2^-20 / 2^12 is below the smallest number of float16.
        product = memory["product"]
        assert product.flatten()[0].item() == 2.0**-31
        assert product.dtype == torch.promote_types(dtype, torch.float32)
    assert selection["b.weight"].parameter.grad.item() == 2.0**-20  # type: ignore[union-attr]


def test_a_score_without_memory_makes_the_observer_inactive() -> None:
    _, selection = two_layers()
    assert not GradientObserver(MagnitudeScore(), selection).active
    assert GradientObserver(FisherScore(), selection).active


@pytest.mark.parametrize(
    "score", [TaylorScore(), FisherScore(every=1), SensitivityScore(), MovementScore()]
)
def test_a_tensor_of_several_chunks_is_observed_whole(score: Score) -> None:
    # Strides of the gradient unlike those of the weight, so that chunks are rows.
    layer = nn.Linear(300, CPU_CHUNK // 300 + 5, bias=False)
    selection = select(layer)
    observer = GradientObserver(score, selection)
    whole = {name: torch.zeros_like(layer.weight) for name in score.memory_names}
    for count in (1, 2):
        flat = normal(layer.weight.numel(), seed=count)
        layer.weight.grad = flat.reshape(300, -1).T
        with torch.no_grad():
            observe(observer, selection, None)
            score.observe(layer.weight, layer.weight.grad, whole, count=count)
    assert observer.counts == {"weight": 2}
    for name, tensor in whole.items():
        torch.testing.assert_close(observer.memory["weight"][name], tensor, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_memory_takes_the_type_of_the_weights_but_at_least_32_bits(dtype: torch.dtype) -> None:
    layer = nn.Linear(2, 1, bias=False)
    selection = select(layer)
    observer = GradientObserver(TaylorScore(smoothing=0.5), selection)
    nn.init.constant_(layer.weight, 2.0)
    for step_dtype, gradient in ((torch.float32, 1.0), (dtype, 3.0)):
        layer.to(step_dtype)
        layer.weight.grad = torch.full_like(layer.weight, gradient)
        with torch.no_grad():
            observe(observer, selection, None)
    product = observer.memory["weight"]["product"]
    assert product.dtype == torch.promote_types(dtype, torch.float32)
    assert product.tolist() == [[4.0, 4.0]]  # the mean of 2 and 6
    assert not product.requires_grad


def test_averages_of_16_bit_weights_do_not_lose_small_changes() -> None:
    layer = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    selection = select(layer)
    observer = GradientObserver(FisherScore(smoothing=0.0), selection)
    # Its square is 1 + 2^-6 + 2^-14, of which bfloat16 holds 1 + 2^-6 only.
    layer.weight.grad = torch.full((1, 1), 1 + 2.0**-7, dtype=torch.bfloat16)
    with torch.no_grad():
        observe(observer, selection, None)
    assert observer.memory["weight"]["fisher"].item() == (1 + 2.0**-7) ** 2


def test_a_score_receives_weights_and_gradients_in_the_type_of_its_memory() -> None:
    types = set()

    class Recording(TaylorScore):
        def observe(
            self, weight: torch.Tensor, gradient: torch.Tensor, memory: ScoreMemory, *, count: int
        ) -> None:
            types.update({weight.dtype, gradient.dtype, memory["product"].dtype})

    _, selection = two_layers(torch.bfloat16)
    selection["b.weight"].parameter.grad = torch.ones(1, 1, dtype=torch.bfloat16)
    observe(GradientObserver(Recording(), selection), selection, None)
    assert types == {torch.float32}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bad_step", [0, 2, 4])
@pytest.mark.parametrize(
    "score", [TaylorScore(), FisherScore(every=2), SensitivityScore(), MovementScore()]
)
def test_a_gradient_that_is_not_finite_counts_as_none(
    score: Score, bad_step: int, value: float
) -> None:
    def memory_after(*, bad: bool) -> GradientObserver:
        layer = nn.Linear(3, 2, bias=False)
        layer.weight = nn.Parameter(normal(2, 3, seed=0))
        selection = select(layer)
        observer = GradientObserver(score, selection)
        for step in range(6):
            if bad and step == bad_step:
                layer.weight.grad = torch.ones(2, 3)
                layer.weight.grad[1, 2] = value
                with torch.no_grad():
                    observe(observer, selection, None)
            layer.weight.grad = normal(2, 3, seed=1 + step)
            with torch.no_grad():
                observe(observer, selection, None)
        return observer

    expected, found = memory_after(bad=False), memory_after(bad=True)
    assert found.counts == expected.counts
    for name, tensor in expected.memory["weight"].items():
        torch.testing.assert_close(found.memory["weight"][name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("score", [TaylorScore(), FisherScore(), SensitivityScore()])
def test_a_shard_whose_gradient_is_not_finite_keeps_its_memory(score: Score, value: float) -> None:
    """Its processes may not all see the same, and an accelerator's host does not wait for it."""
    _, selection = two_layers()
    selection.process_group = PeerGroup()
    observer = GradientObserver(score, selection)
    a, b = (tensor.parameter for tensor in selection.values())
    a.grad, b.grad = torch.tensor([[1.0, -3.0]]), torch.tensor([[2.0]])
    with torch.no_grad():
        observe(observer, selection, None)
        before = {name: tensor.clone() for name, tensor in observer.memory["a.weight"].items()}
        observer.counts = dict.fromkeys(observer.counts, 4)  # so that the next one is due
        a.grad, b.grad = torch.tensor([[1.0, value]]), torch.tensor([[3.0]])
        other = {name: tensor.clone() for name, tensor in observer.memory["b.weight"].items()}
        observe(observer, selection, None)
    for name, tensor in before.items():
        torch.testing.assert_close(observer.memory["a.weight"][name], tensor, rtol=0, atol=0)
        assert not torch.equal(observer.memory["b.weight"][name], other[name])
    assert observer.counts == {"a.weight": 5, "b.weight": 5}


@pytest.mark.parametrize("names", [["a"], ["a", "b"]])
@pytest.mark.parametrize("score", [FisherScore(every=1), SensitivityScore()])
def test_one_flag_on_a_device_keeps_the_memory_of_all_tensors(
    score: Score, names: list[str]
) -> None:
    """As on an accelerator whose host does not know whether the norm of the gradients overflows."""
    model, _ = two_layers()
    selection = select(model, [f"{name}.weight" for name in names])
    known, flagged = (GradientObserver(score, selection) for _ in range(2))
    for step in range(3):
        for prunable in selection.values():
            prunable.parameter.grad = torch.full_like(prunable.parameter, step + 1.0)
        with torch.no_grad():
            observe(known, selection, None)
            observe(flagged, selection, None, torch.tensor(True))
            for prunable in selection.values():
                prunable.parameter.grad = torch.full_like(prunable.parameter, math.nan)
            counts = dict(flagged.counts)
            observe(flagged, selection, None, torch.tensor(False))
            assert flagged.counts == {name: count + 1 for name, count in counts.items()}
            flagged.counts = counts
    for name, memory in known.memory.items():
        for key, tensor in memory.items():
            torch.testing.assert_close(flagged.memory[name][key], tensor, rtol=0, atol=0)


def test_tensors_without_gradients_count_as_zeros_once_others_had_a_hundred() -> None:
    _, selection = two_layers()
    observer = GradientObserver(TaylorScore(), selection)
    a, b = (tensor.parameter for tensor in selection.values())
    for _ in range(99):
        a.grad = torch.ones(1, 2)
        observe(observer, selection, None)
    assert observer.fill_unobserved() == []  # b may be used by other batches
    observe(observer, selection, None)
    b.requires_grad_(False)
    assert observer.fill_unobserved() == []  # the loss may depend on it
    b.requires_grad_(True)
    assert observer.fill_unobserved() == ["b.weight"]
    assert observer.memory["b.weight"]["product"].tolist() == [[0.0]]
    assert observer.fill_unobserved() == []
    # Its first gradient counts as the first.
    b.grad = torch.tensor([[3.0]])
    observe(observer, selection, None)
    assert observer.memory["b.weight"]["product"].tolist() == [[6.0]]


def test_tensors_whose_gradients_were_all_nan_do_not_count_as_zeros() -> None:
    _, selection = two_layers()
    observer = GradientObserver(TaylorScore(), selection)
    a, b = (tensor.parameter for tensor in selection.values())
    for _ in range(100):
        a.grad, b.grad = torch.ones(1, 2), torch.tensor([[math.nan]])
        observe(observer, selection, None)
    assert observer.fill_unobserved() == []
