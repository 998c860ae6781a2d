"""The residual networks for CIFAR-10: parameters, shapes, delivery, and runs of their recipes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunus
from helpers.commands import metrics, settings, summary
from helpers.commands import prunus as command
from helpers.comparisons import assert_outputs_match
from helpers.runs import KilledError, assert_same_run, at_step, terminated_at_step
from prunus.recipes.registry import RECIPES
from prunus.recipes.tasks.classification import ImageConfig
from prunus.recipes.tasks.residual_networks import CifarResNet, cifar_resnet

# The shortest run: 40 training images in 5 steps.
TINY: dict[str, Any] = {"dense_epochs": 1, "epochs": 1, "batch_size": 8, "validation": 0.2}


# With n blocks a stage: 3·16·9 = 432 weights first; 2n convolutions of 16·16·9 = 2,304; one of
# 16·32·9 = 4,608 and 2n - 1 of 32·32·9 = 9,216; one of 32·64·9 = 18,432 and 2n - 1 of
# 64·64·9 = 36,864; two parameters for each of the 16·(2n + 1) + 32·2n + 64·2n = 224n + 16 channels;
# and 64·10 + 10 = 650. In all 432 + 4,608n + 4,608 + 9,216(2n - 1) + 18,432 + 36,864(2n - 1) +
# 448n + 32 + 650 = 97,216n - 21,926.
@pytest.mark.parametrize(
    ("depth", "blocks", "parameters", "millions"), [(20, 3, 269_722, 0.27), (32, 5, 464_154, 0.46)]
)
def test_parameters_match_the_paper(
    depth: int, blocks: int, parameters: int, millions: float
) -> None:
    model = cifar_resnet(depth)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == parameters == 97_216 * blocks - 21_926
    assert round(counted / 1e6, 2) == millions
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


@pytest.mark.parametrize("depth", [2, 19, 34])
def test_depth_without_a_number_of_blocks_is_rejected(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"depth must be 6 · blocks \+ 2, .* but is {depth}"):
        cifar_resnet(depth)


def test_stages_halve_the_map_and_double_the_channels() -> None:
    model, shapes = cifar_resnet(20), []
    for stage in (model.stage1, model.stage2, model.stage3):
        stage.register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape[1:])))
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert shapes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_shortcuts_add_subsampled_features_and_zeros() -> None:
    """Without its residuals, a network passes the first features on to the head."""
    model = CifarResNet(blocks=2).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if re.search(r"norm2\.(weight|bias)", name):
                parameter.zero_()
        images = torch.rand(2, 3, 32, 32)
        # New statistics are a mean of 0 and a variance of 1, up to the norm's epsilon.
        first = F.relu(F.conv2d(images, model.conv.weight, padding=1)) / (1 + 1e-5) ** 0.5
        means = first[:, :, ::4, ::4].mean(dim=(2, 3))
        expected = F.linear(means, model.head.weight[:, :16], model.head.bias)
        torch.testing.assert_close(model(images), expected)


def test_convolutions_and_head_are_prunable_the_first_and_last_layer_included() -> None:
    model = cifar_resnet(20)
    selection = prunus.select(model, biases=True)
    expected = {
        name for name, parameter in model.named_parameters() if "norm" not in name.split(".")[-2]
    }
    assert selection.keys() == expected
    assert {"conv.weight", "head.weight", "head.bias"} <= expected


def sparse_resnet() -> CifarResNet:
    """Return a network with 95 % of zeros, of which some make channels dead."""
    torch.manual_seed(0)
    model = cifar_resnet(20).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
                module.bias.normal_()
            elif isinstance(module, nn.Conv2d):
                module.weight.mul_(torch.rand_like(module.weight) < 0.05)
        for stage in (model.stage1, model.stage2, model.stage3):
            first = stage[0]
            first.get_submodule("conv1").get_parameter("weight")[::2] = 0
    return model


@pytest.mark.slow
def test_compact_network_is_smaller_with_the_same_outputs() -> None:
    model, images = sparse_resnet(), torch.randn(4, 3, 32, 32)
    small = prunus.compact(model, images[:2])
    for stage in ("stage1", "stage2", "stage3"):
        before, after = (
            m.get_submodule(f"{stage}.0.conv1.weight".rpartition(".")[0]) for m in (model, small)
        )
        assert after.get_parameter("weight").shape[0] < before.get_parameter("weight").shape[0]
    assert_outputs_match(small, model, images)


@pytest.mark.slow
def test_sped_up_network_has_the_same_outputs() -> None:
    pytest.importorskip("numba")
    model, images = sparse_resnet(), torch.randn(4, 3, 32, 32)
    assert_outputs_match(prunus.speed_up(model, images[:2]), model, images)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """50 training and 20 test images of noise, in the layout of CIFAR-10 on the Hub."""
    pytest.importorskip("datasets")
    from recipes.images import noise, write

    for split, count in (("train", 50), ("test", 20)):
        pixels = noise(count, seed=count, size=(32, 32, 3))
        write(tmp_path / "set", split, pixels, columns=("img", "label"))
    return tmp_path / "set"


def run(name: str, folder: Path, out: Path, *more: str, **changes: Any) -> Any:
    chosen = settings(**{**TINY, **changes})
    return command("run", name, *chosen, "--data", folder, "--out", out, *more)


def test_recipes_have_the_settings_of_the_literature() -> None:
    for depth in (20, 32):
        config = RECIPES[f"cifar10-resnet{depth}"].config
        assert isinstance(config, ImageConfig)
        assert (config.dense_epochs, config.epochs, config.ratio) == (40, 40, 20)
        assert (config.batch_size, config.dense_lr, config.lr) == (128, 0.1, 0.05)
        assert (config.momentum, config.weight_decay) == (0.9, 5e-4)
        assert (config.shift, config.flip, config.channels_last) == (4, True, True)
        assert config.validation * 50_000 == 5_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10-resnet20", "cifar10-resnet32"])
def test_recipe_runs_from_a_folder_and_delivers_its_ratio(
    tmp_path: Path, folder: Path, name: str
) -> None:
    outcome = run(name, folder, tmp_path / "run")
    assert outcome.code == 0, outcome.err
    done = summary(tmp_path / "run")
    parameters = {"cifar10-resnet20": 269_722, "cifar10-resnet32": 464_154}[name]
    assert done["parameters"] == parameters
    assert done["nonzero"] <= parameters / 20
    assert done["nonzero"] > parameters / 20.1
    assert done["compression_ratio"] >= 20
    export = command("export", tmp_path / "run", "--to", "sparse")
    assert export.code == 0, export.err


@pytest.mark.slow
def test_recipe_exports_a_compact_network(tmp_path: Path, folder: Path) -> None:
    assert run("cifar10-resnet20", folder, tmp_path / "run").code == 0
    export = command("export", tmp_path / "run", "--to", "compact")
    assert export.code == 0, export.err


@pytest.mark.slow
@pytest.mark.parametrize("autocast", ["false", "true"])
def test_resumed_run_ends_with_the_same_bits(tmp_path: Path, folder: Path, autocast: str) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    chosen = {"dense_epochs": 2, "epochs": 2, "autocast": autocast}
    assert run("cifar10-resnet20", folder, whole, **chosen).code == 0
    # 5 steps an epoch: the second dense epoch starts again after its third step, and the second
    # pruning epoch resumes after its third.
    with at_step(8, KilledError), pytest.raises(KilledError):
        run("cifar10-resnet20", folder, stopped, **chosen)
    with terminated_at_step(13):
        outcome = run("cifar10-resnet20", folder, stopped, "--resume", **chosen)
    assert "stopped after step 3 of epoch 2 (prune)" in outcome.out
    assert len(metrics(stopped)) == 3
    assert run("cifar10-resnet20", folder, stopped, "--resume", **chosen).code == 0
    assert_same_run(stopped, whole)
