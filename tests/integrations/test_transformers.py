"""Tests of the callback for the Trainer: zeros, clipping, ties, selection and delivery."""

from __future__ import annotations

import functools
import itertools
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from transformers import (
    AutoModelForCausalLM,
    BartForConditionalGeneration,
    GPT2LMHeadModel,
    MarianConfig,
    MarianMTModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainerState,
)
from transformers.integrations import TensorBoardCallback

from helpers.pruners import coupled_penalty
from helpers.states import states_equal
from integrations.transformers_trainers import (
    VOCABULARY,
    Interrupt,
    Sentences,
    bart,
    gpt2,
    make_trainer,
    stateful,
)
from prunus import (
    ExponentialRelevance,
    GradualPruning,
    IterativePruning,
    MagnitudeScore,
    OneShot,
    RelevancePenalty,
    select,
)
from prunus.integrations.transformers import PruningCallback

pytestmark = pytest.mark.frameworks


def everything(model: nn.Module) -> Any:
    return select(model, biases=True, norms=True)


def zeros(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() == 0 for name, p in model.named_parameters()}


class Record(TrainerCallback):
    """Records what is logged, and the zeros of the model at each evaluation."""

    def __init__(self) -> None:
        self.logs: list[tuple[int, dict[str, Any]]] = []
        self.zeros: list[tuple[int, int]] = []

    def on_log(self, args: Any, state: Any, control: Any, *, logs: Any = None, **_: Any) -> None:
        self.logs.append((state.global_step, dict(logs)))

    def on_evaluate(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        self.zeros.append((state.global_step, sum(int(z.sum()) for z in zeros(model).values())))

    def logged(self, name: str) -> list[tuple[int, float]]:
        return [(step, logs[name]) for step, logs in self.logs if name in logs]


class Watch(TrainerCallback):
    """Checks after every step that removed weights are zero."""

    def __init__(self, pruning: PruningCallback) -> None:
        self.pruning, self.checked = pruning, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.pruning.pruner is not None
        for name, mask in self.pruning.pruner.masks.active().items():
            weight = self.pruning.pruner.selection[name].parameter.detach()
            assert int(torch.count_nonzero(weight[~mask])) == 0
            self.checked += 1


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_torch_fused"])
def test_zeros_hold_through_decay_accumulation_and_clipping(tmp_path: Path, optimizer: str) -> None:
    callback = PruningCallback(
        coupled_penalty(1e-3),
        GradualPruning(sparsity=0.9, begin=2, end=10),
        selection=everything,
        score=MagnitudeScore(),
    )
    watch = Watch(callback)
    trainer = make_trainer(
        tmp_path, callback, watch, gradient_accumulation_steps=4, optim=optimizer
    )
    trainer.train()
    assert callback.pruner is not None
    assert callback.pruner.sparsity == pytest.approx(0.9, abs=1e-3)
    assert watch.checked > 20


def test_zeros_hold_under_bfloat16_autocast(tmp_path: Path) -> None:
    callback = PruningCallback(
        coupled_penalty(1e-3), OneShot(sparsity=0.8, at=3), score=MagnitudeScore()
    )
    watch = Watch(callback)
    trainer = make_trainer(tmp_path, callback, watch, bf16=True, max_steps=6)
    types = set()
    layer = trainer.model.transformer.h[0].mlp.c_fc
    layer.register_forward_hook(lambda _, __, output: types.add((layer.weight.dtype, output.dtype)))
    trainer.train()
    assert types == {(torch.float32, torch.bfloat16)}
    assert callback.pruner is not None
    assert callback.pruner.sparsity == pytest.approx(0.8, abs=1e-3)
    assert watch.checked == 4 * len(callback.pruner.selection)  # after the steps 3 to 6


@pytest.mark.filterwarnings("default")  # the compiler warns too
def test_a_compiled_model_prunes_as_the_plain_one(tmp_path: Path) -> None:
    def trained(folder: str, **changes: Any) -> nn.Module:
        callback = PruningCallback(
            coupled_penalty(1e-3), GradualPruning(sparsity=0.8, end=4), score=MagnitudeScore()
        )
        trainer = make_trainer(tmp_path / folder, callback, max_steps=6, **changes)
        trainer.train()
        assert callback.pruner is not None
        assert callback.pruner.sparsity == pytest.approx(0.8, abs=1e-3)
        model: nn.Module = trainer.model
        return model

    # With the eager backend, as there may be no compiler.
    compiled = trained("compiled", torch_compile=True, torch_compile_backend="eager")
    assert states_equal(compiled, trained("plain"))


def test_relevance_is_measured_before_clipping(tmp_path: Path) -> None:
    def shrunk(max_grad_norm: float) -> tuple[torch.Tensor, Any]:
        model = gpt2().eval()  # without dropout, which would make gradients differ
        before = model.transformer.wte.weight.detach().clone()
        callback = PruningCallback(
            RelevancePenalty(0.5, ExponentialRelevance(1e-3), apply="decoupled"),
            score=MagnitudeScore(),
        )
        trainer = make_trainer(
            tmp_path,
            callback,
            model=model,
            max_steps=1,
            learning_rate=1e-30,  # so that the penalty alone moves the weights
            max_grad_norm=max_grad_norm,
            eval_strategy="no",
            save_strategy="no",
        )
        trainer.model.train = lambda mode=True: trainer.model
        gradients: list[torch.Tensor] = []  # of the two micro-batches, before they are clipped
        model.transformer.wte.weight.register_hook(lambda grad: gradients.append(grad.clone()))
        trainer.train()
        after: torch.Tensor = model.transformer.wte.weight.detach()
        return after / before, sum(gradients)

    for max_grad_norm in (1e-4, 0.0):
        quotient, gradient = shrunk(max_grad_norm)
        # Twice the strength, times the relevance of the gradient before clipping.
        expected = 1 - 2 * 0.5 * torch.exp(-gradient.abs() / 1e-3)
        assert expected.min() < 0.9 < expected.max()
        torch.testing.assert_close(quotient, expected, rtol=1e-4, atol=1e-5)


def test_clipping_equals_the_trainers_bit_for_bit(tmp_path: Path) -> None:
    plain = make_trainer(tmp_path / "a", max_grad_norm=0.1, max_steps=4)
    plain.train()
    callback = PruningCallback(penalty=None, score=MagnitudeScore())
    pruned = make_trainer(tmp_path / "b", callback, max_grad_norm=0.1, max_steps=4)
    pruned.train()
    assert states_equal(plain.model, pruned.model)
    norms = [
        [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
        for trainer in (plain, pruned)
    ]
    assert norms[0] == norms[1]
    assert norms[0]
    assert pruned.args.max_grad_norm == 0.1
    saved = torch.load(tmp_path / "b/checkpoint-4/training_args.bin", weights_only=False)
    assert saved.max_grad_norm == 0.1


def test_a_metric_of_compute_metrics_reaches_the_schedule(tmp_path: Path) -> None:
    metrics = iter([0.9, 0.9, 0.1, 0.9, 0.9, 0.9])
    callback = PruningCallback(
        schedule=IterativePruning(fraction=0.5),
        metric="agreement",
        floor=0.5,
        penalty=None,
        score=MagnitudeScore(),
    )
    trainer = make_trainer(tmp_path, callback)
    trainer.compute_metrics = lambda _: {"agreement": next(metrics)}
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "eval_sparsity" in entry]
    prunable = select(gpt2()).prunable
    kept = [round((1 - entry["eval_sparsity"]) * prunable) for entry in logged]
    half = [prunable]
    for met in (True, True, False, True, True):
        half.append(half[-1] - round(0.5 * half[-1]) if met else half[-1])
    assert kept == pytest.approx(half, abs=2)
    assert logged[2]["eval_removed"] == 0


def test_tied_tensors_share_a_mask_and_stay_tied_in_saved_models(tmp_path: Path) -> None:
    callback = PruningCallback(
        coupled_penalty(1e-3),
        OneShot(sparsity=0.75, at=2),
        selection=everything,
        score=MagnitudeScore(),
    )
    model = bart()
    trainer = make_trainer(tmp_path / "run", callback, model=model, max_steps=6)
    trainer.train()
    assert callback.pruner is not None
    shared = callback.pruner.selection["model.shared.weight"]
    assert "lm_head.weight" in shared.aliases
    assert shared.prunable == (VOCABULARY - 1) * 16  # without the row of the padding token
    total = sum(p.numel() for p in model.parameters())
    assert callback.pruner.selection.prunable == total - 16
    model.save_pretrained(tmp_path / "saved")
    loaded = BartForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert loaded.lm_head.weight is loaded.model.shared.weight
    assert states_equal(model, loaded)


def test_fine_tuning_a_loaded_sparse_model_keeps_its_zeros(tmp_path: Path) -> None:
    first = PruningCallback(
        schedule=OneShot(sparsity=0.75, at=2),
        selection=everything,
        penalty=None,
        score=MagnitudeScore(),
    )
    trainer = make_trainer(tmp_path / "run", first, max_steps=4)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    before = zeros(loaded)
    assert (
        sum(int(z.sum()) for z in before.values()) / sum(z.numel() for z in before.values()) > 0.7
    )
    second = PruningCallback(
        keep_zeros=True, selection=everything, penalty=None, score=MagnitudeScore()
    )
    make_trainer(tmp_path / "tuned", second, model=loaded, max_steps=6).train()
    after = zeros(loaded)
    assert all(torch.equal(before[name] & after[name], before[name]) for name in before)

    # Without keep_zeros the zeros are trained like all other weights.
    revived = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    make_trainer(tmp_path / "dense", model=revived, max_steps=2).train()
    assert any(int((before[n] & ~z).sum()) for n, z in zeros(revived).items())


def test_a_second_training_keeps_the_zeros_of_the_first(tmp_path: Path) -> None:
    schedule = OneShot(sparsity=0.75, at=2)
    callback = PruningCallback(schedule=schedule, penalty=None, score=MagnitudeScore())
    trainer = make_trainer(tmp_path, callback, max_steps=4)
    trainer.train()
    before = zeros(trainer.model)
    schedule.sparsity = 0.9
    trainer.train()
    after = zeros(trainer.model)
    assert all(torch.equal(before[name] & after[name], before[name]) for name in before)
    assert callback.pruner is not None
    assert callback.pruner.sparsity == pytest.approx(0.9, abs=1e-3)


def test_a_pretrained_model_is_pruned_by_the_same_callback(tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path / "pretrained")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "pretrained")
    callback = PruningCallback(
        coupled_penalty(1e-3), GradualPruning(sparsity=0.8, end=8), score=MagnitudeScore()
    )
    make_trainer(tmp_path / "run", callback, model=model).train()
    assert isinstance(model, GPT2LMHeadModel)
    assert callback.pruner is not None
    assert callback.pruner.sparsity == pytest.approx(0.8, abs=1e-3)


def test_the_seq2seq_trainer_prunes_with_label_smoothing_and_generation(tmp_path: Path) -> None:
    callback = PruningCallback(
        coupled_penalty(1e-3),
        IterativePruning(fraction=0.5),
        metric="length",
        floor=0.0,
        score=MagnitudeScore(),
    )
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=4,
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="no",
        label_smoothing_factor=0.1,
        predict_with_generate=True,
        generation_max_length=6,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Seq2SeqTrainer(
        model=bart(),
        args=arguments,
        train_dataset=Sentences(32, seed=1),
        eval_dataset=Sentences(8, seed=2),
        compute_metrics=lambda prediction: {"length": float(prediction.predictions.shape[1])},
        callbacks=[callback],
    )
    trainer.train()
    assert callback.pruner is not None
    # Two evaluations, the second of which is delivered as the sparsest that met the floor.
    assert callback.pruner.sparsity == pytest.approx(0.5, abs=1e-2)


def test_a_denser_best_model_is_replaced_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The first evaluation is the best, and of the dense network; the floor is met by all.
    metrics = iter([0.9, 0.8, 0.7, 0.6, 0.4, 0.4])
    callback = PruningCallback(
        schedule=IterativePruning(fraction=0.5),
        metric="metric",
        floor=0.5,
        penalty=None,
        score=MagnitudeScore(),
    )
    trainer = make_trainer(
        tmp_path,
        callback,
        load_best_model_at_end=True,
        metric_for_best_model="metric",
        greater_is_better=True,
        save_total_limit=None,
    )
    trainer.compute_metrics = lambda _: {"metric": next(metrics)}
    with caplog.at_level(logging.WARNING, logger="prunus"):
        trainer.train()
    assert "load_best_model_at_end loaded" in caplog.text
    assert "of sparsity 0.8750, is delivered instead" in caplog.text
    weights = select(trainer.model)
    kept = sum(int(torch.count_nonzero(t.parameter)) for t in weights.values())
    assert 1 - kept / weights.prunable == pytest.approx(0.875, abs=1e-3)


def test_evaluation_after_training_removes_nothing(tmp_path: Path) -> None:
    callback = stateful()
    trainer = make_trainer(tmp_path, callback, max_steps=8)
    trainer.train()
    before = zeros(trainer.model)
    trainer.evaluate()
    after = zeros(trainer.model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_schedule_without_metric_prunes_at_the_first_evaluation(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        PruningCallback(schedule=OneShot(sparsity=0.5), penalty=None, score=MagnitudeScore()),
        max_steps=8,
    )
    trainer.eval_dataset = {"one": Sentences(8, seed=3), "other": Sentences(8, seed=4)}
    trainer.train()
    removed = [
        entry["eval_removed"] for entry in trainer.state.log_history if "eval_removed" in entry
    ]
    assert removed[0] > 0
    assert removed == [removed[0], 0]  # at the first of two evaluations, each of two sets


@pytest.mark.parametrize("metric", ["eval_one_loss", "other_loss"])
def test_the_metric_may_be_of_one_of_several_evaluation_sets(tmp_path: Path, metric: str) -> None:
    pruning = PruningCallback(
        schedule=IterativePruning(fraction=0.5),
        metric=metric,
        floor=100.0,
        mode="min",
        penalty=None,
        score=MagnitudeScore(),
    )
    trainer = make_trainer(tmp_path, pruning, max_steps=8)
    trainer.eval_dataset = {"one": Sentences(8, seed=3), "other": Sentences(8, seed=4)}
    trainer.train()
    removed = [
        entry["eval_removed"] for entry in trainer.state.log_history if "eval_removed" in entry
    ]
    assert len(removed) == 2
    assert all(removed)


def halving(metric: str = "loss") -> PruningCallback:
    return PruningCallback(
        schedule=IterativePruning(fraction=0.5),
        metric=metric,
        floor=100.0,
        mode="min",
        penalty=None,
        score=MagnitudeScore(),
    )


def test_each_evaluation_is_logged_with_the_sparsity_that_was_measured(tmp_path: Path) -> None:
    before, after = Record(), Record()
    trainer = make_trainer(tmp_path, before, halving(), after, max_steps=12)
    trainer.train()
    prunable = select(gpt2()).prunable
    kept = [prunable]
    for _ in range(3):
        kept.append(kept[-1] - round(0.5 * kept[-1]))
    removed = [a - b for a, b in itertools.pairwise(kept)]
    expected: dict[str, list[Any]] = {
        "eval_sparsity": [1 - n / prunable for n in kept[:3]],
        "eval_kept": kept[:3],
        "eval_floor": 3 * [100.0],
    }
    history = trainer.state.log_history
    for name, values in expected.items():
        steps = list(zip((4, 8, 12), values, strict=True))
        for record in (before, after):  # callbacks before and after this one, as TensorBoard's
            assert record.logged(name) == steps
        assert [(e["step"], e[name]) for e in history if "eval_loss" in e] == steps
        assert not [entry for entry in history if name in entry and "eval_loss" not in entry]
    assert [entry["eval_removed"] for entry in history if "eval_loss" in entry] == removed
    # The zeros of the model that was measured.
    assert [zero for _, zero in before.zeros] == [prunable - n for n in kept[:3]]
    trainer.evaluate()
    assert "eval_sparsity" not in trainer.state.log_history[-1]


class Quiet(Trainer):
    """A Trainer that changes what it logs, as subclasses do."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log({**logs, "own": 1.0}, start_time)


def test_a_trainer_with_its_own_log_receives_the_sparsity_too(tmp_path: Path) -> None:
    record = Record()
    trainer = make_trainer(tmp_path, halving(), record, max_steps=4, trainer=Quiet)
    trainer.train()
    assert [logs["own"] for _, logs in record.logs if "eval_sparsity" in logs] == [1.0]


def test_tensorboard_shows_metric_and_sparsity_of_the_same_step(tmp_path: Path) -> None:
    written: list[tuple[str, float, int]] = []

    class Writer:
        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def flush(self) -> None: ...
        def close(self) -> None: ...

    class Board(TensorBoardCallback):
        def __init__(self) -> None:  # without the package, which may not be installed
            self.tb_writer = Writer()

        def on_train_begin(self, *_: Any, **__: Any) -> None: ...

    make_trainer(tmp_path, Board(), halving(), max_steps=8).train()
    by_name = {name: [step for n, _, step in written if n == name] for name, _, _ in written}
    assert by_name["eval/loss"] == by_name["eval/sparsity"] == by_name["eval/kept"] == [4, 8]


@pytest.mark.parametrize("strategy", ["steps", "epoch", "best"])
def test_a_checkpoint_of_an_evaluation_holds_the_measured_weights(
    tmp_path: Path, strategy: str
) -> None:
    changes: dict[str, Any] = {"save_strategy": strategy, "save_total_limit": None}
    if strategy == "epoch":
        changes["eval_strategy"] = "epoch"
    if strategy == "best":
        changes["metric_for_best_model"] = "loss"
    trainer = make_trainer(tmp_path, halving(), **changes)
    trainer.train()
    history = trainer.state.log_history
    losses = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    folders = list(tmp_path.glob("checkpoint-*"))
    assert len(folders) >= 3
    for folder in folders:
        step = int(folder.name.partition("-")[2])
        model = GPT2LMHeadModel.from_pretrained(folder)
        weights = select(model)
        zero = sum(int((t.parameter == 0).sum()) for t in weights.values())
        saved = TrainerState.load_from_json(str(folder / "trainer_state.json")).log_history
        logged = [e["eval_sparsity"] for e in saved if "eval_sparsity" in e and e["step"] == step]
        assert logged == [zero / weights.prunable]
        measured = make_trainer(tmp_path / "measure", model=model).evaluate()
        assert measured["eval_loss"] == losses[step]


def test_all_evaluation_sets_measure_the_same_weights(tmp_path: Path) -> None:
    record = Record()
    trainer = make_trainer(tmp_path, halving("one_loss"), record, max_steps=8)
    trainer.eval_dataset = {"one": Sentences(8, seed=3), "other": Sentences(8, seed=4)}
    trainer.train()
    (_, dense), (_, second), (_, half), (_, fourth) = record.zeros
    assert (dense, half) == (second, fourth)
    assert half - dense == round(0.5 * select(gpt2()).prunable)


def test_the_last_evaluation_counts_if_the_trainer_loads_its_best_model(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, halving(), max_steps=8, load_best_model_at_end=True, save_total_limit=None
    )
    trainer.train()
    assert [e["step"] for e in trainer.state.log_history if "eval_removed" in e] == [4, 8]
    weights = select(trainer.model)
    zero = sum(int((t.parameter == 0).sum()) for t in weights.values())
    assert zero == round(0.5 * weights.prunable)  # as the second of two evaluations measured


def test_an_interrupted_training_leaves_the_clipping_unchanged(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        PruningCallback(penalty=None, score=MagnitudeScore()),
        Interrupt(2),
        max_grad_norm=0.1,
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    torch.save(trainer.args, tmp_path / "args.bin")
    assert torch.load(tmp_path / "args.bin", weights_only=False).max_grad_norm == 0.1
    second = PruningCallback(penalty=None, score=MagnitudeScore())
    other = make_trainer(tmp_path, second, max_steps=2)
    other.args.max_grad_norm = trainer.args.max_grad_norm  # as when the same arguments are used
    other.train()
    assert second.pruner is not None
    assert second.pruner.max_grad_norm == other.args.max_grad_norm == 0.1


def test_a_head_tied_to_the_decoders_embedding_is_accepted(tmp_path: Path) -> None:
    config = MarianConfig(
        vocab_size=VOCABULARY,
        decoder_vocab_size=VOCABULARY,
        share_encoder_decoder_embeddings=False,
        max_position_embeddings=8,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        forced_eos_token_id=2,
    )
    callback = PruningCallback(
        schedule=OneShot(sparsity=0.5, at=1), penalty=None, score=MagnitudeScore()
    )
    make_trainer(tmp_path, callback, model=MarianMTModel(config), max_steps=2).train()
    assert callback.pruner is not None
    assert callback.pruner.sparsity == pytest.approx(0.5, abs=1e-3)


def test_tensors_excluded_from_the_selection_are_not_pruned(tmp_path: Path) -> None:
    callback = PruningCallback(
        schedule=OneShot(sparsity=0.9, at=1),
        selection=functools.partial(select, exclude="transformer.wte"),
        penalty=None,
        score=MagnitudeScore(),
    )
    trainer = make_trainer(tmp_path, callback, max_steps=2, eval_strategy="no")
    trainer.train()
    assert int((trainer.model.transformer.wte.weight == 0).sum()) == 0


def test_a_selection_and_its_masks_may_be_objects(tmp_path: Path) -> None:
    model = gpt2()
    selection = select(model, include="transformer.h.0.mlp.c_fc.weight")
    mask = torch.ones(16, 64, dtype=torch.bool)
    mask[:, ::2] = False
    callback = PruningCallback(
        selection=selection,
        masks={"transformer.h.0.mlp.c_fc.weight": mask},
        penalty=None,
        score=MagnitudeScore(),
    )
    make_trainer(tmp_path, callback, model=model, max_steps=2, eval_strategy="no").train()
    assert callback.pruner is not None
    assert callback.pruner.selection is selection
    weight = model.transformer.h[0].mlp.c_fc.weight.detach()
    assert torch.equal(weight != 0, mask)


def test_without_keep_best_the_last_state_is_delivered(tmp_path: Path) -> None:
    callback = PruningCallback(
        schedule=IterativePruning(fraction=0.5),
        metric="loss",
        floor=100.0,
        mode="min",
        keep_best=False,
        penalty=None,
        score=MagnitudeScore(),
    )
    make_trainer(tmp_path, callback, max_steps=8).train()
    assert callback.pruner is not None
    # After both evaluations, of which no one has measured the second state.
    assert callback.pruner.sparsity == pytest.approx(0.75, abs=1e-3)
