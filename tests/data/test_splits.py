import json

import pytest
from datasets import Dataset

from peftkit import DataConfig, SequenceClassification
from peftkit.data.sources import load_rows
from peftkit.data.splits import compute_fingerprint, load_splits
from peftkit.errors import UserError

TASK = SequenceClassification()


def rows(count, labels=("no", "yes")):
    return [{"text": f"text number {i}", "label": labels[i % len(labels)]} for i in range(count)]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def load(path, **fields):
    return load_splits(DataConfig(path=str(path), **fields), TASK)


def test_a_folder_of_splits_is_read_with_the_common_names(tmp_path):
    for name, count in (("train", 20), ("dev", 6), ("test", 4)):
        write(tmp_path / f"{name}.jsonl", rows(count))
    (tmp_path / "NOTE.md").write_text("not data")
    splits = load(tmp_path)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (20, 6, 4)
    assert splits.labels == ("no", "yes")
    assert splits.decisions == ()


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_a_single_file_is_split_stratified_and_says_so(tmp_path, suffix):
    data = Dataset.from_list(rows(100))
    path = tmp_path / f"all{suffix}"
    if suffix in (".csv", ".tsv"):
        data.to_csv(path, index=False, sep="," if suffix == ".csv" else "\t")
    elif suffix == ".parquet":
        data.to_parquet(path)
    else:
        data.to_json(path)
    splits = load(path)
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 100
    assert len(splits.decisions) == 2
    assert "stratified, seed 1" in splits.decisions[0]
    texts = [set(split["text"]) for split in (splits.train, splits.validation, splits.test)]
    assert not texts[0] & texts[1] | texts[0] & texts[2] | texts[1] & texts[2]
    assert load(path).fingerprint == splits.fingerprint


def test_named_files_and_columns(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.jsonl", [{"sentence": r["text"], "kind": r["label"]} for r in rows(30)])
    config = DataConfig(path=str(tmp_path), data_files={"train": "a.jsonl", "test": "b.jsonl"})
    splits = load_splits(config, SequenceClassification(text="sentence", label="kind"))
    assert len(splits.test) == 30


def test_numbers_are_labels_in_their_own_order(tmp_path):
    assert load(write(tmp_path / "a.jsonl", rows(60, (10, 9, 2)))).labels == ("2", "9", "10")


def test_the_fingerprint_knows_every_row_and_its_order(tmp_path):
    records = rows(60)
    first = load(write(tmp_path / "a.jsonl", records)).fingerprint
    assert load(write(tmp_path / "b.jsonl", records)).fingerprint == first
    records[7] = {**records[7], "text": "another"}
    assert load(write(tmp_path / "c.jsonl", records)).fingerprint != first


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_rows_and_their_fingerprint_are_those_of_version_0_1(tmp_path, suffix):
    """Over batches of rows, with text that is not ASCII, and held out by label."""
    data = Dataset.from_dict(
        {
            "text": [f"t\u00e9xt {i} \u2028 {i % 17}" for i in range(2300)],
            "label": ["b\u00e9a"[i % 3] for i in range(2300)],
        }
    )
    data.to_csv(tmp_path / "a.csv", index=False)
    data.to_json(tmp_path / "a.jsonl", force_ascii=False)
    splits = load(tmp_path / f"a.{suffix}", max_train_samples=1500, seed=5)
    assert splits.fingerprint == "e83a15f66cfbe768ae6bf0193a6b2adce925407f2fcaf7a8536f832a6123dc20"
    origins = [list(splits.origins[split][1][:4]) for split in splits.rows]
    assert origins == [[535, 1527, 171, 1276], [596, 526, 628, 1970], [294, 1958, 1540, 1257]]


def test_numbers_lists_and_missing_values_have_the_fingerprint_of_version_0_1(tmp_path):
    tags = [{"tokens": ["a", "b"][: n % 3], "ner_tags": [n % 2, None][: n % 3]} for n in range(1, 1200) if n % 3]
    path = write(tmp_path / "a.jsonl", [{**row, "score": n / 7} for n, row in enumerate(tags)])
    rows = load_rows(DataConfig(path=str(path)))["train"]
    fingerprint = compute_fingerprint({"train": rows}, ("tokens", "ner_tags", "score"))
    assert fingerprint == "029850d015599fe2d6afec93cef4ca59e9994f45328220ec13ff359f15e99a6a"


def test_sizes_are_cut_by_the_seed(tmp_path):
    path = write(tmp_path / "a.jsonl", rows(100))
    cut = load(path, max_train_samples=10, max_eval_samples=5)
    assert (len(cut.train), len(cut.validation), len(cut.test)) == (10, 5, 5)
    assert cut.fingerprint == load(path, max_train_samples=10, max_eval_samples=5).fingerprint


@pytest.mark.parametrize(
    ("records", "fields", "message"),
    [
        (rows(20), {"train_split": "tain"}, None),
        (
            [{"sentence": "a", "label": 1}] * 20,
            {},
            r"has no column 'text' \(columns: sentence, label\); set the column with --task.text",
        ),
        (rows(20), {"test_split": "tset"}, "data.test_split: no split 'tset'"),
        (rows(20, ("same",)), {}, "needs at least 2 labels, got 1"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, records, fields, message):
    path = write(tmp_path / "a.jsonl", records)
    if message is None:
        assert load(path, **fields).labels == ("no", "yes")
        return
    with pytest.raises(UserError, match=message) as raised:
        load(path, **fields)
    assert "\n" not in str(raised.value)


def test_a_bad_row_is_named_with_its_file_and_number(tmp_path):
    write(tmp_path / "train.jsonl", rows(20))
    write(tmp_path / "test.jsonl", [*rows(3), {"text": " ", "label": "no"}, {"text": "a", "label": "maybe"}])
    with pytest.raises(
        UserError, match=r"/test\.jsonl, row 3 \(from 0\), column 'text': empty; .* \(and 1 more; run peftkit check"
    ):
        load(tmp_path)
    config = DataConfig(path=str(tmp_path), data_files={"train": "train.jsonl", "test": "test.jsonl"})
    with pytest.raises(UserError, match=r"^test\.jsonl, row 3 "):
        load_splits(config, TASK)


def test_one_split_for_both_is_said(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / f"{split}.jsonl", rows(20))
    assert "validation and test share split 'test'" in " ".join(load(tmp_path, validation_split="test").decisions)


def test_another_training_seed_sees_the_same_rows(tmp_path):
    path = write(tmp_path / "a.jsonl", rows(100))
    assert load(path).fingerprint == load(path).fingerprint != load(path, seed=2).fingerprint


def test_numbers_keep_their_names_when_rows_are_held_out(tmp_path):
    names = [f"name {number}" for number in range(12)]
    path = write(tmp_path / "a.jsonl", [{"text": f"text {i}", "label": i % 12} for i in range(240)])
    task = SequenceClassification(label_names=names)
    splits = load_splits(DataConfig(path=str(path)), task)
    for found in splits.rows.values():
        for row, name in zip(found, task.targets(found, splits.labels), strict=True):
            assert name == f"name {int(row['text'].split()[1]) % 12}"
