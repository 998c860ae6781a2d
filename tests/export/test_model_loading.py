"""Tests of loading sparse files into models: every bit, or no change at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers.comparisons import assert_states_identical
from prunus import PrunusError, load_sparse, save_sparse


def build(last: int = 2) -> Any:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, last))


def copies(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_rejected(path: Path, model: nn.Module, message: str) -> None:
    """Check that loading a file raises an error and leaves the model unchanged."""
    before = copies(model)
    with pytest.raises(PrunusError, match=message):
        load_sparse(path, model)
    after = copies(model)
    assert list(after) == list(before)
    assert_states_identical(after, before)


@pytest.mark.parametrize("other", [build(3), nn.Sequential(*build(), nn.Linear(2, 2))])
def test_mismatched_model_is_left_unchanged(tmp_path: Path, other: nn.Module) -> None:
    save_sparse(build(), tmp_path / "a")
    assert_rejected(tmp_path / "a", other, r"does not fit the model: (?s:.*)(mismatch|Missing)")


def test_narrower_model_is_rejected(tmp_path: Path) -> None:
    save_sparse(build(), tmp_path / "a")
    other = build().half()
    assert_rejected(
        tmp_path / "a", other, r"0\.weight \(torch\.float16 for torch\.float32\).* rounded"
    )


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [
        (torch.tensor([2**24 + 1]), torch.float32),
        (torch.tensor([0.5, 2.0]), torch.int64),
        (torch.tensor([1e5]), torch.float16),
        (torch.tensor([1 + 2j]), torch.float32),
    ],
)
def test_values_not_representable_in_the_models_type_are_rejected(
    stored: torch.Tensor, dtype: torch.dtype, tmp_path: Path
) -> None:
    save_sparse({"a": stored}, tmp_path / "a")
    model = nn.Module()
    model.register_buffer("a", torch.zeros(stored.shape, dtype=dtype))
    with pytest.raises(PrunusError, match=rf"a \({dtype} for {stored.dtype}\) would be rounded"):
        load_sparse(tmp_path / "a", model)


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [
        (torch.tensor([0.5, -0.0, 448.0]).to(torch.float8_e4m3fn), torch.float32),
        (torch.tensor([1, 65535], dtype=torch.uint16), torch.int32),
        (torch.tensor([2**24]), torch.float32),
        (torch.tensor([0.5, torch.inf]).half(), torch.bfloat16),
    ],
)
def test_values_representable_in_the_models_type_are_loaded(
    stored: torch.Tensor, dtype: torch.dtype, tmp_path: Path
) -> None:
    save_sparse({"a": stored}, tmp_path / "a")
    model = nn.Module()
    model.register_buffer("a", torch.zeros(stored.shape, dtype=dtype))
    load_sparse(tmp_path / "a", model)
    assert torch.equal(model.get_buffer("a"), stored.to(dtype))


def test_lazy_layers_are_initialized_from_the_file(tmp_path: Path) -> None:
    model = build()
    save_sparse(model, tmp_path / "a")
    other: Any = nn.Sequential(nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.LazyLinear(2))
    load_sparse(tmp_path / "a", other)
    assert_states_identical(copies(other), copies(model))


def test_failing_load_hook_leaves_the_model_unchanged(tmp_path: Path) -> None:
    save_sparse(build(), tmp_path / "a")
    other = build()

    def fail(*_: Any) -> None:
        raise LookupError("planted failure")

    other[2].register_load_state_dict_post_hook(fail)
    assert_rejected(tmp_path / "a", other, "does not fit the model: planted failure")


def test_failing_custom_load_leaves_the_model_unchanged(
    tmp_path: Path,
) -> None:
    class Failing(nn.Linear):
        def _load_from_state_dict(self, *_: Any) -> None:
            raise LookupError("planted failure")

    other = build()
    other[2] = Failing(6, 2)
    save_sparse(build(), tmp_path / "a")
    assert_rejected(tmp_path / "a", other, "does not fit the model: planted failure")


def test_expanded_buffer_is_rejected_and_the_model_unchanged(tmp_path: Path) -> None:
    def expanded() -> Any:
        model = build()
        model.register_buffer("wide", torch.zeros(1).expand(4))
        return model

    other = expanded()
    save_sparse(expanded(), tmp_path / "a")
    assert_rejected(tmp_path / "a", other, r"does not fit the model: (?s:.*)wide")


def test_extra_state_missing_from_the_file_is_rejected(tmp_path: Path) -> None:
    class Counting(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"calls": 3}

        def set_extra_state(self, state: Any) -> None:
            raise AssertionError

    save_sparse(nn.Linear(4, 6), tmp_path / "a")
    with pytest.raises(PrunusError, match="does not fit the model: (?s:.*)_extra_state"):
        load_sparse(tmp_path / "a", Counting(4, 6))


def test_wider_model_is_loaded_without_loss(tmp_path: Path) -> None:
    model, other = build(), build().double()
    save_sparse(model, tmp_path / "a")
    load_sparse(tmp_path / "a", other)
    assert torch.equal(other[0].weight.float(), model[0].weight)


def test_model_on_meta_device_is_rejected(tmp_path: Path) -> None:
    save_sparse(build(), tmp_path / "a")
    with pytest.raises(PrunusError, match=r"have no memory: call model\.to_empty"):
        load_sparse(tmp_path / "a", build().to("meta"))


def test_compiled_model_is_saved_and_loaded_under_the_original_names(tmp_path: Path) -> None:
    model, other = build(), build()
    compiled: Any = torch.compile(model, backend="eager")
    save_sparse(compiled, tmp_path / "a")
    assert set(load_sparse(tmp_path / "a")) == set(model.state_dict())
    compiled = torch.compile(other, backend="eager")
    load_sparse(tmp_path / "a", compiled)
    assert torch.equal(other[0].weight, model[0].weight)
    # A state with the wrapper's names is loaded under these names.
    save_sparse(compiled.state_dict(), tmp_path / "b")
    nn.init.zeros_(other[0].weight)
    load_sparse(tmp_path / "b", compiled)
    assert torch.equal(other[0].weight, model[0].weight)
