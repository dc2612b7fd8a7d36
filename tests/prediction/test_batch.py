import csv
import json
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline

import peftkit
from peftkit.data.demo.docstrings import LIBRARIES
from peftkit.errors import UserError
from peftkit.export.exporter import export
from peftkit.prediction.batch import predict

TEXTS = [f"Return the {word} of an array." for word in ("mean", "sum", "length and a much longer tail " * 20, "type")]


@pytest.fixture
def folder(trained_run):
    return trained_run()


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
    ("content", "expected"),
    [
        ('{"words": "a"}\n', "no column 'text' \\(columns: words\\); set the column with --text"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(folder, tmp_path, content, expected):
    (tmp_path / "bad.jsonl").write_text(content)
    with pytest.raises(UserError, match=expected):
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
    with pytest.raises(UserError, match="no peftkit task supports BertForImageClassification"):
        predict([tmp_path / "model"], file, tmp_path / "out.jsonl")


def test_answers_are_not_overwritten(folder, file, tmp_path):
    (tmp_path / "there.jsonl").write_text("mine")
    with pytest.raises(UserError, match=r"there\.jsonl: already exists"):
        predict([folder], file, tmp_path / "there.jsonl")
    assert (tmp_path / "there.jsonl").read_text() == "mine"


def test_other_wrong_words(folder, file, tmp_path):
    with pytest.raises(UserError, match=r"unknown extension; use \.jsonl, \.csv or \.parquet"):
        predict([folder], file, tmp_path / "out.xml")
    with pytest.raises(UserError, match="not a run or a model"):
        predict([tmp_path], file)
    with pytest.raises(UserError, match="--tokens: not an input of SequenceClassification"):
        predict([folder], file, columns={"tokens": "text"})


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_that_cannot_be_read_are_told_by_number_and_the_rest_goes_on(folder, tmp_path, caplog):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        '{"text": "a"}\n{"text": null}\nnot JSON\n{"text": 7}\n{"words": "x"}\n{"text": " "}\n{"text": "b"}\n'
        '{"text": [1, "a"]}\n{"text": {"a": [1, {"b": 2}]}}\n'
    )
    predict([folder], rows, tmp_path / "out.jsonl")
    answers = read(tmp_path / "out.jsonl")
    assert [answer["row"] for answer in answers] == list(range(9))
    assert [place for place, answer in enumerate(answers) if "label" in answer] == [0, 6]
    wrong = {1: "null, not text", 2: "not JSON", 3: "int, not text", 4: "null", 5: "empty", 7: "correct", 8: "correct"}
    for row, expected in wrong.items():
        assert answers[row]["error"].startswith(f"{rows}, row {row} (from 0)")
        assert expected in answers[row]["error"]
    assert "7 of 9 rows cannot be read" in caplog.text
    alone = read(predict([folder], file_of(tmp_path, ["a", "b"]), tmp_path / "alone.jsonl"))
    assert [answers[0]["label"], answers[6]["label"]] == [answer["label"] for answer in alone]


def file_of(tmp_path, texts):
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


def test_long_and_short_rows_share_no_batch_and_answer_in_their_order(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("peftkit.prediction.batch.CHUNK", 50)
    texts = [("word " * (1 + place * 7 % 40)) + str(place) for place in range(120)]
    answers = read(predict([folder], file_of(tmp_path, texts), tmp_path / "out.jsonl"))
    assert [answer["row"] for answer in answers] == list(range(120))
    model = peftkit.load(folder)
    for place in (0, 17, 49, 50, 119):
        (alone,) = model([texts[place]])
        assert answers[place]["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)


def test_top_k_and_parquet(folder, file, tmp_path):
    predict([folder], file, tmp_path / "all.jsonl")
    predict([folder], file, tmp_path / "two.parquet", top_k=2)
    every, two = read(tmp_path / "all.jsonl"), Dataset.from_parquet(str(tmp_path / "two.parquet"))
    for one, other in zip(every, two, strict=True):
        best = sorted(one["probabilities"].items(), key=lambda pair: -pair[1])[:2]
        assert [(entry["label"], entry["probability"]) for entry in other["probabilities"]] == best
        assert other["label"] == one["label"]
    with pytest.raises(UserError, match="--top_k: must be at least 1, got 0"):
        predict([folder], file, tmp_path / "zero.jsonl", top_k=0)


def test_options_are_checked_before_torch_is_imported(real_interpreter, file, tmp_path):
    code = f"""
import sys
from pathlib import Path
from peftkit.errors import UserError
from peftkit.prediction.batch import predict
root = Path({str(tmp_path)!r})
for folders, name, output, options in (
    (["run"], {file.name!r}, "out.jsonl", dict(top_k=0)), (["run"], {file.name!r}, "out.xml", dict()),
    (["run"], "nowhere.csv", "out.jsonl", dict()), (["a/run", "b/run"], {file.name!r}, "out.jsonl", dict()),
):
    try:
        predict([root / folder for folder in folders], root / name, root / output, **options)
    except UserError as error:
        print(error)
print("torch" in sys.modules, "transformers" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    top_k, ending, missing, repeated, imported = done.stdout.splitlines()
    assert imported == "False False"
    assert top_k == "--top_k: must be at least 1, got 0"
    assert "unknown extension; use .jsonl" in ending
    assert "no such file" in missing
    assert repeated.startswith("two folders have the name run")


def test_arguments_and_the_first_rows_are_checked_before_weights_load(folder, file, tmp_path, monkeypatch):
    monkeypatch.setattr("peftkit.prediction.predictor.load_predictor", lambda _: pytest.fail("weights were loaded"))
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "words.jsonl").write_text('{"words": "a"}\n')
    for name, options, message in (
        ("nowhere.jsonl", {}, "no such file"),
        ("empty.jsonl", {}, "no rows"),
        ("words.jsonl", {}, "no column 'text'"),
        (file.name, {"columns": {"text": "words"}}, "no column 'words'"),
        (file.name, {"columns": {"tokens": "text"}}, "--tokens: not an input of SequenceClassification"),
        (file.name, {"input_format": "xml"}, "--input_format xml: unknown format"),
        (file.name, {"top_k": 0}, "--top_k: must be at least 1, got 0"),
    ):
        with pytest.raises(UserError, match=message):
            predict([folder], tmp_path / name, tmp_path / "out.jsonl", **options)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.integration
def test_standard_input_is_answered_on_standard_output(folder, file, tmp_path):
    predict([folder], file, tmp_path / "out.jsonl")
    words = [sys.executable, "-m", "peftkit", "predict", str(folder), "-"]
    done = subprocess.run(words, input=file.read_text(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == read(tmp_path / "out.jsonl")


@pytest.mark.integration
def test_memory_does_not_grow_with_the_rows(folder, tmp_path):
    """Ten times the rows cost no more than what the first ones do."""
    code = (
        "import sys; from pathlib import Path; from peftkit.prediction.batch import predict\n"
        "import peftkit.system.environment as m\n"
        "predict([Path(sys.argv[1])], Path(sys.argv[2]), Path(sys.argv[3])); print(m.read_process_peak_bytes())"
    )
    peaks = []
    for rows in (4_000, 40_000):
        path = file_of(tmp_path, [f"Return number {place}." for place in range(rows)])
        words = [sys.executable, "-c", code, str(folder), str(path), str(tmp_path / f"{rows}.jsonl")]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 20e6
