import csv
import json

import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from peftkit.demo.docstrings import LIBRARIES
from peftkit.errors import UserError
from peftkit.export import export
from peftkit.predict import predict
from peftkit.run import run

TEXTS = [f"Return the {word} of an array." for word in ("mean", "sum", "length and a much longer tail " * 20, "type")]


@pytest.fixture
def folder(small_recipe, tmp_path):
    run(small_recipe())
    return tmp_path / "run"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text, "id": 7}) + "\n" for text in TEXTS))
    return path


def test_a_run_and_its_export_say_the_same(folder, file, tmp_path):
    predict([folder], file, tmp_path / "run.jsonl")
    export(folder, tmp_path / "out")
    predict([tmp_path / "out"], file, tmp_path / "out.jsonl")
    ours, theirs = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in ("run.jsonl", "out.jsonl")
    )
    assert [row["row"] for row in ours] == [0, 1, 2, 3]
    for one, other in zip(ours, theirs, strict=True):
        assert set(one["probabilities"]) == set(LIBRARIES)
        assert sum(one["probabilities"].values()) == pytest.approx(1)
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
        assert one["label"] == max(one["probabilities"], key=one["probabilities"].get)


def test_it_says_what_plain_transformers_says(folder, file, tmp_path):
    export(folder, tmp_path / "out")
    predict([tmp_path / "out"], file, tmp_path / "out.jsonl")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    # The plain pipeline knows nothing of the temperature that was chosen on validation.
    with torch.no_grad():
        model.classifier.weight /= model.config.calibration_temperature
        model.classifier.bias /= model.config.calibration_temperature
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    plain = pipeline("text-classification", model=model, tokenizer=tokenizer)(TEXTS, truncation=True, top_k=None)
    for line, expected in zip((tmp_path / "out.jsonl").read_text().splitlines(), plain, strict=True):
        scores = {entry["label"]: entry["score"] for entry in expected}
        assert json.loads(line)["probabilities"] == pytest.approx(scores, abs=1e-5)


def test_csv(folder, tmp_path):
    Dataset.from_dict({"words": TEXTS}).to_csv(tmp_path / "texts.csv", index=False)
    predict([folder], tmp_path / "texts.csv", tmp_path / "out.csv", columns={"text": "words"})
    with (tmp_path / "out.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 4
    assert float(rows[0][f"probability of {rows[0]['label']}"]) > 1 / 7


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"words": "a"}\n', "no column 'text' among words; name it with --text"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(folder, tmp_path, content, said):
    (tmp_path / "bad.jsonl").write_text(content)
    with pytest.raises(UserError, match=said):
        predict([folder], tmp_path / "bad.jsonl", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("architecture", ["roberta", "gpt2"])
def test_a_model_trained_elsewhere(checkpoints, file, tmp_path, architecture):
    """A tokenizer that promises more tokens than there are positions, or has no pad token, is no reason to fail."""
    config = AutoConfig.from_pretrained(checkpoints / architecture, num_labels=3)
    config.update(
        {"max_position_embeddings": 34, "n_positions": 32} if architecture == "roberta" else {"n_positions": 32}
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(checkpoints / architecture).save_pretrained(tmp_path / "model")
    predict([tmp_path / "model"], file, tmp_path / "out.jsonl")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == len(TEXTS)


def test_a_model_of_no_task_is_one_line(file, tmp_path, checkpoints):
    config = AutoConfig.from_pretrained(checkpoints / "bert", num_labels=3)
    config.architectures = ["BertForImageClassification"]
    config.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(checkpoints / "bert").save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="BertForImageClassification is a model of no task"):
        predict([tmp_path / "model"], file, tmp_path / "out.jsonl")


def test_answers_are_not_overwritten(folder, file, tmp_path):
    (tmp_path / "there.jsonl").write_text("mine")
    with pytest.raises(UserError, match=r"there\.jsonl: already exists"):
        predict([folder], file, tmp_path / "there.jsonl")
    assert (tmp_path / "there.jsonl").read_text() == "mine"


def test_other_wrong_words(folder, file, tmp_path):
    with pytest.raises(UserError, match=r"must end in \.jsonl, \.csv or \.parquet"):
        predict([folder], file, tmp_path / "out.xml")
    with pytest.raises(UserError, match="neither a run nor a model"):
        predict([tmp_path], file)
    with pytest.raises(UserError, match="--tokens: a model of SequenceClassification reads no tokens"):
        predict([folder], file, columns={"tokens": "text"})
