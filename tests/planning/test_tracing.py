"""The traced memory of a step is what real tensors take."""

import gc
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig

from peftkit import (
    ModelConfig,
    MultiLabelClassification,
    Recipe,
    Seq2Seq,
    SequenceClassification,
    SequenceRegression,
    TokenClassification,
    full,
    lora,
    qlora,
)
from peftkit.models import adapters
from peftkit.models.loading import load_base, load_tokenizer
from peftkit.planning.dummy_batch import make_dummy_batch
from peftkit.planning.meta_model import make_meta_model, sum_model_bytes
from peftkit.planning.planner import make_arguments
from peftkit.planning.tracing import interpolate_step, trace
from peftkit.system.environment import count_optimizer_bytes
from peftkit.training.arguments import build_training_arguments
from peftkit.training.trainer import build_trainer
from tests.planning.test_zero import STEP

LABELS = ("a", "b", "c")
METHODS = {"full": full, "lora": lora, "qlora": qlora, "dora": lambda: lora(use_dora=True)}
ROWS = 8


def recipe_of(folder, architecture, method, task, tmp_path, **training):
    return Recipe(
        model=ModelConfig(name_or_path=str(folder / architecture)), task=task, method=METHODS[method](),
        training={
            "output_dir": str(tmp_path), "per_device_train_batch_size": ROWS, "max_steps": 2, "report_to": "none",
            "disable_tqdm": True, "use_cpu": True, "learning_rate": 1e-3, **training,
        },
    )  # fmt: skip


def traced(recipe, architecture_folder, **more):
    return trace(
        AutoConfig.from_pretrained(architecture_folder), recipe.task, recipe.method, make_arguments(recipe),
        labels=LABELS, dtype="float32", rows=(ROWS,), on_gpu=False, **more,
    )  # fmt: skip


def measured(recipe):
    """Bytes of model, optimizer's state, and peak with them, in two steps of the Trainer; and the head."""
    tokenizer = load_tokenizer(recipe.model, recipe.task)
    base = load_base(recipe.model, recipe.task, tokenizer, LABELS, recipe.method.quantization)
    model = adapters.apply_method(recipe.method, base.model, base.head, recipe.task.model.peft_task_type)
    accumulated = recipe.training.get("gradient_accumulation_steps", 1)
    batch = make_dummy_batch(recipe.task, 2 * ROWS * accumulated, len(LABELS))
    if recipe.task.model.peft_task_type == "SEQ_CLS" and batch["labels"].dim() == 2:
        batch["labels"] = batch["labels"].long()  # rows name their labels by number
    rows = Dataset.from_dict({name: tensor.tolist() for name, tensor in batch.items()})
    arguments = build_training_arguments(recipe, recipe.training["output_dir"])
    trainer = build_trainer(recipe, model, arguments, tokenizer, {"train": rows, "validation": rows}, LABELS, dict, [])
    weights = sum_model_bytes(model)
    # What is freed while it is counted would count less than nothing.
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.train()
    now = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return weights, count_optimizer_bytes(trainer.optimizer), weights + peak, base.head


CASES = [
    ("bert", "full", SequenceClassification(max_length=64), {}),
    ("roberta", "lora", TokenClassification(max_length=64), {}),
    ("bert", "qlora", MultiLabelClassification(max_length=64), {"max_grad_norm": 0.0}),
    ("distilbert", "dora", SequenceRegression(max_length=64), {}),
    ("t5", "full", Seq2Seq(max_source_length=64, max_target_length=16), {"optim": "adamw_torch"}),
    ("t5", "qlora", Seq2Seq(max_source_length=64, max_target_length=16), {"gradient_accumulation_steps": 2}),
    ("bert", "lora", SequenceClassification(max_length=64), {"activation_checkpointing": True}),
    ("bert", "full", SequenceClassification(max_length=64), {"optim": "adamw_8bit"}),
    ("bert", "full", SequenceClassification(max_length=64), {"bf16": True, "optim": "adafactor"}),
]


@pytest.mark.parametrize(("architecture", "method", "task", "training"), CASES)
def test_what_is_planned_is_what_real_tensors_take(architecture, method, task, training, checkpoints, tmp_path):
    recipe = recipe_of(checkpoints, architecture, method, task, tmp_path, **training)
    weights, state, peak, head = measured(recipe)
    found = traced(recipe, checkpoints / architecture, head=head)
    assert found.weights == pytest.approx(weights, rel=0.01)
    assert found.optimizer == pytest.approx(state, rel=0.01)
    assert found.peak(found.steps[0]) == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize(
    "architecture", ["t5", "bart", "deberta", "albert", "electra", "distilbert", "modernbert", "gpt2", "roberta"]
)
@pytest.mark.parametrize("on_gpu", [False, True])
def test_every_classifier_can_be_traced(architecture, on_gpu, checkpoints, tmp_path):
    recipe = recipe_of(checkpoints, architecture, "lora", SequenceClassification(max_length=16), tmp_path)
    config = AutoConfig.from_pretrained(checkpoints / architecture)
    found = trace(
        config, recipe.task, recipe.method, make_arguments(recipe), labels=LABELS, dtype="float32", rows=(2, 4),
        on_gpu=on_gpu,
    )  # fmt: skip
    assert 0 < found.trainable < found.total
    assert found.steps[0].flops < found.steps[1].flops
    assert found.steps[0].backward < found.steps[1].backward


def test_an_encoder_is_planned_as_the_encoder_decoder_that_is_made_of_it(checkpoints, tmp_path):
    recipe = recipe_of(checkpoints, "bert", "lora", Seq2Seq(max_source_length=16, max_target_length=8), tmp_path)
    alone = AutoConfig.from_pretrained(checkpoints / "bert")
    model = make_meta_model(
        alone, recipe.task, recipe.method, make_arguments(recipe), LABELS, "float32", None, on_gpu=False
    )
    assert model.config.is_encoder_decoder
    assert traced(recipe, checkpoints / "bert").steps[0].flops > 0


def test_a_fused_kernel_keeps_no_attention_weights(checkpoints, tmp_path):
    recipe = recipe_of(checkpoints, "bert", "full", SequenceClassification(max_length=256), tmp_path)
    config = AutoConfig.from_pretrained(checkpoints / "bert")
    options = {"labels": LABELS, "dtype": "float32", "rows": (ROWS,)}
    arguments = make_arguments(recipe)
    ours, gpu = (
        trace(config, recipe.task, recipe.method, arguments, on_gpu=on_gpu, **options).steps[0]
        for on_gpu in (False, True)
    )
    matrices = ROWS * config.num_attention_heads * 256 * 256 * 4 * config.num_hidden_layers
    assert ours.backward - gpu.backward > matrices


def test_tracing_draws_no_random_numbers_and_leaves_attention_as_it_was(checkpoints, tmp_path):
    recipe = recipe_of(checkpoints, "bert", "full", SequenceClassification(max_length=16), tmp_path)
    before, kernel = torch.get_rng_state(), torch.nn.functional.scaled_dot_product_attention
    traced(recipe, checkpoints / "bert")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.nn.functional.scaled_dot_product_attention is kernel


def test_a_step_between_two_that_were_traced():
    steps = (STEP, replace(STEP, rows=16, forward=900, flops=3 * 10**9))
    assert interpolate_step(steps, 12).forward == 700
    assert interpolate_step(steps, 12).flops == 2 * 10**9
    assert interpolate_step(steps, 8) == STEP
