"""Tests of the export to ONNX in int8: scales, zeros, outputs and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from helpers.data import normal
from helpers.errors import message_of
from prunus import ArgumentError, ArgumentTypeError, PrunusError, compact
from prunus.export import to_onnx
from prunus.export.onnx_session import OnnxSession

pytestmark = pytest.mark.frameworks

Array = npt.NDArray[Any]


def sparse(model: nn.Module, density: float = 0.1) -> nn.Module:
    """Set most weights of matrices to zero, the second row of each wholly."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(torch.rand(parameter.shape, generator=generator) < density)
                parameter[1] = 0
    return model.eval()


def int8_weights(path: Path) -> dict[str, tuple[Array, Array, Array]]:
    """Return the integers, scales and zero points of each weight in int8 by its name."""
    import onnx
    from onnx import numpy_helper

    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    names = [name for name, x in stored.items() if x.dtype == np.int8 and x.ndim > 1]
    return {
        (stem := name.removesuffix("_quantized")): (
            stored[name],
            stored[f"{stem}_scale"],
            stored[f"{stem}_zero_point"],
        )
        for name in names
    }


class Convolutional(nn.Module):
    """A convolution with normalization and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.linear(self.norm(self.conv(x)).relu().mean((2, 3)))
        return output


class Attention(nn.Module):
    """A causal attention on embedded tokens, with the index of the largest output."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.project = nn.Embedding(50, 32), nn.Linear(32, 96)
        self.head = nn.Linear(32, 40)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        query, key, value = self.project(self.embed(tokens)).chunk(3, -1)
        mask = torch.full((tokens.shape[1], tokens.shape[1]), float("-inf")).triu(1)
        weights = torch.softmax(query @ key.transpose(1, 2) + mask, -1)
        logits = self.head(weights @ value)
        return logits, logits.argmax(-1)


def test_weights_are_rounded_to_steps_of_their_rows_and_zeros_stay_zeros(tmp_path: Path) -> None:
    layer = nn.Linear(64, 30)
    model, x = sparse(nn.Sequential(layer, nn.ReLU())), normal(8, 64, seed=2)
    report = to_onnx(model, x, tmp_path / "a.onnx", dtype="int8", calibration=[x])
    ((integers, scales, zero_points),) = int8_weights(report.path).values()
    weight = layer.weight.detach().double().numpy()
    largest = np.abs(weight).max(axis=1)
    expected_scales = np.where(largest > 0, largest / 127, 1)  # a row of zeros has any scale
    np.testing.assert_allclose(scales, expected_scales, rtol=1e-6)
    np.testing.assert_array_equal(integers, np.rint(weight / scales[:, None].astype(np.float64)))
    assert not zero_points.any()
    small = np.abs(weight) <= expected_scales[:, None] / 2
    np.testing.assert_array_equal(integers == 0, small)
    assert (integers[weight == 0] == 0).all()
    assert report.int8_weights == 64 * 30
    assert report.bytes == report.path.stat().st_size


@pytest.mark.slow
def test_zeros_of_convolutions_and_of_batched_products_stay_zeros(tmp_path: Path) -> None:
    models: list[tuple[nn.Module, torch.Tensor, float]] = [
        (sparse(Convolutional()), normal(4, 3, 12, 12, seed=3), 0.02),
        (sparse(Attention(), 0.5), torch.arange(64).reshape(4, 16) % 50, 0.05),
    ]
    for model, x, most in models:
        report = to_onnx(model, x, tmp_path / "a.onnx", dtype="int8", calibration=[x])
        assert report.error < most
        found = int8_weights(report.path)
        assert report.int8_weights == sum(integers.size for integers, _, _ in found.values())
        weights = [p.detach().numpy() for name, p in model.named_parameters() if p.dim() > 1]
        for integers, scales, zero_points in found.values():
            assert not zero_points.any()
            (weight,) = [
                w.T if w.shape != integers.shape else w
                for w in weights
                if integers.shape in (w.shape, w.T.shape)
            ]
            assert (integers[weight == 0] == 0).all()
            # One scale for each output: the largest weight of each is 127 or -127.
            axis = integers.shape.index(len(scales))
            peaks = np.abs(np.moveaxis(integers, axis, 0).reshape(len(scales), -1)).max(axis=1)
            assert set(peaks.tolist()) <= {0, 127}


def test_masks_and_products_of_activations_stay_in_float32(tmp_path: Path) -> None:
    import onnx

    model, x = sparse(Attention(), 0.5), torch.arange(64).reshape(4, 16) % 50
    report = to_onnx(model, x, tmp_path / "a.onnx", dtype="int8", calibration=[x])
    logits, largest = OnnxSession(report.path).outputs((x,), {})
    with torch.no_grad():
        expected = model(x)
    error = float((logits - expected[0]).abs().max() / expected[0].abs().max())
    assert error < 0.05
    # The report is about the example and about twice the example.
    assert report.error == pytest.approx(error, rel=1e-3)
    assert (largest == expected[1]).float().mean() > 0.9
    # The projection and the head compute in int8, the two products of attention do not.
    products = [node for node in onnx.load(report.path).graph.node if node.op_type == "MatMul"]
    in_int8 = [all("DequantizeLinear" in name for name in node.input) for node in products]
    assert sorted(in_int8) == [False, False, True, True]


def test_a_compact_model_accepts_any_batch_in_int8(tmp_path: Path) -> None:
    first = nn.Linear(20, 30)
    first.weight.data[:10].zero_()
    model, x = nn.Sequential(first, nn.ReLU(), nn.Linear(30, 5)), normal(16, 20, seed=4)
    small = compact(sparse(model, 0.5), x)
    report = to_onnx(small, x, tmp_path / "a.onnx", dtype="int8", calibration=[x, 2 * x])
    assert report.any_batch
    assert report.int8_weights == sum(p.numel() for p in small.parameters() if p.dim() > 1)
    x = x[:3]
    (output,) = OnnxSession(report.path).outputs((x,), {})
    expected = model(x).detach()
    assert (output - expected).abs().max() < 0.03 * expected.abs().max()


def test_activations_outside_the_calibration_are_clipped(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(20, 5, bias=False)), normal(8, 20, seed=5)
    report = to_onnx(model, 100 * x, tmp_path / "a.onnx", dtype="int8", calibration=[x])
    assert report.error > 0.5  # it is reported, and limits nothing


def test_nothing_is_written_if_the_calibration_is_not_finite(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(4, 3)), torch.ones(2, 4)
    path = tmp_path / "a.onnx"
    path.write_text("old")
    batches = [x, x * float("nan"), x, x / 0]
    message = message_of(
        lambda: to_onnx(model, x, path, dtype="int8", calibration=batches), ArgumentError
    )
    assert "NaN or infinity is in input of batch 1, input of batch 3 (the first batch is 0)" in (
        message
    )

    class Inverse(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(1 / x)

    message = message_of(
        lambda: to_onnx(Inverse(4, 3), x, path, dtype="int8", calibration=[x, 0 * x])
    )
    assert "NaN or infin" in message
    assert "in float32" in message
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_wrong_arguments_of_int8_are_refused(tmp_path: Path) -> None:
    model, x, path = nn.Sequential(nn.Linear(4, 3)), torch.ones(2, 4), tmp_path / "a.onnx"

    def message(expected: type[PrunusError] = ArgumentError, **arguments: Any) -> str:
        return message_of(lambda: to_onnx(model, x, path, **arguments), expected)

    assert "dtype must be 'int8' or None, but is 'int4'" in message(dtype="int4")
    assert "calibration must be batches" in message(dtype="int8")
    assert "has no effect without dtype='int8'" in message(calibration=[x])
    single = message(ArgumentTypeError, dtype="int8", calibration=x)
    assert "calibration must be batches of training inputs" in single
    assert single.endswith("pass calibration=[x]")
    assert "at least one batch" in message(dtype="int8", calibration=[])
    for wrong in (torch.ones(2, 5), (x, torch.ones(2))):  # another size, and a batch with labels
        text = message(dtype="int8", calibration=[x, wrong])
        assert "inputs alone, without labels, but batch 1 (the first is 0) does not fit" in text
    model = nn.Sequential(nn.LayerNorm(4))
    assert "no linear layer or convolution" in message(PrunusError, dtype="int8", calibration=[x])
    assert not path.exists()
