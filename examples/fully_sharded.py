r"""Prune a small Transformer that several processes hold together, with checkpoints of all of them.

On one machine with two processes::

    torchrun --standalone --nproc-per-node 2 examples/fully_sharded.py

On two hosts with eight GPUs each, with the same command on both::

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-id sparse --rdzv-backend c10d \
        --rdzv-endpoint FIRST_HOST:29400 examples/fully_sharded.py --checkpoint SHARED_FOLDER

It goes on from the checkpoint if there is one, also with another number of processes. When it has
finished, the folder also holds the sparsest state as one file without its zeros.
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
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import prunus

WORDS, LENGTH, WIDTH, STEPS, EVERY = 64, 16, 64, 60, 20


def network() -> nn.Sequential:
    """Build the model, with the same weights in every process."""
    layers = [nn.TransformerEncoderLayer(WIDTH, 4, 256, batch_first=True) for _ in range(4)]
    return nn.Sequential(nn.Embedding(WORDS, WIDTH), *layers, nn.Linear(WIDTH, WORDS))


def batch(step: int, device: torch.device) -> torch.Tensor:
    """Return this process's share of a step's data: here, words to be copied."""
    draw = torch.Generator().manual_seed(step * dist.get_world_size() + dist.get_rank())
    return torch.randint(WORDS, (8, LENGTH), generator=draw).to(device)


def main() -> None:
    """Train, prune and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="a folder that all hosts see; else nothing is saved")
    folder = parser.parse_args().checkpoint

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(kind, (int(os.environ["WORLD_SIZE"]),))
    device = (
        torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
    )
    torch.manual_seed(0)
    model = network().to(device)
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    pruner = prunus.Pruner(  # after fully_shard: it looks at how the model is sharded
        model,
        optimizer,
        prunus.RelevancePenalty(
            1e-4, prunus.ExponentialRelevance(0.2, relative=True), apply="decoupled"
        ),
        prunus.GradualPruning(sparsity=0.8, end=40, every=10),
        mode="min",
        max_grad_norm=1.0,
    )

    def state() -> dict[str, Any]:
        of_model, of_optimizer = get_state_dict(model, optimizer)
        return {
            "model": of_model,
            "optimizer": of_optimizer,
            "pruner": pruner.state_dict(),
            "step": 0,
        }

    begin = 0
    if folder and (Path(folder) / ".metadata").exists():
        loaded = state()
        dcp.load(loaded, checkpoint_id=folder)
        set_state_dict(
            model,
            optimizer,
            model_state_dict=loaded["model"],
            optim_state_dict=loaded["optimizer"],
        )
        pruner.load_state_dict(loaded["pruner"])
        begin = loaded["step"]

    for step in range(begin + 1, STEPS + 1):
        optimizer.zero_grad()
        words = batch(step, device)
        loss = nn.functional.cross_entropy(model(words).flatten(0, 1), words.flatten())
        loss.backward()
        optimizer.step()
        if step % EVERY == 0:
            metric = loss.detach()
            dist.all_reduce(metric, op=dist.ReduceOp.SUM)  # all must see the same one
            seen = pruner.step(metric.item() / dist.get_world_size())
            if folder:
                dcp.save({**state(), "step": step}, checkpoint_id=folder)
            if dist.get_rank() == 0:
                print(
                    f"step {step}  loss {seen.metric:.4f}  sparsity {seen.sparsity:.4f}", flush=True
                )
    pruner.finish()  # brings back the best of the sparsest states
    if folder:
        # Gathered on the first process, in which alone it must fit.
        whole: dict[str, Any] = get_model_state_dict(
            model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
        if dist.get_rank() == 0:
            file = Path(folder) / "model.sparse.safetensors"
            prunus.save_sparse(whole, file)
            print(f"written to {file}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
