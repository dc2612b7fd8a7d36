"""A task that is defined here, outside of the package: grades, ordered classes, by cumulative logits."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from datasets import Dataset, List, Value

import peftkit
from peftkit import Metric, Recipe, lora
from peftkit.data.demo.docstrings import load_docstrings
from peftkit.errors import UserError
from peftkit.export.exporter import export
from peftkit.metrics.base import MetricSet
from peftkit.recipe.parser import parse_recipe, read_recipe
from peftkit.recipe.serialization import recipe_to_dict
from peftkit.tasks import TASKS, EncodedSplit, ModelSpec
from peftkit.tasks.text import TextTask, make_text_classifier
from peftkit.training.run import run


def mean_error(predictions, targets):
    pairs = zip(predictions, targets, strict=True)
    return sum(abs(one["grade"] - target) for one, target in pairs) / len(targets)


@dataclass(frozen=True, kw_only=True)
class Grading(TextTask):
    label: str = "grade"

    @property
    def model(self) -> ModelSpec:
        return make_text_classifier("multi_label_classification", lambda config: False)

    @property
    def metrics(self) -> MetricSet:
        error = Metric(name="error", function=mean_error, direction="lower", bounds=(0.0, float("inf")))
        return self.build_metrics((error,), main=("error",), is_correct=lambda one, target: one["grade"] == target)

    def find_labels(self, train: Dataset) -> tuple[str, ...]:
        return tuple(f"over {grade}" for grade in sorted(set(train[self.label]))[:-1])

    def check_labels(self, rows: Dataset, labels: Sequence[str], where: str) -> Iterator[str]:
        yield from (f"{where}, row {row}: no grade" for row, grade in enumerate(rows[self.label]) if grade is None)

    def encode_labels(self, encoded: Dataset, rows: Dataset, labels: Sequence[str]) -> Dataset:
        over = [[float(grade > place) for place in range(len(labels))] for grade in rows[self.label]]
        return encoded.add_column("labels", over, feature=List(Value("float32")))

    def postprocess(self, logits: torch.Tensor, *, detail: bool = False) -> torch.Tensor:
        return logits.float().sigmoid()

    def decode(self, split: EncodedSplit, *, detail: bool = False) -> list[Mapping[str, Any]]:
        return [{"grade": int((row > 0.5).sum())} for row in split.outputs]

    def targets(self, rows: Dataset, labels: Sequence[str]) -> list[Any]:
        return list(rows[self.label])


@pytest.fixture
def grading():
    before = list(TASKS)
    yield peftkit.register_task(Grading)
    TASKS[:] = before


@pytest.fixture
def file(tmp_path):
    texts = load_docstrings()["train"]["text"][:200]
    rows = [{"text": text, "grade": min(2, len(text.split()) // 8)} for text in texts]
    path = tmp_path / "grades.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_registered_task_trains_predicts_and_exports(grading, small_recipe, file, tmp_path):
    report = run(small_recipe("bert", lora(), Grading(max_length=32), str(file)))
    assert report.status == "complete"
    assert report.audit["verdict"] == "passed"
    assert set(report.metrics["test"]) == {"loss", "error", "error_ci95"}
    assert report.recipe["task"]["class_path"] == f"{__name__}.Grading"
    assert read_recipe(tmp_path / "run" / "recipe.yaml").task == Grading(max_length=32)
    texts = ["Return it.", "Return the mean of a list of numbers, or zero where the list has none at all."]
    expected = peftkit.load(tmp_path / "run")(texts)
    assert set(expected[0]) == {"grade"}
    assert export(tmp_path / "run", tmp_path / "out").exported_difference <= 1e-4
    assert peftkit.load(tmp_path / "out")(texts) == expected


def test_a_registered_task_is_known_to_the_command_line_by_its_name(grading):
    recipe = parse_recipe(["--task", "Grading", "--task.max_length", "16"], Recipe())
    assert recipe.task == Grading(max_length=16)
    assert recipe_to_dict(recipe)["task"]["class_path"] == f"{__name__}.Grading"


def test_a_task_that_is_not_registered_is_refused():
    with pytest.raises(UserError, match="'Grading' is not a task"):
        parse_recipe(["--task", "Grading"], Recipe())


def test_a_task_needs_defaults_and_a_name_of_its_own():
    @dataclass(frozen=True)
    class SequenceRegression:
        label: str = "label"

    @dataclass(frozen=True)
    class Undefined:
        label: str

    with pytest.raises(UserError, match="another task is named 'SequenceRegression'"):
        peftkit.register_task(SequenceRegression)
    with pytest.raises(UserError, match="default for every field"):
        peftkit.register_task(Undefined)


def test_a_task_has_at_most_fifteen_members():
    members = [name for name in vars(peftkit.tasks.Task) if not name.startswith("_")]
    assert len(members) <= 15
