"""Pruning of sharded models, compared with pruning in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from benchmarks.processes import run_in_processes
from helpers.errors import message_of
from helpers.pruners import coupled_penalty, magnitude_pruner
from prunus import (
    AlternatingGrowth,
    CautiousRelevance,
    ConstantRelevance,
    ErdosRenyiAllocation,
    ExponentialRelevance,
    FisherScore,
    GradientGrowth,
    GradualPruning,
    LinearRelevance,
    MovementScore,
    Pruner,
    RandomGrowth,
    RandomScore,
    RelevancePenalty,
    SensitivityScore,
    SoftGrowth,
    TargetAllocation,
    TaylorScore,
    UniformAllocation,
    UpdateStrength,
    load_sparse,
    save_sparse,
    select,
)

pytestmark = pytest.mark.distributed

STEPS = 8


def transformer() -> nn.Module:
    """Return four layers whose sizes 37, 11 and 3 are not divisible by two or four processes."""
    torch.manual_seed(0)
    layers = [
        nn.TransformerEncoderLayer(16, 2, 37, dropout=0.0, batch_first=True) for _ in range(4)
    ]
    embedding = nn.Embedding(11, 16, padding_idx=3)
    model = nn.Sequential(embedding, *layers, nn.Linear(16, 3))
    for parameter in model.parameters():  # nonzero biases, and many equal weights
        parameter.data.copy_((torch.randn(parameter.shape) * 8).round() / 16)
    return model


def one_process(model: nn.Module) -> nn.Module:
    return model


def fsdp(model: nn.Module) -> nn.Module:
    assert isinstance(model, nn.Sequential)
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    return model


def hybrid(model: nn.Module) -> nn.Module:
    """Shard over two processes, with two replicas."""
    assert isinstance(model, nn.Sequential)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copy", "shard"))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def plan() -> dict[str, ParallelStyle]:
    return {
        f"{i}.{name}": style
        for i in range(1, 5)
        for name, style in (("linear1", ColwiseParallel()), ("linear2", RowwiseParallel()))
    }


def tensor_parallel(model: nn.Module) -> nn.Module:
    """Shard some tensors by rows and others by columns, and replicate the rest."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return parallelize_module(model, mesh, {"0": RowwiseParallel(), **plan()})


def both(model: nn.Module) -> nn.Module:
    """Shard tensor-parallel tensors again; others are sharded in one dimension of the mesh only."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    model = parallelize_module(model, mesh["tensor"], plan())
    assert isinstance(model, nn.Sequential)
    for layer in model:
        fully_shard(layer, mesh=mesh["data"])
    return model


Layout = Callable[[nn.Module], nn.Module]

METHODS: dict[str, dict[str, Any]] = {
    "gradient": {"penalty": coupled_penalty(1e-2, ExponentialRelevance(0.1))},
    "decoupled, lobster": {
        "penalty": RelevancePenalty(1e-2, LinearRelevance(0.1), apply="decoupled")
    },
    "L1": {"penalty": RelevancePenalty(1e-3, ConstantRelevance(), power=1, apply="decoupled")},
    "cautious": {"penalty": coupled_penalty(1e-2, CautiousRelevance())},
    "smoothed": {"penalty": coupled_penalty(1e-2, ExponentialRelevance(0.1), smoothing=0.9)},
    "no penalty": {},
    "taylor": {"score": TaylorScore()},
    "fisher": {"score": FisherScore(smoothing=0.75)},
    "sensitivity": {"score": SensitivityScore()},
    "movement": {"score": MovementScore()},
    "random": {"score": RandomScore(5)},
    "uniform": {"allocation": UniformAllocation()},
    "erk": {"allocation": ErdosRenyiAllocation(), "score": FisherScore(smoothing=0.75)},
    "targets": {"allocation": TargetAllocation({"0": 0.5, "*linear1.weight": 0.95})},
    "soft": {"growth": SoftGrowth(until=7, every=2)},
    "random growth": {"growth": RandomGrowth(every=3, fraction=0.4)},
    "gradient growth": {"growth": GradientGrowth(every=3, fraction=0.4, until=9)},
    "alternating": {"growth": AlternatingGrowth(sparse=3, dense=2, until=7)},
}
"""Methods that work element by element. Results are equal but for the last elements of a tensor,
which do not fill a vector register and which torch computes by other instructions."""

SUMMED: dict[str, dict[str, Any]] = {
    "L1, mean updates": {
        "penalty": RelevancePenalty(UpdateStrength(every=1), ConstantRelevance(), power=1)
    },
    "relative": {"penalty": coupled_penalty(1e-2, ExponentialRelevance(0.2, relative=True))},
    "relative, smoothed, decoupled": {
        "penalty": RelevancePenalty(
            1e-2, ExponentialRelevance(0.2, relative=True), apply="decoupled", smoothing=0.9
        )
    },
    "clipped": {"penalty": coupled_penalty(1e-2, ExponentialRelevance(0.1)), "max_grad_norm": 0.5},
}
"""Methods with a sum over a tensor or all tensors, whose last bit depends on the order of terms."""


def distributed_like(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if not isinstance(like, DTensor):
        return value
    # Each process has the whole tensor already, so that nothing is sent.
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def whole(value: torch.Tensor) -> torch.Tensor:
    value = value.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).clone()


def take_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    shapes: dict[str, torch.Size],
    *steps: int,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Train on gradients that do not depend on the model's layout."""
    for step in steps:
        draw = torch.Generator().manual_seed(step)
        for name, parameter in model.named_parameters():
            gradient = (torch.randn(shapes[name], generator=draw) * 8).round() / 80
            parameter.grad = distributed_like(gradient.to(dtype), parameter)
        optimizer.step()


def prepared(
    layout: Layout, method: dict[str, Any]
) -> tuple[nn.Module, torch.optim.Optimizer, Pruner, dict[str, torch.Size]]:
    model = transformer()
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    model = layout(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    pruner = magnitude_pruner(
        model,
        optimizer,
        schedule=GradualPruning(sparsity=0.9, end=6, every=2),
        selection=select(model, biases=True, norms=True),
        min_density=0.02,
        **method,
    )
    return model, optimizer, pruner, shapes


def pruned(layout: Layout, methods: dict[str, dict[str, Any]]) -> dict[str, Any]:
    outcome = {}
    for name, method in methods.items():
        model, optimizer, pruner, shapes = prepared(layout, method)
        take_steps(model, optimizer, shapes, *range(STEPS))
        outcome[name] = {
            "weights": {n: whole(p) for n, p in model.named_parameters()},
            "momenta": {
                n: whole(optimizer.state[p]["exp_avg"]) for n, p in model.named_parameters()
            },
            "kept": {n: pruner.masks.kept_in(n) for n in pruner.masks},
            "sparsity": pruner.sparsity,
            "revived": pruner.masks.revived(),
        }
        pruner.detach()
    return outcome


ALL = tuple(METHODS | SUMMED)
GROWTHS = ("soft", "random growth", "gradient growth", "alternating")
SOME = (
    *("decoupled, lobster", "random", "fisher", "erk", "targets"),
    *("relative, smoothed, decoupled", "clipped"),
)

LAYOUTS: list[tuple[Layout, int, tuple[str, ...]]] = [
    (fsdp, 2, ALL),
    (fsdp, 4, SOME),
    (hybrid, 4, SOME[-2:]),
    (tensor_parallel, 2, (*SOME, *GROWTHS)),
    (both, 4, (*SOME[-2:], *GROWTHS[:3])),
]


@pytest.mark.parametrize(
    ("layout", "count", "names"), LAYOUTS, ids=[f"{f.__name__} {n}" for f, n, _ in LAYOUTS]
)
def test_sharded_models_are_pruned_as_in_one_process(
    layout: Layout, count: int, names: tuple[str, ...]
) -> None:
    methods = {name: (METHODS | SUMMED)[name] for name in names}
    alone = pruned(one_process, methods)
    prunable = sum(parameter.numel() for parameter in transformer().parameters()) - 16  # padding
    for outcome in run_in_processes(count, pruned, layout, methods):
        for name, result in outcome.items():
            expected = alone[name]
            assert result["kept"] == expected["kept"], name
            assert sum(result["kept"].values()) == prunable - round(0.9 * prunable), name
            assert result["sparsity"] == expected["sparsity"]
            assert result["revived"] == {}
            rtol, atol = (1e-6, 1e-8) if name in METHODS else (1e-5, 1e-6)
            for state in ("weights", "momenta"):
                for key, value in expected[state].items():
                    actual = result[state][key]
                    assert torch.equal(actual == 0, value == 0), f"{name}, {state} of {key}"
                    torch.testing.assert_close(actual, value, rtol=rtol, atol=atol)


def clipped_updates() -> dict[str, Any]:
    """Clip with sequence parallelism, where the gradients of norm layers are partial sums."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    inputs = torch.randn(2, 4, 8)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    plan: dict[str, ParallelStyle] = {
        "0": SequenceParallel(),
        "1": ColwiseParallel(input_layouts=Shard(1)),
        "3": RowwiseParallel(output_layouts=Shard(1)),
    }
    model = parallelize_module(model, mesh, plan)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    magnitude_pruner(model, optimizer, max_grad_norm=0.5)
    own_inputs = inputs.chunk(dist.get_world_size(), dim=1)[dist.get_rank()]
    before = {name: whole(parameter) for name, parameter in model.named_parameters()}
    output = model(own_inputs)
    (output.to_local() if isinstance(output, DTensor) else output).square().sum().backward()
    optimizer.step()
    return {name: whole(p) - before[name] for name, p in model.named_parameters()}


def test_clipping_uses_the_norm_of_summed_partial_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    model(torch.randn(2, 4, 8)).square().sum().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    for updates in run_in_processes(2, clipped_updates):
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(updates[name], -parameter.grad, rtol=1e-4, atol=1e-6)


def outputs_around_pruning() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    model = fsdp(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = magnitude_pruner(model, optimizer, keep_best=False)
    results = []
    for sparsity in (0.5, 0.9):
        with torch.no_grad():  # after which the outermost module keeps its unsharded weights
            results.append(model(torch.ones(1, 6)).clone())
        pruner.prune(sparsity=sparsity)
    with torch.no_grad():
        results.append(model(torch.ones(1, 6)).clone())
    rebuilt = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))
    rebuilt.load_state_dict({name: whole(p) for name, p in model.named_parameters()})
    return results[0], results[2], rebuilt(torch.ones(1, 6)).detach()


def test_a_forward_pass_after_a_pruning_uses_the_pruned_weights() -> None:
    for before, after, expected in run_in_processes(2, outputs_around_pruning):
        assert not torch.equal(before, after)
        torch.testing.assert_close(after, expected)


def rejected_load(path: str) -> tuple[str, bool]:
    """Load a file into a model whose parameters are sharded and whose running means are not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
    parallelize_module(model, init_device_mesh("cpu", (2,)), {"0": ColwiseParallel()})
    message = message_of(lambda: load_sparse(path, model))
    return message, bool(model.get_buffer("1.running_mean").any())


def test_a_rejected_load_into_a_sharded_model_changes_no_tensor(tmp_path: Path) -> None:
    model: Any = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
    model[1].running_mean.fill_(3.0)
    save_sparse(model, tmp_path / "a")
    for message, changed in run_in_processes(2, rejected_load, str(tmp_path / "a")):
        assert "does not fit the model: " in message
        assert not changed
