"""Evaluation keeps an answer a row, never the logits of a whole split."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import sys, json
from peftkit import DataConfig, ModelConfig, MultiLabelClassification, Recipe, SequenceClassification, full
from peftkit.system import environment as measure
from peftkit.training import fitting
from peftkit.training import run as run_module
from peftkit.system.logging import set_up_logging
set_up_logging()
folder, model, output, task = sys.argv[1:]
# So few steps teach nothing: without thresholds nearly every label would be answered.
fields = {} if task == "SequenceClassification" else {"thresholds": {str(n): 0.9 for n in range(10_000)}}
before = {}
saved = fitting.gather_peak_memory
def gather_peak_memory():
    before["peak"] = measure.read_process_peak_bytes()  # after training, before anything is evaluated
    return saved()
fitting.gather_peak_memory = gather_peak_memory
recipe = Recipe(
    model=ModelConfig(name_or_path=model), data=DataConfig(path=folder), task=globals()[task](max_length=8, **fields),
    method=full(), training=dict(
        max_steps=3, per_device_train_batch_size=256, per_device_eval_batch_size=256, output_dir=output,
        disable_tqdm=True,
    ),
)
report = run_module.run(recipe)
print(json.dumps([before["peak"], measure.read_process_peak_bytes(), report.data["rows"], len(report.data["labels"])]))
"""


@pytest.mark.integration
@pytest.mark.parametrize(
    ("task", "rows"), [("SequenceClassification", 6_000), ("MultiLabelClassification", 5_000)], ids=lambda v: str(v)
)
def test_ten_thousand_classes(checkpoints, tmp_path, task, rows):
    for split, count in (("train", 10_000), ("validation", 500), ("test", rows)):
        labels = [n % 10_000 if task == "SequenceClassification" else [n % 10_000] for n in range(count)]
        lines = [json.dumps({"text": f"{split} number {n}", "label": label}) + "\n" for n, label in enumerate(labels)]
        (tmp_path / f"{split}.jsonl").write_text("".join(lines))
    words = [sys.executable, "-W", "ignore", "-c", SCRIPT, tmp_path, checkpoints / "bert", tmp_path / "run", task]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    before, after, found, labels = json.loads(done.stdout.splitlines()[-1])
    assert (found["test"], labels) == (rows, 10_000)
    # In 32 bits the logits of the test split alone are 240 MB, and 200 MB for the second.
    assert after - before < 100e6, f"{before / 1e6:.0f} MB before evaluation, {after / 1e6:.0f} MB after"
