"""Once removed, a weight is exactly 0.0 for ever, whatever the optimizer."""

from __future__ import annotations

import copy
import gc
import inspect
import io
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.robustness.contract.optimizers import OPTIMIZERS, Build
from helpers.data import noise_batch
from helpers.models import tanh_network
from helpers.pruners import coupled_penalty, magnitude_pruner
from helpers.states import same
from helpers.training import squared_error, train
from prunus import (
    ConstantRelevance,
    ExponentialRelevance,
    FisherScore,
    Masks,
    MovementScore,
    OneShot,
    Pruner,
    PrunusError,
    RelevancePenalty,
    SensitivityScore,
    TaylorScore,
    select,
)
from prunus._engine.optimizer_state import clear_state
from prunus.penalties.relevance import Apply

BATCH = noise_batch(16, 12, 4, seed=5)


def small_network() -> Any:
    # Without biases, for Muon takes matrices alone.
    return tanh_network(12, 10, 4, bias=False, seed=None)


def removed_values(model: nn.Module, masks: dict[str, torch.Tensor]) -> torch.Tensor:
    parameters = dict(model.named_parameters())
    return torch.cat([parameters[name].detach()[~mask] for name, mask in masks.items()])


def assert_positive_zero(values: torch.Tensor) -> None:
    assert values.numel() > 0
    assert torch.equal(values, torch.zeros_like(values))
    assert not torch.signbit(values).any()


def test_all_dense_optimizers_are_listed() -> None:
    known = {
        name
        for name, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer)
    } - {"Optimizer", "SparseAdam"}
    assert known == {name.split()[0] for name in OPTIMIZERS}


@pytest.mark.parametrize("apply", ["gradient", "loss", "decoupled"])
@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_removed_weights_stay_positive_zero_while_the_others_train(
    build: Build, apply: Apply
) -> None:
    model = small_network()
    optimizer = build(model.parameters())
    pruner = magnitude_pruner(model, optimizer, coupled_penalty(0.01, apply=apply))
    term = pruner.penalty if apply == "loss" else None
    train(model, optimizer, BATCH, 4, term)
    assert pruner.prune(sparsity=0.6) == 96
    masks = {name: mask.clone() for name, mask in pruner.masks.items()}
    before = copy.deepcopy(model.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * 2
    for _ in range(12):
        train(model, optimizer, BATCH, 1, term)
        assert_positive_zero(removed_values(model, masks))
    # The rest went on training: a test that froze everything would pass the above.
    assert all(
        (model.state_dict()[name] != before[name])[mask].any() for name, mask in masks.items()
    )
    assert torch.isfinite(torch.cat([p.detach().flatten() for p in model.parameters()])).all()


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizer_state_of_removed_weights_is_cleared(build: Build) -> None:
    model = small_network()
    optimizer = build(model.parameters())
    pruner = magnitude_pruner(model, optimizer)
    train(model, optimizer, BATCH, 4)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    pruner.prune(sparsity=0.5)
    for index, (name, parameter) in enumerate(model.named_parameters()):
        for key, value in optimizer.state.get(parameter, {}).items():
            kept = pruner.masks[name] if getattr(value, "shape", None) == parameter.shape else ...
            if isinstance(value, torch.Tensor):
                assert torch.equal(value[kept], before[index][key][kept])

    def per_weight() -> list[torch.Tensor]:
        return [
            value[~pruner.masks[name]]
            for name, parameter in model.named_parameters()
            for value in optimizer.state.get(parameter, {}).values()
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape
        ]

    for value in per_weight():
        assert_positive_zero(value.float())
    if isinstance(optimizer, torch.optim.LBFGS):
        assert not any(optimizer.state.values())
    # It stays cleared where the optimizer's state is computed from gradients, which are zeroed.
    train(model, optimizer, BATCH, 3)
    if type(optimizer) in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        for value in per_weight():
            assert_positive_zero(value)


def test_state_shared_by_weights_is_left_alone() -> None:
    weight = nn.Parameter(torch.randn(6, 5))
    optimizer = torch.optim.Adafactor([weight], lr=0.1)
    weight.square().sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()  # type: ignore[no-untyped-call]
    before = {k: v.clone() for k, v in optimizer.state[weight].items()}
    mask = torch.ones(6, 5, dtype=torch.bool)
    mask[0] = False
    clear_state(optimizer, weight, mask)
    assert set(before) == {"step", "row_var", "col_var"}
    assert all(torch.equal(optimizer.state[weight][k], v) for k, v in before.items())


def test_momentum_alone_would_revive_without_the_masks() -> None:
    """The trap that the masks exist for; if this passes without them, the tests above are void."""
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    idle = magnitude_pruner(model, optimizer)
    train(model, optimizer, BATCH, 3)
    idle.detach()
    weight = model[0].weight
    weight.data[0] = 0.0
    train(model, optimizer, BATCH, 1)
    assert weight[0].ne(0).all()


def test_an_infinite_gradient_of_a_removed_weight_does_not_reach_it() -> None:
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruner = magnitude_pruner(model, optimizer, coupled_penalty(0.01))
    pruner.prune(sparsity=0.5)
    masks = {name: mask.clone() for name, mask in pruner.masks.items()}
    for name, parameter in model.named_parameters():
        parameter.grad = torch.where(masks[name], 0.1, torch.inf)
        parameter.grad[~masks[name]] = torch.tensor([torch.inf, torch.nan, -torch.inf]).repeat(100)[
            : int((~masks[name]).sum())
        ]
    optimizer.step()
    assert_positive_zero(removed_values(model, masks))
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_loading_an_optimizer_state_from_before_the_pruning_revives_nothing() -> None:
    model = small_network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    pruner = magnitude_pruner(model, optimizer)
    train(model, optimizer, BATCH, 3)
    old = copy.deepcopy(optimizer.state_dict())
    pruner.prune(sparsity=0.7)
    masks = {name: mask.clone() for name, mask in pruner.masks.items()}
    optimizer.load_state_dict(old)
    train(model, optimizer, BATCH, 3)
    assert_positive_zero(removed_values(model, masks))


def test_a_second_pruner_with_another_optimizer_keeps_the_zeros_of_the_first() -> None:
    model = small_network()
    first = torch.optim.Adam(model.parameters(), lr=0.01)
    pruner = magnitude_pruner(model, first)
    train(model, first, BATCH, 3)
    pruner.prune(sparsity=0.5)
    masks = {name: mask.clone() for name, mask in pruner.masks.items()}
    second = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    later = magnitude_pruner(model, second, coupled_penalty(0.01))
    assert later.sparsity == 0.5
    train(model, second, BATCH, 5)
    assert_positive_zero(removed_values(model, masks))
    # What either removes, both respect.
    later.prune(sparsity=0.75)
    assert pruner.sparsity == 0.75
    train(model, first, BATCH, 5)
    assert_positive_zero(removed_values(model, dict(later.masks)))


def test_two_pruners_on_one_optimizer_keep_each_its_zeros() -> None:
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    one = magnitude_pruner(model, optimizer, selection=select(model, "0"))
    two = magnitude_pruner(model, optimizer, selection=select(model, "2"))
    train(model, optimizer, BATCH, 2)
    one.prune(sparsity=0.5)
    two.prune(sparsity=0.25)
    masks = {name: mask.clone() for name, mask in (*one.masks.items(), *two.masks.items())}
    train(model, optimizer, BATCH, 5)
    assert [int((~mask).sum()) for mask in masks.values()] == [60, 10]
    assert_positive_zero(removed_values(model, masks))


def test_after_detach_removed_weights_train_again() -> None:
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner = magnitude_pruner(model, optimizer)
    pruner.prune(sparsity=0.5)
    pruner.detach()
    train(model, optimizer, BATCH, 1)
    assert all(p.ne(0).all() for p in model.parameters())
    assert magnitude_pruner(model, optimizer).sparsity == 0.0


def test_detaching_one_pruner_leaves_the_masks_of_another() -> None:
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    one, two = magnitude_pruner(model, optimizer), magnitude_pruner(model, optimizer)
    one.prune(sparsity=0.5)
    masks = {name: mask.clone() for name, mask in two.masks.items()}
    one.detach()
    assert magnitude_pruner(model, optimizer).sparsity == 0.5
    train(model, optimizer, BATCH, 2)
    assert_positive_zero(removed_values(model, masks))


def test_masks_stay_in_force_after_their_pruner_is_deleted() -> None:
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    magnitude_pruner(model, optimizer).prune(sparsity=0.5)
    del optimizer
    gc.collect()
    later = torch.optim.SGD(model.parameters(), lr=0.05)
    assert magnitude_pruner(model, later).sparsity == 0.5


def test_masks_from_zeros_keep_a_sparse_model_sparse() -> None:
    model = small_network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[torch.rand_like(parameter) < 0.8] = 0.0
    masks = {name: p.detach() != 0 for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    selection = select(model)
    pruner = magnitude_pruner(
        model, optimizer, selection=selection, masks=Masks.from_zeros(selection)
    )
    train(model, optimizer, BATCH, 5)
    assert same(dict(pruner.masks), masks)
    assert_positive_zero(removed_values(model, masks))


def test_the_model_stays_free_of_hooks_attributes_and_renamed_tensors() -> None:
    model = small_network()
    plain = small_network()
    keys = list(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruner = Pruner(
        model, optimizer, coupled_penalty(0.01), OneShot(sparsity=0.5, at=2), score=TaylorScore()
    )
    train(model, optimizer, BATCH, 4)
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_modules()] == [n for n, _ in plain.named_modules()]
    assert all(type(p) is nn.Parameter for p in model.parameters())
    assert not any(vars(p) for p in model.parameters())
    clone = copy.deepcopy(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for copied in (clone, loaded):
        assert all(
            torch.equal(a, b) for a, b in zip(copied.parameters(), model.parameters(), strict=True)
        )
        # A copy is its own model: it trains freely and does not touch the original's masks.
        free = torch.optim.SGD(copied.parameters(), lr=0.05)
        train(copied, free, BATCH, 1)
        assert all(p.ne(0).all() for p in copied.parameters())
    state = copy.deepcopy(optimizer).state_dict()
    assert "param_groups" in state
    assert pruner.sparsity == 0.5


def test_changing_type_and_layout_keeps_the_masks() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruner = magnitude_pruner(
        model, optimizer, coupled_penalty(0.01, ExponentialRelevance(0.1, relative=True))
    )
    pruner.prune(sparsity=0.5)
    masks = {name: mask.clone() for name, mask in pruner.masks.items()}
    model.to(torch.float64)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 9, 9, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    assert_positive_zero(removed_values(model, masks))
    pruner.prune(sparsity=0.7)
    assert pruner.masks.kept == int(
        sum(p.count_nonzero() for p in model.parameters() if p.dim() > 1)
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler warns of its own matters
def test_removed_weights_stay_zero_in_a_compiled_model() -> None:
    model = small_network()
    compiled: Any = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.05, momentum=0.9)
    pruner = magnitude_pruner(compiled, optimizer, coupled_penalty(0.01, ConstantRelevance()))
    assert list(pruner.selection) == ["0.weight", "2.weight"]
    for _ in range(2):
        train(compiled, optimizer, BATCH, 2)
        pruner.prune(sparsity=0.5)
    train(compiled, optimizer, BATCH, 2)
    assert torch.equal(compiled(BATCH[0]), model(BATCH[0]))
    assert_positive_zero(removed_values(model, dict(pruner.masks)))


def scaled_step(
    scaler: torch.amp.GradScaler, model: nn.Module, optimizer: Any, gain: float, unscale: bool
) -> None:
    optimizer.zero_grad()
    scaler.scale(squared_error(model, BATCH) * gain).backward()  # type: ignore[no-untyped-call]
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


def fused(params: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=0.01, fused=True)


def foreach(params: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=0.01, foreach=True)


def fused_sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.05, momentum=0.9, fused=True)


def memory_of(state: dict[str, Any]) -> list[torch.Tensor]:
    """Return the tensors that score and averages remember."""
    scores = [tensor for memory in state["score"].values() for tensor in memory.values()]
    return [*scores, *state["averages"].values()]


SCALED: dict[str, dict[str, Any]] = {
    "gradient": {"penalty": coupled_penalty(0.1, ExponentialRelevance(0.01))},
    "decoupled": {"penalty": RelevancePenalty(0.1, ExponentialRelevance(0.01), apply="decoupled")},
    "relative": {"penalty": coupled_penalty(0.1, ExponentialRelevance(0.3, relative=True))},
    "smoothed": {"penalty": coupled_penalty(0.1, ExponentialRelevance(0.01), smoothing=0.5)},
    "clipped": {
        "penalty": coupled_penalty(0.1, ExponentialRelevance(0.01)),
        "max_grad_norm": 0.02,
    },
    "taylor": {"score": TaylorScore(), "schedule": OneShot(sparsity=0.5, at=4)},
    "fisher": {"score": FisherScore(smoothing=0.8), "schedule": OneShot(sparsity=0.5, at=4)},
    "sensitivity": {"score": SensitivityScore(), "schedule": OneShot(sparsity=0.5, at=4)},
    "movement": {"score": MovementScore(), "schedule": OneShot(sparsity=0.5, at=4)},
    "fisher, clipped": {"score": FisherScore(smoothing=0.8), "max_grad_norm": 0.02},
}


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("build", [fused, foreach, fused_sgd])
@pytest.mark.parametrize("name", SCALED)
def test_under_a_gradient_scaler_relevance_is_that_of_the_true_gradient(
    build: Build, unscale: bool, name: str
) -> None:
    def trained(scale: float | None) -> list[torch.Tensor]:
        torch.manual_seed(4)
        model = small_network()
        optimizer = build(list(model.parameters()))
        pruner = magnitude_pruner(model, optimizer, **SCALED[name])
        scaler = torch.amp.GradScaler(
            "cpu", init_scale=scale or 1.0, enabled=scale is not None, growth_interval=3
        )
        for _ in range(9):  # at the third and the sixth step the scale doubles
            scaled_step(scaler, model, optimizer, 1.0, unscale)
        return [*model.parameters(), *memory_of(pruner.state_dict())]

    for one, other in zip(trained(None), trained(4096.0), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        assert torch.equal(one == 0, other == 0)


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("build", [fused, foreach, fused_sgd])
@pytest.mark.parametrize("name", SCALED)
def test_a_step_that_the_scaler_skips_changes_no_weight_and_no_state(
    build: Build, unscale: bool, name: str
) -> None:
    model = small_network()
    optimizer = build(list(model.parameters()))
    pruner = magnitude_pruner(model, optimizer, **SCALED[name])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaled_step(scaler, model, optimizer, 1.0, unscale)
    before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(pruner.state_dict())
    scaled_step(scaler, model, optimizer, float("inf"), unscale)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    after = pruner.state_dict()
    assert after["steps"] == 1
    for key in ("score", "averages", "observed", "averaged"):
        assert after[key].keys() == state[key].keys()
    assert (after["observed"], after["averaged"]) == (state["observed"], state["averaged"])
    for one, other in zip(memory_of(after), memory_of(state), strict=True):
        assert torch.equal(one, other)


def test_removed_weights_stay_zero_under_a_scaler_that_leaves_unscaling_to_the_optimizer() -> None:
    model = small_network()
    optimizer = fused(model.parameters())
    pruner = magnitude_pruner(model, optimizer, coupled_penalty(0.1), OneShot(sparsity=0.5, at=2))
    scaler = torch.amp.GradScaler("cpu")
    for gain in (1.0, 1.0, 1.0, float("inf"), 1.0, 1.0):
        scaled_step(scaler, model, optimizer, gain, unscale=False)
    assert pruner.sparsity == 0.5
    assert_positive_zero(removed_values(model, dict(pruner.masks)))


def test_sparse_gradients_are_rejected_with_a_fix() -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1)
    magnitude_pruner(embedding, optimizer, coupled_penalty(0.01))
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(PrunusError, match="weight has a sparse gradient.*sparse=False"):
        optimizer.step()
