"""Pruning of LeNet-300-100 on MNIST to 2% of its weights, and the sparse file.

python examples/mnist.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from datasets import load_dataset
from torch import nn

import prunus


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int, sparsity: float) -> None:
    """Train with a learning rate that falls to 0, down to a sparsity."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    steps = epochs * -(-len(x) // 128)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    schedule = prunus.Schedule()  # removes nothing
    if sparsity:
        schedule = prunus.GradualPruning(sparsity=sparsity, total_steps=steps)
    pruner = prunus.Pruner(model, optimizer, schedule=schedule)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            scheduler.step()
    pruner.finish()


def main() -> None:
    """Train a dense network, prune a copy of it, and write the sparse file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="ylecun/mnist", help="Hub name or folder of the images")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("mnist.safetensors"))
    options = parser.parse_args()

    torch.manual_seed(0)
    data = load_dataset(options.data)
    images = {k: np.stack([np.asarray(i) for i in split["image"]]) for k, split in data.items()}
    x = {k: torch.tensor(v, dtype=torch.float32).flatten(1) / 255 - 0.13 for k, v in images.items()}
    y = {k: torch.tensor(split["label"]) for k, split in data.items()}
    layers = (nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    model = nn.Sequential(*layers)
    for sparsity in (0, 0.98):  # the sparse network starts from the dense one
        train(model, x["train"], y["train"], options.epochs, sparsity)
        error = (model(x["test"]).argmax(1) != y["test"]).float().mean().item()
        print(f"sparsity {sparsity}: test error {error:.2%}")
    prunus.save_sparse(model, options.out)
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
