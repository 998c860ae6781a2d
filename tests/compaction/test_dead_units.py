"""Tests of ``compact``: dead neurons and channels are removed, constants are folded."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

from helpers.comparisons import assert_outputs_match
from helpers.sparse_models import fill, zero

from .networks import FunctionalModel, TiedModel
from .round_trips import compact_and_reload, compact_with_report


def test_constants_are_folded_and_unused_neurons_removed() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    fill(model[0].weight, 1, 2, 0, 0, 3, 4, 0, 0)
    fill(model[0].bias, 0.5, 2, 0.25, -1)
    fill(model[2].weight, 1, 10, 0, 100, -1, 20, 0, 100)
    fill(model[2].bias, 1, 2)
    small = compact_and_reload(model, torch.ones(3, 2))
    # Neuron 1 outputs relu(2) = 2, which adds 10·2 and 20·2. Neuron 3 outputs relu(-1) = 0. No
    # weight reads neuron 2.
    assert small[0].weight.tolist() == [[1, 2]]
    assert small[0].bias.tolist() == [0.5]
    assert small[2].weight.tolist() == [[1], [-1]]
    assert small[2].bias.tolist() == [21, 42]


@pytest.mark.slow
def test_removals_propagate_backwards_through_layers() -> None:
    model: Any = nn.Sequential(*[nn.Linear(6, 6) for _ in range(4)])
    # Layer 3 reads neurons 0 to 3 of layer 2, these read 0 and 1 of layer 1, these 0 of layer 0.
    zero(model[3].weight, slice(None), slice(4, 6))
    zero(model[2].weight, slice(0, 4), slice(2, 6))
    zero(model[1].weight, slice(0, 2), slice(1, 6))
    small = compact_and_reload(model, torch.ones(2, 6))
    assert [tuple(layer.weight.shape) for layer in small] == [(1, 6), (2, 1), (4, 2), (6, 4)]
    assert_outputs_match(small, model, torch.randn(5, 6))


def test_bias_is_created_only_for_a_non_zero_constant() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2, bias=False))
    zero(model[0].weight, 0)
    fill(model[0].bias, 2, 0, 0)
    fill(model[1].weight, 3, 1, 1, 5, 1, 1)
    small, report = compact_with_report(model, torch.ones(1, 2))
    assert small[1].bias.tolist() == [6, 10]  # 3·2 and 5·2
    assert report.new_biases == ("1",)
    assert model[1].bias is None
    # A constant of 0 needs no bias.
    fill(model[0].bias, 0, 0, 0)
    assert compact_and_reload(model, torch.ones(1, 2))[1].bias is None


def test_model_without_dead_units_is_copied_unchanged() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    small, report = compact_with_report(model, torch.ones(1, 3))
    assert report.resized == ()
    assert report.parameters == report.parameters_before
    assert small is not model
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, small.state_dict()[name])


def test_original_model_is_unchanged_and_copy_can_be_trained_and_saved() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    model.train()
    model[3].weight.requires_grad_(False)
    zero(model[0].weight, slice(0, 3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    draws = torch.get_rng_state()
    small = compact_and_reload(model, torch.randn(4, 3, generator=torch.Generator()))
    assert torch.equal(draws, torch.get_rng_state())
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in small.modules())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert small[0].weight.requires_grad
    assert not small[3].weight.requires_grad
    # The copy is an ordinary model that can be trained and saved.
    small.train()
    small(torch.randn(4, 3)).sum().backward()
    assert small[0].weight.grad.shape == (1, 3)
    assert small[0].weight.grad.count_nonzero() > 0
    again = torch.load(io.BytesIO(pickled(small)), weights_only=False)
    assert_outputs_match(again.eval(), small, torch.randn(2, 3))


def pickled(model: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    return buffer.getvalue()


@pytest.mark.slow
def test_layer_without_live_units_keeps_one() -> None:
    model: Any = nn.Sequential(
        nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)
    )
    zero(model[2].weight)
    small = compact_and_reload(model, torch.ones(2, 3))
    assert [tuple(small[i].weight.shape) for i in (0, 2, 4)] == [(1, 3), (1, 1), (2, 1)]
    assert_outputs_match(small, model, torch.randn(5, 3))


def test_constant_model_outputs_are_kept() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
    zero(model[1].weight, 1)
    small = compact_and_reload(model, torch.ones(1, 3))
    assert small(torch.ones(1, 3)).shape == (1, 3)
    assert_outputs_match(small, model, torch.randn(5, 3))


def test_residual_sums_remove_only_features_constant_in_both_terms() -> None:
    model: Any = FunctionalModel(
        lambda m, x: m.head(m.stem(x) + m.out(torch.relu(m.into(m.stem(x))))),
        stem=nn.Linear(4, 6), into=nn.Linear(6, 8), out=nn.Linear(8, 6), head=nn.Linear(6, 2),
    )  # fmt: skip
    zero(model.stem.weight, slice(0, 3))
    zero(model.out.weight, slice(0, 2))
    # Features 0 and 1 of the sum are constant in both terms. Feature 2 is constant in one term only
    # and is kept, but `into` reads it before the sum and skips it.
    small = compact_and_reload(model, torch.ones(2, 4))
    assert small.stem.weight.shape == (4, 4)
    assert small.out.weight.shape == (4, 8)
    assert small.into.weight.shape == (8, 3)
    assert small.head.weight.shape == (2, 4)
    assert_outputs_match(small, model, torch.randn(5, 4))


def test_concatenated_features_are_removed_from_their_own_layer() -> None:
    model: Any = FunctionalModel(
        lambda m, x: m.head(torch.cat([torch.relu(m.one(x)), m.other(x)], dim=1)),
        one=nn.Linear(4, 3), other=nn.Linear(4, 5), head=nn.Linear(8, 2),
    )  # fmt: skip
    zero(model.one.weight, 1)
    zero(model.head.weight, slice(None), slice(5, 7))
    small = compact_and_reload(model, torch.ones(2, 4))
    assert small.one.weight.shape[0] == 2
    assert small.other.weight.shape[0] == 3
    assert small.head.weight.shape == (2, 5)
    assert_outputs_match(small, model, torch.randn(5, 4))


def test_channels_are_removed_through_flatten_and_constants_folded() -> None:
    model: Any = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(6 * 9, 4),
    )  # fmt: skip
    zero(model[1].weight, slice(0, 2))  # channels 0 and 1 are their biases only
    fill(model[1].bias, 0.5, -1, 0, 0, 0, 0)
    zero(model[5].weight, slice(None), slice(45, 54))  # no weights from any position of channel 5
    zero(model[5].weight, slice(None), slice(36, 40))  # but from some positions of channel 4
    small = compact_and_reload(model, torch.randn(2, 1, 8, 8))
    assert small[0].weight.shape == (3, 1, 3, 3)
    assert small[1].num_features == 3
    assert small[5].weight.shape == (4, 27)
    added = 0.5 * model[5].weight[:, :9].sum(1)  # channel 0 is relu(0.5) at 9 positions
    torch.testing.assert_close(small[5].bias, model[5].bias + added)
    assert_outputs_match(small, model, torch.randn(2, 1, 8, 8))


@pytest.mark.slow
def test_constant_is_not_folded_across_zero_padding() -> None:
    def build(padding: int, bias: float) -> Any:
        model: Any = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 2, 3, padding=padding))
        zero(model[0].weight, 0)
        zero(model[0].bias)
        model[0].bias.data[0] = bias
        return model

    for padding, bias, channels in ((1, 2.0, 3), (0, 2.0, 2), (1, 0.0, 2)):
        model: Any = build(padding, bias)
        small = compact_and_reload(model, torch.randn(1, 1, 6, 6))
        assert small[0].weight.shape[0] == channels
        assert_outputs_match(small, model, torch.randn(1, 1, 6, 6))


@pytest.mark.slow
def test_grouped_convolutions_lose_whole_groups_only() -> None:
    model: Any = nn.Sequential(
        nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1, groups=4),
        nn.Conv2d(8, 2, 1),
    )  # fmt: skip
    zero(model[3].weight, slice(None), slice(2, 4))  # no weights from the second group
    zero(model[2].weight, 5)  # a constant channel, but not a whole group
    small = compact_and_reload(model, torch.randn(2, 1, 6, 6))
    assert [small[i].groups for i in (1, 2)] == [6, 3]
    assert [tuple(layer.weight.shape[:2]) for layer in small] == [(6, 1), (6, 1), (6, 2), (2, 6)]
    assert_outputs_match(small, model, torch.randn(2, 1, 6, 6))


@pytest.mark.slow
def test_layer_norm_keeps_its_features_and_the_next_layer_selects() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 64), nn.LayerNorm(64), nn.Linear(64, 8))
    zero(model[1].weight, slice(0, 40))
    small, report = compact_with_report(model, torch.ones(2, 4))
    assert small[0].weight.shape == (64, 4)
    assert small[2].weight.shape == (8, 24)
    assert report.selecting_layers == ("2",)
    assert report.protected == ("layer_norm in 1: its statistics depend on every feature",)
    added = model[2].weight[:, :40] @ model[1].bias[:40]
    torch.testing.assert_close(small[2].bias, model[2].bias + added)
    assert_outputs_match(small, model, torch.randn(5, 4))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_unused_inputs_are_skipped_unless_the_index_costs_more(rank: int) -> None:
    layer_type: Any = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank]
    model: Any = layer_type(50, 20) if rank == 0 else layer_type(50, 20, 1)
    zero(model.weight, slice(None), slice(10, 50))
    x = torch.randn(2, 50, *[3] * rank)
    small, _report = compact_with_report(model, x)
    assert small.weight.shape[:2] == (20, 10)
    assert isinstance(small, layer_type)
    assert_outputs_match(small, model, x)
    # No selection where the index would take more memory than the weights.
    few: Any = layer_type(50, 2) if rank == 0 else layer_type(50, 2, 1)
    zero(few.weight, slice(None), slice(0, 3))
    assert compact_with_report(few, x)[1].selecting_layers == ()


def test_module_called_twice_loses_only_units_dead_in_both_calls() -> None:
    model: Any = FunctionalModel(
        lambda m, x: m.head(torch.relu(m.block(torch.relu(m.block(m.stem(x)))))),
        stem=nn.Linear(3, 5), block=nn.Linear(5, 5), head=nn.Linear(5, 2),
    )  # fmt: skip
    for index in (0, 1):
        zero(model.stem.weight, index)
        zero(model.block.weight, index)
    model.stem.bias.data[:2] = torch.tensor([0.0, 3.0])
    model.block.bias.data[:2] = torch.tensor([-1.0, 1.0])
    # Unit 0 is 0 before both calls. Unit 1 is 3 before the first call and 1 before the second, but
    # the block has only one bias.
    small = compact_and_reload(model, torch.ones(2, 3))
    assert small.block.weight.shape == (4, 4)
    assert_outputs_match(small, model, torch.randn(5, 3))


def test_tied_embeddings_stay_tied() -> None:
    model: Any = TiedModel()
    zero(model.embed.weight, slice(None), slice(0, 3))
    tokens = torch.tensor([[0, 10, 4]])
    small = compact_and_reload(model, tokens)
    assert small.head.weight is small.embed.weight
    assert small.embed.weight.shape == (11, 5)
    assert small.embed.embedding_dim == 5
    assert small.mix.weight.shape == (5, 5)
    assert_outputs_match(small, model, tokens)


def test_position_table_is_not_folded_as_a_constant() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = nn.Linear(3, 4), nn.Linear(4, 2)
            self.table = nn.Parameter(torch.randn(1, 9, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.out(self.into(x) + self.table[:, : x.shape[1]])
            return output

    model: Any = Positions()
    zero(model.into.weight, slice(0, 2))
    zero(model.table, 0, slice(None), 0)
    # With a single position in the example, each column of the table looks constant.
    small = compact_and_reload(model, torch.ones(2, 1, 3))
    assert small.into.weight.shape == (3, 3)
    assert small.table.shape == (1, 9, 3)
    assert_outputs_match(small, model, torch.randn(2, 6, 3))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_floating_point_types_keep_type_and_outputs(dtype: torch.dtype) -> None:
    model: Any = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4, bias=False)).to(dtype)
    zero(model[0].weight, slice(0, 6))
    small, report = compact_with_report(model, torch.randn(2, 8).to(dtype))
    assert small[0].weight.shape == (10, 8)
    assert {parameter.dtype for parameter in small.parameters()} == {dtype}
    if dtype == torch.float64:
        assert report.error < 1e-14
        assert_outputs_match(small, model, torch.randn(5, 8).to(dtype), rtol=5e-13, atol=1e-13)
    loaded = compact_and_reload(model, torch.randn(2, 8).to(dtype))
    assert loaded[2].bias is not None  # for the constants of the removed neurons
    x = torch.randn(3, 8).to(dtype)
    assert torch.equal(loaded(x), small(x))
    # The constants of the six neurons are rounded once more in the narrow types.
    epsilon = torch.finfo(dtype).eps
    torch.testing.assert_close(loaded(x), model.eval()(x), rtol=4 * epsilon, atol=2 * epsilon)
