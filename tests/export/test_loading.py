"""Tests of loading sparse files into models: every bit, or no change at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers.comparisons import assert_states_identical
from prunus import PrunusError, SparseFile, load_sparse, save_sparse

# Of kinds that no type checker would let pass.
NONE: Any = None
THREE: Any = 3
LINEAR: Any = nn.Linear


def network(last: int = 2) -> Any:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, last))


def copies(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def refused_whole(path: Path, model: nn.Module, message: str) -> None:
    """Make sure that a model refuses a file, and stays as it was."""
    before = copies(model)
    with pytest.raises(PrunusError, match=message):
        load_sparse(path, model)
    after = copies(model)
    assert list(after) == list(before)
    assert_states_identical(after, before)


@pytest.mark.parametrize("other", [network(3), nn.Sequential(*network(), nn.Linear(2, 2))])
def test_mismatched_model_is_left_unchanged(tmp_path: Path, other: nn.Module) -> None:
    save_sparse(network(), tmp_path / "a")
    refused_whole(tmp_path / "a", other, r"does not fit the model: (?s:.*)(mismatch|Missing)")


def test_narrower_model_is_rejected(tmp_path: Path) -> None:
    save_sparse(network(), tmp_path / "a")
    other = network().half()
    refused_whole(
        tmp_path / "a", other, r"0\.weight \(torch\.float16 for torch\.float32\).* rounded"
    )


@pytest.mark.parametrize(
    ("held", "wanted"),
    [
        (torch.tensor([2**24 + 1]), torch.float32),
        (torch.tensor([0.5, 2.0]), torch.int64),
        (torch.tensor([1e5]), torch.float16),
        (torch.tensor([1 + 2j]), torch.float32),
    ],
)
def test_values_not_representable_in_the_models_type_are_rejected(
    held: torch.Tensor, wanted: torch.dtype, tmp_path: Path
) -> None:
    save_sparse({"a": held}, tmp_path / "a")
    model = nn.Module()
    model.register_buffer("a", torch.zeros(held.shape, dtype=wanted))
    with pytest.raises(PrunusError, match=rf"a \({wanted} for {held.dtype}\) would be rounded"):
        load_sparse(tmp_path / "a", model)


@pytest.mark.parametrize(
    ("held", "wanted"),
    [
        (torch.tensor([0.5, -0.0, 448.0]).to(torch.float8_e4m3fn), torch.float32),
        (torch.tensor([1, 65535], dtype=torch.uint16), torch.int32),
        (torch.tensor([2**24]), torch.float32),
        (torch.tensor([0.5, torch.inf]).half(), torch.bfloat16),
    ],
)
def test_values_representable_in_the_models_type_are_loaded(
    held: torch.Tensor, wanted: torch.dtype, tmp_path: Path
) -> None:
    save_sparse({"a": held}, tmp_path / "a")
    model = nn.Module()
    model.register_buffer("a", torch.zeros(held.shape, dtype=wanted))
    load_sparse(tmp_path / "a", model)
    assert torch.equal(model.get_buffer("a"), held.to(wanted))


def test_lazy_layers_are_initialized_from_the_file(tmp_path: Path) -> None:
    model = network()
    save_sparse(model, tmp_path / "a")
    other: Any = nn.Sequential(nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.LazyLinear(2))
    load_sparse(tmp_path / "a", other)
    assert_states_identical(copies(other), copies(model))


def test_failing_load_hook_leaves_the_model_unchanged(tmp_path: Path) -> None:
    save_sparse(network(), tmp_path / "a")
    other = network()

    def refuse(*_: Any) -> None:
        raise LookupError("not today")

    other[2].register_load_state_dict_post_hook(refuse)
    refused_whole(tmp_path / "a", other, "does not fit the model: not today")


def test_failing_custom_load_leaves_the_model_unchanged(
    tmp_path: Path,
) -> None:
    class Choosy(nn.Linear):
        def _load_from_state_dict(self, *_: Any) -> None:
            raise LookupError("not today")

    other = network()
    other[2] = Choosy(6, 2)
    save_sparse(network(), tmp_path / "a")
    refused_whole(tmp_path / "a", other, "does not fit the model: not today")


def test_expanded_buffer_is_rejected_and_the_model_unchanged(tmp_path: Path) -> None:
    def expanded() -> Any:
        model = network()
        model.register_buffer("wide", torch.zeros(1).expand(4))
        return model

    other = expanded()
    save_sparse(expanded(), tmp_path / "a")
    refused_whole(tmp_path / "a", other, r"does not fit the model: (?s:.*)wide")


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
    model, other = network(), network().double()
    save_sparse(model, tmp_path / "a")
    load_sparse(tmp_path / "a", other)
    assert torch.equal(other[0].weight.float(), model[0].weight)


def test_model_on_meta_device_is_rejected(tmp_path: Path) -> None:
    save_sparse(network(), tmp_path / "a")
    with pytest.raises(PrunusError, match=r"have no memory: call model\.to_empty"):
        load_sparse(tmp_path / "a", network().to("meta"))


def test_compiled_model_is_saved_and_loaded_under_the_original_names(tmp_path: Path) -> None:
    model, other = network(), network()
    compiled: Any = torch.compile(model, backend="eager")
    save_sparse(compiled, tmp_path / "a")
    assert set(load_sparse(tmp_path / "a")) == set(model.state_dict())
    compiled = torch.compile(other, backend="eager")
    load_sparse(tmp_path / "a", compiled)
    assert torch.equal(other[0].weight, model[0].weight)
    # And what was saved under the wrapper's names goes back under them.
    save_sparse(compiled.state_dict(), tmp_path / "b")
    nn.init.zeros_(other[0].weight)
    load_sparse(tmp_path / "b", compiled)
    assert torch.equal(other[0].weight, model[0].weight)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda path: save_sparse(path / "a", network()),
            r"the order is save_sparse\(model, path\)",
        ),
        (lambda path: save_sparse(NONE, path / "a"), "model must be .* but is None"),
        (lambda path: save_sparse(network(), THREE), "path must be a path, but is 3"),
        (
            lambda path: save_sparse({THREE: torch.ones(2)}, path / "a"),
            "the name 3 is not a string",
        ),
        (lambda path: save_sparse(nn.LazyLinear(2), path / "a"), "weight is not initialized yet"),
        (lambda path: load_sparse(network(), path / "a"), "path must be a path"),
        (lambda path: load_sparse(path), "is a folder"),
        (lambda path: load_sparse(path / "b"), "there is no file"),
        (lambda path: load_sparse(path / "there", LINEAR), "model must be .* the class Linear"),
    ],
)
def test_invalid_arguments_are_rejected_and_nothing_is_written(
    tmp_path: Path, call: Any, message: str
) -> None:
    save_sparse(network(), tmp_path / "there")
    with pytest.raises(PrunusError, match=message):
        call(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_reading_from_a_closed_file_is_rejected(tmp_path: Path) -> None:
    save_sparse(network(), tmp_path / "a")
    with SparseFile(tmp_path / "a") as file:
        pass
    with pytest.raises(PrunusError, match="is closed: read from it within its with block"):
        file.get_tensor("0.weight")
