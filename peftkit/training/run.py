"""One run, from recipe to report: the only file that knows the order."""

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import EvalPrediction, set_seed

from peftkit.checkpoints import manifest as checkpoint
from peftkit.data.quality import Checks, check_data
from peftkit.data.splits import load_splits
from peftkit.distributed import process_group as distributed
from peftkit.errors import (
    AuditError,
    DivergedError,
    LostRankError,
    NotReproducedError,
    UserError,
    install_sigterm_handler,
    run_with_exit_code,
)
from peftkit.models import adapters
from peftkit.models.loading import check_precision, load_base, load_tokenizer, match_checkpoint_labels
from peftkit.models.parameters import count_parameters
from peftkit.models.positions import read_position_limit
from peftkit.planning.auto_deepspeed import resolve_deepspeed
from peftkit.planning.run_estimate import planned_run
from peftkit.recipe.parser import parse_recipe, recipe_to_dict, split_resume
from peftkit.recipe.schema import Recipe, check_name
from peftkit.runs import writer
from peftkit.runs.reload import compare_reloaded, compute_live_outputs, find_reload_tolerance
from peftkit.runs.report import FILE_NAME, Report, read_report
from peftkit.runs.verification import check_difference
from peftkit.system import environment as measure
from peftkit.system.files import redact_home, redact_home_in_text
from peftkit.system.logging import is_rank_zero, logger, set_up_logging
from peftkit.tasks import Task
from peftkit.training.callbacks import AuditCallback, ClockCallback
from peftkit.training.evaluation import Scoring
from peftkit.training.summary import say
from peftkit.training.trainer import make_trainer, training_arguments

HELD_OUT_ROWS = 32
# What an export is written in, unless asked otherwise.
FLOAT32_BYTES = 4


def main(recipe: Recipe, words: Sequence[str] | None = None) -> None:
    """Train by `recipe` with the fields that the command line sets; ends the process with its exit code.

    0 complete; 1 the run failed; 2 the user can put it right, said in one line; 130 interrupted; 143 ended by SIGTERM.
    `--debug` shows the traceback.
    `--resume` goes on from the last checkpoint, `--resume PATH` from that one.
    """
    words = list(sys.argv[1:] if words is None else words)
    debug = "--debug" in words
    words, launched = distributed.split_launcher_words([word for word in words if word != "--debug"])
    words = distributed.spelled_out(words)
    words, resume = split_resume(words)
    set_up_logging(debug=debug)
    install_sigterm_handler()

    def act() -> None:
        chosen = parse_recipe(words, recipe, prog=Path(sys.argv[0]).name)
        if launched and chosen.training.get("deepspeed") is None:
            usual = distributed.usual_deepspeed_config(chosen)
            chosen = replace(chosen, training={**chosen.training, "deepspeed": f"ds_configs/{usual.name}"})
        run(chosen, resume=resume)

    sys.exit(run_with_exit_code(act, debug=debug))


def run(
    recipe: Recipe,
    *,
    trial: bool = False,
    progress: Callable[[Mapping[str, Any]], None] | None = None,
    resume: bool | str | Path = False,
) -> Report:
    """Train, audit, evaluate and save; returns the report that is also in the run's folder.

    A `trial` is scored on validation only, and its weights are not kept. `progress` is told of each log. `resume` is
    the checkpoint to go on from, or True for the last one in the run's folder. Raises UserError for what the user can
    put right and AuditError when the model did not train as it should. A run that fails leaves a report with its
    status, and its checkpoints; a finished run is never overwritten.
    """
    check_name(recipe.name)
    recipe = resolve_deepspeed(recipe)
    folder = writer.choose_run_folder(recipe)
    start = checkpoint.find_checkpoint(folder, resume)
    if start is not None:
        recipe = checkpoint.keep_global_batch(recipe, checkpoint.read_manifest(start), distributed.processes())
    report = Report(
        name=recipe.name, method=recipe.method.name, status="failed", recipe=recipe_to_dict(recipe),
        environment=measure.environment(),
    )  # fmt: skip
    clock = ClockCallback(progress)
    try:
        with writer.stage_run_folder(folder) as temporary, distributed.lost_rank_errors():
            report, fitted = _run(recipe, folder, temporary, report, trial, clock, start)
            # The other ranks need not wait for what follows.
            distributed.meet()
            distributed.finish()
            if is_rank_zero():
                if fitted is not None:
                    # The trained model is out of scope here, so its memory is free for the one that is loaded.
                    found = compare_reloaded(temporary, recipe, fitted)
                    most = find_reload_tolerance(temporary, recipe, bool(report.environment.get("gpus")))
                    told = {**dataclasses.asdict(found), "tolerance": most.difference}
                    report = replace(report, round_trip=told)
                    check_difference("the run read back", found, most)
                report.write(temporary)
                if trial:
                    checkpoint.remove_checkpoints(folder)
        if is_rank_zero():
            say(recipe, report, folder)
    except (Exception, KeyboardInterrupt) as error:
        status = (
            "out_of_memory" if measure.is_out_of_memory(error)
            else "diverged" if isinstance(error, DivergedError)
            else "not_reproduced" if isinstance(error, NotReproducedError) else "failed"
        )  # fmt: skip
        known = isinstance(error, UserError | AuditError)
        plain = known or isinstance(error, LostRankError)
        line = " ".join((str(error) if plain else f"{type(error).__name__}: {error}").split())[:500]
        # What one rank alone ran into, such as its memory, only that rank can tell.
        if (is_rank_zero() or not known) and not _was_told(folder, error):
            # What was measured before the failure is kept.
            cost: dict[str, Any] = {} if report.times else {
                "seed": recipe.training.get("seed"), "memory": {"process_peak": measure.process_peak_bytes()},
                "times": {"total": measure.process_age()}, "history": [dict(row) for row in clock.history],
            }  # fmt: skip
            replace(report, status=status, error=redact_home_in_text(line), **cost).write(folder)
        raise
    finally:
        distributed.finish()
    return report


def _was_told(folder: Path, error: BaseException) -> bool:
    """Whether another rank of this run has reported the cause: its memory, or what made this one end after it."""
    path = folder / FILE_NAME
    if not path.exists() or path.stat().st_mtime < time.time() - measure.process_age():
        return False
    after = distributed.has_several_ranks() and isinstance(error, LostRankError | KeyboardInterrupt)
    return after or read_report(folder).status == "out_of_memory"


def _run(
    recipe: Recipe, folder: Path, temporary: Path, report: Report, trial: bool, clock: ClockCallback, start: Path | None
) -> tuple[Report, Task | None]:
    """Fill `temporary`, which becomes `folder`; the report, and the fitted task where weights were saved.

    Training goes on from the checkpoint `start` where one is given.
    """
    task = recipe.task
    arguments = training_arguments(recipe, folder)
    set_seed(arguments.seed)
    reading = time.perf_counter()
    with arguments.main_process_first(desc="reading the data"):
        splits = load_splits(recipe.data, task)
    distributed.check_same(
        splits.fingerprint, str(recipe.training.get("deepspeed")),
        not arguments.load_best_model_at_end or temporary.is_dir(),
    )  # fmt: skip
    for decision in splits.decisions:
        logger.info("%s", decision)
    tokenizer = load_tokenizer(recipe.model, task)
    splits = replace(splits, labels=match_checkpoint_labels(recipe.model, task, splits.labels))
    checks = check_data(splits, task, tokenizer, read_position_limit(recipe.model)) if is_rank_zero() else Checks()
    for warning in checks.warnings:
        logger.warning("data: %s", warning)
    encoded = {name: task.encode(rows, tokenizer, splits.labels) for name, rows in splits.rows.items()}
    read = time.perf_counter() - reading
    before = measure.process_bytes()
    base = load_base(recipe.model, task, tokenizer, splits.labels, recipe.method.quantization)
    writer.set_max_length(tokenizer, base.model, task)
    check_precision(base.model, recipe.method.quantization, arguments)
    whole = count_parameters(base.model)["total"]
    model = adapters.apply_method(recipe.method, base.model, base.head, task.task_type, base.unused)
    adapters.check_head(model, set(base.missing_keys))

    scoring = Scoring(task=task, splits=splits, encoded=encoded, tokenizer=tokenizer)

    def score(prediction: EvalPrediction) -> dict[str, Any]:
        fitted = scoring.fitted(prediction.predictions)
        return fitted.metrics("validation", fitted.answers("validation", prediction.predictions))

    audit = AuditCallback()
    begun = None if start is None else checkpoint.read_manifest(start)
    trainer = make_trainer(
        recipe, model, arguments, tokenizer, encoded, splits.labels, score, [audit, clock],
        resumed_step=None if begun is None else begun.step,
    )  # fmt: skip
    if begun is not None or arguments.save_strategy != "no":
        trainer.identity = checkpoint.identify_run(recipe, splits.fingerprint, arguments)
    if start is not None and begun is not None:
        checkpoint.check_identity(start.name, begun.recipe, trainer.identity)
        trainer.resumed = [*begun.resumed, begun.describe(start.name)]
        logger.info("goes on from %s, written by %d process(es)", redact_home(start), begun.processes)
    parameters = count_parameters(model)
    logger.info(
        "%s: %s, %d of %d weights trainable (%.2f %%); head %s; %d training rows",
        recipe.name, recipe.method.name, parameters["trainable"], parameters["total"],
        100 * parameters["trainable"] / parameters["total"], ", ".join(base.head) or "from the checkpoint",
        len(splits.train),
    )  # fmt: skip

    start_up = measure.process_age() - read
    trained = trainer.train(resume_from_checkpoint=None if start is None else str(start)).metrics
    if arguments.auto_find_batch_size:
        found = {
            "per_device_train_batch_size": trainer._train_batch_size,
            "gradient_accumulation_steps": arguments.gradient_accumulation_steps,
        }
        recipe = replace(recipe, training={**recipe.training, **found})
        report = replace(report, recipe=recipe_to_dict(recipe))
    memory = measure.memory_per_rank()
    optimizer_bytes = measure.gather_from_ranks(measure.optimizer_bytes(trainer.optimizer))
    collator: Any = trainer.data_collator
    collated = collator.seconds
    first_rows = encoded["test"].select(range(min(HELD_OUT_ROWS, len(encoded["test"]))))
    live: dict[str, torch.Tensor] = {}
    learned: Task | None = None
    if not trial:
        # Before evaluation, which may cast the model to 16 bits.
        trainer.save_model(str(temporary))
        live = compute_live_outputs(task, model, trainer.data_collator(list(first_rows)), arguments.device)
    before_evaluation = time.perf_counter()
    # Scored below, once, with what the task learns from validation.
    trainer.compute_metrics = None
    scored = ("validation",) if trial else ("validation", "test")
    outputs = {split: trainer.predict(encoded[split], metric_key_prefix=split) for split in scored}
    if is_rank_zero():
        fitted = scoring.fitted(outputs["validation"].predictions)
        answers = {split: fitted.answers(split, outputs[split].predictions) for split in outputs}
        metrics = {
            split: _loss(outputs[split].metrics or {}, split) | fitted.metrics(split, answers[split])
            for split in outputs
        }
        evaluated = time.perf_counter() - before_evaluation
        sizes = {}
        if not trial:
            writer.write_run_files(
                temporary, recipe, model, set(base.missing_keys), labels=splits.labels, held_out=live, task=fitted.task,
            )  # fmt: skip
            numbers = splits.origins["test"][1]
            writer.write_predictions(temporary, numbers, answers["test"], scoring.references("test"))
            sizes["trained"] = writer.count_weight_bytes(temporary)
        if adapters.is_mergeable(model):
            sizes["merged"] = whole * FLOAT32_BYTES
        trained_for = trained["train_runtime"] - clock.evaluated
        report = replace(
            report,
            status="trial" if trial else "complete",
            data={**splits.describe(), "checks": redact_warnings(dataclasses.asdict(checks))},
            seed=arguments.seed,
            parameters=parameters,
            head=sorted(base.head),
            memory={name: max(rank[name] for rank in memory) for name in memory[0]},
            memory_per_rank=memory,
            optimizer_bytes=optimizer_bytes,
            plan=planned_run(
                recipe, base.model.config, encoded["train"], arguments, labels=splits.labels, head=base.head,
                ranks=len(memory), rows=trainer._train_batch_size, before=before,
            ),
            times={
                "start_up": start_up,
                "data": read + collated,
                "train": trained_for - collated,
                "evaluate": clock.evaluated + evaluated,
                "total": start_up + read + trained["train_runtime"] + evaluated,
                "samples_per_second": trained["train_samples_per_second"] * trained["train_runtime"] / trained_for,
                "tokens_per_second": trainer.state.num_input_tokens_seen / trained_for,
            },
            tokens=trainer.state.num_input_tokens_seen,
            sizes=sizes,
            metrics=metrics,
            audit=audit.finding,
            resumed=list(trainer.resumed),
            history=[dict(row) for row in trainer.state.log_history],
        )  # fmt: skip
        learned = None if trial else fitted.task
    return report, learned


def redact_warnings(checks: dict[str, Any]) -> dict[str, Any]:
    return {**checks, "warnings": [redact_home_in_text(warning) for warning in checks["warnings"]]}


def _loss(metrics: dict[str, float], split: str) -> dict[str, Any]:
    return {"loss": metrics[f"{split}_loss"]} if f"{split}_loss" in metrics else {}
