"""The selection of tensors, from every type of layer."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from prunus import ArgumentError, ArgumentTypeError, PrunusError, Selection, select
from prunus.selection import as_selection, nonzero_parameters, total_parameters

LAYERS: dict[str, tuple[nn.Module, list[str]]] = {
    "Linear": (nn.Linear(3, 2), ["weight"]),
    "Conv1d": (nn.Conv1d(2, 3, 3), ["weight"]),
    "Conv2d": (nn.Conv2d(2, 3, 3), ["weight"]),
    "Conv3d": (nn.Conv3d(2, 3, 3), ["weight"]),
    "ConvTranspose2d": (nn.ConvTranspose2d(2, 3, 3), ["weight"]),
    "Embedding": (nn.Embedding(5, 2), ["weight"]),
    "EmbeddingBag": (nn.EmbeddingBag(5, 2), ["weight"]),
    "Bilinear": (nn.Bilinear(2, 3, 2), ["weight"]),
    "MultiheadAttention": (nn.MultiheadAttention(4, 2), ["in_proj_weight", "out_proj.weight"]),
    "MultiheadAttention, other widths": (
        nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
        ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"],
    ),
    "LSTM": (
        nn.LSTM(3, 2, proj_size=1),
        ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"],
    ),
    "GRU, two layers": (
        nn.GRU(3, 2, num_layers=2),
        ["weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1"],
    ),
    "GRUCell": (nn.GRUCell(3, 2), ["weight_ih", "weight_hh"]),
}


@pytest.mark.parametrize(("module", "names"), LAYERS.values(), ids=LAYERS)
def test_the_default_selection_is_every_weight(module: nn.Module, names: list[str]) -> None:
    assert list(select(module)) == names
    every = [name for name, _ in module.named_parameters()]
    assert list(select(module, biases=True)) == every


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(3), nn.LayerNorm(3), nn.GroupNorm(1, 3), nn.RMSNorm(3)]
)
def test_norms_are_selected_only_on_request(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), norm)
    assert list(select(model, biases=True)) == ["0.weight"]
    assert list(select(model, norms=True)) == ["0.weight", "1.weight"]
    every = [name for name, _ in model.named_parameters()]
    assert list(select(model, norms=True, biases=True)) == every


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(4, 3))
        self.slope = nn.PReLU()
        self.layer = nn.Linear(3, 3)


@pytest.mark.filterwarnings("ignore:.* are left out of the selection")
def test_bare_parameters_are_selected_by_name_only() -> None:
    assert list(select(Bare())) == ["layer.weight"]
    assert list(select(Bare(), ["position", "layer"])) == ["position", "layer.weight"]
    assert list(select(Bare(), "*")) == [name for name, _ in Bare().named_parameters()]
    chosen = select(Bare(), lambda name, tensor, module: isinstance(module, Bare))
    assert list(chosen) == ["position"]


def test_include_and_exclude_patterns_decide_what_is_selected() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Conv1d(2, 2, 1)))
    assert list(select(model, "1")) == ["1.0.weight", "1.1.weight"]
    assert list(select(model, "1.*", biases=True)) == [
        "1.0.weight",
        "1.0.bias",
        "1.1.weight",
        "1.1.bias",
    ]
    assert list(select(model, nn.Conv1d)) == ["1.1.weight"]
    assert list(select(model, exclude=nn.Conv1d)) == ["0.weight", "1.0.weight"]
    assert list(select(model, ["0.bias", "1.0"])) == ["0.bias", "1.0.weight"]
    assert list(select(model, exclude=lambda name, tensor, module: name.startswith("1"))) == [
        "0.weight"
    ]
    assert list(select(model, "1", exclude="*.1")) == ["1.0.weight"]


def test_a_tied_tensor_is_one_target() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(6, 4, padding_idx=2), "head": nn.Linear(4, 6)})
    model["head"].weight = model["embed"].weight
    selection = select(model)
    assert list(selection) == ["embed.weight"]
    assert selection["embed.weight"].aliases == ("head.weight",)
    assert selection["embed.weight"].padding_row == 2
    assert selection.prunable == 20
    assert list(select(model, "head")) == ["embed.weight"]
    with pytest.raises(PrunusError, match="no tensors left"):
        select(model, exclude="head")


@pytest.mark.filterwarnings("ignore:.* are left out of the selection")
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch, of the older functions
def test_older_parametrizations_are_left_out_too() -> None:
    model = nn.Sequential(
        nn.Linear(3, 3),
        torch.nn.utils.weight_norm(nn.Linear(3, 3)),
        torch.nn.utils.spectral_norm(nn.Linear(3, 3)),
    )
    assert list(select(model)) == ["0.weight"]
    assert list(select(model, "1.weight_g")) == ["1.weight_g"]
    assert list(select(model, "2.weight_orig")) == ["2.weight_orig"]


def test_a_module_used_twice_in_one_parent_has_both_names() -> None:
    layer = nn.Linear(3, 3)
    selection = select(nn.Sequential(layer, nn.ReLU(), layer))
    assert selection["0.weight"].aliases == ("2.weight",)
    with pytest.raises(PrunusError, match="no tensors left"):
        select(nn.Sequential(layer, nn.ReLU(), layer), exclude="2")


def test_a_module_used_twice_is_taken_once() -> None:
    layer = nn.Linear(3, 3)
    assert list(select(nn.ModuleDict({"a": layer, "b": nn.Sequential(layer)}))) == ["a.weight"]


@pytest.mark.filterwarnings("ignore:.* are left out of the selection")
@pytest.mark.parametrize("wrap", [weight_norm, spectral_norm])
def test_parametrized_layers_are_left_out_unless_named(wrap: object) -> None:
    model = nn.Sequential(nn.Linear(3, 3), wrap(nn.Linear(3, 3)))  # type: ignore[operator]
    assert list(select(model)) == ["0.weight"]
    with pytest.raises(PrunusError, match="the weights of 0 are computed by parametrizations"):
        select(nn.Sequential(model[1]))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch, of the older function
def test_the_direction_of_a_weight_norm_is_rejected() -> None:
    model = nn.ModuleDict(
        {
            "new": weight_norm(nn.Linear(3, 3)),
            "old": torch.nn.utils.weight_norm(nn.Conv1d(3, 3, 1)),
            "last": nn.Linear(3, 3),
        }
    )
    direction = "new.parametrizations.weight.original1"
    message = (
        f"{direction} is the direction of a weight norm, which is NaN where all weights of a row "
        "are removed \\(remove the weight norm first, by .*remove_parametrizations or .*; "
        "old.weight_v is the direction"
    )
    with pytest.raises(PrunusError, match=message):
        select(model, "*")
    # The scales of the rows may be pruned, and so may the weight once it is one again.
    assert len(select(model, "*", exclude=[direction, "old.weight_v"])) == 6
    torch.nn.utils.parametrize.remove_parametrizations(model["new"], "weight")
    torch.nn.utils.remove_weight_norm(model["old"])
    assert list(select(model)) == ["new.weight", "old.weight", "last.weight"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler warns of its own matters
def test_compiled_names_are_the_inner_ones() -> None:
    assert list(select(torch.compile(nn.Linear(2, 2)))) == ["weight"]  # type: ignore[arg-type]


def test_patterns_without_a_match_are_all_named_with_the_nearest_names() -> None:
    model = nn.Sequential()
    model.add_module("encoder", nn.Linear(2, 2))
    model.add_module("decoder", nn.Linear(2, 2))
    with pytest.raises(PrunusError) as caught:
        select(model, ["encoder", "encodr.*"], exclude=[nn.Conv2d, lambda *_: False])
    message = str(caught.value)
    assert "include='encodr.*' (nearest names: encoder" in message
    assert "exclude=Conv2d (types here: Linear, Sequential)" in message
    assert "(false for every tensor)" in message
    assert "include='encoder'" not in message


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_unusable_tensors_are_all_named_with_a_fix() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(0, 2), nn.LazyLinear(3))
    model[1].weight.requires_grad_(False)
    model.append(nn.Linear(2, 2, device="meta"))
    model.append(nn.Linear(2, 2).to(torch.float8_e4m3fn))
    with torch.inference_mode():
        model.append(nn.Linear(2, 2))
    with pytest.raises(PrunusError) as caught:
        select(model)
    message = str(caught.value)
    assert "0.weight" not in message
    assert "1.weight is frozen" in message
    assert "2.weight is empty, of shape (2, 0)" in message
    assert "3.weight is not initialized yet" in message
    assert "4.weight is on the meta device" in message
    assert "5.weight is of type torch.float8_e4m3fn, too narrow" in message
    assert "6.weight was created under torch.inference_mode()" in message
    fixed = select(model, exclude=lambda name, tensor, module: not name.startswith("0"))
    assert list(fixed) == ["0.weight"]


def test_an_empty_selection_is_rejected() -> None:
    with pytest.raises(
        PrunusError, match="ReLU has no tensors left to prune.*no parameters at all"
    ):
        select(nn.ReLU())
    with pytest.raises(PrunusError, match=r"its tensors are weight \(norm\), bias \(norm\)"):
        select(nn.LayerNorm(3))


@pytest.mark.parametrize("several", [{"0.weight": 1}.keys(), frozenset(["0.weight"]), deque(["0"])])
def test_patterns_may_come_in_any_collection(several: Any) -> None:
    assert list(select(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), several)) == ["0.weight"]


def test_a_pattern_that_is_no_string_is_rejected() -> None:
    with pytest.raises(PrunusError, match="each pattern of include must be a glob.*but is 3"):
        select(nn.Linear(2, 2), [3])  # type: ignore[list-item]
    with pytest.raises(
        PrunusError, match="each pattern of include must be a glob.*but is b'weight'"
    ):
        select(nn.Linear(2, 2), b"weight")  # type: ignore[arg-type]
    with pytest.raises(
        PrunusError, match=r"each pattern of include must be a glob.*but is Linear\(in_features=2"
    ):
        select(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2))
    with pytest.raises(PrunusError, match="each pattern of include must be a glob.*but is 3"):
        select(nn.Linear(2, 2), 3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="each pattern of exclude must be a glob.*but is 3, 4$"):
        select(nn.Linear(2, 2), exclude=[3, 4])  # type: ignore[list-item]


class IterablePredicate(list[str]):
    """A predicate that can also be iterated over."""

    def __call__(self, name: str, tensor: nn.Parameter, module: nn.Module) -> bool:
        return name == "1.weight"


def test_a_predicate_receives_name_tensor_and_module() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Conv1d(2, 2, 1), nn.Linear(2, 2))
    assert list(select(model, lambda name, tensor, module: tensor.dim() == 3)) == ["1.weight"]
    assert list(select(model, lambda name, tensor, module: module is model[2])) == ["2.weight"]
    assert list(select(model, IterablePredicate(["0.weight"]))) == ["1.weight"]


@pytest.mark.filterwarnings("ignore:.* are left out of the selection")
def test_bare_parameters_are_not_selected_by_the_name_of_their_module() -> None:
    assert list(select(nn.Sequential(Bare()), "0")) == ["0.layer.weight"]


def test_only_the_last_part_of_a_name_decides_that_a_tensor_is_a_bias() -> None:
    model = nn.Module()
    model.add_module("bias_block", nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
    weights = ["bias_block.0.weight", "bias_block.1.weight"]
    assert list(select(model, norms=True)) == weights
    nested = nn.Sequential()
    nested.add_module("block", model)
    assert list(select(nested, norms=True)) == [f"block.{name}" for name in weights]


def test_tensors_after_an_excluded_one_are_selected() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert list(select(model, exclude="0")) == ["1.weight"]


def test_a_tensor_with_two_names_in_one_module_is_one_target() -> None:
    layer: Any = nn.Linear(2, 2, bias=False)
    layer.register_parameter("weight_again", layer.weight)
    selection = select(layer)
    assert list(selection) == ["weight"]
    assert selection["weight"].aliases == ("weight_again",)


@pytest.mark.filterwarnings("ignore:.* are left out of the selection")
@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch deprecates the function
def test_older_parametrizations_of_names_with_underscores_are_left_out() -> None:
    recurrent = torch.nn.utils.weight_norm(nn.LSTM(3, 2), "weight_hh_l0")
    assert list(select(recurrent)) == ["weight_ih_l0"]


def test_the_nearest_names_are_suggested_or_else_the_first_three() -> None:
    model = nn.Sequential()
    for name in ("encoder", "middle", "decoder"):
        model.add_module(name, nn.Linear(2, 2, bias=False))
    with pytest.raises(PrunusError, match=r"include='decodr' \(nearest names: decoder, "):
        select(model, "decodr")
    first = r"include='\?\?\?' \(nearest names: encoder, encoder.weight, middle\)$"
    with pytest.raises(PrunusError, match=first):
        select(model, "???")


def test_whole_numbers_are_rejected_and_16_bit_floats_accepted() -> None:
    layer = nn.Linear(2, 2).bfloat16()
    assert list(select(layer)) == ["weight"]
    layer.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(PrunusError, match=r"weight is of type torch.int8, not floating point\."):
        select(layer)


def test_an_empty_selection_lists_parametrized_modules_and_twenty_tensors() -> None:
    with pytest.raises(
        PrunusError,
        match="^Sequential has no tensors left to prune: the weights of 0 are computed by "
        "parametrizations; its tensors are 0.bias ",
    ):
        select(nn.Sequential(weight_norm(nn.Linear(3, 3))))
    many = nn.ParameterList(nn.Parameter(torch.ones(1)) for _ in range(21))
    with pytest.raises(PrunusError, match=r"its tensors are 0 \(other\), .*19 \(other\); widen"):
        select(many)


def test_tied_parameters_are_counted_once() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2, bias=False))
    model.append(nn.Linear(2, 3, bias=False))
    model[2].weight = model[0].weight
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, -3.0]]))
        model[0].bias.copy_(torch.tensor([0.0, 5.0, 0.0]))
        model[1].weight.fill_(1.0)
    assert total_parameters(model) == 6 + 3 + 6
    assert nonzero_parameters(model) == 3 + 1 + 6


def test_as_selection_accepts_a_selection_a_function_or_none() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    selection = select(model, "1")
    assert as_selection(selection, model) is selection
    assert list(as_selection(None, model)) == ["0.weight", "1.weight"]

    def first_layer(network: nn.Module) -> Selection:
        assert network is model
        return select(network, "0")

    assert list(as_selection(first_layer, model)) == ["0.weight"]


def test_a_function_that_returns_no_selection_is_rejected() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    functions: list[Any] = [lambda _: None, lambda m: list(m.parameters()), lambda _: Selection]
    results = ("None", "of type list", "the class Selection")
    for function, result in zip(functions, results, strict=True):
        message = (
            r"^the result of selection\(model\) must be a Selection, but is "
            rf"{result}: return prunus\.select\(model, \.\.\.\)$"
        )
        with pytest.raises(ArgumentTypeError, match=message):
            as_selection(function, model)


def test_a_model_that_is_no_module_is_rejected() -> None:
    for thing in (None, nn.Linear, [nn.Linear(2, 2)], nn.Linear(2, 2).state_dict()):
        with pytest.raises(
            PrunusError, match=r"model must be a torch\.nn\.Module, but is .*itself"
        ):
            select(thing)  # type: ignore[arg-type]


class StackedExperts(nn.Module):
    """The matrices of four experts in one parameter each, as in mixtures of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.ones(4, 8, 6))
        self.gate_up_proj_bias = nn.Parameter(torch.ones(4, 8))
        self.scale = nn.Parameter(torch.ones(4))


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 4)
        self.experts = StackedExperts()


def test_matrices_of_experts_are_selected_and_their_biases_on_request() -> None:
    assert list(select(Mixture())) == ["router.weight", "experts.gate_up_proj"]
    with_biases = ["router.weight", "router.bias"]
    with_biases += ["experts.gate_up_proj", "experts.gate_up_proj_bias"]
    assert list(select(Mixture(), biases=True)) == with_biases


class GatedExpertGLU(nn.Module):
    """The matrices of all experts below each other, under names of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.ones(8, 3))


class RelativeAttention(nn.Module):
    """Projections and other parameters that no layer owns."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("q", "r_kernel", "seg_embed", "r_w_bias", "temperature"):
            setattr(self, name, nn.Parameter(torch.ones(2, 2)))


def test_matrices_without_a_layer_are_selected_in_experts_and_attentions() -> None:
    assert list(select(GatedExpertGLU())) == ["w1"]
    with pytest.warns(UserWarning, match="50% .* left out .*: seg_embed, temperature, parameters"):
        assert list(select(RelativeAttention())) == ["q", "r_kernel"]


def test_embeddings_that_are_not_trained_are_left_out() -> None:
    table = nn.Embedding(5, 4).requires_grad_(False)
    model = nn.Sequential(table, nn.Linear(4, 5, bias=False))
    assert list(select(model)) == ["1.weight"]
    with pytest.raises(PrunusError, match="0.weight is frozen"):
        select(model, include="*.weight")
    model[1].weight = table.weight  # a frozen layer is an error, also if an embedding shares it
    with pytest.raises(PrunusError, match="0.weight is frozen"):
        select(model)


class WithTable(nn.Module):
    """A model with a matrix that no layer owns."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.layer = nn.Linear(10, 9, bias=False)  # 90 weights
        self.table = nn.Parameter(torch.ones(rows, 1))


def test_selection_that_leaves_out_more_than_a_tenth_of_the_matrices_warns() -> None:
    expected = (
        r"55% of the parameters in matrices of WithTable are left out of the selection, .*: table, "
        r"parameters of WithTable\. Select them too with select\(model, include=\['\*weight\*', "
        r"'table'\]\), or leave them out with exclude="
    )
    with pytest.warns(UserWarning, match=expected):
        select(WithTable(110))
    assert list(select(WithTable(10))) == ["layer.weight"]  # a tenth, without a warning


def test_the_warning_of_left_out_matrices_names_the_largest_as_the_one_to_select() -> None:
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
    with pytest.warns(UserWarning, match=r"include=\['\*weight\*', '0\..*\.original'\]"):
        select(nn.Sequential(layer, nn.Linear(2, 2)))
    direction = (
        r"To select 0\..*\.original1, remove the weight norm first, by .*, or leave them out"
    )
    with pytest.warns(UserWarning, match=direction):
        select(nn.Sequential(weight_norm(nn.Linear(8, 8)), nn.Linear(2, 2)))


def test_matrices_that_were_left_out_on_purpose_do_not_warn() -> None:
    model = WithTable(110)
    assert list(select(model, exclude="table")) == ["layer.weight"]
    assert list(select(model, include="layer")) == ["layer.weight"]
    assert len(select(model, include=["*weight*", "table"])) == 2
    model.table.requires_grad_(False)
    assert list(select(model)) == ["layer.weight"]


def test_data_parallel_is_unwrapped() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    assert list(select(nn.DataParallel(model))) == ["0.weight", "1.weight"]
