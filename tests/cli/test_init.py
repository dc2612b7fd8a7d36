import json

import pytest

from peftkit.cli.main import main
from peftkit.models.demo import find_demo_model
from peftkit.recipe.parser import read_recipe
from peftkit.training.run import run

WORDS = ["return", "the", "mean", "of", "an", "array", "parse", "header", "write", "file"]


def text(number):
    return " ".join(WORDS[(number * step) % len(WORDS)] for step in range(1, 8)) + f" {number}"


DATA = {
    "SequenceClassification": lambda n: {"review": text(n), "stars": n % 3},
    "MultiLabelClassification": lambda n: {"text": text(n), "topics": ["a", "b", "c"][: n % 4]},
    "SequenceRegression": lambda n: {"sentence1": text(n), "sentence2": text(n + 1), "score": n / 7},
    "TokenClassification": lambda n: {"words": text(n).split(), "tags": ["O"] * 6 + ["B-x", "I-x"]},
    "Seq2Seq": lambda n: {"article": text(n), "highlights": WORDS[n % 10]},
}


def call(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["init", *map(str, arguments)])
    return ended.value.code


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_rows(name, make, count=60):
    with open(name, "w") as file:
        file.writelines(json.dumps(make(number)) + "\n" for number in range(count))


@pytest.mark.parametrize("task", DATA)
def test_a_written_recipe_is_checked_and_trained_as_it_is(task, folder, checkpoints, capsys):
    write_rows("rows.jsonl", DATA[task])
    model = checkpoints / ("t5" if task == "Seq2Seq" else "bert")
    assert call("mine.yaml", "--data", "rows.jsonl", "--model", model) == 0
    message = capsys.readouterr()
    assert f"task    {task}, from the 60 rows of rows.jsonl" in message.out
    assert "Saved a starter recipe to mine.yaml" in message.err
    assert call("mine.py", "--data", "rows.jsonl", "--model", model) == 0
    recipe = read_recipe("mine.yaml")
    assert recipe == read_recipe("mine.py")
    assert type(recipe.task).__name__ == task
    with pytest.raises(SystemExit) as ended:
        main(["check", "mine.yaml"])
    assert ended.value.code == 0
    recipe.training.update(max_steps=2, disable_tqdm=True)
    assert run(recipe).status == "complete"


@pytest.mark.parametrize("method", ["full", "qlora", "dora", "ia3"])
def test_a_method_is_the_same_in_yaml_and_python(method, folder):
    for name in ("recipe.yaml", "recipe.py"):
        assert call(name, "--method", method) == 0
    recipe = read_recipe("recipe.yaml")
    assert recipe == read_recipe("recipe.py")
    assert (recipe.method.name, recipe.data.path, recipe.model.name_or_path) == (method, "demo", "demo")
    assert find_demo_model().is_dir()


def test_no_file_is_overwritten_without_force(folder, capsys):
    (folder / "recipe.yaml").write_text("mine")
    assert call() == 2
    assert "recipe.yaml: already exists; use another NAME or pass --force" in capsys.readouterr().err
    assert (folder / "recipe.yaml").read_text() == "mine"
    assert call("--force") == 0
    assert read_recipe("recipe.yaml").data.path == "demo"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recipe.txt"], "unknown file type '.txt' (expected .yaml or .py)"),
        (
            ["--task", "SequenceClasification"],
            "--task: unknown task 'SequenceClasification'; use 'SequenceClassification'",
        ),
        (["--method", "loraa"], "--method: unknown method 'loraa'; use 'lora'"),
        (["--data", "nowhere.csv"], "nowhere.csv: no such file or folder"),
        (["--text", "nothing"], "--text nothing: demo has no such column"),
    ],
)
def test_an_error_is_one_line_with_the_fix(arguments, message, folder, capsys):
    assert call(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(folder.iterdir())


def test_names_from_the_data_stay_in_comments_and_strings(folder):
    evil = "label\nimport os; os._exit(3)  #\x1b[31m"
    write_rows("rows.jsonl", lambda n: {"text": text(n), evil: f"a\nb{n % 2}"})
    for name in ("recipe.yaml", "recipe.py"):
        assert call(name, "--data", "rows.jsonl") == 0
        assert read_recipe(name).task.label == evil
        assert "\x1b" not in (folder / name).read_text()


def test_more_rows_are_read_where_the_first_ones_have_one_label(folder):
    write_rows("rows.jsonl", lambda n: {"text": text(n), "label": "ab"[n > 1500]}, count=3000)
    assert call("--data", "rows.jsonl") == 0
    assert read_recipe("recipe.yaml").task.label == "label"
    assert "the 3,000 rows of rows.jsonl" in (folder / "recipe.yaml").read_text()
