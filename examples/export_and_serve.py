"""Training, sparse file, smaller network and ONNX of a small classifier, and its server.

python examples/export_and_serve.py train serve
"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnxruntime
import torch
from sklearn.datasets import load_digits
from torch import nn

import prunus
from prunus.export import to_onnx

SPARSE, ONNX = Path("digits.safetensors"), Path("digits.onnx")

Split = tuple[torch.Tensor, torch.Tensor]


def digits() -> tuple[Split, Split]:
    """Return images and labels for training, and for the test."""
    data = load_digits()
    images = torch.tensor(data.data, dtype=torch.float32) / 16
    labels = torch.tensor(data.target)
    train, test = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).split(
        [1400, 397]
    )
    return (images[train], labels[train]), (images[test], labels[test])


def network() -> nn.Sequential:
    """Return the network, untrained."""
    return nn.Sequential(
        nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def train() -> None:
    """Train, remove 96% of the weights, and write the sparse file."""
    torch.manual_seed(0)
    (images, labels), _ = digits()
    model, epochs = network(), 60
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    schedule = prunus.GradualPruning(
        sparsity=0.96, epochs=epochs, steps_per_epoch=44, begin=0.2, end=0.6
    )
    pruner = prunus.Pruner(model, optimizer, schedule=schedule)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        scheduler.step()
    pruner.finish()
    prunus.save_sparse(model, SPARSE)
    print(f"{SPARSE}: {SPARSE.stat().st_size:,} bytes")


def export() -> None:
    """Write the network of the sparse file as ONNX, without dead neurons."""
    model = network()
    prunus.load_sparse(SPARSE, model)
    example = torch.rand(2, 64)
    small = prunus.compact(model, example)
    report = to_onnx(small, example, ONNX)
    parameters = sum(parameter.numel() for parameter in small.parameters())
    print(f"{ONNX}: {report.bytes:,} bytes, {parameters:,} parameters")


def serve() -> None:
    """Classify the test images as a server would: with onnxruntime alone."""
    export()
    _, (images, labels) = digits()
    session = onnxruntime.InferenceSession(str(ONNX))
    (name,) = (entry.name for entry in session.get_inputs())
    (logits,) = session.run(None, {name: images.numpy()})
    print(f"test accuracy {(logits.argmax(1) == labels.numpy()).mean():.2%}")


def main() -> None:
    """Run one of the two halves, or both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commands", choices=["train", "serve"], nargs="+")
    for command in parser.parse_args().commands:
        {"train": train, "serve": serve}[command]()


if __name__ == "__main__":
    main()
