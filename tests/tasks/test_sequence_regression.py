import json

import pytest
from datasets import Dataset

from peftkit import DataConfig, SequenceRegression, full, lora
from peftkit.data.demo.docstrings import load_docstrings
from peftkit.data.splits import load_splits
from peftkit.export.exporter import export
from peftkit.prediction.batch import predict
from peftkit.training.run import run

TASK = SequenceRegression(text="first", text_pair="second", label="share", max_length=48)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Pairs of docstrings, and the share of the first one's words that the second has."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    texts = load_docstrings()["train"]["text"][:400]
    rows = []
    for number, (first, second) in enumerate(zip(texts[::2], texts[1::2], strict=True)):
        second = first if number % 3 == 0 else second
        words = first.lower().split()
        share = sum(word in second.lower().split() for word in words) / len(words)
        rows.append({"first": first, "second": second, "share": share})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(("architecture", "method"), [("bert", full()), ("t5", lora())])
def test_a_number_is_learned_exported_and_predicted(small_recipe, file, tmp_path, architecture, method):
    report = run(small_recipe(architecture, method, TASK, str(file), max_steps=12))
    assert report.audit["verdict"] == "passed"
    assert {"loss", "pearson", "spearman", "rmse", "mae", "pearson_ci95"} <= set(report.metrics["test"])
    assert "at random" in report.data["decisions"][0]
    assert export(tmp_path / "run", tmp_path / "out").exported_difference <= 1e-4
    predict([tmp_path / "out"], file, tmp_path / "out.jsonl")
    row = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[3])
    assert set(row) == {"row", "score"}


def test_what_is_no_number_is_named():
    data = Dataset.from_dict({"first": ["a"] * 3, "second": ["b"] * 3, "share": [1.0, float("nan"), None]})
    problems = list(TASK.validate(data, (), "f.csv"))
    assert problems[0].startswith("f.csv, row 1 (from 0), column 'share': expected a finite number, got 'nan'")
    assert "row 2" in problems[1]


def test_batches_of_like_length_leave_every_answer_with_its_row(small_recipe, file, tmp_path):
    words = {"train_sampling_strategy": "group_by_length", "per_device_eval_batch_size": 4}
    run(small_recipe("bert", full(), TASK, str(file), max_steps=4, **words))
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    load_splits(DataConfig(path=str(file), max_eval_samples=40), TASK).test.to_json(tmp_path / "test.jsonl")
    predict([tmp_path / "run"], tmp_path / "test.jsonl", tmp_path / "out.jsonl")
    found = [json.loads(line)["score"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found == pytest.approx([row["score"] for row in rows], abs=1e-5)
    assert len(set(found)) > 20
