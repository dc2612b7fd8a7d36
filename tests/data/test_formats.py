import csv
import json
import random
import warnings
from collections.abc import Iterator
from typing import IO

import pandas
import pyarrow
import pytest
from datasets import Dataset
from pyarrow import ipc, parquet

import peftkit
from peftkit import DataConfig, DataFormat
from peftkit.data.formats import BadRow, find_format, iterate_rows
from peftkit.data.formats.columnar import ROWS_PER_SLICE
from peftkit.data.formats.delimited import MAX_CELL_LENGTH
from peftkit.data.sources import load_rows
from peftkit.errors import UserError
from peftkit.prediction.batch import predict
from peftkit.training.run import run

LONG = "text " * 100_000


def stream(path):
    """Values, or the problem, of each row as prediction reads it."""
    rows = iterate_rows(find_format(path), path)
    return [row.problem if isinstance(row, BadRow) else row for row in rows]


def train_rows(path):
    """Rows as training reads them; none of a file without rows."""
    try:
        return load_rows(DataConfig(path=str(path)))["train"].to_list()
    except UserError as error:
        if "no rows; use another" not in str(error):
            raise
        return []


def pandas_rows(path):
    """The rows of a table as pandas reads them, when every cell is text: a reader independent of ours."""
    options = {"dtype": str, "keep_default_na": False, "index_col": False, "skip_blank_lines": False}
    if path.suffix == ".tsv":
        options |= {"sep": "\t", "quoting": csv.QUOTE_NONE}
    with warnings.catch_warnings(action="error", category=pandas.errors.ParserWarning):
        rows = pandas.read_csv(path, **options).fillna("")
    filled = rows.map(str.strip).any(axis=1)
    return rows[: filled[::-1].idxmax() + 1 if filled.any() else 0].to_dict("records")


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("short.csv", "a,b,c\n1\n1,2\n1,2,3\n"),
        ("blank.csv", "a,b\n\n\n1,2\n\n  \n,\n3,4\n\n ,\n\n"),
        ("one-column.csv", 'a\n\nx\n""\ny\n""\n\n'),
        ("all-blank.csv", "a,b\n,\n\n"),
        ("header-only.csv", "a,b"),
        ("texts.csv", "text,label\nNA,None\nnull,nan\n01,1.0\n 7 ,true\n"),
        ("breaks.csv", 'a,b\r\n"x\r\n\r\ny",2\r\n"p\nq\n","\r"\r\n1,2'),
        ("old-mac.csv", "a,b\r1,2\r\r3,4\r"),
        ("quotes.csv", 'a,b\nx"y","say ""hi"""\n"x"y, "z"\n\\,"\\"\n'),
        ("names.csv", "\ufeffa,a,,a.1,\n1,2,3,4,5\n"),
        ("name-of-lines.csv", '"a\rb","c\n"\n1,2\n'),
        ("name-of-spaces.csv", "  \nx\n"),
        ("unicode.csv", "a,b\nx\u2028y,\x85\n\x0c\x0b,\x1a\nx\x00y,\ufeff\n"),
        ("long.csv", f'a,b\n"{LONG}",2\n{LONG},\n'),
        ("quotes.tsv", 'a\t"b"\nan "odd mark\t"2"\n"x\n\n"y""\t\nNA\t\\\n'),
        ("breaks.tsv", "a\tb\r\n1\r\n\t2\r\n\r\n"),
        ("blank.jsonl", '\n{"a": 1}\n\n  \r\n{"a": 2}\n\n'),
        ("breaks.jsonl", '{"a": "x\\ny\\u2028"}\r\n{"a": "\u2028\x85"}\r{"a": "\\u0000\\ud83d\\ude00"}'),
        ("mark.jsonl", '\ufeff{"a": "\ufeffx"}\n'),
        ("nested.jsonl", '{"a": ["x", "y"], "b": {"c": null}}\n{"a": [], "b": {"c": 1.5}}\n'),
        ("mixed.jsonl", '{"a": 1}\n{"a": "x"}\n'),
        ("long.jsonl", json.dumps({"a": LONG}) + "\n"),
        ("lines.json", '{"a": "x"}\n{"a": "y"}\n'),
        ("array.json", '\n [{"a": "x"},\n\n{"a": "y\\ud83d\\ude00"}]\n'),
        ("texts.json", '\ufeff["x", "y, {z}"]'),
    ],
)
def test_rows_are_those_of_training(tmp_path, name, content):
    path = write(tmp_path / name, content)
    assert stream(path) == train_rows(path)
    if path.suffix in (".csv", ".tsv"):
        assert stream(path) == pandas_rows(path)


@pytest.mark.parametrize("separator", [",", "\t"])
def test_any_table_is_read_as_pandas_reads_it(tmp_path, separator):
    """And where pandas refuses the whole file, a row says why, and training refuses the file."""
    draw = random.Random(5)
    pieces = ["a", "NA", '"', '""', separator, "\n", "\r\n", "\r", " ", "é", "\u2028", f'"x{separator}"', '"p\nq"']
    refused = 0
    for number in range(150):
        body = "".join(draw.choice(pieces) for _ in range(draw.randint(1, 12)))
        path = write(tmp_path / f"{number}.{'csv' if separator == ',' else 'tsv'}", f"a{separator}b\n{body}")
        found = stream(path)
        try:
            expected = pandas_rows(path)
        except (ValueError, Warning):
            assert any(isinstance(row, str) for row in found), repr(body)
            with pytest.raises(UserError, match=r", row \d+ \(from 0\): "):
                train_rows(path)
            refused += 1
        else:
            assert found == train_rows(path) == expected, repr(body)
    assert 10 < refused < 120


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "a,b\n1,2,3\n4,5\n6,7,\n", ["3 cells for 2 columns", {"a": "4", "b": "5"}, "3 cells for 2 columns"]),
        ("a.csv", b"a,b\n1,\xff\n\xc3\xa9,5\n", ["not UTF-8", {"a": "é", "b": "5"}]),
        ("a.csv", 'a,b\n1,2\n"3,4\n5,6\n', [{"a": "1", "b": "2"}, "a quotation mark is not closed"]),
        ("a.csv", "a,b\n\n\n1,2,3\n,\n", [{"a": "", "b": ""}, {"a": "", "b": ""}, "3 cells for 2 columns"]),
        (
            "a.jsonl",
            b'{"a": 1}\n\n{"a": }\n[1]\n"x"\nnull\n{"a": "\xff"}\n{"a": "\\ud800"}\n{"a": "x\ty"}\n{"a": 2}\n',
            [
                {"a": 1},
                "not JSON (Expecting value at column 7)",
                *["not a JSON object"] * 3,
                "not UTF-8",
                "not Unicode (half of a surrogate pair)",
                "not JSON (Invalid control character at at column 9)",
                {"a": 2},
            ],
        ),
        (
            "a.json",
            '[{"a": 1}, 3, "x", null, {"a": "\\udc00"}, {"a": 2}]',
            [{"a": 1}, *["not a JSON object"] * 3, "not Unicode (half of a surrogate pair)", {"a": 2}],
        ),
        ("a.txt", b"one\n\n\xff\n\xc3\xa9 \r\n", [{"text": "one"}, {"text": ""}, "not UTF-8", {"text": "é "}]),
    ],
)
def test_a_row_that_cannot_be_read_is_told_and_the_rest_goes_on(tmp_path, name, content, expected):
    assert stream(write(tmp_path / name, content)) == expected


def test_what_json_cannot_hold_is_told(tmp_path):
    lines = ["[" * 100_000, '{"a": ' + "1" * 5000 + "}", '{"a": 1}']
    found = stream(write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert [str(row)[:9] for row in found] == ["not JSON ", "not JSON ", "{'a': 1}"]


def test_a_mark_that_is_not_closed_does_not_take_all_memory(tmp_path):
    line = "x" * 99 + "\n"
    path = write(tmp_path / "a.csv", 'a\nfirst\n"' + line * (MAX_CELL_LENGTH // 100 + 2))
    found = stream(path)
    assert found[0] == {"a": "first"}
    assert found[1].startswith("field larger than field limit")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt"])
@pytest.mark.parametrize("content", ["", "\ufeff"])
def test_an_empty_file_has_no_rows(tmp_path, name, content):
    assert stream(write(tmp_path / name, content)) == []


@pytest.mark.parametrize("row_group", [7, 100_000])
def test_parquet_and_arrow(tmp_path, row_group):
    count = 2 * ROWS_PER_SLICE + 3
    table = pyarrow.table(
        {
            "text": [f"t{row}" if row % 5 else None for row in range(count)],
            "tags": [["a"] * (row % 3) for row in range(count)],
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=row_group)
    for name, start in (("file.arrow", ipc.new_file), ("stream.arrow", ipc.new_stream)):
        with start(tmp_path / name, table.schema) as writer:
            writer.write_table(table, max_chunksize=row_group)
    for name in ("a.parquet", "file.arrow", "stream.arrow"):
        assert stream(tmp_path / name) == table.to_pylist()
        assert stream(tmp_path / name) == train_rows(tmp_path / name)
    parquet.write_table(table.slice(0, 0), tmp_path / "none.parquet")
    assert stream(tmp_path / "none.parquet") == []


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_a_row_of_a_batch_that_is_not_utf8_is_told(tmp_path, ending):
    texts = pyarrow.array([b"one", b"\xff", b"three"]).view(pyarrow.string())
    table = pyarrow.table({"text": texts})
    path = tmp_path / f"a.{ending}"
    if ending == "parquet":
        parquet.write_table(table, path)
    else:
        with ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    assert stream(path) == [{"text": "one"}, "not UTF-8", {"text": "three"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "\n\na,b\n1,2\n", r"a\.csv: cannot be read: the first line is empty \(expected column names\)"),
        ("a.csv", b"\xff\xfea\x00\n\x00", r"a\.csv: cannot be read: not UTF-8; save it as UTF-8"),
        ("a.csv", '"a,b\n1,2\n', r"a\.csv: cannot be read: a quotation mark in the first line is not closed"),
        ("a.json", '[{"a": 1},\n{"a": }]', r"a\.json: cannot be read: not JSON: Expecting value: line 2 column 7"),
        ("a.parquet", "not one", r"a\.parquet: cannot be read: "),
        ("a.arrow", "not one", r"a\.arrow: cannot be read: "),
        ("a.arrow", "", r"a\.arrow: cannot be read: "),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    for read in (stream, train_rows):
        with pytest.raises(UserError, match=message) as raised:
            read(path)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv", "a,b\n1,2\n1,2,3\n", "row 1 (from 0): 3 cells for 2 columns"),
        ("a.tsv", b"a\tb\n\xff\t2\n", "row 0 (from 0): not UTF-8"),
        ("a.jsonl", '{"a": 1}\n{"a": }\n', "row 1 (from 0): not JSON (Expecting value at column 7)"),
    ],
)
def test_training_names_the_row_that_cannot_be_read(tmp_path, name, content, problem):
    path = write(tmp_path / name, content)
    with pytest.raises(UserError) as raised:
        train_rows(path)
    assert str(raised.value) == f"{path}, {problem}"


def test_text_is_no_training_data(tmp_path):
    with pytest.raises(UserError, match=r"a\.txt: unknown file format '\.txt' \(expected one of \.jsonl .*\.arrow\)"):
        train_rows(write(tmp_path / "a.txt", "x"))


def test_the_longest_extension_decides():
    assert find_format("A.CSV").name == "csv"
    assert find_format("a.csv.part") is None
    assert find_format("csv") is None


def stream_records(binary: IO[bytes]) -> Iterator[peftkit.BadRow | dict[str, str]]:
    """Yield a row per block of lines `name: value`; blank lines separate the blocks."""
    for block in binary.read().decode().split("\n\n"):
        pairs = [line.partition(": ") for line in block.splitlines()]
        if pairs:
            yield {name: value for name, _, value in pairs} if all(sep for _, sep, _ in pairs) else BadRow("no colon")


@pytest.fixture
def records_format(monkeypatch):
    monkeypatch.setattr("peftkit.data.formats.base._FORMATS", dict(peftkit.data.formats.base._FORMATS))
    return peftkit.register_data_format(DataFormat(name="records", extensions=(".rec",), stream=stream_records))


def test_a_registered_format_is_read_for_training_and_prediction(records_format, small_recipe, tmp_path):
    rows = [{"text": f"text number {number}", "label": "ab"[number % 2]} for number in range(60)]
    blocks = ["".join(f"{name}: {value}\n" for name, value in row.items()) for row in rows]
    (tmp_path / "data").mkdir()
    for split, part in (("train", blocks[:40]), ("validation", blocks[40:50]), ("test", blocks[50:])):
        write(tmp_path / "data" / f"{split}.rec", "\n".join(part))
    report = run(small_recipe(path=str(tmp_path / "data"), max_steps=1))
    assert report.data["rows"] == {"train": 40, "validation": 10, "test": 10}
    predict([tmp_path / "run"], tmp_path / "data" / "test.rec", tmp_path / "out.jsonl")
    Dataset.from_list(rows[50:]).to_json(tmp_path / "test.jsonl")
    predict([tmp_path / "run"], tmp_path / "test.jsonl", tmp_path / "expected.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == (tmp_path / "expected.jsonl").read_text()
    path = write(tmp_path / "a.rec", "text: a\nlabel: b\n\nbad\n\ntext: c\nlabel: d\n")
    assert stream(path) == [{"text": "a", "label": "b"}, "no colon", {"text": "c", "label": "d"}]
    with pytest.raises(UserError, match=r"a\.rec, row 1 \(from 0\): no colon"):
        train_rows(path)


@pytest.mark.parametrize(
    ("name", "extensions", "message"),
    [
        ("csv", (".new",), "data format 'csv': already registered; use another name"),
        ("new", (".new", ".tsv"), r"data format 'new': \.tsv belongs to 'tsv'"),
        ("new", ("new",), "data format 'new': 'new' must be lower case and start with a dot"),
    ],
)
def test_a_format_takes_no_name_or_extension_of_another(records_format, name, extensions, message):
    with pytest.raises(UserError, match=message):
        peftkit.register_data_format(DataFormat(name=name, extensions=extensions, stream=stream_records))
    assert find_format("a.new") is None


def test_columns_keep_their_values_over_chunks(records_format, tmp_path, monkeypatch):
    """A column that is empty, or absent, in a whole chunk."""
    monkeypatch.setattr("peftkit.data.formats.base.ROWS_PER_CHUNK", 2)
    path = write(tmp_path / "a.rec", "a: 1\n\na: 2\n\nb: 3\n\nb: 4\n\na: 5\n")
    assert train_rows(path) == [
        {"a": "1", "b": None}, {"a": "2", "b": None}, {"a": None, "b": "3"}, {"a": None, "b": "4"},
        {"a": "5", "b": None},
    ]  # fmt: skip
