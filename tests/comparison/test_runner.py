import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from peftkit.comparison.analysis import analyze
from peftkit.comparison.options import Budget
from peftkit.comparison.report.writer import write_all_formats
from peftkit.comparison.results import load_results
from peftkit.comparison.runner import compare
from peftkit.errors import UserError
from peftkit.recipe.serialization import recipe_to_yaml
from peftkit.runs.report import read_report

QUICK = Budget(trials=1, seeds=1)


@pytest.mark.integration
def test_tuned_alike_then_tested_and_a_failure_is_a_row_with_its_cause(small_recipe, tmp_path):
    recipe = replace(small_recipe(), name="c")
    folder = tmp_path / "c"
    # LN tuning has no default target modules for BERT, and training diverges with this learning rate.
    over = {"method": ["lora", "ln_tuning", "full"]}
    compare(recipe, over, budget=Budget(trials=2, seeds=2, jobs=2), output=folder, learning_rates={"full": 1e30})
    findings = write_all_formats(folder)
    rows = {row.name: row for row in findings.rows}
    assert {name: row.status for name, row in rows.items()} == {
        "lora": "complete", "ln_tuning": "failed", "full": "diverged",
    }  # fmt: skip
    assert "target_modules" in rows["ln_tuning"].cause
    assert "finite" in rows["full"].cause or "nan" in rows["full"].cause
    assert rows["lora"].seeds == [3, 4]
    assert len(rows["lora"].tried) == 2
    best = max(rows["lora"].tried, key=lambda one: one["score"])
    assert (rows["lora"].learning_rate, rows["lora"].r) == (best["learning_rate"], best["r"])
    # A trial is not tested and keeps no weights; what failed in every trial is not run.
    trial = read_report(folder / "runs" / "lora" / "trial-1")
    assert set(trial.metrics) == {"validation"}
    assert not list((folder / "runs").glob("*/trial-*/*.safetensors"))
    assert not list((folder / "runs").glob("ln_tuning/seed-*"))
    run = read_report(folder / "runs" / "lora" / "seed-3")
    assert sum("eval_accuracy" in row for row in run.history) >= 3
    assert run.name == "c lora seed 3"
    assert list((folder / "runs" / "lora" / "seed-3" / "tensorboard").iterdir())
    text = (folder / "comparison.md").read_text()
    assert "| ln_tuning | failed: method.peft: " in text
    assert findings.recommended in ("lora", None)
    for name in ("index.html", "comparison.csv", "findings.json", "pictures/memory.png", "pictures/memory.svg"):
        assert (folder / name).stat().st_size, name
    # Another comparison does not mix with this one.
    with pytest.raises(UserError, match=r"contains another comparison \(different .*seeds"):
        compare(recipe, over, budget=QUICK, output=folder)


@pytest.mark.integration
def test_a_comparison_killed_at_any_moment_continues_and_repeats_nothing(small_recipe, tmp_path):
    recipe = replace(small_recipe(), name="c")
    recipe = replace(recipe, training={**recipe.training, "report_to": "none"})
    (tmp_path / "recipe.yaml").write_text(recipe_to_yaml(recipe))
    arguments = [
        sys.executable, "-m", "peftkit", "compare", str(tmp_path / "recipe.yaml"), "--methods", "full,lora",
        "--trials", "1", "--seeds", "2", "--output", str(tmp_path / "c"),
    ]  # fmt: skip
    runs = tmp_path / "c" / "runs"
    random.seed(4)
    ended: dict = {}
    for kills in (1, 2):
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=tmp_path)
        deadline = time.monotonic() + 120
        while len(list(runs.glob("*/*/report.json"))) < kills and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(random.uniform(0.5, 4))
        os.kill(process.pid, signal.SIGKILL)
        process.stderr.close()
        process.wait()
        for report in runs.glob("*/*/report.json"):
            assert ended.setdefault(report, report.stat().st_mtime_ns) == report.stat().st_mtime_ns
    left = load_results([tmp_path / "c"])
    assert analyze(left).recommended is None
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(report.stat().st_mtime_ns == at for report, at in ended.items())
    assert done.stderr.count("skipped, already finished") == len(ended) >= 2
    assert [row.status for row in analyze(load_results([tmp_path / "c"])).rows] == ["complete", "complete"]
    text = (tmp_path / "c" / "comparison.md").read_text()
    again = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path)
    assert again.stderr.count("skipped, already finished") == 4
    assert (tmp_path / "c" / "comparison.md").read_text() == text


@pytest.mark.integration
def test_a_run_with_too_little_memory_is_out_of_memory_and_the_others_go_on(small_recipe, tmp_path):
    recipe = small_recipe(max_steps=2, report_to="none")
    recipe = replace(recipe, name="c", data=replace(recipe.data, max_train_samples=2400))
    recipe = replace(recipe, task=replace(recipe.task, max_length=64))
    (tmp_path / "recipe.yaml").write_text(recipe_to_yaml(recipe))
    arguments = [
        "compare", str(tmp_path / "recipe.yaml"), "--quick", "--output", str(tmp_path / "c"),
        "--over", "training.per_device_train_batch_size=8,2000",
    ]  # fmt: skip
    # The limit is of the address space, most of which the imported libraries take.
    limited = (
        "import psutil, resource; limit = psutil.Process().memory_info().vms + 3 * 2**29; "
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit)); "
        f"from peftkit.cli.main import main; main({arguments!r})"
    )
    done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "c" / "findings.json").read_text())["rows"]
    assert [row["status"] for row in rows] == ["complete", "out_of_memory"], done.stderr
    assert "only a first look" in done.stdout or "No recommendation" in done.stdout
