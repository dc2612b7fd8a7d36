import csv
import json
import os
import subprocess
import sys

import pandas
import pytest
from pyarrow import parquet

from peftkit.errors import UserError
from peftkit.prediction.writers import ROW_GROUP, check_output, open_writer

ENDINGS = ("jsonl", "csv", "parquet")
LABELS = [
    {"row": 0, "label": "a, b", "probabilities": {"a, b": 0.75, 'say "c"': 0.25}},
    {"row": 1, "label": 'say "c"', "probabilities": {"a, b": 0.125, 'say "c"': 0.875}},
]
ENTITY = {"type": "PER", "first_word": 0, "last_word": 1, "text": "Ana López"}
TAGS = [
    {"row": 0, "tags": ["O", "O"], "entities": []},
    {"row": 1, "tags": ["B-PER", "I-PER"], "entities": [ENTITY]},
]
RANKED = [
    {"row": 0, "label": "z", "probabilities": {"z": 0.5, "b": 0.25}},
    {"row": 1, "label": "c", "probabilities": {"c": 0.75, "z": 0.125}},
]
NESTED = [{"row": row, "lora": {"label": "a", "probabilities": {"a": 0.75}}, "full": {"score": row}} for row in (0, 1)]
ERROR = {"row": 7, "error": "not JSON (Expecting value at column 3)"}


def written(path, *calls, **options):
    with open_writer(path, **options) as write:
        for answers in calls:
            write(answers)
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize("answers", [LABELS, TAGS, NESTED, RANKED, [ERROR, *LABELS, ERROR], [ERROR], []])
def test_jsonl_is_the_answers_themselves(tmp_path, answers):
    assert written(tmp_path / "out.jsonl", answers[:1], answers[1:]) == answers


def test_csv_has_a_column_a_value(tmp_path):
    first = {name: LABELS[0][name] for name in ("row", "probabilities", "label")}
    rows = written(tmp_path / "out.csv", [first], LABELS[1:])
    names = ["probability of a, b", 'probability of say "c"']
    assert list(rows[0]) == ["row", "label", *names, "error"]
    assert [list(row.values()) for row in rows] == [
        ["0", "a, b", "0.75", "0.25", ""],
        ["1", 'say "c"', "0.125", "0.875", ""],
    ]
    table = pandas.read_csv(tmp_path / "out.csv")
    assert table[names].sum(axis=1).tolist() == [1, 1]


def test_csv_of_lists(tmp_path):
    rows = written(tmp_path / "tags.csv", TAGS)
    assert [row["tags"] for row in rows] == ["O O", "B-PER I-PER"]
    assert [json.loads(row["entities"]) for row in rows] == [[], [ENTITY]]
    (tmp_path / "tags.csv").unlink()
    rows = written(tmp_path / "labels.csv", [{"row": 0, "labels": []}, {"row": 1, "labels": ["a", "b"]}])
    assert [row["labels"] for row in rows] == ["", "a,b"]


def test_a_text_may_hold_any_line_break(tmp_path):
    texts = ["a\rb", "a\nb", "a\r\nb\r\n", 'a"b', ""]
    answers = [{"row": row, "text": text} for row, text in enumerate(texts)]
    assert [row["text"] for row in written(tmp_path / "out.csv", answers)] == texts
    assert (tmp_path / "out.csv").read_bytes().startswith(b'row,text,error\n0,"a\rb",\n')


def test_csv_of_several_models(tmp_path):
    rows = written(tmp_path / "out.csv", NESTED)
    assert rows[1] == {"row": "1", "lora.label": "a", "lora.probability of a": "0.75", "full.score": "1", "error": ""}


def test_ranked_probabilities_keep_their_order(tmp_path):
    rows = written(tmp_path / "a" / "out.csv", RANKED, is_ranked=True)
    assert list(rows[0]) == ["row", "label", "probabilities", "error"]
    assert [list(json.loads(row["probabilities"])) for row in rows] == [["z", "b"], ["c", "z"]]
    several = [{"row": row["row"], "lora": {"probabilities": row["probabilities"]}} for row in RANKED]
    as_list = [{"label": "c", "probability": 0.75}, {"label": "z", "probability": 0.125}]
    assert written(tmp_path / "b" / "out.parquet", RANKED, is_ranked=True)[1]["probabilities"] == as_list
    assert written(tmp_path / "c" / "out.parquet", several, is_ranked=True)[1]["lora"]["probabilities"] == as_list


@pytest.mark.parametrize("answers", [LABELS, TAGS, NESTED, [{"row": 0, "labels": []}], [{"row": 0, "text": "a\rb"}]])
def test_parquet_has_the_types_of_the_answers(tmp_path, answers):
    rows = written(tmp_path / "out.parquet", answers)
    assert rows == [{**answer, "error": None} for answer in answers]


def test_parquet_knows_a_type_before_it_sees_a_value(tmp_path):
    """A whole row group of empty lists and whole numbers, then others."""
    empty = [{"row": row, "labels": [], "entities": [], "score": 1} for row in range(ROW_GROUP)]
    entity = {"type": "PER", "text": "Ana", "start": 3, "end": 6, "score": 0.5}
    last = {"row": ROW_GROUP, "labels": ["a"], "entities": [entity], "score": 0.5}
    rows = written(tmp_path / "out.parquet", empty, [last])
    assert len(rows) == ROW_GROUP + 1
    assert {**rows[-1], "entities": []} == {**last, "entities": [], "error": None}
    assert {key: value for key, value in rows[-1]["entities"][0].items() if value is not None} == entity


def test_row_groups_are_neither_tiny_nor_the_whole_file(tmp_path):
    calls = [[{"row": row, "label": "a"} for row in range(start, start + 32)] for start in range(0, 25_000, 32)]
    rows = written(tmp_path / "out.parquet", *calls)
    assert [row["row"] for row in rows] == [answer["row"] for call in calls for answer in call]
    assert parquet.ParquetFile(tmp_path / "out.parquet").num_row_groups == 3
    written(tmp_path / "errors" / "out.parquet", [{"row": 0, "label": "a"}], *[[ERROR] * ROW_GROUP] * 2)
    assert parquet.ParquetFile(tmp_path / "errors" / "out.parquet").num_row_groups == 2


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_errors_stand_where_they_happened(tmp_path, ending):
    rows = written(tmp_path / f"out.{ending}", [ERROR], [ERROR, *LABELS], [ERROR])
    assert [int(row["row"]) for row in rows] == [7, 7, 0, 1, 7]
    assert [row["error"] or "" for row in rows] == [ERROR["error"], ERROR["error"], "", "", ERROR["error"]]
    assert [row["label"] or "" for row in rows] == ["", "", "a, b", 'say "c"', ""]
    assert list(rows[0])[-1] == "error"


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("calls", [[], [[]], [[ERROR], [ERROR]], [[ERROR] * (ROW_GROUP + 1)]])
def test_nothing_but_errors(tmp_path, ending, calls):
    rows = written(tmp_path / f"out.{ending}", *calls)
    assert [{**row, "row": int(row["row"])} for row in rows] == [error for call in calls for error in call]
    names = pandas.read_csv if ending == "csv" else pandas.read_parquet
    assert list(names(tmp_path / f"out.{ending}").columns) == ["row", "error"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_nothing_is_left_of_a_failure(tmp_path, ending):
    def half():
        with open_writer(tmp_path / f"out.{ending}") as write:
            write([{"row": row, "label": "a"} for row in range(ROW_GROUP)])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        half()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_no_answer_loses_a_value_silently(tmp_path, ending):
    def other_columns():
        with open_writer(tmp_path / f"out.{ending}") as write:
            write([{"row": row, "label": "a"} for row in range(ROW_GROUP)])
            write([{"row": ROW_GROUP, "text": "b"}])

    with pytest.raises(ValueError, match="text"):
        other_columns()
    assert list(tmp_path.iterdir()) == []


def test_where_answers_cannot_go(tmp_path):
    (tmp_path / "there.parquet").write_text("mine")
    for name, message in (
        ("there.parquet", "already exists; use another name"),
        ("a.xml", r"unknown extension; use \.jsonl, \.csv or"),
    ):
        with pytest.raises(UserError, match=rf"--output .*{name}: {message}"):
            check_output(tmp_path / name)
        with pytest.raises(UserError, match=message), open_writer(tmp_path / name):
            pytest.fail("was opened")
    assert (tmp_path / "there.parquet").read_text() == "mine"
    check_output(None)


def test_standard_output_has_each_call_at_once():
    code = """
import os
from peftkit.prediction.writers import open_writer
with open_writer(None) as write:
    write([{"row": 0, "text": "é"}, {"row": 1, "error": "e"}])
    # What was not flushed is lost.
    os._exit(0)
"""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    found = subprocess.run([sys.executable, "-c", code], env=buffered, stdout=subprocess.PIPE, check=True).stdout
    assert found.decode() == '{"row": 0, "text": "é"}\n{"row": 1, "error": "e"}\n'
