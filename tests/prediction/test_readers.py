import select
import subprocess
import sys

import pyarrow
import pytest
from pyarrow import parquet

from peftkit.data.formats import list_format_names
from peftkit.errors import UserError
from peftkit.prediction.readers import stream_rows


def stream(path, input_format=None):
    """Values, or a problem, of each row; its number is its place."""
    rows = list(stream_rows(path, input_format))
    assert [row.number for row in rows] == list(range(len(rows)))
    assert not any(row.values for row in rows if row.problem)
    return [row.problem or row.values for row in rows]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_what_is_wrong_before_any_row_is_told_at_once(tmp_path):
    for file in (tmp_path / "nowhere.csv", tmp_path):
        with pytest.raises(UserError, match=rf"{file}: no such file"):
            stream_rows(file)
    for input_format in ("parquet", "arrow"):
        with pytest.raises(UserError, match=f"--input_format {input_format}: cannot read standard input"):
            stream_rows(None, input_format)


def test_an_unknown_format_lists_the_known_ones(tmp_path):
    known = ", ".join(list_format_names())
    with pytest.raises(UserError, match=rf"a\.xyz: unknown file format '\.xyz'; pass --input_format, one of {known}$"):
        stream_rows(write(tmp_path / "a.xyz", "x"))
    with pytest.raises(UserError, match=rf"--input_format xml: unknown format; use one of {known}$"):
        stream_rows(write(tmp_path / "a.csv", "x"), "xml")


def test_a_row_that_cannot_be_read_keeps_its_number(tmp_path):
    assert stream(write(tmp_path / "a.jsonl", '{"a": 1}\n[]\n{"a": 2}\n')) == [{"a": 1}, "not a JSON object", {"a": 2}]


def test_a_format_that_is_named_goes_before_the_ending(tmp_path):
    assert stream(write(tmp_path / "a.csv", "a,b\n"), "text") == [{"text": "a,b"}]
    assert stream(write(tmp_path / "A.TSV", "a\n1\n")) == [{"a": "1"}]


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
        pytest.param("blank.csv", 30, marks=pytest.mark.integration),
        # Arrow's allocator keeps some 60 MB of what it has freed; the file is one row group of 150 MB.
        pytest.param("parquet", 100, marks=pytest.mark.integration),
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
