import sqlite3
from contextlib import closing

import pytest
from datasets import Dataset, DatasetDict

from peftkit import DataConfig, MultiLabelClassification, SequenceClassification, SequenceRegression
from peftkit.data.sources import is_remote, load_rows
from peftkit.data.splits import load_splits, reload_splits
from peftkit.errors import UserError
from tests.data.test_splits import load, rows, write

TASK = SequenceClassification()


def test_a_folder_saved_by_datasets_keeps_its_label_order(tmp_path):
    data = Dataset.from_list(rows(40, ("zebra", "ant"))).class_encode_column("label")
    data = data.cast_column("label", data.features["label"].__class__(names=["ant", "zebra", "never"]))
    DatasetDict({"train": data, "validation": data, "test": data}).save_to_disk(tmp_path / "d")
    assert load(tmp_path / "d").labels == ("ant", "zebra", "never")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("./nowhere.jsonl", "no such file or folder"),
        ("nowhere.csv", "no such file or folder"),
        ("no-such/data-anywhere", "cannot be read"),
    ],
)
def test_data_that_cannot_be_had_is_one_line(path, message):
    with pytest.raises(UserError, match=f"data.path: {path}: {message}"):
        load(path)


def test_a_file_that_is_not_what_its_name_says(tmp_path):
    (tmp_path / "a.jsonl").write_text("this is { not json\n")
    with pytest.raises(UserError, match=r"a\.jsonl, row 0 \(from 0\): not JSON"):
        load(tmp_path / "a.jsonl")
    (tmp_path / "a.xyz").write_text("x")
    with pytest.raises(UserError, match=r"unknown file format '\.xyz'"):
        load(tmp_path / "a.xyz")


def test_a_folder_whose_splits_have_other_columns(tmp_path):
    write(tmp_path / "train.jsonl", rows(20))
    write(tmp_path / "dev.jsonl", [{**row, "more": ["a", "b"]} for row in rows(6)])
    write(tmp_path / "test.jsonl", [{**row, "id": 3} for row in rows(4)])
    splits = load(tmp_path)
    assert [len(found) for found in splits.rows.values()] == [20, 6, 4]
    assert splits.validation["more"][0] == ["a", "b"]


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "reviews.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("create table reviews (text text, label text, year integer)")
        connection.executemany(
            "insert into reviews values (?, ?, ?)",
            [(row["text"], row["label"], 2020 + number % 2) for number, row in enumerate(rows(60, ("a", "b", "c")))],
        )
        connection.commit()
    return path


@pytest.mark.parametrize("address", ["{}", "sqlite:///{}"])
def test_a_query_is_data(database, address):
    path = address.format(database)
    splits = load_splits(DataConfig(path=path, sql="select text, label from reviews where year = 2020"), TASK)
    assert sum(len(found) for found in splits.rows.values()) == 30
    assert splits.labels == ("a", "b", "c")
    # Another row is seen: nothing is read from a cache.
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("insert into reviews values ('new', 'a', 2020)")
        connection.commit()
    splits = load_splits(DataConfig(path=path, sql="select text, label from reviews where year = 2020"), TASK)
    assert sum(len(found) for found in splits.rows.values()) == 31


@pytest.mark.parametrize(
    ("path", "sql", "message"),
    [
        ("{}", "select stars from reviews", "data.sql: the query failed: .*no such column: stars"),
        ("nowhere.db", "select 1", r"no such SQLite file \(expected a file or a URL"),
        (
            "postgresql://me:secret@host/db",
            "select 1",
            "the password would be saved with the run",
        ),
        ("nosuch://host/db", "select 1", "data.sql: the query failed"),
    ],
)
def test_a_query_that_fails_is_one_line(database, path, sql, message):
    with pytest.raises(UserError, match=message) as raised:
        load_rows(DataConfig(path=path.format(database), sql=sql))
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_cell_is_what_it_says(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tlabel\na "stray mark\tNA\nNone\tyes\nan "other\tyes\n')
    rows = load_rows(DataConfig(path=str(tmp_path / "a.tsv")))["train"]
    assert rows["text"][:] == ['a "stray mark', "None", 'an "other']
    assert rows["label"][:] == ["NA", "yes", "yes"]
    (tmp_path / "b.csv").write_text('text,label\n"a, b",None\nc,\n')
    rows = load_rows(DataConfig(path=str(tmp_path / "b.csv")))["train"]
    assert rows["text"][:] == ["a, b", "c"]
    assert SequenceClassification().targets(rows, ()) == ["None", None]
    assert MultiLabelClassification().targets(rows, ()) == [["None"], []]


def test_a_column_has_one_type_however_long_the_file(tmp_path):
    lines = [f"text {row},{row / 10}" for row in range(25_000)]
    lines[20_000] = "text,"
    (tmp_path / "a.csv").write_text("text,label\n" + "\n".join(lines))
    rows = load_rows(DataConfig(path=str(tmp_path / "a.csv")))["train"]
    problems = list(SequenceRegression().validate(rows, (), "a.csv"))
    assert len(problems) == 1
    assert "a.csv, row 20000 (from 0), column 'label': expected a finite number, got ''" in problems[0]


def test_numbers_in_text_have_names(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\na,"0,1"\nb,1\n')
    rows = load_rows(DataConfig(path=str(tmp_path / "a.csv")))["train"]
    task = MultiLabelClassification(label_names=["x", "y"])
    assert task.find_labels(rows) == ("x", "y")
    assert task.targets(rows, ("x", "y")) == [["x", "y"], ["y"]]


def test_files_are_read_though_no_path_is_given(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 1}\n')
    rows = load_rows(DataConfig(data_files={"train": str(tmp_path / "a.jsonl")}))
    assert rows["train"]["text"][:] == ["a"]
    with pytest.raises(UserError, match=r"data\.sql: cannot be combined with data\.data_files"):
        load_rows(DataConfig(data_files={"train": "a"}, sql="select 1"))


def test_numbers_are_as_they_are_written(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n7,01\n8,2\n9,10\n1.5,true\n")
    found = load_rows(DataConfig(path=str(tmp_path / "a.csv")))["train"]
    assert found.to_dict() == {"text": ["7", "8", "9", "1.5"], "label": ["01", "2", "10", "true"]}
    assert TASK.find_labels(found.select(range(3))) == ("01", "2", "10")


@pytest.mark.parametrize(
    ("rows", "number"),
    [("nice, really,1\nbad, really,0\n", 0), ("nice,1,\nbad,0,\n", 0), ("nice,1\nbad, really,0\n", 1)],
)
def test_a_row_with_a_cell_too_many_is_refused(tmp_path, rows, number):
    (tmp_path / "a.csv").write_text("text,label\n" + rows)
    with pytest.raises(UserError, match=rf"a\.csv, row {number} \(from 0\): 3 cells for 2 columns"):
        load_rows(DataConfig(path=str(tmp_path / "a.csv")))


def test_a_blank_line_is_a_row_but_not_at_the_end(tmp_path):
    (tmp_path / "a.csv").write_text("text\nhi\n\n  \nyes\n\n")
    rows = load_rows(DataConfig(path=str(tmp_path / "a.csv")))["train"]
    assert rows["text"][:] == ["hi", "", "  ", "yes"]
    found = [problem.split(",")[1].strip() for problem in TASK.validate(rows, None, "f")]
    assert found == ["row 1 (from 0)", "row 2 (from 0)"]


def test_files_that_are_read_together_are_named(tmp_path):
    write(tmp_path / "a.jsonl", rows(40))
    write(tmp_path / "b.jsonl", rows(20))
    splits = load(tmp_path)
    assert "train has 2 files: a.jsonl, b.jsonl" in splits.decisions


def test_an_empty_file_is_one_line(tmp_path):
    for name in ("a.jsonl", "a.csv"):
        (tmp_path / name).write_text("")
        with pytest.raises(UserError, match=r"no rows|cannot be read"):
            load(tmp_path / name)


def test_names_and_numbers_in_one_column(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": f"t{n}", "label": 1 if n % 2 else "x"} for n in range(60)])
    assert load(path).labels == ("1", "x")


def test_a_folder_of_tables_is_read_as_a_table_is(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.tsv").write_text('text\tlabel\na "b\tNA\nnull\tno\n')
    found = load_rows(DataConfig(path=str(tmp_path)))
    assert set(found) == {"train", "test"}
    assert found["test"].to_list() == [{"text": 'a "b', "label": "NA"}, {"text": "null", "label": "no"}]


def test_rows_saved_by_datasets_without_splits(tmp_path):
    Dataset.from_list(rows(60)).save_to_disk(tmp_path / "d")
    assert sum(len(found) for found in load(tmp_path / "d").rows.values()) == 60


class TestDataOfARunFolder:
    """What `reload_splits` does with a data path that a run folder, perhaps someone else's, names."""

    @pytest.mark.parametrize(
        "config",
        [
            {"path": "leak-$PEFTKIT_TEST_TOKEN.db", "sql": "select 1 as text, 2 as label"},
            {"path": "sqlite:///leak-$PEFTKIT_TEST_TOKEN.db", "sql": "select 1 as text, 2 as label"},
            {"path": "someone/reviews"},
            {"path": "https://example.invalid/rows"},
            {"path": "hf://datasets/someone/reviews"},
        ],
    )
    def test_remote_data_is_not_read_without_permission(self, tmp_path, monkeypatch, config):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PEFTKIT_TEST_TOKEN", "secret")
        with pytest.raises(UserError, match=r"the run used .*; pass --reload_data to read it"):
            reload_splits(DataConfig(**config), TASK, "", allow_remote=False)
        assert not list(tmp_path.iterdir())

    def test_a_query_runs_with_permission(self, database):
        config = DataConfig(path=str(database), sql="select text, label from reviews where year = 2020")
        fingerprint = load_splits(config, TASK).fingerprint
        with pytest.raises(UserError, match="--reload_data"):
            reload_splits(config, TASK, fingerprint, allow_remote=False)
        assert reload_splits(config, TASK, fingerprint, allow_remote=True).fingerprint == fingerprint
        with pytest.raises(UserError, match="changed since training"):
            reload_splits(config, TASK, "another", allow_remote=True)

    def test_a_local_folder_may_name_addresses(self, tmp_path):
        write(tmp_path / "train.jsonl", rows(60))
        assert not is_remote(DataConfig(path=str(tmp_path)))
        (tmp_path / "README.md").write_text(
            "---\nconfigs:\n- config_name: default\n  data_files: https://example.invalid/train.jsonl\n---\n"
        )
        assert is_remote(DataConfig(path=str(tmp_path)))

    def test_local_files_need_no_permission(self, tmp_path):
        path = write(tmp_path / "a.jsonl", rows(60))
        config = DataConfig(path=str(path))
        assert reload_splits(config, TASK, load(path).fingerprint, allow_remote=False).labels
