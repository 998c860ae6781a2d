"""Tests of the export to ONNX and of its outputs in onnxruntime."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunus import PrunusError
from prunus.export import to_onnx
from prunus.export.onnx_session import OnnxSession

pytestmark = pytest.mark.frameworks


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(5, 4)

    def forward(self, left: torch.Tensor, *, right: torch.Tensor) -> dict[str, Any]:
        return {"sum": self.first(left) + self.second(right), "left": left.sum(-1)}


def test_onnx_supports_keyword_arguments_and_several_outputs(tmp_path: Path) -> None:
    model = TwoInputs()
    example = {"left": torch.randn(3, 3), "right": torch.randn(3, 5)}
    report = to_onnx(model, example, tmp_path / "a.onnx")
    assert report.any_batch
    other = {"right": torch.randn(7, 5), "left": torch.randn(7, 3)}  # another batch size and order
    outputs = OnnxSession(tmp_path / "a.onnx", threads=1).outputs((), other)
    expected = model(**other)
    torch.testing.assert_close(outputs[0], expected["sum"])
    torch.testing.assert_close(outputs[1], expected["left"])


class KeyCache:
    """A cache of a class that the exporter does not know."""

    def __init__(self, keys: torch.Tensor) -> None:
        self.keys = keys


def test_onnx_leaves_out_caches(tmp_path: Path) -> None:
    class Model(nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            return {"y": super().forward(x), "cache": KeyCache(x)}

    model, x = Model(3, 2), torch.randn(4, 3)
    report = to_onnx(model, x, tmp_path / "model.onnx")
    assert report.any_batch
    (found,) = OnnxSession(report.path).outputs((x,), {})
    torch.testing.assert_close(found, model(x)["y"])


def test_onnx_fixes_the_batch_size_only_if_the_model_does(tmp_path: Path) -> None:
    class Fixed(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = super().forward(x.reshape(2, -1))  # type: ignore[no-untyped-call]
            return output

    model = Fixed(nn.Linear(3, 3))
    assert not to_onnx(model, torch.randn(2, 3), tmp_path / "a.onnx").any_batch
    x = torch.randn(2, 3)
    (output,) = OnnxSession(tmp_path / "a.onnx").outputs((x,), {})
    torch.testing.assert_close(output, model(x).detach())
    # A batch of 1 is dynamic too, although torch.export alone would treat its size as fixed.
    assert to_onnx(model[0], torch.randn(1, 3), tmp_path / "b.onnx").any_batch
    x = torch.randn(5, 3)
    (output,) = OnnxSession(tmp_path / "b.onnx").outputs((x,), {})
    torch.testing.assert_close(output, model[0](x).detach())


def test_onnxruntime_failures_raise_one_line_errors(tmp_path: Path) -> None:
    unsupported = nn.Sequential(nn.Linear(3, 3), nn.GELU()).to(torch.bfloat16)
    with pytest.raises(PrunusError, match="onnxruntime|cannot be exported"):
        to_onnx(unsupported, torch.randn(2, 3, dtype=torch.bfloat16), tmp_path / "a.onnx")
    to_onnx(nn.Linear(3, 3), torch.randn(2, 3, requires_grad=True), tmp_path / "a.onnx")
    session = OnnxSession(tmp_path / "a.onnx")
    for wrong in ((torch.ones(2, 4),), (torch.ones(2, 3), torch.ones(2, 3)), ()):
        with pytest.raises(PrunusError, match="fails on the inputs .*: pass inputs of the number"):
            session.outputs(wrong, {})
    (tmp_path / "b.onnx").write_text("not a network")
    with pytest.raises(PrunusError, match="onnxruntime rejects the network .*: export it again"):
        OnnxSession(tmp_path / "b.onnx")


def test_failed_onnx_export_keeps_the_old_file(tmp_path: Path) -> None:
    class Branching(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return output if x.sum() > 0 else -output

    path = tmp_path / "a.onnx"
    path.write_text("old")
    with pytest.raises(
        PrunusError,
        match=r"Branching cannot be exported \(.*Use only operators .*or store the model",
    ):
        to_onnx(Branching(nn.Linear(3, 3)), torch.randn(2, 3), path)
    assert path.read_text() == "old"
    with pytest.raises(PrunusError, match="fails on the example inputs"):
        to_onnx(nn.Linear(3, 3), torch.randn(2, 4), path)


def test_the_reason_of_the_exporter_is_reported(tmp_path: Path) -> None:
    class Decomposed(nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            return torch.linalg.svdvals(super().forward(x))

    message = r"Decomposed cannot be exported \(DispatchError: No ONNX function .*linalg_svd"
    with pytest.raises(PrunusError, match=message):
        to_onnx(Decomposed(3, 2), torch.randn(4, 3), tmp_path / "model.onnx")


def test_the_exporter_logs_nothing(tmp_path: Path) -> None:
    levels = []

    class Listening(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.compiler.is_exporting():
                levels.append(logging.getLogger("onnxscript.optimizer").getEffectiveLevel())
            return super().forward(x)

    before = logging.getLogger("onnxscript").level
    to_onnx(Listening(3, 2), torch.randn(4, 3), tmp_path / "model.onnx")
    assert levels
    assert min(levels) >= logging.ERROR
    assert logging.getLogger("onnxscript").level == before
