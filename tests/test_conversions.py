"""Models that torch or an extension has converted: handled, or refused with the fix."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunus
from helpers.data import normal
from helpers.errors import message_of
from helpers.sparse_models import zero
from prunus.export import to_onnx

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch.jit and torch.ao
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of copies of exported modules
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor"),
    pytest.mark.filterwarnings("ignore:a dense copy of"),
]

EXAMPLE = normal(4, 20, seed=1)


class Int8Tensor(torch.Tensor):
    """A matrix of 8-bit integers with a scale for each row, as torchao's."""

    integers: torch.Tensor
    scales: torch.Tensor

    @staticmethod
    def __new__(cls, integers: torch.Tensor, scales: torch.Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, integers.shape, dtype=scales.dtype)

    def __init__(self, integers: torch.Tensor, scales: torch.Tensor) -> None:
        self.integers, self.scales = integers, scales

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares it as a method of tensors
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].integers, args[0].scales)
        raise NotImplementedError(f"Int8Tensor has no {func}")

    @classmethod
    def of(cls, weight: torch.Tensor) -> nn.Parameter:
        scales = weight.detach().abs().amax(1, keepdim=True) / 127 + 1e-12
        integers = (weight.detach() / scales).round().to(torch.int8)
        return nn.Parameter(cls(integers, scales), requires_grad=False)


def network() -> Any:
    model: Any = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
    zero(model[2].weight, slice(None), slice(20, None))
    return model.eval()


def integer_network() -> Any:
    model = network()
    model[0].weight = Int8Tensor.of(model[0].weight)
    return model


def scripted_inside() -> nn.Module:
    return nn.Sequential(torch.jit.script(network()), nn.Linear(5, 5)).eval()


def quantized(layers: Any) -> Any:
    quantize: Any = torch.ao.quantization.quantize_dynamic
    return quantize(network(), layers, dtype=torch.qint8)


JIT: Any = torch.jit  # has no types

FORMS: dict[str, Callable[[], Any]] = {
    "traced": lambda: JIT.trace(network(), EXAMPLE),
    "scripted": lambda: JIT.script(network()),
    "frozen": lambda: JIT.freeze(JIT.script(network())),
    "scripted inside": scripted_inside,
    "exported": lambda: torch.export.export(network(), (EXAMPLE,)).module(),
    "symbolically traced": lambda: torch.fx.symbolic_trace(network()),
    "quantized": lambda: quantized({nn.Linear}),
    "partly quantized": lambda: quantized({"0"}),
    "integers": integer_network,
}

SCRIPT = "is compiled by TorchScript: pass the network as it is before torch.jit.trace or"
PACKED = "are packed: pass the network as it is before it is quantized"
TENSOR = "0.weight (Int8Tensor) store their elements in another form: pass the network as it is"

# The message of each function about each form; None where it works.
MESSAGES: dict[str, dict[str, str | None]] = {
    "traced": {"compact": SCRIPT, "speed_up": SCRIPT},
    "scripted": {"compact": SCRIPT, "speed_up": SCRIPT},
    "frozen": dict.fromkeys(["select", "compact", "speed_up", "save_sparse"], SCRIPT),
    "scripted inside": {"compact": SCRIPT, "speed_up": SCRIPT},
    "exported": {},
    "symbolically traced": {},
    "quantized": dict.fromkeys(["select", "compact", "speed_up", "save_sparse"], PACKED),
    "partly quantized": {"compact": PACKED, "save_sparse": PACKED},
    "integers": {
        "select": "0.weight is a Int8Tensor, not a plain tensor (prune the network before",
        "compact": TENSOR,
        "speed_up": TENSOR,
        "save_sparse": TENSOR,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("function", ["select", "compact", "speed_up", "save_sparse"])
@pytest.mark.parametrize("form", FORMS)
def test_a_converted_model_is_handled_or_refused_with_the_fix(
    form: str, function: str, tmp_path: Path
) -> None:
    if function == "speed_up":
        pytest.importorskip("numba")
    model, path = FORMS[form](), tmp_path / "model.safetensors"
    calls: dict[str, Callable[[], Any]] = {
        "select": lambda: prunus.select(model),
        "compact": lambda: prunus.compact(model, EXAMPLE),
        "speed_up": lambda: prunus.speed_up(model, EXAMPLE),
        "save_sparse": lambda: prunus.save_sparse(model, path),
    }
    expected = MESSAGES[form].get(function)
    if expected is not None:
        assert expected in message_of(calls[function], prunus.PrunusError)
        return
    result = calls[function]()
    if function == "select":
        assert result.prunable > 0
    elif function == "save_sparse":
        assert prunus.load_sparse(path).keys() == model.state_dict().keys()
    else:
        torch.testing.assert_close(result(EXAMPLE), model(EXAMPLE), atol=1e-5, rtol=1e-5)


def test_every_converted_part_is_named_once() -> None:
    model = quantized({nn.Linear})
    message = message_of(lambda: prunus.select(model), prunus.PrunusError)
    assert "but the weights of 0 (Linear), 2 (Linear) are packed" in message


def test_a_plain_tensor_beside_a_converted_one_may_be_selected() -> None:
    assert list(prunus.select(integer_network(), exclude="0.weight")) == ["2.weight"]


def test_a_state_with_a_converted_tensor_is_refused(tmp_path: Path) -> None:
    state = integer_network().state_dict()
    with pytest.raises(
        prunus.ArgumentError, match=r"0\.weight is a Int8Tensor, not a plain tensor"
    ):
        prunus.save_sparse(state, tmp_path / "model.safetensors")


def test_quantized_models_and_states_are_refused_with_the_function_that_rounds(
    tmp_path: Path,
) -> None:
    path, fix = tmp_path / "model.safetensors", "prunus.save_sparse(..., dtype='int8') for 8-bit"
    tensor = torch.quantize_per_tensor(normal(4, 4, seed=2), 0.1, 0, torch.qint8)
    packed: Any = quantized({nn.Linear})
    for model in (packed, packed.state_dict(), {"a": tensor}, integer_network()):
        assert fix in message_of(partial(prunus.save_sparse, model, path))
    message = message_of(lambda: prunus.save_sparse(packed.state_dict(), path))
    assert "0._packed_params._packed_params is quantized: save the state before" in message
    assert not path.exists()


def test_a_network_with_sparse_layers_for_inference_is_refused_where_it_cannot_be_used(
    tmp_path: Path,
) -> None:
    pytest.importorskip("numba")
    from prunus.runtime.linear import SparseLinear

    model = network()
    model[2] = SparseLinear(model[2], relu=False)
    calls: dict[str, Callable[[], Any]] = {
        "select": lambda: prunus.select(model),
        "compact": lambda: prunus.compact(model, EXAMPLE),
        "save_sparse": lambda: prunus.save_sparse(model, tmp_path / "model.safetensors"),
        "to_onnx": lambda: to_onnx(model, EXAMPLE, tmp_path / "model.onnx"),
    }
    for name, call in calls.items():
        message = message_of(call, prunus.PrunusError)
        expected = (
            "the layers of Sequential must be ordinary ones, but 2 (SparseLinear) is a layer of "
            "speed_up, for inference only: pass the network that speed_up was called with"
        )
        assert expected in message, name
    assert list(tmp_path.iterdir()) == []
