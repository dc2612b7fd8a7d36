import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, List
from sklearn.metrics import f1_score
from transformers import AutoConfig

from peftkit import MultiLabelClassification, lora, qlora
from peftkit.data.demo.docstrings import load_docstrings
from peftkit.errors import UserError
from peftkit.export.exporter import export
from peftkit.metrics.thresholds import HIGHEST, LOWEST
from peftkit.prediction.batch import predict
from peftkit.tasks import multi_label_classification
from peftkit.training.run import run
from tests.tasks.encoded import encoded_split

TASK = MultiLabelClassification()
TOPICS = {
    "arrays": ("array", "axis", "shape"),
    "models": ("model", "layer", "train"),
    "text": ("string", "name", "text"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Docstrings and the topics whose words occur in them; often none, sometimes several."""
    path = tmp_path_factory.mktemp("topics")
    for split, rows in load_docstrings().items():
        lines = [
            {
                "text": text,
                "label": [topic for topic, words in TOPICS.items() if any(w in text.lower() for w in words)],
            }
            for text in rows["text"][:200]
        ]
        (path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def best_by_search(probabilities, right):
    scores = {}
    for one in probabilities:
        threshold = one - 1e-9
        if LOWEST <= threshold <= HIGHEST:
            scores[threshold] = f1_score(right, probabilities >= threshold, zero_division=0)
    return max(scores.values(), default=0)


def test_the_threshold_is_the_best_there_is():
    rng = np.random.default_rng(0)
    for rows in (3, 20, 200):
        right = rng.random((rows, 4)) < [0.5, 0.3, 0.1, 0.0]
        kept = np.clip(0.4 * right + 0.6 * rng.random((rows, 4)), 0.01, 0.99).astype(np.float16)
        encoded = Dataset.from_dict({"labels": [np.flatnonzero(row) for row in right]})
        fitted = TASK.calibrate(encoded_split(kept, ("a", "b", "c", "never"), encoded=encoded))
        for place, name in enumerate(("a", "b", "c", "never")):
            threshold = fitted.thresholds[name]
            assert LOWEST <= threshold <= HIGHEST
            if not right[:, place].any():
                assert threshold == 0.5
                continue
            best = best_by_search(kept[:, place].astype(float), right[:, place])
            if best <= f1_score(right[:, place], np.ones(rows)):
                assert threshold == 0.5
                continue
            found = f1_score(right[:, place], kept[:, place] >= threshold, zero_division=0)
            assert found >= best - 1e-9
        given = fitted.decode(encoded_split(kept, ("a", "b", "c", "never")))
        assert given[0]["labels"] == [
            n for n, p in zip(("a", "b", "c", "never"), kept[0], strict=True) if p >= fitted.thresholds[n]
        ]


def test_of_many_labels_the_most_probable_are_kept_and_say_the_same(monkeypatch):
    names = tuple("abcdef")
    rng = np.random.default_rng(2)
    right = rng.random((200, 6)) < 0.25
    logits = torch.from_numpy(4.0 * right - 2.0 + rng.normal(size=(200, 6)))
    encoded = Dataset.from_dict({"labels": [np.flatnonzero(row) for row in right]})
    dense = TASK.postprocess(logits).numpy()
    monkeypatch.setattr(multi_label_classification, "MAX_STORED_LABELS", 5)
    few = TASK.postprocess(logits).numpy()
    assert few.shape == (200, 5, 2)
    splits = [encoded_split(kept, names, encoded=encoded) for kept in (dense, few)]
    answers = [TASK.calibrate(split).decode(split) for split in splits]
    assert answers[0] == answers[1]
    assert sum(len(answer["labels"]) for answer in answers[0]) > 100


def test_a_threshold_of_the_recipe_is_kept():
    task = MultiLabelClassification(thresholds={"a": 0.9})
    encoded = Dataset.from_dict({"labels": [[0, 1], []]})
    assert MultiLabelClassification(thresholds={7: 0.9}).find_labels(Dataset.from_dict({"label": [[7]]})) == ("7",)
    split = encoded_split(np.array([[0.6, 0.6], [0.2, 0.2]]), ("a", "b"), encoded=encoded)
    assert task.calibrate(split).thresholds == {"a": 0.9, "b": 0.4}
    with pytest.raises(UserError, match=r"task\.thresholds: unknown label 'z'"):
        MultiLabelClassification(thresholds={"z": 0.5}).find_labels(Dataset.from_dict({"label": [["a"]]}))


@pytest.mark.parametrize(
    ("values", "task", "labels", "names"),
    [
        ([["b", "a"], [], ["a"]], TASK, ("a", "b"), [["b", "a"], [], ["a"]]),
        ([[1, 0], [], [10]], TASK, ("0", "1", "10"), [["1", "0"], [], ["10"]]),
        (["b| a", "", "a"], MultiLabelClassification(separator="|"), ("a", "b"), [["b", "a"], [], ["a"]]),
        ([[1], [0, 1], []], MultiLabelClassification(label_names=["y", "x"]), ("y", "x"), [["x"], ["y", "x"], []]),
    ],
)
def test_labels_are_names_numbers_or_strings(values, task, labels, names):
    data = Dataset.from_dict({"text": ["t"] * 3, "label": values})
    assert task.find_labels(data) == labels
    assert task.targets(data, labels) == names
    assert not list(task.validate(data, labels, "train"))


def test_a_declared_order_is_kept():
    data = Dataset.from_dict({"label": [[1], [0]]}).cast_column(
        "label", List(ClassLabel(names=["zebra", "ant", "cow"]))
    )
    assert TASK.find_labels(data) == ("zebra", "ant", "cow")
    assert TASK.targets(data, ()) == [["ant"], ["zebra"]]


def test_rows_that_cannot_be_used_are_named():
    data = Dataset.from_dict({"text": ["a", "b"], "label": [["x"], None]})
    assert "row 1 (from 0), column 'label': missing list of labels" in next(TASK.validate(data, ("x",), "f"))
    assert "label 'x' does not occur in train" in next(TASK.validate(data, ("y",), "f"))


def test_a_row_of_zeros_and_ones_is_no_list_of_labels():
    task = MultiLabelClassification(label_names=["x", "y", "z"])
    data = Dataset.from_dict({"text": ["a"], "label": [[0, 1, 1]]})
    assert "duplicate label 'y' (expected names or ids" in next(task.validate(data, ("x", "y", "z"), "f"))


def test_a_label_that_was_not_learned_is_not_answered_everywhere():
    rng = np.random.default_rng(0)
    encoded = Dataset.from_dict({"labels": [[0] if row % 9 == 0 else [] for row in range(90)]})
    # The rows that have the label are the least probable ones: no threshold beats answering it everywhere.
    kept = np.array([[0.45 if row % 9 == 0 else 0.5 + 0.01 * rng.random()] for row in range(90)])
    assert TASK.calibrate(encoded_split(kept, ("a",), encoded=encoded)).thresholds == {"a": 0.5}


def test_the_weighted_loss_is_torchs():
    train = Dataset.from_dict({"labels": [[0], [], [1], [1]]})
    loss = MultiLabelClassification(class_weights="balanced").loss(train, ("a", "b"), 0.0)
    logits, right = torch.randn(3, 2), torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    expected = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0, 1.0]))(logits, right)
    assert float(loss({"logits": logits}, right)) == pytest.approx(float(expected))


@pytest.mark.parametrize("method", [lora(), qlora()], ids=lambda m: m.name)
def test_thresholds_travel_with_the_model(small_recipe, folder, tmp_path, method):
    task = MultiLabelClassification(max_length=32)
    report = run(small_recipe("bert", method, task, str(folder), max_steps=8))
    assert report.audit["verdict"] == "passed"
    export(tmp_path / "run", tmp_path / "out")
    saved = AutoConfig.from_pretrained(tmp_path / "out")
    assert list(saved.id2label.values()) == list(saved.thresholds) == ["arrays", "models", "text"]
    assert saved.problem_type == "multi_label_classification"
    predict([tmp_path / "out"], folder / "test.jsonl", tmp_path / "out.jsonl")
    predict([tmp_path / "run"], folder / "test.jsonl", tmp_path / "run.csv")
    for line in (tmp_path / "out.jsonl").read_text().splitlines()[:40]:
        row = json.loads(line)
        assert row["labels"] == [n for n, p in row["probabilities"].items() if p >= saved.thresholds[n]]


def test_label_smoothing_has_no_meaning_here(small_recipe, folder):
    with pytest.raises(UserError, match="label_smoothing_factor: not supported by MultiLabelClassification"):
        run(small_recipe("bert", None, TASK, str(folder), label_smoothing_factor=0.1))
