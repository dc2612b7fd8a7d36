import json

from peftkit import (
    DataConfig,
    ModelConfig,
    MultiLabelClassification,
    Recipe,
    Seq2Seq,
    SequenceClassification,
    TokenClassification,
)
from peftkit.data.quality import check_data
from peftkit.data.report import check, format_checks
from peftkit.data.splits import load_splits
from peftkit.models.loading import load_tokenizer
from peftkit.training.run import run

WORDS = "the quick brown fox jumps over a lazy dog while seven wise owls watch from an old tree"


def text(number):
    """Make texts that differ from each other: ten words that depend on the number."""
    words = WORDS.split()
    return " ".join(words[(number * step + step) % len(words)] + str(number * step % 97) for step in range(1, 11))


def checked(tmp_path, task, **splits):
    for split, rows in splits.items():
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_splits(DataConfig(path=str(tmp_path)), task)
    tokenizer = load_tokenizer(ModelConfig(), task)
    return found, check_data(found, task, tokenizer)


def rows(start, count, **more):
    return [{"text": text(n), "label": "ab"[n % 2], **more} for n in range(start, start + count)]


def test_clean_data_has_no_warnings(tmp_path):
    splits, checks = checked(
        tmp_path, SequenceClassification(), train=rows(0, 60), validation=rows(100, 20), test=rows(200, 20)
    )
    assert checks.warnings == ()
    assert checks.classes == {"a": 30, "b": 30}
    assert checks.duplicates["test"] == {"repeated": 0, "exact": 0, "near": 0}
    assert format_checks(splits, checks).endswith("no warnings")


def test_duplicates_exact_and_near_and_conflicts_are_found(tmp_path):
    train = rows(0, 60)
    near = {**train[5], "text": train[5]["text"] + " indeed"}
    copy = {**train[7], "text": train[7]["text"].upper() + " "}
    other = {**train[9], "label": "a"}
    splits, checks = checked(
        tmp_path, SequenceClassification(), train=[*train, train[3]], validation=rows(100, 20),
        test=[*rows(200, 20), near, copy, other],
    )  # fmt: skip
    assert checks.duplicates == {
        "train": {"repeated": 1},
        "validation": {"repeated": 0, "exact": 0, "near": 0},
        "test": {"repeated": 0, "exact": 2, "near": 1},
    }
    warnings = "\n".join(checks.warnings)
    assert "train: 1 of 61 rows (1.6%) duplicate an earlier row" in warnings
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    assert f"({train} row 60 equals {train} row 3)" in warnings
    assert (
        f"test: 2 of 23 rows (8.7%) duplicate training rows ({test} row 21 equals {train} row 7); scores will be too"
        in warnings
    )
    assert f"(cosine of words >= 0.8; {test} row 20 and {train} row 5)" in warnings
    assert f"1 text has different labels in different rows ({train} row 9 and {test} row 22)" in warnings
    assert "warning     test: 2 of 23" in format_checks(splits, checks)


def test_rows_are_named_as_the_file_has_them_though_held_out_and_drawn(tmp_path):
    found = rows(0, 80)
    found[30] = {**found[11], "label": "a"}
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    task = SequenceClassification()
    for seed in (1, 2, 3):
        splits = load_splits(DataConfig(path=str(tmp_path / "all.jsonl"), seed=seed), task)
        warnings = "\n".join(check_data(splits, task, load_tokenizer(ModelConfig(), task)).warnings)
        assert "all.jsonl row 11" in warnings
        assert "all.jsonl row 30" in warnings
        for split, part in splits.rows.items():
            for row, text in enumerate(part["text"]):
                assert found[splits.origins[split][1][row]]["text"] == text
    drawn = load_splits(DataConfig(path=str(tmp_path / "all.jsonl"), max_eval_samples=5), task)
    assert [found[number]["text"] for number in drawn.origins["test"][1]] == drawn.test["text"][:]


def test_no_length_over_the_models_is_suggested(tmp_path):
    long = [{"text": "text " * 700 + str(n), "label": "ab"[n % 2]} for n in range(30)]
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
    text = check(Recipe(data=DataConfig(path=str(tmp_path))))
    assert "task.max_length 128; 512 fits 0 % of the rows" in text


def test_the_wrong_column_is_suspected(tmp_path):
    alone = [{"text": text(n), "label": f"text {n}"} for n in range(40)]
    _, checks = checked(tmp_path, SequenceClassification(), train=alone, validation=alone, test=alone)
    assert "train has 40 classes in 40 rows; check the label column" in checks.warnings


def test_rare_and_unequal_classes_are_named(tmp_path):
    train = [*rows(0, 300), {"text": "one of its kind", "label": "c"}]
    _, checks = checked(tmp_path, SequenceClassification(), train=train, validation=rows(400, 9), test=rows(500, 9))
    warnings = "\n".join(checks.warnings)
    assert "train has fewer than 10 rows of c" in warnings
    assert "the largest class has 150 rows, the smallest 1; task.class_weights balanced" in warnings


def test_what_is_cut_and_what_length_would_do(tmp_path):
    task = SequenceClassification(max_length=16)
    splits, checks = checked(tmp_path, task, train=rows(0, 60), validation=rows(100, 9), test=rows(200, 9))
    tokenizer = load_tokenizer(ModelConfig(), task)
    tokens = sorted(len(tokenizer(row)["input_ids"]) for row in splits.train["text"])
    found = checks.lengths["max_length"]
    assert found["p100"] == tokens[-1]
    assert found["cut_share"] == 1.0
    assert found["suggested"] % 8 == 0
    assert sum(n <= found["suggested"] for n in tokens) >= 0.99 * len(tokens)
    assert (
        "train: 60 of 60 rows (100.0%) are truncated at task.max_length 16; "
        f"{found['suggested']} fits 100 % of the rows" in checks.warnings
    )


def test_a_foreign_language_is_noticed(tmp_path):
    foreign = [{"text": "\u0461 \u0463 \u0467 \u0469 " * 3 + str(n), "label": "ab"[n % 2]} for n in range(30)]
    _, checks = checked(tmp_path, SequenceClassification(), train=foreign, validation=rows(0, 9), test=rows(20, 9))
    assert any("of the tokens are not in the vocabulary" in warning for warning in checks.warnings)


def test_entities_that_no_part_holds_are_counted(tmp_path):
    tagged = [
        {"tokens": ["x"] * 30, "ner_tags": ["O"] * 5 + ["B-a"] + ["I-a"] * length + ["O"] * (24 - length)}
        for length in (1, 2, 20)
    ]
    _, checks = checked(
        tmp_path, TokenClassification(max_length=12, stride=4), train=tagged, validation=tagged, test=tagged
    )
    assert checks.entities == {"cut": 1, "all": 3}
    assert checks.classes == {"a": 3}


def test_other_tasks(tmp_path):
    pairs = [{"source": text(n), "target": text(n + 50)} for n in range(30)]
    (tmp_path / "a").mkdir()
    _, checks = checked(
        tmp_path / "a", Seq2Seq(max_target_length=8), train=pairs, validation=pairs[:3], test=pairs[5:9]
    )
    assert set(checks.lengths) == {"max_source_length", "max_target_length"}
    assert checks.duplicates["test"]["exact"] == 4
    labelled = [{"text": text(n), "label": ["a", "b"][: n % 3]} for n in range(30)]
    (tmp_path / "b").mkdir()
    _, checks = checked(
        tmp_path / "b", MultiLabelClassification(), train=labelled, validation=labelled[:3], test=labelled[:3]
    )
    assert checks.classes == {"a": 20, "b": 10}


def test_the_run_keeps_and_tells_the_warnings(small_recipe, tmp_path, capsys):
    recipe = small_recipe(task=SequenceClassification(max_length=8), max_steps=3)
    report = run(recipe)
    assert any("are truncated at task.max_length 8" in warning for warning in report.data["checks"]["warnings"])
