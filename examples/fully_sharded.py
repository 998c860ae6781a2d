r"""Pruning of a small Transformer with ``fully_shard``, and distributed checkpoints.

On one machine with two processes::

    torchrun --standalone --nproc-per-node 2 examples/fully_sharded.py

On two hosts with eight GPUs each, with the same command on both::

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-id sparse --rdzv-backend c10d \
        --rdzv-endpoint FIRST_HOST:29400 examples/fully_sharded.py --checkpoint SHARED_FOLDER

It resumes from the checkpoint if there is one, even with another number of processes. At the end
the folder also contains the sparsest state as one sparse file.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import Optimizer

import prunus

VOCABULARY, LENGTH, WIDTH, STEPS, EVERY = 64, 16, 64, 60, 20


def network() -> nn.Sequential:
    """Build the model, with the same weights in every process."""
    layers = [nn.TransformerEncoderLayer(WIDTH, 4, 256, batch_first=True) for _ in range(4)]
    return nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), *layers, nn.Linear(WIDTH, VOCABULARY))


def batch(step: int, device: torch.device) -> torch.Tensor:
    """Return this process's tokens of a step; the model learns to copy them."""
    generator = torch.Generator().manual_seed(step * dist.get_world_size() + dist.get_rank())
    return torch.randint(VOCABULARY, (8, LENGTH), generator=generator).to(device)


def build(mesh: DeviceMesh, device: torch.device) -> tuple[nn.Module, Optimizer, prunus.Pruner]:
    """Build the sharded model, its optimizer and its pruner."""
    torch.manual_seed(0)
    model = network().to(device)
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    pruner = prunus.Pruner(  # built after fully_shard, as it reads the placement of the shards
        model,
        optimizer,
        prunus.RelevancePenalty(
            1e-4, prunus.ExponentialRelevance(0.2, relative=True), apply="decoupled"
        ),
        prunus.GradualPruning(sparsity=0.8, end=40, every=10),
        mode="min",
        max_grad_norm=1.0,
    )
    return model, optimizer, pruner


def state_of(
    model: nn.Module, optimizer: Optimizer, pruner: prunus.Pruner, step: int
) -> dict[str, Any]:
    """Return everything that a resumed run needs."""
    model_state, optimizer_state = get_state_dict(model, optimizer)
    return {
        "model": model_state,
        "optimizer": optimizer_state,
        "pruner": pruner.state_dict(),
        "step": step,
    }


def resume(folder: str, model: nn.Module, optimizer: Optimizer, pruner: prunus.Pruner) -> int:
    """Load a checkpoint; return its step."""
    state = state_of(model, optimizer, pruner, step=0)
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )
    pruner.load_state_dict(state["pruner"])
    step: int = state["step"]
    return step


def save_sparse(folder: str, model: nn.Module) -> None:
    """Save the model as one sparse file, gathered in the memory of the first process."""
    tensors: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if dist.get_rank() == 0:
        file = Path(folder) / "model.sparse.safetensors"
        prunus.save_sparse(tensors, file)
        print(f"written to {file}", flush=True)


def main() -> None:
    """Train, prune and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="a folder shared by all hosts; default: save nothing")
    folder = parser.parse_args().checkpoint

    backend = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(backend, (int(os.environ["WORLD_SIZE"]),))
    device = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if backend == "cuda" else "cpu")
    model, optimizer, pruner = build(mesh, device)
    begin = 0
    if folder and (Path(folder) / ".metadata").exists():
        begin = resume(folder, model, optimizer, pruner)

    for step in range(begin + 1, STEPS + 1):
        optimizer.zero_grad()
        tokens = batch(step, device)
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizer.step()
        if step % EVERY == 0:
            metric = loss.detach()
            dist.all_reduce(metric, op=dist.ReduceOp.SUM)  # it must be equal in all processes
            validation = pruner.step(metric.item() / dist.get_world_size())
            if folder:
                dcp.save(state_of(model, optimizer, pruner, step), checkpoint_id=folder)
            if dist.get_rank() == 0:
                loss_value, sparsity = validation.metric, validation.sparsity
                print(f"step {step}  loss {loss_value:.4f}  sparsity {sparsity:.4f}", flush=True)
    pruner.finish()  # restores the best of the sparsest states
    if folder:
        save_sparse(folder, model)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
