import json
import subprocess
import sys
from dataclasses import replace

import pytest

from peftkit import Recipe, lora
from peftkit.compare import compare, draw, method_recipes, table
from peftkit.errors import UserError
from peftkit.parsing import recipe_to_dict
from peftkit.report import Report, read_report

METRICS = ("accuracy", "f1_macro")
BASE = Recipe(name="x", method=lora(r=3), training={"learning_rate": 7e-4, "max_steps": 5, "seed": 9})
COMPLETE = Report(
    name="x", method="full", status="complete", seed=9,
    environment={"gpus": [], "cores": 2, "cpu": "a processor", "processes": 1},
    data={"fingerprint": "f", "rows": {"train": 10, "validation": 5, "test": 5}},
    parameters={"trainable": 100, "total": 1000}, memory={"process_peak": 2**30},
    times={"train": 12.0, "samples_per_second": 3.0, "tokens_per_second": 40.0},
    sizes={"trained": 3 * 2**20}, audit={"end_step": 5},
    metrics={"test": {"accuracy": 0.8, "accuracy_ci95": [0.7, 0.9], "f1_macro": 0.7, "f1_macro_ci95": [0.6, 0.8]}},
)  # fmt: skip


def test_only_method_and_learning_rate_differ():
    recipes = method_recipes(BASE, ["full", "lora", "qlora", "ia3"], {"ia3": 5e-3})
    plain = []
    for recipe in recipes.values():
        found = recipe_to_dict(recipe)
        for changed in (found.pop("name"), found.pop("method"), found["training"].pop("learning_rate")):
            assert changed
        plain.append(found)
    assert all(found == plain[0] for found in plain)
    rates = {name: recipe.training["learning_rate"] for name, recipe in recipes.items()}
    assert rates == {"full": 5e-5, "lora": 7e-4, "qlora": 1e-3, "ia3": 5e-3}
    assert recipes["qlora"].method.peft.r == recipes["lora"].method.peft.r == 3


@pytest.mark.parametrize(
    ("words", "rates", "said"),
    [(["full", "full"], {}, "named twice"), (["full"], {"lora": 1.0}, "no method 'lora'"), (["nix"], {}, "unknown")],
)
def test_wrong_words_are_one_line(words, rates, said):
    with pytest.raises(UserError, match=said):
        method_recipes(BASE, words, rates)


def test_a_failed_method_is_a_row():
    text = table([COMPLETE, Report(name="x", method="lora", status="out_of_memory", error="no | more")], METRICS)
    rows = text.splitlines()
    assert "| full | 0.800 (0.700 to 0.900) | 0.700 (0.600 to 0.800) | 1,024 MiB | 100 (10.0%) |" in rows[2]
    assert rows[3].startswith("| lora | out of memory: no \\| more |")
    assert rows[3].replace("\\|", "").count("|") == rows[0].count("|")


def test_unlike_rows_are_warned_of():
    other = replace(COMPLETE, method="lora", data={**COMPLETE.data, "fingerprint": "g"})
    assert "Warning: the rows differ in data" in table([COMPLETE, other], METRICS)
    assert "Warning" not in table([COMPLETE, replace(COMPLETE, method="lora")], METRICS)


def test_a_score_that_does_not_exist_is_said_and_not_drawn(tmp_path):
    none = replace(
        COMPLETE, method="lora", metrics={"test": {"accuracy": None, "f1_macro": 0.5, "f1_macro_ci95": [None, None]}}
    )
    text = table([COMPLETE, none], METRICS)
    assert "| lora | none | 0.500 |" in text
    draw([COMPLETE, none], tmp_path / "a.png", "accuracy")
    assert (tmp_path / "a.png").exists()


def test_the_picture_is_drawn(tmp_path):
    gpu = replace(COMPLETE, method="lora", memory={"process_peak": 2**30, "allocated_peak": 2**28})
    draw([COMPLETE, gpu, Report(name="x", method="b", status="failed")], tmp_path / "a.png", "accuracy")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.slow
def test_a_comparison_goes_on_past_a_method_that_fails(small_recipe, tmp_path):
    recipe = replace(small_recipe(), name="c")
    # LN tuning knows no target modules for a BERT of its own accord; its row says so.
    folder, reports = compare(recipe, ["full", "lora", "ln_tuning"], output=tmp_path / "c")
    assert [report.status for report in reports] == ["complete", "complete", "failed"]
    assert "target_modules" in reports[2].error
    assert len({report.data["fingerprint"] for report in reports[:2]}) == 1
    assert len({report.audit["end_step"] for report in reports[:2]}) == 1
    text = (folder / "comparison.md").read_text()
    assert "| ln_tuning | failed: method.peft: " in text
    assert (tmp_path / "c" / "comparison.png").exists()
    assert read_report(tmp_path / "c" / "lora").method == "lora"


@pytest.mark.slow
def test_a_process_with_too_little_memory_is_out_of_memory(small_recipe, tmp_path):
    recipe = recipe_to_dict(small_recipe(per_device_train_batch_size=2000, max_steps=2))
    recipe["model"] = {"name_or_path": "demo"}
    recipe["data"]["max_train_samples"] = 2400
    recipe["task"]["init_args"]["max_length"] = 64
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe))
    limited = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (5 * 2**30,) * 2); "
        f"from peftkit.cli import main; main(['train', {str(file)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert read_report(tmp_path / "run").status == "out_of_memory", done.stderr
