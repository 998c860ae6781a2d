"""Gradients before a step: layout, loss scale, placements and means."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from helpers.peers import PeerGroup, single_process_mesh
from prunus import PrunusError, select
from prunus._engine.gradients import (
    check_dense,
    is_skipped,
    loss_scale_of,
    match_placements,
    mean_magnitudes,
    separate_elements,
)


@pytest.mark.parametrize(
    ("fields", "skipped"),
    [
        ({}, False),
        ({"found_inf": None}, False),
        ({"found_inf": torch.tensor(0.0)}, False),
        ({"found_inf": torch.tensor(1.0)}, True),
    ],
)
def test_a_step_is_skipped_if_the_scaler_found_an_infinity(
    fields: dict[str, Any], skipped: bool
) -> None:
    optimizer: Any = SimpleNamespace(**fields)
    assert is_skipped(optimizer) is skipped


@pytest.mark.parametrize(
    ("fields", "scale"),
    [({}, None), ({"grad_scale": None}, None), ({"grad_scale": torch.tensor(8.0)}, 8.0)],
)
def test_the_loss_scale_is_that_of_a_fused_optimizer(
    fields: dict[str, Any], scale: float | None
) -> None:
    optimizer: Any = SimpleNamespace(**fields)
    found = loss_scale_of(optimizer)
    assert found == scale
    # It stays on its device.
    assert found is None or (type(found) is torch.Tensor and found.shape == ())


def test_every_sparse_gradient_is_named() -> None:
    model = nn.ModuleDict({"a": nn.Embedding(2, 1), "b": nn.Embedding(2, 1)})
    model["c"] = nn.Linear(1, 1)
    tensors = list(model.parameters())
    sparse = torch.ones(2, 1).to_sparse()
    tensors[0].grad, tensors[1].grad, tensors[2].grad = sparse, sparse, torch.ones(1, 1)
    with pytest.raises(PrunusError, match=r"^a\.weight, b\.weight has a sparse gradient"):
        check_dense(model, tensors)
    check_dense(model, tensors[2:])
    with pytest.raises(PrunusError, match="^a tensor of the optimizer has a sparse gradient"):
        check_dense(nn.Linear(1, 1), tensors)


def test_only_gradients_whose_elements_share_memory_are_copied() -> None:
    parameters = [nn.Parameter(torch.ones(2, 3)) for _ in range(3)] + [nn.Parameter(torch.ones(1))]
    parameters[0].grad = torch.tensor([1.0, 2.0, 3.0]).expand(2, 3)
    parameters[1].grad = kept = torch.ones(3, 2).t()
    parameters[3].grad = single = torch.ones(()).expand(1)
    separate_elements(parameters)
    assert parameters[0].grad.is_contiguous()
    assert parameters[0].grad.tolist() == [[1.0, 2.0, 3.0]] * 2
    assert parameters[1].grad is kept
    assert parameters[2].grad is None
    assert parameters[3].grad is single


def test_gradients_are_laid_out_as_their_tensors() -> None:
    from torch.distributed.tensor import DTensor, Replicate, Shard

    with single_process_mesh() as mesh:
        parameter = nn.Parameter(DTensor.from_local(torch.ones(2, 3), mesh, [Shard(0)]))
        parameter.grad = DTensor.from_local(torch.full((2, 3), 2.0), mesh, [Replicate()])
        alike = nn.Parameter(DTensor.from_local(torch.ones(2), mesh, [Replicate()]))
        alike.grad = same = DTensor.from_local(torch.ones(2), mesh, [Replicate()])
        plain, without = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        plain.grad = torch.ones(2)
        match_placements([without, plain, alike, parameter])
        moved: Any = parameter.grad
        assert moved.placements == (Shard(0),)
        assert moved.to_local().tolist() == [[2.0] * 3] * 2
        assert alike.grad is same
        assert plain.grad.tolist() == [1.0, 1.0]
        assert without.grad is None


def test_means_are_those_of_the_whole_tensors_over_all_processes() -> None:
    model = nn.ModuleDict({name: nn.Linear(2, 1, bias=False) for name in "abc"})
    tensors: Any = [model[name].weight for name in "abc"]
    tensors[0].grad = torch.tensor([[3.0, -5.0]], dtype=torch.float32)
    tensors[1].grad = torch.tensor([[7.0, 1.0]])  # counted by another process
    selection = select(model)
    others = torch.tensor([2.0, 8.0, 6.0], dtype=torch.float64)
    selection.process_group = PeerGroup(others=others, counted=(True, False, True))
    means = mean_magnitudes(selection, [*selection.values()], None)
    assert {name: mean.item() for name, mean in means.items()} == {
        "a.weight": (8.0 + 2.0) / 2,
        "b.weight": 8.0 / 2,
        "c.weight": 6.0 / 2,
    }
    assert all(mean.dtype == torch.float64 for mean in means.values())
    averages = {"a.weight": torch.tensor([[1.0, 1.0]]), "b.weight": torch.ones(1, 2)}
    means = mean_magnitudes(selection, [*selection.values()], averages)
    assert [mean.item() for mean in means.values()] == [2.0, 4.0, 3.0]


def test_an_optimizer_without_prunable_tensors_has_no_mean_magnitudes() -> None:
    assert mean_magnitudes(select(nn.Linear(2, 1)), [], None) == {}


@pytest.mark.parametrize("gradients", [True, False])
def test_magnitudes_are_summed_in_64_bits(gradients: bool) -> None:
    class Recorded(PeerGroup):
        def sum(self, counts: torch.Tensor) -> torch.Tensor:
            assert counts.dtype == torch.float64
            return super().sum(counts)

    layer = nn.Linear(2, 1, bias=False)
    if gradients:
        layer.weight.grad = torch.tensor([[3.0, -1.0]])
    selection = select(layer)
    selection.process_group = Recorded()
    assert mean_magnitudes(selection, [*selection.values()], None)["weight"].item() == (
        2.0 if gradients else 0.0
    )
