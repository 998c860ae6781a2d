"""The three ways to apply the penalty, by single calls: values computed by hand."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import pytest
import torch
from torch import nn

from helpers.data import normal
from helpers.peers import second_of_two_processes
from prunus import ArgumentError, CautiousRelevance, LinearRelevance, PrunusError, Selection, select
from prunus._distributed.process_group import ProcessGroup
from prunus._utils.chunks import CPU_CHUNK
from prunus.penalties.application import Application, TensorStep
from prunus.penalties.decoupled_application import DecoupledApplication, shrink_
from prunus.penalties.formula import PenaltyFormula
from prunus.penalties.gradient_application import GradientApplication
from prunus.penalties.loss_application import LossApplication

# With α = 2 the coefficients 1 − |g| / 2 are 1, 1/2 and 0.
WEIGHT, GRADIENT = [4.0, -4.0, 4.0], [0.0, -1.0, 5.0]
FORMULA = PenaltyFormula(LinearRelevance(2.0), 2)


def column(values: list[float], dtype: torch.dtype = torch.float32) -> nn.Embedding:
    """Return a layer whose weight is one column, so that each row is one weight."""
    layer = nn.Embedding(len(values), 1)
    layer.weight = nn.Parameter(torch.tensor(values, dtype=dtype).reshape(-1, 1))
    return layer


def step_of(selection: Selection, gradient: torch.Tensor, **fields: Any) -> TensorStep:
    tensor = fields.get("tensor") or selection["weight"]
    record: dict[str, Any] = {
        "tensor": tensor,
        "weight": tensor.parameter,
        "gradient": gradient,
        "strength": 0.5,
        "mask": None,
        "loss_scale": None,
        "basis": gradient,
        "basis_scale": None,
        "basis_mean": None,
    }
    return TensorStep(**record | fields)


def penalized(
    formula: PenaltyFormula = FORMULA, padding_row: int | None = None, **fields: Any
) -> list[float]:
    """Return the gradient after the penalty was added to it."""
    layer, gradient = column(WEIGHT), torch.tensor(GRADIENT).reshape(-1, 1)
    layer.padding_idx = padding_row
    selection = select(layer)
    application = GradientApplication(formula, selection, dict)
    with torch.no_grad():
        application.before_step([step_of(selection, gradient, **fields)])
    assert layer.weight.flatten().tolist() == WEIGHT
    result: list[float] = gradient.flatten().tolist()
    return result


def test_the_gradient_of_the_penalty_is_added() -> None:
    # 2γ · c · w = c · w is 4, −2 and 0.
    assert penalized() == [4.0, -3.0, 5.0]
    assert penalized(strength=0.25) == [2.0, -2.0, 5.0]
    # γ · c · sign(w) is 1/2, −1/4 and 0.
    assert penalized(PenaltyFormula(LinearRelevance(2.0), 1)) == [0.5, -1.25, 5.0]


def test_a_cautious_penalty_is_added_where_gradient_and_weight_have_one_sign() -> None:
    # c is 0, 1 and 1, and 2γ · c · w is 0, −4 and 4.
    formula = PenaltyFormula(CautiousRelevance(), 2)
    assert penalized(formula) == [0.0, -5.0, 9.0]
    # In chunks, with a mask, and with a gradient that was scaled by 2.
    mask = torch.tensor([[True], [True], [False]])
    assert penalized(formula, mask=mask, basis_scale=2.0) == [0.0, -5.0, 0.0]
    assert penalized(formula, padding_row=1) == [0.0, -1.0, 9.0]


@pytest.mark.parametrize("masked", [False, True])
def test_a_cautious_penalty_in_chunks_equals_the_whole_formula(masked: bool) -> None:
    weight, gradient = normal(2, 2 * CPU_CHUNK + 3, seed=4, dtype=torch.float64)
    mask = torch.arange(len(weight)) % 3 > 0 if masked else torch.ones(len(weight)).bool()
    layer = nn.Embedding(len(weight), 1)
    layer.weight = nn.Parameter(weight.reshape(-1, 1))
    mine = gradient.clone().reshape(-1, 1)
    application = GradientApplication(PenaltyFormula(CautiousRelevance(), 2), select(layer), dict)
    with torch.no_grad():
        application.before_step(
            [step_of(select(layer), mine, mask=mask.reshape(-1, 1) if masked else None)]
        )
    expected = (gradient + (gradient * weight > 0) * weight) * mask  # 2γ is 1
    torch.testing.assert_close(mine.flatten(), expected, rtol=0, atol=1e-12)


def test_removed_weights_and_the_padding_row_keep_their_gradient_rules() -> None:
    mask = torch.tensor([[True], [False], [True]])
    assert penalized(mask=mask) == [4.0, 0.0, 5.0]
    assert penalized(padding_row=1) == [4.0, -1.0, 5.0]
    assert penalized(padding_row=0) == [0.0, -3.0, 5.0]
    assert penalized(padding_row=2, mask=mask) == [4.0, 0.0, 5.0]


def test_the_penalty_is_multiplied_by_the_loss_scale_and_measured_without_it() -> None:
    # The gradients are 8 times those of the loss: 1 − |g| / 16 is 1, 15/16 and 11/16.
    assert penalized(loss_scale=8.0, basis_scale=8.0) == [32.0, -31.0, 27.0]
    # Clipping has halved the gradients: 1 − |g| / 1 is 1, 0 and 0.
    assert penalized(basis_scale=torch.tensor(0.5)) == [4.0, -1.0, 5.0]


def test_coefficients_are_computed_from_the_basis() -> None:
    average = torch.tensor([[1.0], [0.0], [0.5]])  # 1 − ḡ / 2 is 1/2, 1 and 3/4
    assert penalized(basis=average) == [2.0, -5.0, 8.0]
    relative = PenaltyFormula(LinearRelevance(0.5, relative=True), 2)
    # The unit is half the mean of 4.
    assert penalized(relative, basis_mean=torch.tensor(4.0)) == [4.0, -3.0, 5.0]
    # The unit is half the mean of 2.
    assert penalized(relative) == [4.0, -1.0, 5.0]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [CPU_CHUNK, CPU_CHUNK + 3, 2 * CPU_CHUNK + 3])
def test_the_penalty_of_several_chunks_is_that_of_the_whole(size: int, masked: bool) -> None:
    layer = nn.Embedding(size, 1)
    layer.weight = nn.Parameter(normal(size, 1, seed=0, dtype=torch.float64))
    before = normal(size, 1, seed=1, dtype=torch.float64)
    gradient = before.clone()
    mask = normal(size, 1, seed=2) > 0 if masked else None
    selection = select(layer)
    formula = PenaltyFormula(LinearRelevance(2.0, relative=True), 2)
    with torch.no_grad():
        application = GradientApplication(formula, selection, dict)
        application.before_step([step_of(selection, gradient, mask=mask)])
    unit = 2.0 * before.abs().mean()
    expected = before + torch.relu(1 - before.abs() / unit) * layer.weight.detach()
    torch.testing.assert_close(gradient, expected if mask is None else expected * mask)


def test_coefficients_of_a_chunk_are_the_memory_for_those_of_the_next() -> None:
    outs, results = [], []

    class Recorded(LinearRelevance):
        def __call__(self, gradient: torch.Tensor, *, unit: Any = None, out: Any = None) -> Any:
            outs.append(out)
            results.append(super().__call__(gradient, unit=unit, out=out))
            return results[-1]

    layer = nn.Embedding(2 * CPU_CHUNK + 3, 1)
    selection = select(layer)
    application = GradientApplication(PenaltyFormula(Recorded(2.0), 2), selection, dict)
    with torch.no_grad():
        application.before_step([step_of(selection, torch.ones_like(layer.weight))])
    assert outs[0] is None
    assert outs[1] is results[0]
    assert outs[2] is None  # the last chunk is smaller


def test_a_coefficient_may_return_any_tensor() -> None:
    class Own(LinearRelevance):
        def __call__(self, gradient: torch.Tensor, **arguments: Any) -> torch.Tensor:
            return torch.full_like(gradient, 0.5)

    mask = torch.tensor([[True], [True], [False]])
    assert penalized(PenaltyFormula(Own(), 2), mask=mask) == [2.0, -3.0, 0.0]


def decoupled(
    values: list[float], dtype: torch.dtype = torch.float32, formula: PenaltyFormula = FORMULA
) -> tuple[nn.Embedding, Selection, DecoupledApplication]:
    layer = column(values, dtype)
    selection = select(layer)
    strengths = {"weight": 0.25}
    return layer, selection, DecoupledApplication(formula, selection, lambda: strengths)


@torch.no_grad()
def test_decoupled_weights_shrink_after_the_step_by_coefficients_from_before_it() -> None:
    layer, selection, application = decoupled(WEIGHT)
    mask = torch.tensor([[True], [True], [False]])
    for _ in range(2):
        layer.weight.copy_(torch.tensor(WEIGHT).reshape(-1, 1))
        gradient = torch.tensor(GRADIENT).reshape(-1, 1)
        application.begin()
        application.before_step([step_of(selection, gradient, mask=mask)])
        assert gradient.flatten().tolist() == [0.0, -1.0, 0.0]
        assert layer.weight.flatten().tolist() == WEIGHT
        gradient.fill_(7.0)  # as some optimizers do
        application.after_step()
        # w − 2γ · c · w with 2γ = 1/2
        assert layer.weight.flatten().tolist() == [2.0, -3.0, 4.0]
    application.begin()
    application.after_step()  # nothing took part in this step
    assert layer.weight.flatten().tolist() == [2.0, -3.0, 4.0]
    assert application.remainders == {}


@torch.no_grad()
def test_decoupled_coefficients_use_scale_mean_and_padding() -> None:
    relative = PenaltyFormula(LinearRelevance(0.5, relative=True), 2)
    layer, selection, application = decoupled(WEIGHT, formula=relative)
    gradient = torch.tensor(GRADIENT).reshape(-1, 1)
    application.before_step([step_of(selection, gradient, basis_mean=torch.tensor(4.0))])
    application.after_step()
    assert layer.weight.flatten().tolist() == [2.0, -3.0, 4.0]
    layer, _, _ = decoupled(WEIGHT)
    layer.padding_idx = 0
    selection = select(layer)
    application = DecoupledApplication(FORMULA, selection, lambda: {"weight": 0.25})
    # The gradients are 4 times those of the loss: 1 − |g| / 8 is 1, 7/8 and 3/8.
    application.before_step([step_of(selection, gradient, basis_scale=4.0)])
    application.after_step()
    assert layer.weight.flatten().tolist() == [4.0, -4 + 4 * 7 / 16, 4 - 4 * 3 / 16]


@torch.no_grad()
@pytest.mark.parametrize(
    "other",
    [
        torch.zeros(3, 1, dtype=torch.float64),
        torch.zeros(1, 3).t().contiguous().as_strided((3, 1), (1, 7)),
    ],
)
def test_decoupled_coefficients_follow_a_gradient_of_another_type_or_layout(
    other: torch.Tensor,
) -> None:
    layer, selection, application = decoupled(WEIGHT)
    for gradient in (torch.ones(3, 1), other):
        layer.weight.fill_(4.0)
        application.begin()
        application.before_step([step_of(selection, gradient)])
        application.after_step()
        shrunk = 3.0 if gradient is not other else 2.0
        assert layer.weight.flatten().tolist() == [shrunk] * 3


@torch.no_grad()
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_weights_keep_what_rounding_loses_in_a_remainder(
    dtype: torch.dtype, power: Literal[1, 2]
) -> None:
    formula = PenaltyFormula(LinearRelevance(2.0), power)
    layer, selection, application = decoupled([1.0, -1.0, 1.0], dtype, formula)
    application.strengths = lambda: {"weight": 2.0**-14 / power}
    gradient = torch.tensor([[0.0], [-1.0], [5.0]], dtype=dtype)
    for count in range(1, 4):
        application.begin()
        application.before_step([step_of(selection, gradient)])
        application.after_step()
        exact = layer.weight.double() + application.remainders["weight"]
        # Of 1, each step subtracts c · 2^-14; by power 2, of what is left.
        left = [
            (1 - c * 2.0**-14) ** count if power == 2 else 1 - c * count * 2.0**-14
            for c in (1.0, 0.5, 0.0)
        ]
        expected = torch.tensor([[left[0]], [-left[1]], [left[2]]], dtype=torch.float64)
        torch.testing.assert_close(exact, expected, rtol=0, atol=1e-9)
        assert application.remainders["weight"].dtype == torch.float32
        assert not application.remainders["weight"].requires_grad
    assert layer.weight.dtype == dtype


@pytest.mark.parametrize(
    ("dtype", "needed"),
    [(torch.float16, True), (torch.bfloat16, True), (torch.float32, False), (torch.float64, False)],
)
def test_only_16_bit_weights_need_a_remainder(dtype: torch.dtype, needed: bool) -> None:
    _, selection, application = decoupled(WEIGHT)
    assert application.needs_remainder(torch.ones(1, dtype=dtype)) == needed
    assert not GradientApplication(FORMULA, selection, dict).needs_remainder(torch.ones(1).half())


@pytest.mark.parametrize("remainder", [False, True])
def test_shrinking_stops_at_zero(remainder: bool) -> None:
    coefficients = torch.tensor([0.0, 0.25, 1.0, 1.0])
    for power, values, expected in (
        (2, [4.0, 4.0, -4.0, 4.0], [4.0, 2.0, 0.0, 0.0]),  # 2γ · c is 0, 1/2, 2 and 2
        (1, [4.0, -4.0, -0.5, 0.5], [4.0, -3.75, 0.0, 0.0]),  # γ · c is 0, 1/4, 1 and 1
    ):
        weight, rest = torch.tensor(values), torch.zeros(4)
        shrink_(weight, coefficients, 1.0, power, rest if remainder else None)  # type: ignore[arg-type]
        assert weight.tolist() == expected
        assert rest.tolist() == [0.0] * 4


def test_a_shrink_by_the_whole_weight_is_exactly_zero_without_the_limit() -> None:
    weight = normal(1000, seed=0)
    shrink_(weight, torch.ones(1000), 0.5, 2)
    assert weight.tolist() == [0.0] * 1000


def test_the_remainder_counts_as_part_of_the_weight() -> None:
    weight, rest = torch.tensor([2.0], dtype=torch.bfloat16), torch.tensor([2.0**-9])
    shrink_(weight, torch.tensor([0.5], dtype=torch.bfloat16), 0.5, 2, rest)
    # Half of 2 + 2^-9 is 1 + 2^-10, of which bfloat16 holds the 1.
    assert (weight.item(), rest.item()) == (1.0, 2.0**-10)


def test_a_large_shrink_leaves_no_remainder_that_the_weight_can_hold() -> None:
    # 256 − 254.5 is 1.5, which bfloat16 holds, unlike the difference 254.5.
    weight, rest = torch.tensor([256.0], dtype=torch.bfloat16), torch.zeros(1)
    shrink_(weight, torch.ones(1, dtype=torch.bfloat16), 254.5, 1, rest)
    assert (weight.item(), rest.item()) == (1.5, 0.0)


@torch.no_grad()
def test_decoupled_coefficients_of_later_steps_use_the_same_memory() -> None:
    outs: list[torch.Tensor] = []

    class Recorded(LinearRelevance):
        def __call__(self, gradient: torch.Tensor, *, unit: Any = None, out: Any = None) -> Any:
            outs.append(out)
            return super().__call__(gradient, unit=unit, out=out)

    _, selection, application = decoupled(WEIGHT, formula=PenaltyFormula(Recorded(2.0), 2))
    for _ in range(2):
        application.begin()
        application.before_step([step_of(selection, torch.ones(3, 1))])
        application.after_step()
    assert outs[0].data_ptr() == outs[1].data_ptr()


@torch.no_grad()
def test_the_shard_of_a_weight_is_shrunk_in_place() -> None:
    from torch.distributed.tensor import DTensor, Shard

    with second_of_two_processes() as mesh:
        layer = nn.Embedding(6, 1)
        shard = DTensor.from_local(torch.tensor(WEIGHT).reshape(-1, 1), mesh, [Shard(0)])
        layer.weight = nn.Parameter(shard)
        selection = select(layer)
        application = DecoupledApplication(FORMULA, selection, lambda: {"weight": 0.25})
        gradient = torch.tensor(GRADIENT).reshape(-1, 1)
        application.before_step([step_of(selection, gradient)])
        application.after_step()
        assert selection["weight"].weight.flatten().tolist() == [2.0, -3.0, 4.0]


@pytest.mark.parametrize("remainder", [False, True])
@pytest.mark.parametrize("power", [1, 2])
def test_shrinking_in_several_chunks_equals_the_whole(
    power: Literal[1, 2], remainder: bool
) -> None:
    weight = normal(CPU_CHUNK + 3, seed=0, dtype=torch.float64)
    c = normal(CPU_CHUNK + 3, seed=1, dtype=torch.float64).abs().clamp_max(1.0)
    step = c * weight if power == 2 else torch.sign(weight) * torch.minimum(weight.abs(), c / 2)
    expected = weight - step
    rest = torch.zeros_like(weight) if remainder else None
    shrink_(weight, c, 0.5, power, rest)
    torch.testing.assert_close(weight if rest is None else weight + rest, expected)


def test_the_term_adds_the_values_of_all_tensors_that_the_loss_depends_on() -> None:
    model: Any = nn.ModuleDict({"used": column([2.0, 4.0]), "idle": column([9.0])})
    selection, strengths = select(model), {"used.weight": 0.5, "idle.weight": 100.0}
    application = LossApplication(FORMULA, selection, lambda: strengths)
    loss = (model["used"].weight * torch.tensor([[1.0], [4.0]])).sum()
    value = application.term()(loss)
    assert value.item() == 0.5 * 0.5 * 2.0**2  # c is 1/2 and 0
    (loss + value).backward()
    assert model["used"].weight.grad is not None
    assert model["used"].weight.grad.flatten().tolist() == [1.0 + 1.0, 4.0]  # 2γ · c · w = 1
    assert model["idle"].weight.grad is None


def test_the_term_of_a_loss_that_depends_on_no_prunable_tensor_is_zero() -> None:
    loss = torch.ones((), dtype=torch.float64, requires_grad=True) * 3
    term = LossApplication(FORMULA, select(column(WEIGHT)), lambda: {"weight": 1.0}).term()
    torch.testing.assert_close(term(loss), torch.zeros((), dtype=torch.float64))


def test_the_term_leaves_out_the_padding_row() -> None:
    layer = column([2.0, 4.0])
    layer.padding_idx = 0
    application = LossApplication(FORMULA, select(layer), lambda: {"weight": 1.0})
    loss = layer.weight.sum()
    assert application.term()(loss).item() == 0.5 * 4.0**2


def test_the_term_needs_one_number_with_a_graph() -> None:
    layer = column([2.0, 4.0])
    term = LossApplication(FORMULA, select(layer), lambda: {"weight": 1.0}).term()
    assert term(layer.weight[1]).item() == 2.0**2 + 0.5 * 4.0**2  # a vector of one element
    with pytest.raises(
        ArgumentError, match=r"scalar loss .* shape \(2, 1\) with requires_grad=True"
    ):
        term(layer.weight)
    with pytest.raises(ArgumentError, match=r"scalar loss .* shape \(\) with requires_grad=False"):
        term(layer.weight.detach().sum())


def test_a_step_without_the_term_warns_once() -> None:
    selection = select(column([2.0]))
    application = LossApplication(FORMULA, selection, lambda: {"weight": 1.0})
    with pytest.warns(UserWarning, match="a step was taken without the penalty"):
        application.after_step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        application.after_step()
        used = LossApplication(FORMULA, selection, lambda: {"weight": 1.0})
        used.term()(selection["weight"].parameter.sum())
        used.after_step()


@torch.no_grad()
def test_only_masks_change_gradients_before_the_step_of_a_loss_with_the_term() -> None:
    selection = select(column(WEIGHT))
    application = LossApplication(FORMULA, selection, dict)
    gradient = torch.tensor(GRADIENT).reshape(-1, 1)
    application.before_step([step_of(selection, gradient)])
    assert gradient.flatten().tolist() == GRADIENT
    mask = torch.tensor([[True], [False], [True]])
    application.before_step([step_of(selection, gradient, mask=mask)])
    assert gradient.flatten().tolist() == [0.0, 0.0, 5.0]


def test_the_term_of_a_sharded_model_is_rejected() -> None:
    selection = select(column(WEIGHT))
    selection.process_group = ProcessGroup(sharded=True)
    with pytest.raises(PrunusError, match="needs the gradients of whole tensors"):
        LossApplication(FORMULA, selection, dict).term()


@pytest.mark.parametrize(
    ("kind", "in_loss", "smoothing", "exact"),
    [
        (GradientApplication, False, True, False),
        (LossApplication, True, False, False),
        (DecoupledApplication, False, True, True),
    ],
)
def test_applications_state_what_they_support(
    kind: type[Application], in_loss: bool, smoothing: bool, exact: bool
) -> None:
    assert kind.in_loss == in_loss
    assert kind.supports_smoothing == smoothing
    assert kind.exact_in_16_bits == exact
    selection = select(column(WEIGHT))
    application = kind(FORMULA, selection, dict)
    assert application.selection is selection
    assert application.formula is FORMULA


@pytest.mark.parametrize("apply", [GradientApplication, DecoupledApplication])
@torch.no_grad()
def test_a_custom_coefficient_is_called_with_one_tensor_at_a_time(apply: type[Application]) -> None:
    class Largest(LinearRelevance):
        def unit(
            self, gradient: torch.Tensor, scale: Any = 1.0, *, mean: torch.Tensor | None = None
        ) -> torch.Tensor:
            return gradient.abs().max()

    model = nn.ModuleDict({"a": column([4.0, 4.0]), "b": column([4.0, 4.0])})
    selection = select(model)
    formula = PenaltyFormula(Largest(), 2)
    assert not formula.batched
    assert FORMULA.batched
    gammas = dict.fromkeys(selection, 0.5)
    application = apply(formula, selection, lambda: gammas)
    gradients = [torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [8.0]])]
    application.before_step(
        [
            step_of(selection, gradient, tensor=tensor)
            for tensor, gradient in zip(selection.values(), gradients, strict=True)
        ]
    )
    application.after_step()
    # The units are 2 and 8, the coefficients 1/2, 0 and 1, 0, and 2γ · c · w is 2, 0 and 4, 0.
    changed = [t.weight for t in selection.values()]
    if apply is GradientApplication:
        assert [g.flatten().tolist() for g in gradients] == [[3.0, 2.0], [4.0, 8.0]]
    else:
        assert [w.flatten().tolist() for w in changed] == [[2.0, 4.0], [0.0, 4.0]]
