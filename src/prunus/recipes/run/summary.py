"""The summary of a run: sizes, and metrics of the dense and the sparse network."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from prunus._inference.multiply_adds import multiply_adds
from prunus._utils.system_info import system_info
from prunus.errors import PrunusError
from prunus.recipes.run.context import RunContext
from prunus.recipes.run.layer_types import densities_by_layer_type
from prunus.recipes.run.state import RunState
from prunus.recipes.run.weight_file import load_weights
from prunus.recipes.tasks.task import Task
from prunus.selection import nonzero_parameters, total_parameters

__all__ = ["summarize"]


def summarize(context: RunContext, state: RunState, sparsity: float) -> dict[str, Any]:
    """Return the summary, for which both networks are evaluated on the test split.

    This is the first and only use of the test split.

    Args:
        context: The fixed parts of the run.
        state: Its state, with the delivered network.
        sparsity: Removed / prunable weights.
    """
    task, directory, model = context.task, context.directory, state.model
    sparse = _evaluate(task, model)
    dense = _evaluate(task, load_weights(task.network(), directory.dense_file))
    parameters, nonzero = total_parameters(model), nonzero_parameters(model)
    seconds = {phase: round(spent, 3) for phase, spent in state.clock.seconds.items()}
    return {
        "recipe": context.recipe.name,
        "method": context.config.method,
        "method_name": context.config.method_name,
        "seed": context.identity["seed"],
        "parameters": parameters,
        "nonzero": nonzero,
        "sparsity": sparsity,
        "compression_ratio": parameters / nonzero,
        "multiply_adds": _multiply_adds(context),
        "metric": {"name": task.metric, "mode": context.config.mode, **task.about},
        "dense": dense,
        "sparse": sparse,
        "layer_types": densities_by_layer_type(model, context.selection),
        "seconds": {**seconds, "total": round(state.clock.total, 3)},
        "bytes": {
            "dense": directory.dense_file.stat().st_size,
            "sparse": directory.model_file.stat().st_size,
        },
        "environment": system_info(),
    }


def _multiply_adds(context: RunContext) -> dict[str, int] | None:
    """Return the multiply-adds of one example, or None where they cannot be counted."""
    file = context.directory.model_file
    with torch.random.fork_rng(devices=[]):
        try:
            network = context.recipe.network(file)
            load_weights(network.model, file)
            return asdict(multiply_adds(network.model, network.example_inputs(1)))
        except PrunusError as error:
            context.progress.report(f"multiply-adds are not counted: {error}")
            return None


def _evaluate(task: Task, model: nn.Module) -> dict[str, float]:
    figures: dict[str, float] = {}
    for split, evaluate in (("validation", task.validate), ("test", task.test)):
        evaluation = evaluate(model)
        figures |= {split: evaluation.metric, f"{split}_loss": evaluation.loss}
        figures |= {f"{split}_{name}": value for name, value in evaluation.extra_metrics.items()}
    return figures
