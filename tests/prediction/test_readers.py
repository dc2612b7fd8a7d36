import json
import random
import select
import subprocess
import sys

import pyarrow
import pytest
from pyarrow import ipc, parquet

from peftkit import DataConfig
from peftkit.data.sources import load_rows
from peftkit.errors import UserError
from peftkit.prediction.readers import LONGEST_CELL, ROWS_AT_A_TIME, stream_rows

LONG = "word " * 100_000


def streamed(path, input_format=None):
    """Values, or a problem, of each row; its number is its place."""
    rows = list(stream_rows(path, input_format))
    assert [row.number for row in rows] == list(range(len(rows)))
    assert not any(row.values for row in rows if row.problem)
    return [row.problem or row.values for row in rows]


def trained_on(path):
    return load_rows(DataConfig(path=str(path)))["train"].to_list()


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
        ("words.csv", "text,label\nNA,None\nnull,nan\n01,1.0\n 7 ,true\n"),
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
    assert streamed(path) == trained_on(path)


@pytest.mark.parametrize("separator", [",", "\t"])
def test_any_table_is_read_as_training_reads_it(tmp_path, separator):
    """And where training refuses the whole file, a row says why."""
    draw = random.Random(5)
    pieces = ["a", "NA", '"', '""', separator, "\n", "\r\n", "\r", " ", "é", "\u2028", f'"x{separator}"', '"p\nq"']
    refused = 0
    for number in range(150):
        body = "".join(draw.choice(pieces) for _ in range(draw.randint(1, 12)))
        path = write(tmp_path / f"{number}.{'csv' if separator == ',' else 'tsv'}", f"a{separator}b\n{body}")
        found = streamed(path)
        try:
            assert found == trained_on(path), repr(body)
        except UserError:
            assert any(isinstance(row, str) for row in found), repr(body)
            refused += 1
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
    assert streamed(write(tmp_path / name, content)) == expected


def test_what_json_cannot_hold_is_told(tmp_path):
    lines = ["[" * 100_000, '{"a": ' + "1" * 5000 + "}", '{"a": 1}']
    found = streamed(write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert [str(row)[:9] for row in found] == ["not JSON ", "not JSON ", "{'a': 1}"]


def test_a_mark_that_is_not_closed_does_not_take_all_memory(tmp_path):
    line = "x" * 99 + "\n"
    path = write(tmp_path / "a.csv", 'a\nfirst\n"' + line * (LONGEST_CELL // 100 + 2))
    found = streamed(path)
    assert found[0] == {"a": "first"}
    assert found[1].startswith("field larger than field limit")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt"])
@pytest.mark.parametrize("content", ["", "\ufeff"])
def test_an_empty_file_has_no_rows(tmp_path, name, content):
    assert streamed(write(tmp_path / name, content)) == []


@pytest.mark.parametrize("row_group", [7, 100_000])
def test_parquet_and_arrow(tmp_path, row_group):
    count = 2 * ROWS_AT_A_TIME + 3
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
        assert streamed(tmp_path / name) == table.to_pylist()
        assert streamed(tmp_path / name) == trained_on(tmp_path / name)
    parquet.write_table(table.slice(0, 0), tmp_path / "none.parquet")
    assert streamed(tmp_path / "none.parquet") == []


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
    assert streamed(path) == [{"text": "one"}, "not UTF-8", {"text": "three"}]


@pytest.mark.parametrize(
    ("name", "content", "input_format", "said"),
    [
        ("a.xyz", "x", None, r"a\.xyz: unknown file format '\.xyz'; say --input_format, one of jsonl, .*arrow, text$"),
        ("a.csv", "x", "xml", "--input_format xml: must be one of jsonl, "),
        ("a.csv", "\n\na,b\n1,2\n", None, r"a\.csv: the first line is empty; it must name the columns"),
        ("a.csv", b"\xff\xfea\x00\n\x00", None, r"a\.csv: not UTF-8; save it as UTF-8"),
        ("a.csv", '"a,b\n1,2\n', None, r"a\.csv: a quotation mark in the first line is not closed"),
        ("a.json", '[{"a": 1},\n{"a": }]', None, r"a\.json: not JSON: Expecting value: line 2 column 7"),
        ("a.parquet", "not one", None, r"a\.parquet: can't be read: "),
        ("a.arrow", "not one", None, r"a\.arrow: can't be read: "),
        ("a.arrow", "", None, r"a\.arrow: can't be read: "),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, name, content, input_format, said):
    with pytest.raises(UserError, match=said) as raised:
        list(stream_rows(write(tmp_path / name, content), input_format))
    assert "\n" not in str(raised.value)


def test_what_is_wrong_before_any_row_is_told_at_once(tmp_path):
    for file in (tmp_path / "nowhere.csv", tmp_path):
        with pytest.raises(UserError, match=rf"{file}: no such file"):
            stream_rows(file)
    for input_format in ("parquet", "arrow"):
        with pytest.raises(UserError, match=f"--input_format {input_format}: can't be read from standard input"):
            stream_rows(None, input_format)


def test_a_format_that_is_named_goes_before_the_ending(tmp_path):
    assert streamed(write(tmp_path / "a.csv", "a,b\n"), "text") == [{"text": "a,b"}]
    assert streamed(write(tmp_path / "A.TSV", "a\n1\n")) == [{"a": "1"}]


def run(code, *arguments, **options):
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, **options)


def test_standard_input_is_read_as_it_comes():
    code = """
import sys
from peftkit.prediction.readers import stream_rows
for row in stream_rows(None):
    print(row.number, row.values, row.problem, flush=True)
assert not sys.stdin.buffer.closed
"""
    with run(code, stdin=subprocess.PIPE) as process:
        process.stdin.write('\ufeff{"a": "é"}\n\n'.encode())
        process.stdin.flush()
        if not select.select([process.stdout], [], [], 60)[0]:
            process.kill()
        assert process.stdout.readline().decode() == "0 {'a': 'é'} None\n"
        rest, _ = process.communicate(b'\xff\n{"a": 2}')
    assert rest.decode() == "1 {} not UTF-8\n2 {'a': 2} None\n"
    assert process.returncode == 0


def test_standard_input_has_the_format_that_is_named():
    code = """
from itertools import islice
from peftkit.prediction.readers import stream_rows
print([row.values for row in islice(stream_rows(None, "csv"), 2)])
"""
    with run(code, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        found, complaint = process.communicate(b'a,b\r\n"x\r\ny",1\r\n2\r\n3,4\r\n')
    assert found.decode() == "[{'a': 'x\\r\\ny', 'b': '1'}, {'a': '2', 'b': ''}]\n"
    assert complaint == b""


@pytest.mark.parametrize(
    ("ending", "most"),
    [
        ("jsonl", 30),
        ("csv", 30),
        pytest.param("blank.csv", 30, marks=pytest.mark.slow),
        # Arrow's allocator keeps some 60 MB of what it has freed; the file is one row group of 150 MB.
        pytest.param("parquet", 100, marks=pytest.mark.slow),
    ],
)
def test_memory_does_not_grow_with_the_rows(tmp_path, ending, most, real_interpreter):
    code = """
import sys
from pathlib import Path
import psutil
from peftkit.prediction.readers import stream_rows
process = psutil.Process()
before = process.memory_info().rss
used = [process.memory_info().rss for row in stream_rows(Path(sys.argv[1])) if row.number % 2000 == 1999]
print(len(used), (max(used) - before) / 2**20)
"""
    path, count = tmp_path / f"a.{ending}", 300_000
    texts = (f"{row} {row**30:0100d}" for row in range(count))
    if ending == "parquet":
        table = pyarrow.table({"text": [text * 3 for text in texts]})
        parquet.write_table(table, path, row_group_size=count, compression="none")
    else:
        form = {"jsonl": '{{"text": "{}"}}\n', "csv": '"{}",\n', "blank.csv": ",\n"}[ending]
        end = "1,\n" if ending == "blank.csv" else ""
        path.write_text(("a,b\n" if ending.endswith("csv") else "") + "".join(map(form.format, texts)) + end)
    with run(code, str(path)) as process:
        read, grown = process.communicate()[0].split()
    assert int(read) == count // 2000
    assert float(grown) < most
