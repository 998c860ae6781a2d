"""The scripts of examples/, each on a small data set."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import prunus

pytestmark = [pytest.mark.slow, pytest.mark.frameworks]

ROOT = Path(__file__).resolve().parent.parent


def run(folder: Path, script: str, *arguments: str) -> str:
    """Run an example in a folder, and return its output."""
    return run_python(folder, str(ROOT / "examples" / script), *arguments)


def run_prunus(folder: Path, *arguments: str) -> str:
    """Run the command in a folder, and return its output."""
    return run_python(folder, "-m", "prunus", *arguments)


def run_recipe(folder: Path, script: str, data: str, *changes: str) -> dict[str, Any]:
    """Run a recipe of the examples on the model in model/, and return the summary."""
    common = ("checkpoint=model", "dense_epochs=2", "epochs=2", "dense_lr=1e-2")
    options = [option for change in (*common, *changes) for option in ("--set", change)]
    path = str(ROOT / "examples" / script)
    run_prunus(folder, "run", path, "--data", data, *options, "--out", "run")
    summary: dict[str, Any] = json.loads((folder / "run" / "summary.json").read_text())
    return summary


def run_python(folder: Path, *arguments: str) -> str:
    """Run Python in a folder, and return its output."""
    cache = folder / "cache"
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "HF_HOME": str(cache), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def sparsity(file: Path, pattern: str) -> float:
    """Return the fraction of zeros in the tensors of a sparse file whose names match."""
    tensors = prunus.load_sparse(file)
    weights = torch.cat([t.flatten() for name, t in tensors.items() if re.search(pattern, name)])
    return (weights == 0).float().mean().item()


def test_every_example_is_run_and_listed() -> None:
    tests = Path(__file__).read_text() + (ROOT / "tests/distributed/test_example.py").read_text()
    page = (ROOT / "docs" / "examples.md").read_text()
    names = [path.name for path in (ROOT / "examples").glob("*.py")]
    assert [name for name in names if name not in tests or f"`{name}`" not in page] == []


def test_mnist(tmp_path: Path) -> None:
    from recipes.images import noise, write

    for split, count in (("train", 256), ("test", 32)):
        write(tmp_path / "images", split, noise(count, seed=count))
    output = run(tmp_path, "mnist.py", "--data", "images", "--epochs", "2")
    assert len(re.findall(r"test error [\d.]+%", output)) == 2
    assert sparsity(tmp_path / "mnist.safetensors", "weight") == pytest.approx(0.98, abs=1e-4)


def test_export_and_serve(tmp_path: Path) -> None:
    output = run(tmp_path, "export_and_serve.py", "train", "serve")
    (accuracy,) = re.findall(r"test accuracy ([\d.]+)%", output)
    assert float(accuracy) > 94
    assert (tmp_path / "digits.onnx").stat().st_size < 100_000  # of 202,440 with all neurons


def test_lightning_cifar(tmp_path: Path) -> None:
    pytest.importorskip("lightning.pytorch")
    from recipes.images import noise, write

    write(tmp_path / "images", "train", noise(160, 0, (32, 32, 3)), columns=("img", "label"))
    # The labels of noise cannot be learned, so the floor accepts any accuracy.
    options = ("--data", "images", "--epochs", "2", "--floor", "0")
    output = run(tmp_path, "lightning_cifar.py", *options)
    (reached,) = re.findall(r"sparsity ([\d.]+)%", output)
    assert float(reached) > 5


def write_model_and_texts(tmp_path: Path) -> None:
    """Write a small BERT to model/ and texts of two classes to texts/."""
    transformers = pytest.importorskip("transformers")
    import datasets

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "a"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    model = tmp_path / "model"
    transformers.BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(model)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    transformers.BertForSequenceClassification(config).save_pretrained(model)
    for split, count in (("train", 160), ("test", 32)):
        rows = {
            "text": [f"a {('bad', 'good')[i % 2]} film" for i in range(count)],
            "label": [i % 2 for i in range(count)],
        }
        path = tmp_path / "texts" / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows).to_parquet(path)


def test_finetune_text_classifier(tmp_path: Path) -> None:
    write_model_and_texts(tmp_path)
    options = ("--model", "model", "--data", "texts", "--epochs", "2", "--sparsity", "0.5")
    output = run(tmp_path, "finetune_text_classifier.py", *options)
    assert "test_accuracy" in output
    file = tmp_path / "text-classifier" / "model.sparse.safetensors"
    pruned = r"(query|key|value|dense)\.weight"
    assert sparsity(file, pruned) == pytest.approx(0.5, abs=1e-3)
    assert sparsity(file, r"classifier\.weight|position_embeddings") == 0


def test_text_classifier_recipe(tmp_path: Path) -> None:
    write_model_and_texts(tmp_path)
    summary = run_recipe(tmp_path, "text_classifier_recipe.py", "texts", "ratio=1.2")
    assert summary["metric"]["name"] == "accuracy"
    assert summary["dense"]["test"] == 1
    assert summary["compression_ratio"] >= 1.2
    file = tmp_path / "run" / "model.safetensors"
    assert sparsity(file, r"(query|key|value|dense)\.weight") > 0.3
    assert sparsity(file, r"classifier\.weight|position_embeddings") == 0


def test_image_classifier_recipe(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import numpy as np
    from PIL import Image

    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "model")
    size = {"height": 8, "width": 8}
    transformers.ViTImageProcessor(size=size).save_pretrained(tmp_path / "model")
    for split, count in (("train", 100), ("test", 20)):
        for number in range(count):
            bright = number % 2
            path = tmp_path / "images" / split / ("dark", "light")[bright] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), 40 + 160 * bright, np.uint8)).save(path)
    changes = ("classes=2", "ratio=2")
    summary = run_recipe(tmp_path, "image_classifier_recipe.py", "images", *changes)
    assert summary["metric"]["name"] == "accuracy"
    assert summary["dense"]["test"] == 1
    file = tmp_path / "run" / "model.safetensors"
    assert sparsity(file, r"(query|key|value|dense|fc1|fc2)\.weight") > 0.2
    assert sparsity(file, r"classifier\.weight") == 0


def test_language_model_recipe(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import datasets

    words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    (tmp_path / "vocab.txt").write_text("\n".join(["[UNK]", "[CLS]", "[SEP]", "[PAD]", *words]))
    transformers.BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(
        tmp_path / "model"
    )
    config = transformers.GPT2Config(
        vocab_size=12,
        n_positions=16,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    for split, count in (("train", 400), ("validation", 40), ("test", 40)):
        path = tmp_path / "texts" / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict({"text": [" ".join(words)] * count}).to_parquet(path)
    changes = ("length=16", "ratio=1.2")
    summary = run_recipe(tmp_path, "language_model_recipe.py", "texts", *changes)
    assert summary["metric"] == {"name": "perplexity", "mode": "min"}
    assert summary["dense"]["test"] < 3  # counting can be learned; at first it is 12
    file = tmp_path / "run" / "model.safetensors"
    assert sparsity(file, r"(c_attn|c_proj|c_fc)\.weight") > 0.2
    assert sparsity(file, r"wte\.weight") == 0
