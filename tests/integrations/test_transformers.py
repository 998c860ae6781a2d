"""Pruning inside the Trainer: zeros, resumption, ties, delivery, and what is refused."""

from __future__ import annotations

import functools
import logging
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from accelerate import debug_launcher
from transformers import (
    AutoModelForCausalLM,
    BartForConditionalGeneration,
    GPT2LMHeadModel,
    MarianConfig,
    MarianMTModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)

from helpers.states import same, states_equal
from integrations.trainers import WORDS, Sentences, bart, gpt2, stateful, trainer
from prunus import (
    CheckpointError,
    ExponentialRelevance,
    FloorNotReachedError,
    GradualPruning,
    IterativePruning,
    OneShot,
    PrunusError,
    RelevancePenalty,
    TaylorScore,
    select,
)
from prunus._utils.files import load_tree
from prunus.integrations.transformers import STATE_FILE, PruningCallback


def everything(model: nn.Module) -> Any:
    return select(model, biases=True, norms=True)


def zeros(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() == 0 for name, p in model.named_parameters()}


class Watch(TrainerCallback):
    """Looks after every step whether a removed weight has come back."""

    def __init__(self, pruning: PruningCallback) -> None:
        self.pruning, self.seen = pruning, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.pruning.pruner is not None
        for name, mask in self.pruning.pruner.masks.active().items():
            weight = self.pruning.pruner.selection[name].parameter.detach()
            assert int(torch.count_nonzero(weight[~mask])) == 0
            self.seen += 1


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_torch_fused"])
def test_zeros_hold_through_decay_accumulation_and_clipping(tmp_path: Path, optimizer: str) -> None:
    callback = PruningCallback(
        RelevancePenalty(1e-3), GradualPruning(sparsity=0.9, begin=2, end=10), selection=everything
    )
    watch = Watch(callback)
    made = trainer(tmp_path, callback, watch, gradient_accumulation_steps=4, optim=optimizer)
    made.train()
    assert callback.pruner is not None
    assert callback.pruner.sparsity == pytest.approx(0.9, abs=1e-3)
    assert watch.seen > 20


def test_zeros_hold_under_bfloat16_autocast(tmp_path: Path) -> None:
    callback = PruningCallback(RelevancePenalty(1e-3), OneShot(sparsity=0.8, at=3))
    watch = Watch(callback)
    made = trainer(tmp_path, callback, watch, bf16=True, max_steps=6)
    types = set()
    layer = made.model.transformer.h[0].mlp.c_fc
    layer.register_forward_hook(lambda _, __, output: types.add((layer.weight.dtype, output.dtype)))
    made.train()
    assert types == {(torch.float32, torch.bfloat16)}
    assert callback.pruner is not None
    assert callback.pruner.sparsity == pytest.approx(0.8, abs=1e-3)
    assert watch.seen == 4 * len(callback.pruner.selection)  # after the steps 3 to 6


@pytest.mark.filterwarnings("default")  # the compiler has some of its own
def test_a_compiled_model_prunes_as_the_plain_one(tmp_path: Path) -> None:
    def trained(folder: str, **changes: Any) -> nn.Module:
        callback = PruningCallback(RelevancePenalty(1e-3), GradualPruning(sparsity=0.8, end=4))
        made = trainer(tmp_path / folder, callback, max_steps=6, **changes)
        made.train()
        assert callback.pruner is not None
        assert callback.pruner.sparsity == pytest.approx(0.8, abs=1e-3)
        model: nn.Module = made.model
        return model

    # With the eager backend, for no compiler may be assumed to be installed.
    compiled = trained("compiled", torch_compile=True, torch_compile_backend="eager")
    assert states_equal(compiled, trained("plain"))


def test_relevance_does_not_depend_on_the_trainers_clipping(tmp_path: Path) -> None:
    def shrunk(max_grad_norm: float) -> tuple[torch.Tensor, Any]:
        model = gpt2().eval()  # without dropout, which would make gradients differ
        before = model.transformer.wte.weight.detach().clone()
        callback = PruningCallback(
            RelevancePenalty(0.5, ExponentialRelevance(1e-3), apply="decoupled")
        )
        made = trainer(
            tmp_path,
            callback,
            model=model,
            max_steps=1,
            learning_rate=1e-30,  # so that the penalty alone moves the weights
            max_grad_norm=max_grad_norm,
            eval_strategy="no",
            save_strategy="no",
        )
        made.model.train = lambda mode=True: made.model
        gradients: list[torch.Tensor] = []  # of the two micro-batches, before they are clipped
        model.transformer.wte.weight.register_hook(lambda grad: gradients.append(grad.clone()))
        made.train()
        after: torch.Tensor = model.transformer.wte.weight.detach()
        return after / before, sum(gradients)

    for max_grad_norm in (1e-4, 0.0):
        quotient, gradient = shrunk(max_grad_norm)
        # Twice the strength, times the relevance of the gradient before clipping.
        expected = 1 - 2 * 0.5 * torch.exp(-gradient.abs() / 1e-3)
        assert expected.min() < 0.9 < expected.max()
        torch.testing.assert_close(quotient, expected, rtol=1e-4, atol=1e-5)


def test_the_clipping_is_the_trainers_own_to_the_bit(tmp_path: Path) -> None:
    plain = trainer(tmp_path / "a", max_grad_norm=0.1, max_steps=4)
    plain.train()
    callback = PruningCallback()
    ours = trainer(tmp_path / "b", callback, max_grad_norm=0.1, max_steps=4)
    ours.train()
    assert states_equal(plain.model, ours.model)
    norms = [
        [entry["grad_norm"] for entry in made.state.log_history if "grad_norm" in entry]
        for made in (plain, ours)
    ]
    assert norms[0] == norms[1]
    assert norms[0]
    assert ours.args.max_grad_norm == 0.1
    saved = torch.load(tmp_path / "b/checkpoint-4/training_args.bin", weights_only=False)
    assert saved.max_grad_norm == 0.1


class Stop(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = trainer(tmp_path_factory.mktemp("unstopped"), stateful())
    made.train()
    return made


# Drawn once; "save" is between the Trainer's part of the checkpoint and the event for ours.
_DRAW = random.Random(20261122)
KILLS = [(_DRAW.randint(5, 23), event) for event in ("step", "evaluate", "save")]


@pytest.mark.parametrize(("step", "event"), KILLS)
def test_a_killed_and_resumed_run_equals_the_unstopped_one(
    tmp_path: Path, unstopped: Any, step: int, event: str
) -> None:
    program = Path(__file__).with_name("trainers.py")
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path), str(step), event],
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    made = trainer(tmp_path, stateful())
    made.train(resume_from_checkpoint=True)
    assert states_equal(made.model, unstopped.model)
    last = f"checkpoint-{made.state.global_step}/{STATE_FILE}"
    ours, theirs = load_tree(tmp_path / last), load_tree(Path(unstopped.args.output_dir) / last)
    assert same(ours, theirs)
    assert ours["pruner"]["prunings"] == 6


def test_resuming_from_another_directory_needs_its_name(tmp_path: Path, unstopped: Any) -> None:
    checkpoint = Path(unstopped.args.output_dir) / "checkpoint-20"
    with pytest.raises(CheckpointError, match="resume_from="):
        trainer(tmp_path, stateful()).train(resume_from_checkpoint=str(checkpoint))
    callback = stateful(resume_from=checkpoint)
    made = trainer(tmp_path, callback)
    made.train(resume_from_checkpoint=str(checkpoint))
    assert states_equal(made.model, unstopped.model)


def test_a_checkpoint_of_another_step_is_refused(tmp_path: Path, unstopped: Any) -> None:
    source = Path(unstopped.args.output_dir)
    callback = stateful(resume_from=source / "checkpoint-24")
    with pytest.raises(CheckpointError, match="resumed at step 20.* is of step 24"):
        trainer(tmp_path, callback).train(resume_from_checkpoint=str(source / "checkpoint-20"))


def test_a_metric_of_compute_metrics_is_found_by_name(tmp_path: Path) -> None:
    given = iter([0.9, 0.9, 0.1, 0.9, 0.9, 0.9])
    callback = PruningCallback(
        schedule=IterativePruning(fraction=0.5), metric="agreement", floor=0.5
    )
    made = trainer(tmp_path, callback)
    made.compute_metrics = lambda _: {"agreement": next(given)}
    made.train()
    seen = [entry for entry in made.state.log_history if "sparsity" in entry]
    prunable = select(gpt2()).prunable
    kept = [round((1 - entry["sparsity"]) * prunable) for entry in seen]
    half = [prunable]
    for met in (True, True, False, True, True):
        half.append(half[-1] - round(0.5 * half[-1]) if met else half[-1])
    assert kept == pytest.approx(half, abs=2)
    assert seen[2]["removed"] == 0


def test_tied_tensors_are_one_and_stay_tied_through_save_and_load(tmp_path: Path) -> None:
    callback = PruningCallback(
        RelevancePenalty(1e-3), OneShot(sparsity=0.75, at=2), selection=everything
    )
    model = bart()
    made = trainer(tmp_path / "run", callback, model=model, max_steps=6)
    made.train()
    assert callback.pruner is not None
    shared = callback.pruner.selection["model.shared.weight"]
    assert "lm_head.weight" in shared.aliases
    assert shared.prunable == (WORDS - 1) * 16  # the padding word's row does not count
    total = sum(p.numel() for p in model.parameters())
    assert callback.pruner.selection.prunable == total - 16
    model.save_pretrained(tmp_path / "saved")
    loaded = BartForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert loaded.lm_head.weight is loaded.model.shared.weight
    assert states_equal(model, loaded)


def test_fine_tuning_a_loaded_sparse_model_keeps_its_zeros(tmp_path: Path) -> None:
    first = PruningCallback(schedule=OneShot(sparsity=0.75, at=2), selection=everything)
    made = trainer(tmp_path / "run", first, max_steps=4)
    made.train()
    made.save_model(str(tmp_path / "saved"))

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    before = zeros(loaded)
    assert (
        sum(int(z.sum()) for z in before.values()) / sum(z.numel() for z in before.values()) > 0.7
    )
    second = PruningCallback(keep_zeros=True, selection=everything)
    trainer(tmp_path / "tuned", second, model=loaded, max_steps=6).train()
    after = zeros(loaded)
    assert all(torch.equal(before[name] & after[name], before[name]) for name in before)

    # Without asking for it they come back, as one would expect of a model loaded as dense.
    revived = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    trainer(tmp_path / "dense", model=revived, max_steps=2).train()
    assert any(int((before[n] & ~z).sum()) for n, z in zeros(revived).items())


def test_a_second_training_keeps_the_zeros_of_the_first(tmp_path: Path) -> None:
    schedule = OneShot(sparsity=0.75, at=2)
    callback = PruningCallback(schedule=schedule)
    made = trainer(tmp_path, callback, max_steps=4)
    made.train()
    before = zeros(made.model)
    schedule.sparsity = 0.9
    made.train()
    after = zeros(made.model)
    assert all(torch.equal(before[name] & after[name], before[name]) for name in before)
    assert callback.pruner is not None
    assert callback.pruner.sparsity == pytest.approx(0.9, abs=1e-3)


def test_a_pretrained_model_is_pruned_by_the_same_callback(tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path / "pretrained")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "pretrained")
    callback = PruningCallback(RelevancePenalty(1e-3), GradualPruning(sparsity=0.8, end=8))
    trainer(tmp_path / "run", callback, model=model).train()
    assert isinstance(model, GPT2LMHeadModel)
    assert callback.pruner is not None
    assert callback.pruner.sparsity == pytest.approx(0.8, abs=1e-3)


def test_the_seq2seq_trainer_prunes_with_label_smoothing_and_generation(tmp_path: Path) -> None:
    callback = PruningCallback(
        RelevancePenalty(1e-3), IterativePruning(fraction=0.5), metric="length", floor=0.0
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
    made = Seq2SeqTrainer(
        model=bart(),
        args=arguments,
        train_dataset=Sentences(32, seed=1),
        eval_dataset=Sentences(8, seed=2),
        compute_metrics=lambda made: {"length": float(made.predictions.shape[1])},
        callbacks=[callback],
    )
    made.train()
    assert callback.pruner is not None
    # Two evaluations, the second of which is delivered as the sparsest that met the floor.
    assert callback.pruner.sparsity == pytest.approx(0.5, abs=1e-2)


def test_the_best_model_is_not_a_denser_one_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The first evaluation is the best, and of the dense network; the floor is met by all.
    given = iter([0.9, 0.8, 0.7, 0.6, 0.4, 0.4])
    callback = PruningCallback(schedule=IterativePruning(fraction=0.5), metric="metric", floor=0.5)
    made = trainer(
        tmp_path,
        callback,
        load_best_model_at_end=True,
        metric_for_best_model="metric",
        greater_is_better=True,
        save_total_limit=None,
    )
    made.compute_metrics = lambda _: {"metric": next(given)}
    with caplog.at_level(logging.WARNING, logger="prunus"):
        made.train()
    assert "load_best_model_at_end brought back" in caplog.text
    assert "of sparsity 0.8750, is delivered instead" in caplog.text
    weights = select(made.model)
    kept = sum(int(torch.count_nonzero(t.parameter)) for t in weights.values())
    assert 1 - kept / weights.prunable == pytest.approx(0.875, abs=1e-3)


def test_evaluating_after_training_removes_nothing(tmp_path: Path) -> None:
    callback = stateful()
    made = trainer(tmp_path, callback, max_steps=8)
    made.train()
    before = zeros(made.model)
    made.evaluate()
    after = zeros(made.model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_unmet_floor_is_rejected_at_the_end(tmp_path: Path) -> None:
    callback = PruningCallback(
        schedule=IterativePruning(fraction=0.5), metric="loss", floor=1e-09, mode="min"
    )
    with pytest.raises(FloorNotReachedError, match="no validation met the floor"):
        trainer(tmp_path, callback, max_steps=4).train()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": IterativePruning(), "floor": 1.0}, "needs the validation metric"),
        ({"schedule": OneShot(sparsity=0.5), "floor": 1.0}, "needs the validation metric"),
        ({"metric": "eval_loss"}, 'mode="min"'),
        ({"metric": 3}, "metric must be the name of a metric or None, but is 3"),
        ({"penalty": OneShot(sparsity=0.5)}, "penalty must be a RelevancePenalty or None, but is"),
        ({"selection": ["*"]}, "selection must be a Selection, or a function that returns one"),
        ({"score": TaylorScore}, "score must be a Score, but is the class TaylorScore"),
        ({"min_density": 1.0}, "min_density must be from 0 to below 1, but is 1.0"),
    ],
)
def test_conflicting_arguments_are_rejected(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PrunusError, match=message):
        PruningCallback(**arguments)


def floored() -> PruningCallback:
    return PruningCallback(schedule=IterativePruning(), metric="bleu", floor=0.5)


def test_a_metric_that_the_evaluation_does_not_return_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(PrunusError, match=r"no metric 'bleu'; it returned .*eval_loss"):
        trainer(tmp_path, floored()).train()


def test_disabled_evaluation_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(PrunusError, match="evaluation is disabled"):
        trainer(tmp_path, floored(), eval_strategy="no").train()


def test_loading_the_best_model_without_a_metric_is_rejected(tmp_path: Path) -> None:
    callback = PruningCallback(schedule=OneShot(sparsity=0.5))
    with pytest.raises(PrunusError, match="load_best_model_at_end the callback needs metric="):
        trainer(tmp_path, callback, load_best_model_at_end=True).train()


def test_a_schedule_that_waits_for_an_evaluation_needs_no_metric(tmp_path: Path) -> None:
    made = trainer(tmp_path, PruningCallback(schedule=OneShot(sparsity=0.5)), max_steps=8)
    made.eval_dataset = {"one": Sentences(8, seed=3), "other": Sentences(8, seed=4)}
    made.train()
    removed = [entry["removed"] for entry in made.state.log_history if "removed" in entry]
    assert removed[0] > 0
    assert removed == [removed[0], 0]  # at the first of two evaluations, each of two sets


def test_a_model_whose_tied_tensors_were_untied_is_rejected(tmp_path: Path) -> None:
    model = gpt2()
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    with pytest.raises(PrunusError, match=r"are two tensors.*tie_weights"):
        trainer(tmp_path, PruningCallback(), model=model).train()


def test_a_checkpoint_made_without_the_callback_is_rejected(tmp_path: Path) -> None:
    trainer(tmp_path, Stop(4)).train()
    with pytest.raises(
        CheckpointError, match=r"has no prunus\.safetensors.*it was made without this callback"
    ):
        trainer(tmp_path, PruningCallback()).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("metric", ["eval_one_loss", "other_loss"])
def test_the_metric_of_one_of_several_evaluation_sets(tmp_path: Path, metric: str) -> None:
    pruning = PruningCallback(
        schedule=IterativePruning(fraction=0.5), metric=metric, floor=100.0, mode="min"
    )
    made = trainer(tmp_path, pruning, max_steps=8)
    made.eval_dataset = {"one": Sentences(8, seed=3), "other": Sentences(8, seed=4)}
    made.train()
    removed = [entry["removed"] for entry in made.state.log_history if "removed" in entry]
    assert len(removed) == 2
    assert all(removed)


class Interrupt(TrainerCallback):
    """Stops the process's training, but not the process, as Ctrl-C does in a notebook."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            self.step = -1
            raise KeyboardInterrupt


def _two_processes(folder: str) -> None:
    torch.set_num_threads(1)
    everywhere = {"ddp_backend": "gloo", "max_steps": 10}
    straight, stopped = Path(folder) / "straight", Path(folder) / "stopped"
    whole = trainer(straight, stateful(), **everywhere)
    assert whole.args.world_size == 2
    whole.train()
    pruning = stateful()
    trainer(stopped, Stop(6), pruning, **everywhere).train()
    again = trainer(stopped, pruning := stateful(), **everywhere)
    again.train(resume_from_checkpoint=True)
    assert states_equal(again.model, whole.model)
    assert pruning.pruner is not None
    assert pruning.pruner.sparsity > 0.3
    assert not pruning.pruner.masks.revived()
    # The same in the other process, which had other sentences to learn from.
    mine = torch.cat([weight.detach().flatten() for weight in again.model.parameters()])
    both = [torch.empty_like(mine) for _ in range(2)]
    torch.distributed.all_gather(both, mine)
    assert torch.equal(*both)


@pytest.mark.filterwarnings("default")
def test_two_processes_prune_alike_and_resume(tmp_path: Path) -> None:
    debug_launcher(_two_processes, (str(tmp_path),))


@pytest.mark.parametrize("start", [False, True], ids=["", "eval_on_start"])
def test_resuming_the_same_trainer_equals_the_unstopped_one(tmp_path: Path, start: bool) -> None:
    def built(folder: str, *more: TrainerCallback) -> tuple[Any, PruningCallback]:
        schedule = (
            IterativePruning(fraction=0.2)
            if start
            else GradualPruning(sparsity=0.9, end=20, every=1)
        )
        pruning = PruningCallback(
            RelevancePenalty(1e-2),
            schedule,
            metric="loss",
            floor=10.0 if start else None,
            mode="min",
        )
        return trainer(tmp_path / folder, pruning, *more, eval_on_start=start), pruning

    whole, _ = built("whole")
    whole.train()
    stopped, pruning = built("stopped", Interrupt(11))
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert pruning.pruner is not None
    before = pruning.pruner.sparsity
    stopped.evaluate()  # to have a look
    assert pruning.pruner.sparsity == before
    stopped.train(resume_from_checkpoint=True)
    assert states_equal(whole.model, stopped.model)


def test_clipping_survives_a_training_that_was_broken_off(tmp_path: Path) -> None:
    made = trainer(tmp_path, PruningCallback(), Interrupt(2), max_grad_norm=0.1)
    with pytest.raises(KeyboardInterrupt):
        made.train()
    torch.save(made.args, tmp_path / "args.bin")
    assert torch.load(tmp_path / "args.bin", weights_only=False).max_grad_norm == 0.1
    again = PruningCallback()
    other = trainer(tmp_path, again, max_steps=2)
    other.args.max_grad_norm = made.args.max_grad_norm  # as when the same arguments are used
    other.train()
    assert again.pruner is not None
    assert again.pruner.max_grad_norm == other.args.max_grad_norm == 0.1


def test_the_state_of_another_run_is_refused(tmp_path: Path) -> None:
    for folder, seed in (("a", 0), ("b", 7)):
        made = trainer(tmp_path / folder, stateful(), max_steps=8, seed=seed)
        made.train()
    resumed = trainer(tmp_path / "b", stateful())
    with pytest.raises(CheckpointError, match=r"is of another run .* not zero in .*resume_from="):
        resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-8"))


class SaveTwice(TrainerCallback):
    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_save = True


def test_saving_twice_at_one_step_leaves_one_state(tmp_path: Path) -> None:
    made = trainer(tmp_path, stateful(), SaveTwice())
    made.train()
    assert load_tree(tmp_path / "checkpoint-24" / STATE_FILE)["step"] == 24
    assert not list(tmp_path.glob(".checkpoint-*"))


@pytest.mark.parametrize("unfit", ["deepspeed", "fsdp", "enable_jit_checkpoint"])
def test_trainer_arguments_that_the_callback_cannot_serve_are_rejected(
    tmp_path: Path, unfit: str
) -> None:
    made = trainer(tmp_path, PruningCallback())
    setattr(made.args, unfit, True)
    with pytest.raises(PrunusError, match=f"does not work with {unfit}"):
        made.callback_handler.on_train_begin(made.args, made.state, made.control)


def test_a_head_tied_to_the_decoders_own_embedding_is_tied(tmp_path: Path) -> None:
    config = MarianConfig(
        vocab_size=WORDS,
        decoder_vocab_size=WORDS,
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
    callback = PruningCallback(schedule=OneShot(sparsity=0.5, at=1))
    trainer(tmp_path, callback, model=MarianMTModel(config), max_steps=2).train()
    assert callback.pruner is not None
    assert callback.pruner.sparsity == pytest.approx(0.5, abs=1e-3)


def test_the_default_selection_may_be_narrowed(tmp_path: Path) -> None:
    callback = PruningCallback(
        schedule=OneShot(sparsity=0.9, at=1),
        selection=functools.partial(select, exclude="transformer.wte"),
    )
    made = trainer(tmp_path, callback, max_steps=2, eval_strategy="no")
    made.train()
    assert int((made.model.transformer.wte.weight == 0).sum()) == 0
