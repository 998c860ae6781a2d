"""Kernel launches and waits of a step on an accelerator, counted with fake tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from helpers.launches import Launches, accelerator
from prunus import (
    CautiousRelevance,
    ConstantRelevance,
    ExponentialRelevance,
    FisherScore,
    LinearRelevance,
    MagnitudeScore,
    Pruner,
    RelevancePenalty,
    Schedule,
    UpdateStrength,
    method,
    methods,
)
from prunus._utils import batches

STEPS = 20
"""A multiple of the four steps from one gradient of the default score to the next, and of the five
from one step of the default penalty to the next. In other cases all steps are alike."""

LIMIT = 12
"""The most launches of a step on average, for each group of tensors of one device and type."""


class Idle(torch.optim.Optimizer):
    """An optimizer whose step does nothing, so that the hooks alone are counted."""

    grad_scale: torch.Tensor | None = None
    found_inf: torch.Tensor | None = None

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    def step(self, closure: Any = None) -> Any:
        assert closure is None


def transformer(
    tensor: Callable[..., torch.Tensor], *, layers: int, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Return the parameters of a GPT-2 with this many layers: 12 · layers + 4 tensors."""
    width = 16

    def parameter(*shape: int) -> nn.Parameter:
        return nn.Parameter(tensor(*shape, dtype=dtype))

    def filled(module: nn.Module, *shape: int) -> nn.Module:
        module.weight = parameter(*shape)
        if getattr(module, "bias", None) is not None:
            module.bias = parameter(shape[0])
        return module

    def norm() -> nn.Module:
        return filled(nn.LayerNorm(width, device="meta"), width)

    def linear(outputs: int, inputs: int) -> nn.Module:
        return filled(nn.Linear(inputs, outputs, device="meta"), outputs, inputs)

    blocks = [
        nn.ModuleList(
            [
                norm(),
                linear(3 * width, width),
                linear(width, width),
                norm(),
                linear(4 * width, width),
                linear(width, 4 * width),
            ]
        )
        for _ in range(layers)
    ]
    embeddings = [filled(nn.Embedding(n, width, device="meta"), n, width) for n in (100, 32)]
    return nn.ModuleList([*embeddings, *blocks, norm()])


def counted(
    *,
    layers: int = 12,
    removed: bool = True,
    scaled: bool = False,
    dtype: torch.dtype = torch.float32,
    **arguments: Any,
) -> list[Launches]:
    """Return what the hooks launch in each of some ordinary steps, in which nothing is removed."""
    with accelerator() as tensor, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 16-bit weights
        model = transformer(tensor, layers=layers, dtype=dtype)
        optimizer = Idle(model.parameters())
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        with Launches():
            pruner = Pruner(model, optimizer, **arguments)
        if scaled:
            optimizer.grad_scale, optimizer.found_inf = tensor(1), tensor(1)
        # The values of masks are not known here. Whether there is any is known to the host.
        active = dict(pruner.masks) if removed else {}
        pruner.masks.active = lambda: active  # type: ignore[method-assign]
        counts = []
        for _ in range(1 + (STEPS if "schedule" in arguments else 1)):
            with Launches() as launches:
                optimizer.step()
            counts.append(launches)
    return counts[1:]  # the first one also measures the penalty


def mean(counts: list[Launches]) -> float:
    return sum(len(launches.kernels) for launches in counts) / len(counts)


class Interval(Schedule):
    """Removes nothing, and tells the automatic strength its interval."""

    interval = 2000


def coupled(**fields: Any) -> RelevancePenalty:
    return RelevancePenalty(1e-4, apply="gradient", **fields)


def decoupled(**fields: Any) -> RelevancePenalty:
    return RelevancePenalty(1e-4, apply="decoupled", **fields)


NO_SCORE: Mapping[str, Any] = {"score": MagnitudeScore()}

RELATIVE = ExponentialRelevance(0.2, relative=True)

# The launches of an ordinary step on average, after weights were removed; without that two fewer.
CASES: dict[str, tuple[Mapping[str, Any], float]] = {
    "default": ({"penalty": RelevancePenalty(), "schedule": Interval()}, 6.25),
    "paper": (method("paper").arguments(steps_per_epoch=500), 7),
    "lobster": (method("lobster").arguments(), 8),
    "magnitude": (method("magnitude").arguments(), 2),
    "random": (method("random").arguments(), 2),
    "l2": (method("l2").arguments(strength=1e-4), 5),
    "l1": (method("l1").arguments(strength=1e-4), 9),
    "taylor": (method("taylor").arguments(), 11),
    "sensitivity": (method("sensitivity").arguments(), 14),
    "movement": (method("movement").arguments(), 9),
    "set": (method("set").arguments(total_steps=10**8), 2),
    "rigl": (method("rigl").arguments(total_steps=10**8), 2),
    "acdc": (method("acdc").arguments(total_steps=10**8), 2),
    "gradient, linear": ({"penalty": coupled(coefficient=LinearRelevance()), **NO_SCORE}, 8),
    "gradient, constant": ({"penalty": coupled(coefficient=ConstantRelevance()), **NO_SCORE}, 5),
    "gradient, cautious": ({"penalty": coupled(coefficient=CautiousRelevance()), **NO_SCORE}, 8),
    "gradient, relative": ({"penalty": coupled(coefficient=RELATIVE), **NO_SCORE}, 12),
    "gradient, power 1": (
        {"penalty": coupled(coefficient=LinearRelevance(), power=1), **NO_SCORE},
        10,
    ),
    "mean updates": (
        {
            "penalty": RelevancePenalty(UpdateStrength(), ConstantRelevance(), power=1),
            "schedule": Interval(),
            **NO_SCORE,
        },
        2.6,
    ),
    "gradient, smoothed": ({"penalty": coupled(smoothing=0.9), **NO_SCORE}, 19),
    "decoupled, relative": ({"penalty": decoupled(coefficient=RELATIVE), **NO_SCORE}, 12),
    "decoupled, cautious": (
        {"penalty": decoupled(coefficient=CautiousRelevance()), **NO_SCORE},
        8,
    ),
    "every gradient": ({"penalty": None, "score": FisherScore(every=1)}, 11),
    "clipped, no penalty": ({"penalty": None, "max_grad_norm": 1.0, **NO_SCORE}, 9),
    "clipped": (
        {"penalty": RelevancePenalty(), "schedule": Interval(), "max_grad_norm": 1.0},
        13.3,
    ),
}

ABOVE_LIMIT = {
    "sensitivity": "two averages, of which one needs the result of the other",
    "gradient, smoothed": "the mean of each average, which the average must be complete for",
    "clipped": "seven launches for the norm of all gradients and the product with its factor",
}
"""Cases with more launches than the limit, in one group of tensors as in any number of layers, and
what takes them."""

NOT_COUNTED = {
    "the method soft": "its masks change with values, which fake tensors do not have",
    "the step after a validation": "measures the penalty, with launches for each tensor",
    'apply="loss"': "computes its term in the caller's forward pass, with launches for each tensor",
    "steps with a removal": "wait for each chunk of scores in each pass, without a bound tested",
    "custom coefficients": "are called with one tensor at a time, unless they are batched",
}
"""What no test here bounds, with the reason."""


def test_every_method_is_counted_or_listed() -> None:
    others = {f"the method {name}" for name in methods if name not in CASES}
    assert others - {"the method prunus"} == {key for key in NOT_COUNTED if "method" in key}
    # It is the default.
    assert CASES["default"][0]["penalty"] == methods["prunus"].arguments()["penalty"]


@pytest.mark.parametrize("name", CASES)
def test_a_step_takes_few_launches_however_many_tensors_there_are(name: str) -> None:
    arguments, most = CASES[name]
    few, many = counted(layers=1, **arguments), counted(layers=3, **arguments)
    assert mean(many) <= most, many[-1].kernels
    assert mean(few) == mean(many)
    assert (most > LIMIT) == (name in ABOVE_LIMIT)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("removed", [False, True])
def test_the_host_waits_for_nothing_in_an_ordinary_step(name: str, removed: bool) -> None:
    arguments, _ = CASES[name]
    counts = counted(layers=1, removed=removed, **arguments)
    assert [wait for launches in counts for wait in launches.waits] == []


@pytest.mark.slow
def test_the_host_waits_for_the_scaler_of_a_fused_optimizer_once_a_step() -> None:
    """Because a step that is skipped counts neither for the schedule nor for the strength."""
    for name in ("default", "paper", "clipped"):
        for launches in counted(layers=1, scaled=True, **CASES[name][0]):
            assert launches.waits == ["_local_scalar_dense"]


@pytest.mark.slow
def test_tensors_of_16_bits_are_a_group_of_their_own() -> None:
    # The decoupled penalty computes what rounding would lose.
    for name, most in (("default", 12), ("paper", 7), ("lobster", 33)):
        few, more = (counted(layers=n, dtype=torch.bfloat16, **CASES[name][0]) for n in (1, 3))
        assert mean(few) == mean(more) <= most
        assert all(launches.waits == [] for launches in more)


def test_scratch_memory_is_bounded_by_more_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = CASES["paper"][0]
    whole = mean(counted(layers=6, **paper))
    monkeypatch.setattr(batches, "ACCELERATOR_BATCH", 1 << 12)
    parts = mean(counted(layers=6, **paper))
    # 26 matrices of 22,272 weights in all, at most 4,096 in a batch.
    assert 5 * whole < parts < 12 * whole


@pytest.mark.parametrize("fault", ["wait", "loop"])
def test_a_planted_fault_is_counted(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def waiting(optimizer: Any) -> bool:
        return bool(optimizer.param_groups[0]["params"][0].grad.sum().item() > 1e9)

    def looping(optimizer: Any) -> bool:
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad.mul_(1.0)
        return False

    planted = waiting if fault == "wait" else looping
    monkeypatch.setattr("prunus._engine.optimizer_hooks.is_skipped", planted)
    few, many = (counted(layers=n, **CASES["magnitude"][0]) for n in (1, 3))
    if fault == "wait":
        assert many[0].waits == ["_local_scalar_dense"]
    else:
        assert mean(many) - mean(few) == 2 * 12
