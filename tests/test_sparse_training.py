"""Tests of SparseTraining."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from helpers.planted_timings import plant_timings
from prunus import (
    ArgumentError,
    ArgumentTypeError,
    ExponentialRelevance,
    GradientGrowth,
    GradualPruning,
    Pruner,
    PrunusError,
    RandomGrowth,
    RelevancePenalty,
    SoftGrowth,
    SparseTraining,
    select,
)


def network() -> nn.Sequential:
    """Return a small network with equal weights each time."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 8)
    )


def pruned(
    sparsity: float = 0.8, model: nn.Module | None = None, **arguments: Any
) -> tuple[nn.Module, torch.optim.Optimizer, Pruner]:
    """Return a network of which a pruner has removed weights, with its optimizer."""
    model = network() if model is None else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    arguments = {"penalty": None, "score": prunus.MagnitudeScore()} | arguments
    pruner = Pruner(model, optimizer, **arguments)
    pruner.prune(sparsity=sparsity)
    return model, optimizer, pruner


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int = 1,
    items: int = 16,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Train a few steps on equal data each time."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(items, 24, generator=generator)
        y = torch.randint(8, (items,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        after()
        optimizer.step()


def weight_of(model: nn.Module, name: str = "0") -> nn.Parameter:
    """Return the weight of a layer."""
    return model.get_parameter(f"{name}.weight")


def test_a_training_equals_the_dense_one() -> None:
    finals, masks = [], []
    for sparse in (False, True):
        model, optimizer, pruner = gradual()
        training = SparseTraining(pruner, max_density=0.5) if sparse else None
        train(model, optimizer, steps=30)
        if training:
            assert set(training.sparse_layers) == {"0", "2", "4"}
        assert pruner.sparsity == pytest.approx(0.95, abs=0.01)
        finals.append(model.state_dict())
        masks.append(pruner.masks)
    for name, mask in masks[0].items():
        assert torch.equal(mask, masks[1][name])
    torch.testing.assert_close(finals[1], finals[0], rtol=1e-3, atol=1e-5)


def gradual() -> tuple[nn.Module, torch.optim.Optimizer, Pruner]:
    """Return a network of which a pruner will remove weights, with its optimizer."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = GradualPruning(sparsity=0.95, begin=2, end=20)
    return model, optimizer, Pruner(model, optimizer, None, schedule)


def test_gradients_equal_dense_ones_in_float64_at_kept_places() -> None:
    model, _, pruner = pruned()
    training = SparseTraining(pruner, max_density=1.0)
    reference = copy.deepcopy(model).double()
    x = torch.randn(16, 24, dtype=torch.float64)
    model(x.float()).square().sum().backward()
    reference(x).square().sum().backward()
    assert training.sparse_layers == ("0", "2", "4")
    for name, parameter in model.named_parameters():
        expected = reference.get_parameter(name).grad
        assert expected is not None
        assert parameter.grad is not None
        if name in pruner.masks:
            mask = pruner.masks[name]
            assert bool((parameter.grad[~mask] == 0).all())
            expected = expected * mask
        torch.testing.assert_close(parameter.grad.double(), expected, rtol=1e-5, atol=1e-5)


def test_sparse_layers_follow_shrinking_masks() -> None:
    model, optimizer, pruner = pruned(0.5)
    SparseTraining(pruner, max_density=1.0)
    for sparsity in (0.5, 0.7, 0.9):
        pruner.prune(sparsity=sparsity)
        masks = {name: mask.clone() for name, mask in pruner.masks.items()}

        def check(masks: dict[str, torch.Tensor] = masks) -> None:
            for name, mask in masks.items():
                gradient = model.get_parameter(name).grad
                assert gradient is not None
                assert bool((gradient[~mask] == 0).all())
                assert int(gradient.count_nonzero()) > 0.2 * int(mask.sum())

        train(model, optimizer, after=check)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model,
        copy.deepcopy,
        lambda model: torch.load(_saved(model), weights_only=False),
    ],
    ids=["stop", "deepcopy", "pickle"],
)
def test_copies_and_a_stopped_network_are_ordinary(
    change: Callable[[nn.Module], nn.Module],
) -> None:
    model, optimizer, pruner = pruned()
    before = list(model.state_dict()), [id(p) for p in model.parameters()]
    training = SparseTraining(pruner, max_density=1.0)
    train(model, optimizer)
    assert before == (list(model.state_dict()), [id(p) for p in model.parameters()])
    x = torch.randn(3, 24)
    expected = model(x)
    other = change(model)
    if other is model:
        training.stop()
        assert training.sparse_layers == ()
    assert [type(each) for each in other.children()] == [
        type(each) for each in network().children()
    ]
    assert [list(vars(each)) for each in other.children()] == [
        list(vars(each)) for each in network().children()
    ]
    torch.testing.assert_close(other(x), expected)


def _saved(model: nn.Module) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


def test_state_dicts_load_into_an_ordinary_network_and_back() -> None:
    model, optimizer, pruner = pruned()
    SparseTraining(pruner, max_density=1.0)
    train(model, optimizer)
    other = network()
    other.load_state_dict(model.state_dict())
    x = torch.randn(5, 24)
    torch.testing.assert_close(other(x), model(x))
    other.load_state_dict(network().state_dict())  # dense, until the pruner acts in the next step
    model.load_state_dict(other.state_dict())
    assert torch.equal(other(x), model(x))


def test_a_detached_pruner_leaves_dense_gradients() -> None:
    model, optimizer, pruner = pruned()
    training = SparseTraining(pruner, max_density=1.0)
    pruner.detach()
    train(model, optimizer)
    assert training.sparse_layers == ()
    gradient = weight_of(model, "2").grad
    assert gradient is not None
    assert int(gradient[~pruner.masks["2.weight"]].count_nonzero()) > 100


def test_gradients_accumulate_over_passes_and_calls() -> None:
    model, optimizer, pruner = pruned(model=nn.Sequential(nn.Linear(24, 24)))
    SparseTraining(pruner, max_density=1.0)
    dense, x = copy.deepcopy(model), torch.randn(2, 16, 24)
    for each in (model, dense):
        each(each(x[0])).square().sum().backward()
        each(x[1]).square().sum().backward()
    expected = weight_of(dense).grad
    assert expected is not None
    expected = expected * pruner.masks["0.weight"]
    torch.testing.assert_close(weight_of(model).grad, expected, rtol=1e-4, atol=1e-4)
    kept = weight_of(model).grad
    optimizer.zero_grad()
    (model(x[0]).sum()).backward()
    assert kept is not None
    torch.testing.assert_close(kept, expected, rtol=1e-4, atol=1e-4)  # not written to


def test_a_gradient_needs_no_new_memory() -> None:
    model, optimizer, pruner = pruned()
    SparseTraining(pruner, max_density=1.0)
    addresses = set()

    def note() -> None:
        gradient = weight_of(model).grad
        assert gradient is not None
        addresses.add(gradient.data_ptr())

    train(model, optimizer, steps=4, after=note)
    assert len(addresses) == 1


@pytest.mark.parametrize(
    "penalty", [RelevancePenalty(1e-3, apply="loss"), RelevancePenalty(1e-3)], ids=["loss", "hook"]
)
def test_penalties_act_as_in_dense_training(penalty: RelevancePenalty) -> None:
    finals = []
    for sparse in (False, True):
        model, optimizer, pruner = pruned(penalty=penalty)
        if sparse:
            SparseTraining(pruner, max_density=1.0)
        generator = torch.Generator().manual_seed(1)
        for _ in range(5):
            optimizer.zero_grad()
            loss = model(torch.randn(16, 24, generator=generator)).square().mean()
            if penalty.apply == "loss":
                loss = loss + pruner.penalty(loss)
            loss.backward()
            optimizer.step()
        finals.append(model.state_dict())
    torch.testing.assert_close(finals[1], finals[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("penalty", "expected"),
    [
        (RelevancePenalty(), 2),  # acts in every fifth step
        (RelevancePenalty(smoothing=0.5), 10),  # averages the gradients of all steps
        (RelevancePenalty(coefficient=ExponentialRelevance()), 0),  # relative to no mean
        (None, 0),
    ],
)
def test_removed_gradients_are_read_in_steps_of_a_relative_penalty(
    penalty: RelevancePenalty | None, expected: int
) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    schedule = GradualPruning(sparsity=0.5, begin=1000, end=2000)
    pruner = Pruner(model, optimizer, penalty, schedule)
    reads = []
    for _ in range(10):
        reads.append(pruner.reads_removed_gradients)
        train(model, optimizer)
    assert sum(reads) == expected


def autocast(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y: torch.Tensor = model(x)
    return y


def vectorized(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = torch.func.vmap(model)(x)
    return y


def scripted(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    trace: Any = torch.jit.trace
    y: torch.Tensor = trace(model, x, check_trace=False)(x)
    return y


def functional(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    y: torch.Tensor = torch.func.functional_call(model, parameters, x)
    return y


def doubled(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = copy.deepcopy(model).double()(x.double())
    return y


def forward_mode(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    forward_ad: Any = torch.autograd.forward_ad
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        y: torch.Tensor = forward_ad.unpack_dual(model(dual)).tangent
    return y


def empty(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = model(x[:0])
    return y


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "call", [autocast, vectorized, scripted, functional, doubled, forward_mode, empty]
)
def test_other_calls_stay_dense(call: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
    model, _, pruner = pruned()
    training, dense = SparseTraining(pruner, max_density=1.0), copy.deepcopy(model)
    x = torch.randn(4, 24)
    torch.testing.assert_close(call(model, x), call(dense, x))
    assert training.sparse_layers == ()


@pytest.mark.parametrize("shape", [(24,), (1, 24), (2, 3, 24)])
def test_shapes_are_those_of_dense_layers(shape: tuple[int, ...]) -> None:
    model, _, pruner = pruned()
    training, dense = SparseTraining(pruner, max_density=1.0), copy.deepcopy(model)
    x = torch.randn(shape, requires_grad=True)
    y = model(x)
    assert training.sparse_layers == ("0", "2", "4")
    torch.testing.assert_close(y, dense(x))
    assert y.is_contiguous()
    (found,) = torch.autograd.grad(y.square().sum(), x)
    (expected,) = torch.autograd.grad(dense(x).square().sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
def test_a_network_may_be_evaluated_before_it_is_trained(
    without_gradients: Callable[[], Any],
) -> None:
    model, optimizer, pruner = pruned()
    training, x = SparseTraining(pruner, max_density=1.0), torch.randn(4, 24)
    with without_gradients():
        torch.testing.assert_close(model(x), copy.deepcopy(model)(x))
    train(model, optimizer)
    assert training.sparse_layers == ("0", "2", "4")


def test_the_default_type_of_torch_has_no_influence() -> None:
    model, _, pruner = pruned(model=nn.Sequential(nn.Linear(24, 8, bias=False)))
    training, dense = SparseTraining(pruner, max_density=1.0), copy.deepcopy(model)
    x = torch.randn(16, 24)
    torch.set_default_dtype(torch.float64)
    try:
        y = model(x)
        y.sum().backward()
    finally:
        torch.set_default_dtype(torch.float32)
    assert training.sparse_layers == ("0",)
    gradient = weight_of(model).grad
    assert gradient is not None
    torch.testing.assert_close(gradient[0], x.sum(0) * pruner.masks["0.weight"][0])
    torch.testing.assert_close(y, dense(x))


def test_a_wrong_input_raises_torchs_error() -> None:
    model, _, pruner = pruned()
    SparseTraining(pruner, max_density=1.0)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.randn(4, 23))


def test_a_slower_layer_stays_dense_until_it_is_much_sparser(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeds = plant_timings(monkeypatch, [1.0], [1.1])
    model, optimizer, pruner = pruned(0.8)
    training = SparseTraining(pruner)
    train(model, optimizer, steps=3)
    assert (training.sparse_layers, len(seeds)) == ((), 3)
    pruner.prune(sparsity=0.81)
    train(model, optimizer)
    assert len(seeds) == 3  # the density fell by 5 percent
    plant_timings(monkeypatch, [1.0], [0.6])
    pruner.prune(sparsity=0.9)
    train(model, optimizer)
    assert training.sparse_layers == ("0", "2", "4")
    assert [timing.name for timing in training.timings] == ["0", "2", "4"]
    assert all(timing.replaced and timing.density < 0.3 for timing in training.timings)


def test_a_disturbed_timing_is_repeated_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer, pruner = pruned(model=nn.Sequential(nn.Linear(24, 8)))
    training = SparseTraining(pruner)
    plant_timings(monkeypatch, [[1.0], [1.0]], [[0.5], [2.0]])
    train(model, optimizer)
    assert training.timings[0].disturbed
    assert not training.sparse_layers
    plant_timings(monkeypatch, [[1.0], [1.0]], [[0.4], [0.9]])
    train(model, optimizer, steps=49)
    assert not training.sparse_layers
    train(model, optimizer)
    assert len(training.sparse_layers) == 1
    plant_timings(monkeypatch, [1.0], [1.1])
    train(model, optimizer, steps=99)
    assert len(training.sparse_layers) == 1
    train(model, optimizer)
    assert not training.sparse_layers
    seeds = plant_timings(monkeypatch, [1.0], [0.5])
    train(model, optimizer, steps=300)
    assert seeds == []  # it was certain


def test_a_faster_layer_is_timed_again_only_when_it_is_denser(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeds = plant_timings(monkeypatch, [1.0], [0.6])
    model, optimizer, pruner = pruned(0.8)
    training = SparseTraining(pruner)
    train(model, optimizer)
    pruner.prune(sparsity=0.95)
    train(model, optimizer)
    assert (len(training.sparse_layers), len(seeds)) == (3, 3)
    seeds = plant_timings(monkeypatch, [1.0], [1.1])
    for mask in pruner.masks.values():
        mask[:, ::2] = True
    train(model, optimizer)
    assert (len(training.sparse_layers), len(seeds)) == (0, 3)


def test_each_size_of_batch_and_kind_of_call_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = plant_timings(monkeypatch, [1.0], [0.6])
    model, optimizer, pruner = pruned(model=nn.Sequential(nn.Linear(24, 8)))
    training = SparseTraining(pruner)
    counts = []
    for items in (16, 12, 17, 32, 100):
        train(model, optimizer, items=items)
        counts.append(len(seeds))
    with torch.no_grad():
        model(torch.randn(16, 24))
    assert [*counts, len(seeds)] == [1, 1, 2, 2, 3, 4]
    assert len(training.timings) == 4


def test_a_dense_layer_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = plant_timings(monkeypatch, [1.0], [0.6])
    model, optimizer, pruner = pruned(0.2)
    training = SparseTraining(pruner)
    train(model, optimizer)
    assert (training.sparse_layers, seeds) == ((), [])


def test_timing_leaves_the_random_numbers_as_they_are() -> None:
    states = []
    for sparse in (False, True):
        model, optimizer, pruner = pruned()
        training = SparseTraining(pruner) if sparse else None
        train(model, optimizer)
        assert training is None or len(training.timings) == 3
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.slow
def test_a_compiled_network_is_dense() -> None:
    model, optimizer, pruner = pruned()
    training = SparseTraining(pruner, max_density=1.0)
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    train(compiled, optimizer, steps=2)
    assert training.sparse_layers == ()


@pytest.mark.slow
def test_timing_chooses_sparse_training_for_a_large_sparse_layer() -> None:
    model = nn.Sequential(nn.Linear(1024, 1024))
    pruner = Pruner(
        model, torch.optim.SGD(model.parameters(), lr=0.1), None, score=prunus.RandomScore()
    )
    pruner.prune(sparsity=0.99)
    training = SparseTraining(pruner)
    model(torch.randn(128, 1024)).sum().backward()
    assert training.sparse_layers == ("0",)


def test_functions_on_the_network_see_ordinary_layers() -> None:
    model, optimizer, pruner = pruned(0.9)
    x = torch.randn(8, 24)
    SparseTraining(pruner, max_density=1.0)
    train(model, optimizer)
    expected = model(x)
    small = prunus.compact(model, x)
    torch.testing.assert_close(small(x), expected, rtol=1e-4, atol=1e-5)
    assert {type(each) for each in small.children()} == {nn.Linear, nn.ReLU}
    _, report = prunus.speed_up(model, x, return_report=True)
    assert [layer.name for layer in report.layers] == ["0", "2", "4"]
    assert select(model).keys() == select(network()).keys()


def test_wrong_arguments_are_listed() -> None:
    with pytest.raises(ArgumentTypeError, match="pruner must be a Pruner"):
        SparseTraining(network())  # type: ignore[arg-type]
    _, _, pruner = pruned()
    with pytest.raises(ArgumentError, match="max_density must be from 0 to 1 or None, but is 2"):
        SparseTraining(pruner, max_density=2)


@pytest.mark.parametrize(
    "growth",
    [SoftGrowth(until=10), GradientGrowth(until=10, every=2), RandomGrowth(until=10, every=2)],
    ids=lambda growth: type(growth).__name__,
)
def test_growth_acts_as_in_dense_training(growth: prunus.Growth) -> None:
    finals = []
    for sparse in (False, True):
        model, optimizer, pruner = pruned(growth=growth, schedule=prunus.Schedule())
        training = SparseTraining(pruner, max_density=1.0) if sparse else None
        train(model, optimizer, steps=14)
        assert training is None or training.sparse_layers == ("0", "2", "4")
        assert not pruner.reads_removed_gradients
        finals.append(model.state_dict())
    torch.testing.assert_close(finals[1], finals[0], rtol=1e-3, atol=1e-4)


def test_a_network_without_a_suitable_layer_is_refused() -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.Linear(4, 4).double())
    pruner = Pruner(model, torch.optim.SGD(model.parameters(), lr=0.1), None)
    with pytest.raises(PrunusError, match=r"1: its weight is torch.float64 on cpu"):
        SparseTraining(pruner)


def test_layers_of_another_training_are_refused() -> None:
    model, _, pruner = pruned()
    first = SparseTraining(pruner)
    with pytest.raises(PrunusError, match="0 belongs to another SparseTraining"):
        SparseTraining(pruner)
    first.stop()
    second = SparseTraining(pruner, max_density=1.0)
    model(torch.randn(2, 24))
    assert repr(second) == "SparseTraining(3 of 3 layers sparse)"
