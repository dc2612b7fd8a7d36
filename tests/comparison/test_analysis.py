import json
from dataclasses import replace

import numpy as np
import pytest

from peftkit import Method, Recipe, SequenceRegression, lora
from peftkit.comparison.analysis import analyze
from peftkit.comparison.comparison_file import get_run_folder
from peftkit.comparison.grid import make_rows
from peftkit.comparison.report.tables import format_csv, format_markdown
from peftkit.comparison.results import load_results
from peftkit.comparison.runner import find_best_setting
from peftkit.comparison.search import sample_settings
from peftkit.errors import UserError
from peftkit.metrics.classification import score_labels
from peftkit.recipe.serialization import recipe_to_dict, to_class_dict
from peftkit.runs.report import Report

RIGHT = ["yes" if place % 2 else "no" for place in range(300)]


def said(share, seed):
    """Predictions of which this share is right."""
    hit = np.random.default_rng(seed).random(len(RIGHT)) < share
    return [right if well else "other" for right, well in zip(RIGHT, hit, strict=True)]


def made_run(folder, *, answers, seed=1, method=None, mebibytes=1000, train=10.0, tokens=1000, processes=1):
    """A run's report and predictions, as a run leaves them."""
    folder.mkdir(parents=True)
    method = method or lora()
    recipe = Recipe(name="x", method=method, training={"seed": seed, "output_dir": str(folder), "learning_rate": 1e-3})
    lines = [
        json.dumps({"row": row, "reference": right, "label": answer})
        for row, (right, answer) in enumerate(zip(RIGHT, answers, strict=True))
    ]
    (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    scores = score_labels(answers, RIGHT)
    report = Report(
        name="x", method=method.name, status="complete", recipe=recipe_to_dict(recipe), seed=seed,
        environment={"cpu": "a processor", "cores": 2, "gpus": [], "packages": {}, "processes": processes},
        data={"fingerprint": "f", "rows": {"train": 10, "validation": 5, "test": 300}, "labels": ["no", "yes"]},
        parameters={"trainable": 10, "total": 100}, memory={"process_peak": mebibytes * 2**20},
        memory_per_rank=[{"process_peak": mebibytes * 2**20}],
        times={
            "start_up": 5.0, "data": 1.0, "train": train, "evaluate": 4.0, "total": train + 10.0,
            "samples_per_second": 3.0, "tokens_per_second": 40.0,
        },
        tokens=tokens, sizes={"trained": 1000, "merged": 4000},
        metrics={"validation": scores, "test": {**scores, "accuracy_ci95": [0.1, 0.9]}}, audit={"end_step": 5},
        history=[
            {"step": 2, "eval_accuracy": 0.7, "seconds": 3.0, "num_input_tokens_seen": 100},
            {"step": 4, "eval_accuracy": 0.6, "seconds": 6.0, "num_input_tokens_seen": 200},
            {"step": 5, "train_loss": 0.5, "seconds": train, "num_input_tokens_seen": 250},
        ],
    )  # fmt: skip
    report.write(folder)
    return report


def made_comparison(folder, rows, *, seeds=(1, 2, 3), trials=0, quick=False):
    """A comparison's folder: `rows` by name, each with the keywords of its runs by seed."""
    for name, (options, runs) in rows.items():
        for seed, answers in runs.items():
            made_run(folder / "runs" / name / f"seed-{seed}", answers=answers, seed=seed, **options)
    plan = {
        "name": "made", "over": {"method": list(rows)}, "trials": trials, "seeds": list(seeds), "quick": quick,
        "jobs": 1, "processes": 1,
        "rows": [
            {"name": name, "folder": name, "values": {"method": name}, "recipe": {}, "trials": trials} for name in rows
        ],
    }  # fmt: skip
    (folder / "comparison.json").write_text(json.dumps(plan))
    return load_results([folder])


def seeds_of(share, first):
    return {seed: said(share, first + seed) for seed in (1, 2, 3)}


def test_two_identical_methods_have_no_significant_difference(tmp_path):
    same = seeds_of(0.8, 0)
    found = analyze(made_comparison(tmp_path, {"full": ({}, same), "lora": ({"mebibytes": 500}, same)}))
    (pair,) = found.pairs
    assert pair.difference == 0.0
    assert not pair.significant
    assert pair.sentence.startswith("No significant difference between full and lora: 0.0 points of accuracy")
    assert found.recommended == "lora"
    assert "is 0.0 points, at most" in found.recommendation
    assert found.recommendation.count(". ") <= 3


def test_the_cheapest_that_is_not_significantly_worse_is_advised(tmp_path):
    rows = {
        "full": ({"mebibytes": 2000, "train": 20.0}, seeds_of(0.82, 0)),
        "lora": ({"mebibytes": 1000, "train": 12.0}, seeds_of(0.81, 10)),
        "ia3": ({"mebibytes": 500, "train": 11.0}, seeds_of(0.6, 20)),
    }
    found = analyze(made_comparison(tmp_path, rows))
    by_name = {row.name: row for row in found.rows}
    assert [pair.significant for pair in found.pairs] == [False, True, True]
    assert found.recommended == "lora"
    assert "0.50 times the memory and 0.60 times the time of full" in found.recommendation
    lost = 100 * (by_name["full"].scores["accuracy"].mean - by_name["lora"].scores["accuracy"].mean)
    assert f"is {lost:.1f} points, at most" in found.recommendation
    assert by_name["full"].cost["seconds_to_best"] == 3.0
    assert by_name["full"].shares["train"] == pytest.approx(20 / 30)
    assert sum(by_name["full"].shares.values()) == pytest.approx(1)


def test_of_alike_memory_the_faster_is_advised_and_a_row_with_a_lost_seed_is_not(tmp_path):
    same = seeds_of(0.8, 0)
    results = made_comparison(
        tmp_path,
        {
            "full": ({"train": 20.0}, same),
            "lora": ({"mebibytes": 1020}, same),
            "ia3": ({"mebibytes": 100}, same),
        },
    )
    lost = replace(
        next(iter(results.rows[2].runs.values())), status="diverged", error="diverged: the loss is nan", metrics={}
    )
    lost.write(tmp_path / "runs" / "ia3" / "seed-2")
    found = analyze(load_results([tmp_path]))
    assert found.recommended == "lora"
    assert (found.rows[2].status, found.rows[2].cause) == ("partly", "1 of 3 runs: diverged: the loss is nan")
    assert found.rows[2].seeds == [1, 3]
    assert "- ia3: 1 of 3 runs: diverged" in format_markdown(found)


def test_a_failed_row_says_why_and_an_unfinished_one_that_it_is(tmp_path):
    results = made_comparison(
        tmp_path, {"full": ({}, seeds_of(0.8, 0)), "lora": ({}, {1: said(0.8, 1)}), "ia3": ({}, {})}
    )
    failed = Report(
        name="x", method="ia3", status="out_of_memory", error="no | more <b>memory</b>",
        recipe=recipe_to_dict(Recipe(method=Method())),
    )  # fmt: skip
    for seed in (1, 2, 3):
        folder = tmp_path / "runs" / "ia3" / f"seed-{seed}"
        folder.mkdir(parents=True)
        failed.write(folder)
    found = analyze(load_results([tmp_path]))
    assert [row.status for row in found.rows] == ["complete", "unfinished", "out_of_memory"]
    assert found.recommended is None
    assert "Not finished" in found.recommendation
    text = format_markdown(found)
    row = next(line for line in text.splitlines() if line.startswith("| ia3"))
    assert "out of memory: no \\| more &lt;b>memory" in row
    head = text.splitlines()[2]
    assert row.replace("\\|", "").count("|") == head.count("|")
    assert format_csv(results, found).count("\n") == 1 + 3 + 1


def test_unlike_budgets_and_data_are_told_and_untested_rows_not_advised(tmp_path):
    rows = {"full": ({}, seeds_of(0.8, 0)), "lora": ({"tokens": 2000}, seeds_of(0.8, 5))}
    results = made_comparison(tmp_path, rows)
    assert (
        "The candidates were trained for different numbers of steps or tokens: 5 steps, 1,000 to 2,000 tokens."
        in analyze(results).warnings
    )
    place = tmp_path / "runs" / "lora" / "seed-1" / "predictions.jsonl"
    lines = place.read_text().splitlines()
    place.write_text("\n".join(lines[1:]) + "\n")
    found = analyze(load_results([tmp_path]))
    assert found.pairs == []
    assert found.recommended is None
    assert "not tested on the same data" in found.recommendation


def test_quick_says_so(tmp_path):
    found = analyze(
        made_comparison(
            tmp_path, {"full": ({}, {1: said(0.8, 1)}), "lora": ({}, {1: said(0.8, 2)})}, seeds=(1,), quick=True
        )
    )
    assert found.quick
    assert "only a first look" in found.recommendation
    assert "Majority-class baseline (no): accuracy 0.500." in found.notes
    # Of a single seed the interval is over test rows.
    assert found.rows[0].scores["accuracy"].ci95 == [0.1, 0.9]


def test_what_scores_lower_than_a_significantly_worse_row_is_not_advised(tmp_path):
    # Of few and unsteady seeds the worst row may be the one that no test tells apart.
    rows = {
        "full": ({"mebibytes": 2000}, seeds_of(0.9, 0)),
        "lora": ({"mebibytes": 1000}, seeds_of(0.7, 10)),
        "ia3": ({"mebibytes": 500}, {1: said(0.99, 1), 2: said(0.3, 2), 3: said(0.55, 3)}),
    }
    found = analyze(made_comparison(tmp_path, rows))
    assert {(pair.first, pair.second): pair.significant for pair in found.pairs}["full", "lora"]
    assert found.recommended == "full"


def test_rows_no_better_than_the_most_frequent_label_are_not_advised(tmp_path):
    rows = {"full": ({}, seeds_of(0.3, 0)), "lora": ({}, seeds_of(0.4, 5))}
    found = analyze(made_comparison(tmp_path, rows))
    assert found.recommended is None
    assert "does not beat the majority-class baseline" in found.recommendation


def test_two_seeds_have_an_interval_within_what_a_metric_can_be(tmp_path):
    found = analyze(made_comparison(tmp_path, {"full": ({}, {1: said(0.9, 1), 2: said(0.6, 2)})}, seeds=(1, 2)))
    assert found.rows[0].scores["accuracy"].ci95 == [0.0, 1.0]


def test_loose_runs_that_differ_in_their_seed_alone_are_one_row(tmp_path):
    for seed in (1, 2):
        made_run(tmp_path / f"lora-{seed}", answers=said(0.8, seed), seed=seed)
    made_run(tmp_path / "full", answers=said(0.8, 5), method=Method())
    found = analyze(load_results([tmp_path / "lora-1", tmp_path / "full", tmp_path / "lora-2"]))
    assert [(row.name, row.seeds) for row in found.rows] == [("lora", [1, 2]), ("full", [1])]
    made_comparison(tmp_path / "c", {"full": ({}, {1: said(0.8, 1)})}, seeds=(1,))
    with pytest.raises(UserError, match="pass it alone"):
        load_results([tmp_path / "c", tmp_path / "full"])
    with pytest.raises(UserError, match="no report"):
        load_results([tmp_path])
    made_run(tmp_path / "again", answers=said(0.8, 1), seed=1)
    with pytest.raises(UserError, match="same recipe and seed"):
        load_results([tmp_path / "lora-1", tmp_path / "again"])
    made_run(tmp_path / "elsewhere", answers=said(0.8, 1), seed=1, processes=2)
    names = [row.name for row in load_results([tmp_path / "lora-1", tmp_path / "elsewhere"]).rows]
    assert names == [str(tmp_path / "lora-1"), str(tmp_path / "elsewhere")]
    made_comparison(tmp_path / "d", {"full": ({}, {1: said(0.8, 1)})}, seeds=(1,))
    with pytest.raises(UserError, match="different comparisons"):
        load_results([tmp_path / name / "runs" / "full" / "seed-1" for name in ("c", "d")])


def test_a_seed_without_a_score_is_told(tmp_path):
    results = made_comparison(tmp_path, {"full": ({}, seeds_of(0.8, 0)), "lora": ({}, seeds_of(0.8, 5))})
    folder, report = next(iter(results.rows[0].runs.items()))
    replace(report, metrics={**report.metrics, "test": {**report.metrics["test"], "accuracy": None}}).write(folder)
    found = analyze(load_results([tmp_path]))
    assert (found.rows[0].status, found.rows[0].cause) == ("partly", "1 of 3 runs: accuracy is undefined")
    assert found.recommended == "lora"


def test_a_difference_is_found_among_many_rows_too(tmp_path):
    # With as many resamples for 276 pairs as for one, no p-value adjusted for all could be small.
    good, bad = said(0.95, 1), said(0.4, 2)
    rows = {f"row-{place}": ({}, {1: bad if place else good}) for place in range(24)}
    found = analyze(made_comparison(tmp_path, rows, seeds=(1,)))
    assert found.recommended == "row-0"
    assert sum(pair.significant for pair in found.pairs) == 23


def test_a_missing_file_is_one_line(tmp_path):
    results = made_comparison(tmp_path, {"full": ({}, {1: said(0.8, 1)})}, seeds=(1,))
    (tmp_path / "runs" / "full" / "seed-1" / "predictions.jsonl").unlink()
    with pytest.raises(UserError, match=r"predictions.jsonl: cannot be read"):
        analyze(results)


def make_error_run(folder, errors, mebibytes):
    """A run of a regression judged by RMSE, whose predictions are off by `errors`."""
    task = SequenceRegression(main_metric="rmse")
    numbers = [place / 10 for place in range(len(errors))]
    report = made_run(folder, answers=RIGHT, mebibytes=mebibytes)
    rows = [
        {"row": place, "reference": number, "score": number + error}
        for place, (number, error) in enumerate(zip(numbers, errors, strict=True))
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = task.metrics.compute(rows, numbers)
    history = [{"step": 2, "eval_rmse": 0.2, "seconds": 3.0}, {"step": 4, "eval_rmse": 0.9, "seconds": 6.0}]
    recipe = {**report.recipe, "task": to_class_dict(task)}
    replace(report, recipe=recipe, metrics={"validation": scores, "test": scores}, history=history).write(folder)


def test_the_row_with_the_lower_error_is_the_better_one(tmp_path):
    rng = np.random.default_rng(0)
    for name, size, mebibytes in (("worse", 1.0, 400), ("better", 0.3, 500)):
        make_error_run(tmp_path / "runs" / name / "seed-1", list(size * rng.standard_normal(200)), mebibytes)
    plan = {"name": "made", "trials": 0, "seeds": [1], "quick": False, "jobs": 1, "processes": 1}
    rows = [{"name": n, "folder": n, "values": {"method": n}, "recipe": {}, "trials": 0} for n in ("worse", "better")]
    (tmp_path / "comparison.json").write_text(json.dumps({**plan, "over": {"method": []}, "rows": rows}))
    found = analyze(load_results([tmp_path]))
    assert [metric.name for metric in found.metrics] == ["rmse", "pearson", "spearman"]
    assert found.recommended == "better"
    pair = found.pairs[0]
    assert (pair.first, pair.second) == ("better", "worse")
    assert pair.significant
    assert pair.difference < 0
    assert "points" not in pair.sentence
    assert pair.sentence.startswith("better is better than worse: -0.")
    # The best look at validation is the one with the lowest error.
    assert found.rows[0].cost["seconds_to_best"] == 3.0


def test_the_trial_with_the_lower_error_is_taken(tmp_path):
    row = make_rows(Recipe(task=SequenceRegression(main_metric="rmse")), {"method": ["lora"]})[0]
    settings = sample_settings(row.recipe, row.values, 3)
    for number, error in enumerate((0.5, 0.2, 0.9), start=1):
        folder = get_run_folder(tmp_path, row.folder, trial=number)
        report = made_run(folder, answers=RIGHT)
        replace(report, status="trial", metrics={"validation": {"rmse": error}}).write(folder)
    metric = row.recipe.task.metrics.main_metrics[0]
    assert find_best_setting(tmp_path, row, settings, metric) == settings[1]
