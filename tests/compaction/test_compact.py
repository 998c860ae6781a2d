"""Tests of ``compact``: dead units removed, constants folded, outputs kept."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunus
from helpers.comparisons import assert_outputs_match
from helpers.sparse_models import TiedEmbedding, fill, zero
from prunus import PrunusError, compaction
from prunus.selection import total_parameters

from .through_files import compact

# Modules and their attributes are of any type to a type checker, and so are these.


def compacted(model: Any, example: Any) -> tuple[Any, compaction.CompactionReport]:
    return compaction.compact(model, example, return_report=True)


class Lambda(nn.Module):
    """Layers, and what to do with them and an input."""

    def __init__(self, run: Callable[..., torch.Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.run(self, *inputs)


def test_constants_are_folded_and_unused_neurons_removed() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    fill(model[0].weight, 1, 2, 0, 0, 3, 4, 0, 0)
    fill(model[0].bias, 0.5, 2, 0.25, -1)
    fill(model[2].weight, 1, 10, 0, 100, -1, 20, 0, 100)
    fill(model[2].bias, 1, 2)
    small = compact(model, torch.ones(3, 2))
    # Neuron 1 says relu(2) = 2: it adds 10·2 and 20·2. Neuron 3 says relu(-1) = 0. Nobody reads 2.
    assert small[0].weight.tolist() == [[1, 2]]
    assert small[0].bias.tolist() == [0.5]
    assert small[2].weight.tolist() == [[1], [-1]]
    assert small[2].bias.tolist() == [21, 42]


def test_removals_propagate_backwards_through_layers() -> None:
    model: Any = nn.Sequential(*[nn.Linear(6, 6) for _ in range(4)])
    zero(model[3].weight, slice(None), slice(4, 6))  # nobody reads 4 and 5 of the third
    zero(model[2].weight, slice(0, 4), slice(2, 6))  # and only those read 2 to 5 of the second
    zero(model[1].weight, slice(0, 2), slice(1, 6))
    small = compact(model, torch.ones(2, 6))
    assert [tuple(layer.weight.shape) for layer in small] == [(1, 6), (2, 1), (4, 2), (6, 4)]
    assert_outputs_match(small, model, torch.randn(5, 6))


def test_bias_is_created_only_for_a_non_zero_constant() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2, bias=False))
    zero(model[0].weight, 0)
    fill(model[0].bias, 2, 0, 0)
    fill(model[1].weight, 3, 1, 1, 5, 1, 1)
    small, report = compacted(model, torch.ones(1, 2))
    assert small[1].bias.tolist() == [6, 10]  # 3·2 and 5·2
    assert report.biases == ("1",)
    assert model[1].bias is None
    # A constant that is 0 needs none.
    fill(model[0].bias, 0, 0, 0)
    assert compact(model, torch.ones(1, 2))[1].bias is None


def test_model_without_dead_units_is_copied_unchanged() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    small, report = compacted(model, torch.ones(1, 3))
    assert report.removed == ()
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
    small = compact(model, torch.randn(4, 3, generator=torch.Generator()))
    assert torch.equal(draws, torch.get_rng_state())
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in small.modules())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert small[0].weight.requires_grad
    assert not small[3].weight.requires_grad
    # It is an ordinary model: trained, saved, copied.
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


def test_layer_without_live_units_keeps_one() -> None:
    model: Any = nn.Sequential(
        nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)
    )
    zero(model[2].weight)
    small = compact(model, torch.ones(2, 3))
    assert [tuple(small[i].weight.shape) for i in (0, 2, 4)] == [(1, 3), (1, 1), (2, 1)]
    assert_outputs_match(small, model, torch.randn(5, 3))


def test_constant_model_outputs_are_kept() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
    zero(model[1].weight, 1)
    small = compact(model, torch.ones(1, 3))
    assert small(torch.ones(1, 3)).shape == (1, 3)
    assert_outputs_match(small, model, torch.randn(5, 3))


def test_residual_sums_remove_only_features_constant_in_both_terms() -> None:
    model: Any = Lambda(
        lambda m, x: m.head(m.stem(x) + m.out(torch.relu(m.into(m.stem(x))))),
        stem=nn.Linear(4, 6), into=nn.Linear(6, 8), out=nn.Linear(8, 6), head=nn.Linear(6, 2),
    )  # fmt: skip
    zero(model.stem.weight, slice(0, 3))
    zero(model.out.weight, slice(0, 2))
    # Features 0 and 1 of the sum are constant in both terms. Feature 2 is so in one of them only,
    # and stays; but those of its readers for which it is constant leave it out.
    small = compact(model, torch.ones(2, 4))
    assert small.stem.weight.shape == (4, 4)
    assert small.out.weight.shape == (4, 8)
    assert small.into.weight.shape == (8, 3)
    assert small.head.weight.shape == (2, 4)
    assert_outputs_match(small, model, torch.randn(5, 4))


def test_concatenated_features_are_removed_from_their_own_layer() -> None:
    model: Any = Lambda(
        lambda m, x: m.head(torch.cat([torch.relu(m.one(x)), m.other(x)], dim=1)),
        one=nn.Linear(4, 3), other=nn.Linear(4, 5), head=nn.Linear(8, 2),
    )  # fmt: skip
    zero(model.one.weight, 1)
    zero(model.head.weight, slice(None), slice(5, 7))
    small = compact(model, torch.ones(2, 4))
    assert small.one.weight.shape[0] == 2
    assert small.other.weight.shape[0] == 3
    assert small.head.weight.shape == (2, 5)
    assert_outputs_match(small, model, torch.randn(5, 4))


def test_channels_are_removed_through_flatten_and_constants_folded() -> None:
    model: Any = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(6 * 9, 4),
    )  # fmt: skip
    zero(model[1].weight, slice(0, 2))  # the normalization leaves its bias of channels 0 and 1
    fill(model[1].bias, 0.5, -1, 0, 0, 0, 0)
    zero(model[5].weight, slice(None), slice(45, 54))  # nobody reads any place of channel 5
    zero(model[5].weight, slice(None), slice(36, 40))  # but some place of channel 4
    small = compact(model, torch.randn(2, 1, 8, 8))
    assert small[0].weight.shape == (3, 1, 3, 3)
    assert small[1].num_features == 3
    assert small[5].weight.shape == (4, 27)
    added = 0.5 * model[5].weight[:, :9].sum(1)  # channel 0 says relu(0.5) at 9 places
    torch.testing.assert_close(small[5].bias, model[5].bias + added)
    assert_outputs_match(small, model, torch.randn(2, 1, 8, 8))


def test_constant_is_not_folded_across_zero_padding() -> None:
    def made(padding: int, bias: float) -> Any:
        model: Any = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 2, 3, padding=padding))
        zero(model[0].weight, 0)
        zero(model[0].bias)
        model[0].bias.data[0] = bias
        return model

    for padding, bias, left in ((1, 2.0, 3), (0, 2.0, 2), (1, 0.0, 2)):
        model: Any = made(padding, bias)
        small = compact(model, torch.randn(1, 1, 6, 6))
        assert small[0].weight.shape[0] == left
        assert_outputs_match(small, model, torch.randn(1, 1, 6, 6))


def test_grouped_convolutions_lose_whole_groups_only() -> None:
    model: Any = nn.Sequential(
        nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1, groups=4),
        nn.Conv2d(8, 2, 1),
    )  # fmt: skip
    zero(model[3].weight, slice(None), slice(2, 4))  # nobody reads the second group
    zero(model[2].weight, 5)  # one channel of the third is constant, which is no whole group
    small = compact(model, torch.randn(2, 1, 6, 6))
    assert [small[i].groups for i in (1, 2)] == [6, 3]
    assert [tuple(layer.weight.shape[:2]) for layer in small] == [(6, 1), (6, 1), (6, 2), (2, 6)]
    assert_outputs_match(small, model, torch.randn(2, 1, 6, 6))


def test_layer_norm_keeps_its_features_and_the_next_layer_selects() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 64), nn.LayerNorm(64), nn.Linear(64, 8))
    zero(model[1].weight, slice(0, 40))
    small, report = compacted(model, torch.ones(2, 4))
    assert small[0].weight.shape == (64, 4)
    assert small[2].weight.shape == (8, 24)
    assert report.selecting == ("2",)
    assert report.frozen == ("layer_norm in 1: its statistics hang on every feature",)
    added = model[2].weight[:, :40] @ model[1].bias[:40]
    torch.testing.assert_close(small[2].bias, model[2].bias + added)
    assert_outputs_match(small, model, torch.randn(5, 4))


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_unused_inputs_are_skipped_unless_the_index_costs_more(rank: int) -> None:
    kind: Any = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank]
    model: Any = kind(50, 20) if rank == 0 else kind(50, 20, 1)
    zero(model.weight, slice(None), slice(10, 50))
    x = torch.randn(2, 50, *[3] * rank)
    small, _report = compacted(model, x)
    assert small.weight.shape[:2] == (20, 10)
    assert isinstance(small, kind)
    assert_outputs_match(small, model, x)
    # Where the index would take more than the weights there is none.
    few: Any = kind(50, 2) if rank == 0 else kind(50, 2, 1)
    zero(few.weight, slice(None), slice(0, 3))
    assert compacted(few, x)[1].selecting == ()


def test_module_called_twice_loses_only_units_dead_in_both_calls() -> None:
    model: Any = Lambda(
        lambda m, x: m.head(torch.relu(m.block(torch.relu(m.block(m.stem(x)))))),
        stem=nn.Linear(3, 5), block=nn.Linear(5, 5), head=nn.Linear(5, 2),
    )  # fmt: skip
    for index in (0, 1):
        zero(model.stem.weight, index)
        zero(model.block.weight, index)
    model.stem.bias.data[:2] = torch.tensor([0.0, 3.0])
    model.block.bias.data[:2] = torch.tensor([-1.0, 1.0])
    # Unit 0 is 0 before both calls. Unit 1 is 3 before the first and 1 before the second, and the
    # block has one bias.
    small = compact(model, torch.ones(2, 3))
    assert small.block.weight.shape == (4, 4)
    assert_outputs_match(small, model, torch.randn(5, 3))


class Tied(TiedEmbedding):
    def __init__(self) -> None:
        super().__init__(11, 8)
        self.mix = nn.Linear(8, 8)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        found = self.embed(words)
        mixed: torch.Tensor = self.head(found + self.mix(found))
        return mixed


def test_tied_embeddings_stay_tied() -> None:
    model: Any = Tied()
    zero(model.embed.weight, slice(None), slice(0, 3))
    words = torch.tensor([[0, 10, 4]])
    small = compact(model, words)
    assert small.head.weight is small.embed.weight
    assert small.embed.weight.shape == (11, 5)
    assert small.embed.embedding_dim == 5
    assert small.mix.weight.shape == (5, 5)
    assert_outputs_match(small, model, words)


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
        made: torch.Tensor = self.out(mixed)
        return made


def test_attention_heads_are_removed_whole() -> None:
    model: Any = Heads()
    zero(model.v.weight, slice(4, 8))  # the second head says a constant
    zero(model.out.weight, slice(None), slice(12, 16))  # nobody reads the fourth
    zero(model.out.weight, slice(None), slice(0, 3))  # and little of the first
    small = compact(model, torch.randn(2, 5, 16))
    assert small.h == 2
    for layer in (small.q, small.k, small.v):
        assert layer.weight.shape == (8, 16)
    assert small.out.weight.shape == (16, 5)  # of two heads' 8 features it leaves out 3
    assert_outputs_match(small, model, torch.randn(3, 7, 16))


def test_sizes_hardcoded_in_forward_are_kept() -> None:
    model: Any = nn.Sequential(nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 16), Heads(literal=True))
    zero(model[0].weight, slice(0, 5))
    zero(model[3].v.weight, slice(4, 8))
    small, report = compacted(model, torch.randn(2, 5, 16))
    assert small[0].weight.shape == (15, 16)
    assert small[3].q.weight.shape == (16, 16)
    assert report.frozen == ("view in 3: sizes are written down there as numbers",)
    assert_outputs_match(small, model, torch.randn(2, 5, 16))


class Packed(nn.Module):
    """Queries, keys and values made by one layer, as vision transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 4, 8
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(dim=-1)
        made: torch.Tensor = self.proj((weights @ v).transpose(1, 2).reshape(b, n, -1))
        return made


def test_heads_of_a_packed_projection_are_removed() -> None:
    model: Any = Packed()
    zero(model.proj.weight, slice(None), slice(8, 16))
    small = compact(model, torch.randn(2, 5, 32))
    assert small.num_heads == 3
    assert small.qkv.weight.shape == (72, 32)
    assert small.proj.weight.shape == (32, 24)
    assert_outputs_match(small, model, torch.randn(2, 5, 32))


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_multihead_attention_loses_unused_heads(batch_first: bool, need_weights: bool) -> None:
    attention = nn.MultiheadAttention(16, 4, batch_first=batch_first)
    model: Any = Lambda(lambda m, x: m.a(x, x, x, need_weights=need_weights)[0], a=attention)
    zero(attention.out_proj.weight, slice(None), slice(4, 8))
    x = torch.randn(3, 5, 16)
    small = compact(model, x)
    assert small.a.in_proj_weight.shape == (36, 16)
    assert small.a.num_heads == 3
    assert_outputs_match(small, model, x)
    mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[0, -1] = True
    y = x if batch_first else x.transpose(0, 1)
    options: dict[str, Any] = {"attn_mask": mask, "key_padding_mask": padding}
    for need in (False, True):
        right = attention.eval()(y, y, y, need_weights=need, **options)[0]
        torch.testing.assert_close(small.a(y, y, y, need_weights=need, **options)[0], right)


def test_encoder_layer_loses_dead_neurons_and_heads() -> None:
    model: Any = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    zero(model.linear1.weight, slice(0, 20))
    zero(model.self_attn.out_proj.weight, slice(None), slice(0, 4))
    small = compact(model, torch.randn(2, 5, 16))
    assert small.linear1.weight.shape == (12, 16)
    assert small.self_attn.in_proj_weight.shape == (36, 16)
    assert_outputs_match(small, model, torch.randn(2, 5, 16))


def test_gated_units_are_removed_with_their_gates() -> None:
    for gate in (F.glu, lambda x: x.chunk(2, -1)[0] * torch.sigmoid(x.chunk(2, -1)[1])):
        model: Any = Lambda(
            lambda m, x, gate=gate: m.out(gate(m.into(x))),
            into=nn.Linear(4, 12), out=nn.Linear(6, 2),
        )  # fmt: skip
        zero(model.out.weight, slice(None), slice(0, 2))
        small = compact(model, torch.ones(2, 4))
        assert small.into.weight.shape == (8, 4)
        assert_outputs_match(small, model, torch.randn(5, 4))


def test_factor_of_a_zero_product_is_removed() -> None:
    model: Any = Lambda(lambda m, x: m.out(m.one(x) * m.two(x)), one=nn.Linear(4, 6),
                   two=nn.Linear(4, 6), out=nn.Linear(6, 2))  # fmt: skip
    zero(model.one.weight, slice(0, 2))
    zero(model.one.bias, 0)  # 0 times anything, and a constant times something
    small = compact(model, torch.ones(2, 4))
    assert small.two.weight.shape == (5, 4)
    assert_outputs_match(small, model, torch.randn(5, 4))


def test_position_table_is_not_folded_as_a_constant() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = nn.Linear(3, 4), nn.Linear(4, 2)
            self.table = nn.Parameter(torch.randn(1, 9, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.out(self.into(x) + self.table[:, : x.shape[1]])
            return made

    model: Any = Positions()
    zero(model.into.weight, slice(0, 2))
    zero(model.table, 0, slice(None), 0)
    small = compact(model, torch.ones(2, 1, 3))  # one place only, of which all seem alike
    assert small.into.weight.shape == (3, 3)
    assert small.table.shape == (1, 9, 3)
    assert_outputs_match(small, model, torch.randn(2, 6, 3))


IMAGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "pad": lambda x: F.pad(x, (1, 1, 1, 1)),
    "reflect": lambda x: F.pad(x, (1, 1, 1, 1), "reflect"),
    "average": nn.AdaptiveAvgPool2d(3),
    "maximum": nn.MaxPool2d(3, 2, 1),
    "resize": lambda x: F.interpolate(x, size=(5, 5), mode="bilinear"),
    "instance norm": nn.InstanceNorm2d(8),
    "slopes": nn.PReLU(8),
    "one slope": nn.PReLU(),
    "shuffle": nn.PixelShuffle(2),
    "transposed": nn.ConvTranspose2d(8, 6, 2, stride=2),
    "in place": nn.SiLU(inplace=True),
    "turned": lambda x: x.flip(1).transpose(2, 3),
    "stack": lambda x: torch.stack([x, x * 2], 1).sum(1),
    "two": lambda x: torch.max(x, torch.zeros_like(x)),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
}


@pytest.mark.parametrize("name", IMAGES)
def test_channels_are_removed_through_shape_preserving_operators(name: str) -> None:
    middle = IMAGES[name]
    x = torch.randn(2, 3, 8, 8)
    layers: dict[str, nn.Module] = {"first": nn.Conv2d(3, 8, 3)}
    if isinstance(middle, nn.Module):
        layers["middle"] = middle
    width = middle(layers["first"](x)).shape[1]
    model: Any = Lambda(
        lambda m, x: m.last(middle(m.first(x)) if "middle" not in layers else m.middle(m.first(x))),
        **layers,
        last=nn.Conv2d(width, 4, 1),
    )
    zero(model.first.weight, slice(0, 4))
    zero(model.first.bias, slice(0, 4))
    small, report = compacted(model, x)
    assert report.frozen == ()
    assert small.first.out_channels == 4
    assert_outputs_match(small, model, torch.randn(2, 3, 8, 8))


def test_value_filled_in_place_is_not_folded_as_a_constant() -> None:
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.into(x)
        y[:] = x.sum()
        made: torch.Tensor = m.out(y)
        return made

    model: Any = Lambda(run, into=nn.Linear(3, 4), out=nn.Linear(4, 2))
    assert_outputs_match(compact(model, torch.randn(2, 3)), model, torch.randn(2, 3))


def test_unknown_operators_freeze_their_features() -> None:
    model: Any = Lambda(lambda m, x: m.out(m.rnn(m.into(x))[0]), into=nn.Linear(3, 6),
                   rnn=nn.GRU(6, 5, batch_first=True), out=nn.Linear(5, 2))  # fmt: skip
    zero(model.into.weight, slice(0, 3))
    small, report = compacted(model, torch.randn(2, 4, 3))
    assert report.removed == ()
    assert report.frozen == ("gru in rnn: an operator of which nothing is known",)
    assert_outputs_match(small, model, torch.randn(2, 4, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_floating_point_types_keep_type_and_outputs(dtype: torch.dtype) -> None:
    model: Any = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4, bias=False)).to(dtype)
    zero(model[0].weight, slice(0, 6))
    small, report = compacted(model, torch.randn(2, 8).to(dtype))
    assert small[0].weight.shape == (10, 8)
    assert {parameter.dtype for parameter in small.parameters()} == {dtype}
    if dtype == torch.float64:
        assert report.error < 1e-14
        assert_outputs_match(small, model, torch.randn(5, 8).to(dtype), rtol=5e-13, atol=1e-13)
    loaded = compact(model, torch.randn(2, 8).to(dtype))
    assert loaded[2].bias is not None  # for the constants of the neurons that went
    x = torch.randn(3, 8).to(dtype)
    assert torch.equal(loaded(x), small(x))
    # The constants of the six neurons are rounded once more in the narrow types.
    epsilon = torch.finfo(dtype).eps
    torch.testing.assert_close(loaded(x), model.eval()(x), rtol=4 * epsilon, atol=2 * epsilon)


def test_keyword_arguments_and_integer_inputs_are_supported() -> None:
    class Model(Tied):
        def forward(self, *, words: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(words) * scale

    model: Any = Model()
    zero(model.embed.weight, slice(None), slice(0, 3))
    example = {"words": torch.tensor([[0, 10]]), "scale": torch.tensor(2.0)}
    small = compact(model, example)
    assert small.embed.weight.shape == (11, 5)
    other = {"words": torch.tensor([[3, 0, 7]]), "scale": torch.tensor(-3.0)}
    for inputs in (example, other):
        torch.testing.assert_close(small(**inputs), model(**inputs), rtol=5e-6, atol=1e-6)


def test_torch_prune_parametrization_is_rejected_until_removed() -> None:
    from torch.nn.utils import prune as untyped

    prune: Any = untyped
    model: Any = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    mask = torch.ones(6, 4)
    mask[:2] = 0
    prune.custom_from_mask(model[0], "weight", mask)
    with pytest.raises(PrunusError, match="cannot be copied.*prune.remove"):
        compact(model, torch.ones(1, 4))
    prune.remove(model[0], "weight")
    small = compact(model, torch.ones(1, 4))
    assert small[0].weight.shape == (4, 4)
    assert_outputs_match(small, model, torch.randn(5, 4))


def test_compiled_models_are_unwrapped() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    zero(model[0].weight, slice(0, 2))
    small = compact(torch.compile(model, backend="eager"), torch.ones(1, 4))
    assert isinstance(small, nn.Sequential)
    assert total_parameters(small) == 4 * 5 + 2 * 5
    assert_outputs_match(small, model, torch.randn(5, 4))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return -x
        made: torch.Tensor = self.layer(x)
        return made


ERRORS: dict[str, tuple[Any, Any, str]] = {
    "no module": (
        {"a": 1},
        torch.ones(1),
        r"must be a torch\.nn\.Module, but is \{'a': 1\}: give the network",
    ),
    "no parameters": (nn.ReLU(), torch.ones(1), r"ReLU has no parameters"),
    "no values": (nn.LazyLinear(3), torch.ones(1), r"weight \(not initialized\), bias.*Run the"),
    "no memory": (nn.Linear(2, 2, device="meta"), torch.ones(1), r"weight \(no memory\)"),
    "example": (nn.Linear(3, 3), 7, r"a tensor, a tuple .* or a mapping .*, but is int"),
    "shape": (
        nn.Linear(3, 3),
        torch.ones(2, 5),
        r"Linear itself fails on the example inputs \(float32 of shape \(2, 5\)\): RuntimeError: "
        r"mat1 and mat2 shapes cannot be multiplied",
    ),
    "name": (nn.Linear(3, 3), {"y": torch.ones(3)}, r"\(y=float32 of shape \(3,\)\): TypeError"),
    "branch": (
        Branching(),
        torch.ones(2, 3),
        r"Branching cannot be traced by torch\.export, at .*test_compact\.py:\d+, in forward, "
        r"`if x\.sum\(\) > 0:`: .*torch\.where instead of if",
    ),
    "nothing": (
        Lambda(lambda m, x: None, a=nn.Linear(9, 9)),  # type: ignore[arg-type, return-value]
        torch.ones(2, 9),
        r"Lambda returns no tensors",
    ),
    "empty": (
        nn.Linear(9, 9),
        torch.ones(0, 9),
        r"Linear returns tensors without elements .*\(float32 of shape \(0, 9\)\)",
    ),
    "empty words": (
        nn.Sequential(nn.Embedding(9, 9)),
        torch.ones(2, 0, dtype=torch.int64),
        r"Sequential returns tensors without elements .*\(int64 of shape \(2, 0\)\)",
    ),
    "not finite": (
        nn.Linear(9, 9),
        torch.full((2, 9), torch.nan),
        r"Linear returns nothing finite on the example inputs \(float32 of shape \(2, 9\)\)",
    ),
    "random": (
        Lambda(lambda m, x: F.dropout(m.a(x)), a=nn.Linear(9, 9)),
        torch.ones(2, 9),
        r"Lambda is random in evaluation mode",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_invalid_models_and_examples_are_rejected(case: str) -> None:
    model, example, message = ERRORS[case]
    with pytest.raises(PrunusError, match=message):
        compact(model, example)


def test_compact_model_with_other_outputs_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    from prunus.compaction import check

    model: Any = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    zero(model[0].weight, slice(0, 2))
    monkeypatch.setattr(check, "TOLERANCE", {torch.float32: -1.0})
    with pytest.raises(PrunusError, match="Sequential cannot be made smaller .*: an output .* off"):
        compact(model, torch.ones(2, 4))


def test_inputs_rejected_by_the_model_are_not_used_for_the_check() -> None:
    model: Any = Lambda(
        # Which raises for what is no probability.
        lambda m, x: m.b(torch.relu(m.a(x))) + F.binary_cross_entropy(x, torch.zeros_like(x)),
        a=nn.Linear(4, 6),
        b=nn.Linear(6, 2),
    )
    zero(model.a.weight, 0)
    with pytest.raises(RuntimeError):
        model(-torch.ones(3, 4))
    x = torch.rand(3, 4)
    small = compact(model, x)
    assert small.a.out_features == 5
    assert_outputs_match(small, model, x)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)),
        Lambda(lambda m, x: m.b(torch.relu(m.a(x.mul_(2)))), a=nn.Linear(4, 6), b=nn.Linear(6, 2)),
    ],
)
def test_inputs_written_to_by_the_model_are_restored(model: Any) -> None:
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Linear))
    zero(first.weight, 0)
    example = torch.randn(3, 4)
    before = example.clone()
    small = compact(model, example)
    assert torch.equal(example, before)
    assert [p.shape for p in small.parameters()] == [(5, 4), (5,), (2, 5), (2,)]
    torch.testing.assert_close(small(before.clone()), model(before.clone()))


def test_empty_input_does_not_prevent_compaction() -> None:
    model: Any = Lambda(
        lambda m, x, more: m.b(torch.relu(m.a(torch.cat([x, more], 1)))),
        a=nn.Linear(4, 6),
        b=nn.Linear(6, 2),
    )
    zero(model.a.weight, 0)
    small = compact(model, (torch.randn(3, 5, 4), torch.randn(3, 0, 4)))
    assert small.a.out_features == 5
    assert_outputs_match(small, model, torch.randn(3, 5, 4), torch.randn(3, 2, 4))


def test_compact_model_shares_no_memory_with_the_original() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    small = compact(model, torch.ones(2, 4))
    kept = copy.deepcopy(model.state_dict())
    zero(small[0].weight)
    assert torch.equal(model[0].weight, kept["0.weight"])


def test_files_of_other_models_are_rejected(tmp_path: Path) -> None:
    model: Any = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    zero(model[0].weight, slice(0, 2))
    path = tmp_path / "model.safetensors"
    small, report = compacted(model, torch.ones(2, 4))
    compaction.save_compact(small, report, path, metadata={"recipe": "mine"})
    with prunus.SparseFile(path) as file:
        assert file.metadata()["recipe"] == "mine"
    for other, message in {
        nn.Sequential(nn.Linear(4, 6), nn.ReLU()): "does not fit Sequential, which must be built",
        nn.Sequential(
            nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Linear(6, 2)
        ): "0 has no number out_features",
        nn.Linear(4, 6): "does not fit Linear",
    }.items():
        with pytest.raises(PrunusError, match=message):
            compaction.load_compact(path, other)
    with pytest.raises(PrunusError, match=r"rounded: load first and convert the model then$"):
        compaction.load_compact(path, copy.deepcopy(model).bfloat16())
    prunus.save_sparse(model, path)
    with pytest.raises(PrunusError, match=r"is not the file of a compact model: .*load_sparse"):
        compaction.load_compact(path, model)
    with pytest.raises(PrunusError, match="there is no file"):
        compaction.load_compact(tmp_path / "no", model)


UNCHANGED: dict[str, Any] = {"kinds": {}, "sizes": {}, "biases": [], "shapes": {}}


@pytest.mark.parametrize(
    "held",
    [
        7,
        {},
        {"kinds": {"0": "Sequential"}},
        {"sizes": {"0": {"in_features": -1}}},
        {"sizes": {"0": {"in_features": "3"}}},
        {"sizes": {"0": 3}},
        {"biases": [3]},
        {"biases": None},
        {"kinds": [1]},
        {"shapes": {"0.weight": 3}},
        {"shapes": None},
    ],
)
def test_invalid_metadata_is_rejected(held: Any, tmp_path: Path) -> None:
    model: Any = nn.Sequential(nn.Linear(4, 6))
    if held:
        held = UNCHANGED | held if isinstance(held, dict) else held
    prunus.save_sparse(model, tmp_path / "a", metadata={"compact": held})
    with pytest.raises(prunus.SparseFileError, match="metadata do not describe a compact model"):
        compaction.load_compact(tmp_path / "a", model)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"kinds": {"1": "SelectingLinear"}}, "1 is a ReLU, not a Linear"),
        ({"kinds": {"7": "SelectingLinear"}}, "no attribute"),
        ({"kinds": {"0": "SelectingLinear"}}, "selected"),  # which is not in the file
        ({"sizes": {"0": {"forward": 3}}}, "0 has no number forward"),
        ({"sizes": {"0": {"width": 3}}}, "0 has no number width"),
        ({"biases": ["7"]}, "no attribute"),
        ({"biases": ["0"]}, "0 is no layer that has room for a bias and none in it"),
        ({"biases": ["1"]}, "1 is no layer that has room for a bias and none in it"),
    ],
)
def test_metadata_may_change_only_what_compaction_changes(
    held: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model: Any = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
    prunus.save_sparse(model, tmp_path / "a", metadata={"compact": UNCHANGED | held})
    with pytest.raises(PrunusError, match=message):
        compaction.load_compact(tmp_path / "a", model)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize(
    "selected",
    [torch.tensor([0, 4]), torch.tensor([-1, 0]), torch.tensor([0]), torch.tensor([[0, 1]])],
)  # fmt: skip
def test_selected_features_out_of_range_are_rejected(
    selected: torch.Tensor, tmp_path: Path
) -> None:
    state = {"0.weight": torch.ones(6, 2), "0.bias": torch.ones(6), "0.selected": selected}
    held = UNCHANGED | {"kinds": {"0": "SelectingLinear"}, "shapes": {"0.weight": [6, 4]}}
    prunus.save_sparse(state, tmp_path / "a", metadata={"compact": held})
    model: Any = nn.Sequential(nn.Linear(4, 6))
    with pytest.raises(PrunusError, match=r"0\.selected are no numbers of features"):
        compaction.load_compact(tmp_path / "a", model)
    state["0.selected"] = torch.tensor([1, 3])
    prunus.save_sparse(state, tmp_path / "a", metadata={"compact": held})
    wrapped: Any = torch.compile(model, backend="eager")
    loaded = compaction.load_compact(tmp_path / "a", wrapped)
    # Weights and biases are ones: 1 + 2 of the features selected, and the bias.
    assert loaded(torch.tensor([[5.0, 1.0, 7.0, 2.0]])).tolist() == [[1 + 2 + 1] * 6]


def test_attributes_changed_by_a_call_are_not_recorded_as_sizes(tmp_path: Path) -> None:
    class Counting(nn.Sequential):
        calls = 0
        longest = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls, self.longest = self.calls + 1, len(x)
            made: torch.Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return made

    model: Any = Counting(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    zero(model[0].weight, slice(0, 2))
    compact(model, torch.ones(2, 4))
    assert not {"calls", "longest"} & compacted(model, torch.ones(2, 4))[1].sizes.get("", {}).keys()


def test_smaller_non_persistent_buffer_is_rejected_by_name(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        scale: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(4, 6), nn.Linear(6, 2)
            self.register_buffer("scale", torch.ones(6), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.other(torch.relu(self.one(x)) * self.scale)  # type: ignore[no-any-return]

    model: Any = Scaled()
    zero(model.one.weight, slice(0, 2))
    zero(model.one.bias, slice(0, 2))
    small, report = compacted(model, torch.ones(2, 4))
    assert "scale" in [removed.name for removed in report.removed]
    with pytest.raises(PrunusError, match="scale became smaller.*persistent=True"):
        compaction.save_compact(small, report, tmp_path / "a")
