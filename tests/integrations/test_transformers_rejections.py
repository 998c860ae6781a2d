"""Tests of the callback for the Trainer: arguments and models that are rejected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

pytest.importorskip("transformers")


from integrations.transformers_trainers import (
    gpt2,
    make_trainer,
)
from prunus import (
    FloorNotReachedError,
    GradualPruning,
    IterativePruning,
    MagnitudeScore,
    OneShot,
    PrunusError,
    TaylorScore,
    select,
)
from prunus.integrations.transformers import PruningCallback

pytestmark = pytest.mark.frameworks


def test_an_unmet_floor_is_rejected_at_the_end(tmp_path: Path) -> None:
    callback = PruningCallback(
        schedule=IterativePruning(fraction=0.5),
        metric="loss",
        floor=1e-09,
        mode="min",
        penalty=None,
        score=MagnitudeScore(),
    )
    with pytest.raises(FloorNotReachedError, match="no validation met the ceiling .*; raise the"):
        make_trainer(tmp_path, callback, max_steps=4).train()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": IterativePruning(), "floor": 1.0}, "needs the validation metric"),
        ({"schedule": OneShot(sparsity=0.5), "floor": 1.0}, "needs the validation metric"),
        ({"metric": "eval_loss"}, 'mode="min"'),
        ({"metric": 3}, "metric must be the name of a metric or None, but is 3"),
        (
            {"penalty": OneShot(sparsity=0.5)},
            'penalty must be a RelevancePenalty, "auto" or None, but is',
        ),
        ({"selection": ["*"]}, "selection must be a Selection, or a function that returns one"),
        ({"score": TaylorScore}, "score must be a Score, but is the class TaylorScore"),
        ({"min_density": 1.0}, "min_density must be from 0 to below 1, but is 1.0"),
        ({"mode": "most"}, "mode must be 'max' or 'min', but is 'most'"),
        ({"masks": [0]}, r"masks must be masks by name or None, but is \[0\]"),
        ({"masks": {}, "keep_zeros": True}, "masks and keep_zeros=True both set the first masks"),
    ],
)
def test_conflicting_arguments_are_rejected(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PrunusError, match=message):
        PruningCallback(**arguments)


def floored() -> PruningCallback:
    return PruningCallback(
        schedule=IterativePruning(), metric="bleu", floor=0.5, penalty=None, score=MagnitudeScore()
    )


def test_a_metric_that_the_evaluation_does_not_return_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(PrunusError, match=r"no metric 'bleu'; it returned .*eval_loss"):
        make_trainer(tmp_path, floored()).train()


def test_disabled_evaluation_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(PrunusError, match="evaluation is disabled"):
        make_trainer(tmp_path, floored(), eval_strategy="no").train()


def test_loading_the_best_model_without_a_metric_is_rejected(tmp_path: Path) -> None:
    callback = PruningCallback(schedule=OneShot(sparsity=0.5), penalty=None, score=MagnitudeScore())
    with pytest.raises(PrunusError, match="load_best_model_at_end the callback needs metric="):
        make_trainer(tmp_path, callback, load_best_model_at_end=True).train()


def test_a_model_with_untied_embeddings_is_rejected(tmp_path: Path) -> None:
    model = gpt2()
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    with pytest.raises(PrunusError, match=r"are two tensors.*tie_weights"):
        make_trainer(
            tmp_path, PruningCallback(penalty=None, score=MagnitudeScore()), model=model
        ).train()


def of_layer(layer: int, **arguments: Any) -> PruningCallback:
    return PruningCallback(
        schedule=OneShot(sparsity=0.5),
        penalty=None,
        selection=lambda model: select(model, include=f"transformer.h.{layer}.*"),
        score=MagnitudeScore(),
        **arguments,
    )


@pytest.mark.parametrize(
    "arguments",
    [{"metric": "loss", "mode": "min"}, {"metric": "loss", "mode": "min", "floor": 9.0}],
    ids=["metric", "floor"],
)
def test_several_callbacks_that_would_restore_states_are_rejected(
    tmp_path: Path, arguments: dict[str, Any]
) -> None:
    for first, second in (({}, arguments), (arguments, {})):
        callbacks = of_layer(0, **first), of_layer(1, **second)
        trainer = make_trainer(tmp_path, *callbacks, max_grad_norm=0.0)
        with pytest.raises(
            PrunusError, match=r"has 2 PruningCallbacks, of which 1 .*keep one PruningCallback, or"
        ):
            trainer.train()
        assert trainer.state.global_step == 0
        assert all(callback.pruner is None for callback in callbacks)


# The pruner itself warns at the end.
@pytest.mark.filterwarnings("ignore:.*but the training ended at step")
@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        (GradualPruning(sparsity=0.5, end=9), 9),
        (GradualPruning(sparsity=0.5, total_steps=20), 10),
        (OneShot(sparsity=0.5, at=9), 9),
    ],
)
def test_a_removal_after_the_end_of_the_training_causes_a_warning(
    tmp_path: Path, schedule: Any, last: int
) -> None:
    def train(steps: int) -> None:
        callback = PruningCallback(schedule=schedule, penalty=None, score=MagnitudeScore())
        make_trainer(tmp_path, callback, max_steps=steps, save_strategy="no").train()

    message = (
        f"its last weights at optimizer step {last}, but the training ends after step 8, .*at="
    )
    with pytest.warns(UserWarning, match=message):
        train(8)
    train(last)  # without a warning, which would be an error


class DeepSpeedPlugin:
    """A stand-in for accelerate's, which needs DeepSpeed."""


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("enable_jit_checkpoint", True, "does not work with enable_jit_checkpoint"),
        ("deepspeed_plugin", DeepSpeedPlugin(), r"DeepSpeed trains .* fsdp=True with fsdp_config="),
    ],
)
def test_unsupported_trainer_arguments_are_rejected(
    tmp_path: Path, argument: str, value: object, message: str
) -> None:
    callback = PruningCallback(penalty=None, score=MagnitudeScore())
    trainer = make_trainer(tmp_path, callback)
    setattr(trainer.args, argument, value)
    handler = trainer.callback_handler
    handler.optimizer = trainer.create_optimizer()
    with pytest.raises(PrunusError, match=message):
        handler.on_train_begin(trainer.args, trainer.state, trainer.control)
    assert callback.pruner is None
