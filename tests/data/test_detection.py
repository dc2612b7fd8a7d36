import csv
import json

import pytest
from datasets import ClassLabel, Dataset

from peftkit import MultiLabelClassification, Seq2Seq, SequenceClassification, SequenceRegression, TokenClassification
from peftkit.data.columns import profile_columns
from peftkit.data.detection import detect_task
from peftkit.data.first_rows import read_first_rows
from peftkit.errors import UserError


def make_rows(count=60, **columns):
    """Rows with these columns; a column is a function of the row's number."""
    return [{name: make(number) for name, make in columns.items()} for number in range(count)]


def text(number):
    return f"Return number {number} of the array."


def detect(rows, **options):
    return detect_task(profile_columns(rows), "a.jsonl", **options)


@pytest.mark.parametrize(
    ("columns", "task"),
    [
        (
            {"id": int, "review": text, "stars": lambda n: n % 5},
            SequenceClassification(text="review", label="stars"),
        ),
        ({"text": text, "label": lambda n: "ab"[n % 2]}, SequenceClassification()),
        (
            {"premise": text, "hypothesis": lambda n: f"{n} is a number.", "label": lambda n: n % 3},
            SequenceClassification(text="premise", text_pair="hypothesis"),
        ),
        (
            {"sentence1": text, "sentence2": text, "score": lambda n: n / 7},
            SequenceRegression(text="sentence1", text_pair="sentence2", label="score"),
        ),
        ({"text": text, "likes": lambda n: 3 * n + 1}, SequenceRegression(label="likes")),
        ({"text": text, "topics": lambda n: ["a", "b", "c"][: n % 4]}, MultiLabelClassification(label="topics")),
        (
            {"text": text, "tags": lambda n: ";".join(["a", "b", "c", "d"][n % 3 : n % 5 + 1]) or "a"},
            MultiLabelClassification(label="tags", separator=";"),
        ),
        (
            {"tokens": lambda n: ["Use", "numpy", str(n)], "ner_tags": lambda n: ["O", "B-name", "O"]},
            TokenClassification(),
        ),
        (
            {"words": lambda n: ["the", "tokenizer", "class"], "tags": lambda n: ["O", "I-name", "I-name"]},
            TokenClassification(tokens="words", tags="tags", repair=True),
        ),
        ({"article": text, "highlights": lambda n: f"Number {n}."}, Seq2Seq(source="article", target="highlights")),
        ({"en": text, "fr": lambda n: f"Le nombre {n}."}, Seq2Seq(source="en", target="fr")),
    ],
)
def test_the_task_and_its_columns_are_detected(columns, task):
    assert detect(make_rows(**columns)).task == task


def test_the_cells_of_a_csv_are_numbers_where_they_read_as_numbers(tmp_path):
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "stars", "score"], *([text(n), n % 5, n / 7] for n in range(40))])
    first = read_first_rows(str(tmp_path / "a.csv"), 1000)
    profiles = profile_columns(first.rows)
    assert [profile.kind for profile in profiles] == ["texts", "whole numbers", "numbers"]
    found = detect_task(profiles, "a.csv", task=SequenceRegression)
    assert found.task == SequenceRegression(label="stars")
    assert found.comments["label"] == (
        "column of the number: whole numbers from 0 to 4; for classes use SequenceClassification; "
        "other candidates: score"
    )


def test_a_comment_names_what_is_ambiguous():
    rows = make_rows(title=text, body=lambda n: 3 * text(n), stars=lambda n: n % 5, lang=lambda n: ["en", "fr"][n % 2])
    found = detect(rows)
    assert found.fields == {"text": "body", "label": "stars", "max_length": 128}
    assert found.comments["text"] == "column of the text; other columns of texts: title (text_pair reads a second one)"
    assert found.comments["label"] == (
        "column of the label: 5 labels, numbers (0, 1, 2, 3, 4); for a score use SequenceRegression; "
        "other candidates: lang"
    )
    assert detect(rows, given={"text": "title", "label": "lang"}).task == SequenceClassification(
        text="title", label="lang"
    )


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"a": text}, {}, r"found no column of labels \(columns: 'a' \(texts\)\); pass --label COLUMN, or --source"),
        ({"a": int, "label": lambda n: n % 2}, {}, "found no column of texts .*; pass --text COLUMN"),
        ({"text": text, "label": lambda n: n % 2}, {"given": {"label": "nowhere"}}, "--label nowhere: a.jsonl has"),
        ({"text": text, "label": lambda n: 1}, {"given": {"label": "label"}}, "column 'label' has 1 value"),
        ({"text": text, "label": lambda n: "ab"[n % 2]}, {"task": SequenceRegression}, "found no column of numbers"),
        ({"text": text, "label": lambda n: n % 2}, {"task": TokenClassification}, "pass --tokens COLUMN and --tags"),
        (
            {"tokens": lambda n: ["a", "b"], "tags": lambda n: [0, 1]}, {},
            "column 'tags' has numbers without names; pass --label_names",
        ),
        ({"text": text}, {"task": Seq2Seq}, "pass --source COLUMN --target COLUMN"),
    ],
)  # fmt: skip
def test_an_error_names_what_was_not_detected_and_the_option(columns, options, message):
    with pytest.raises(UserError, match=message):
        detect(make_rows(**columns), **options)


def test_only_the_first_rows_of_a_file_are_read(tmp_path):
    rows = make_rows(20, text=text, label=lambda n: n % 2)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "not JSON\n")
    first = read_first_rows(str(tmp_path / "a.jsonl"), 10)
    assert (list(first.rows), first.is_whole) == (rows[:10], False)
    with pytest.raises(UserError, match=r"row 20 \(from 0\): not JSON"):
        read_first_rows(str(tmp_path / "a.jsonl"), 1000)
    with pytest.raises(UserError, match=r"nowhere\.csv: no such file"):
        read_first_rows("nowhere.csv", 10)


def test_label_names_of_a_parquet_file_are_read(tmp_path):
    data = Dataset.from_list(make_rows(text=text, label=lambda n: n % 2))
    data.cast_column("label", ClassLabel(names=["no", "yes"])).to_parquet(tmp_path / "a.parquet")
    first = read_first_rows(str(tmp_path / "a.parquet"), 40)
    assert (first.label_names, first.is_whole, len(first.rows)) == ({"label": ("no", "yes")}, False, 40)
    found = detect_task(profile_columns(first.rows, first.label_names), "a.parquet")
    assert "2 labels, numbers, named in the file (no, yes)" in found.comments["label"]
