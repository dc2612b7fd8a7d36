import pytest

from peftkit import Recipe, lora
from peftkit.comparison.grid import make_rows
from peftkit.comparison.options import parse_over
from peftkit.errors import UserError
from peftkit.recipe.serialization import recipe_to_dict

BASE = Recipe(name="x", method=lora(r=4), training={"learning_rate": 7e-4, "max_steps": 5, "seed": 9})


def differing(one, other, above=""):
    """Dotted names in which two recipes differ."""
    found = set()
    for name in one.keys() | other.keys():
        a, b = one.get(name), other.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found |= differing(a, b, f"{above}{name}.")
        elif a != b:
            found.add(f"{above}{name}")
    return found


def test_only_method_learning_rate_and_optimizer_differ(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "method: {name: mine, peft: {class_path: peft.LoraConfig, init_args: {r: 2, target_modules: all-linear}}}\n"
        "training: {learning_rate: 3.0e-3, optim: adafactor, per_device_train_batch_size: 99, seed: 77}\n"
    )
    rows = make_rows(BASE, {"method": ["full", "lora", "qlora", "ia3", str(file)]}, {"ia3": 5e-3})
    plain = [recipe_to_dict(row.recipe) for row in rows]
    allowed = {"training.learning_rate", "training.optim"}
    for one in plain:
        assert {name for name in differing(one, plain[0]) if not name.startswith("method")} <= allowed
    assert {"max_steps": 5, "seed": 9}.items() <= plain[-1]["training"].items()
    rates = {row.name: row.recipe.training["learning_rate"] for row in rows}
    assert rates == {"full": 5e-5, "lora": 7e-4, "qlora": 1e-3, "ia3": 5e-3, "mine": 3e-3}
    assert rows[2].recipe.method.peft.r == rows[1].recipe.method.peft.r == 4


def test_over_makes_every_combination_and_changes_nothing_else():
    over = parse_over(["method=full,lora", "data.max_train_samples=100,200"])
    rows = make_rows(BASE, over)
    assert [row.name for row in rows] == [
        "full, max_train_samples=100", "full, max_train_samples=200",
        "lora, max_train_samples=100", "lora, max_train_samples=200",
    ]  # fmt: skip
    assert rows[3].recipe.data.max_train_samples == 200
    assert rows[3].recipe.training == rows[2].recipe.training
    models = make_rows(BASE, parse_over(["model.name_or_path=demo,some/folder/roberta"]))
    assert [(row.name, row.recipe.method.name) for row in models] == [("demo", "lora"), ("roberta", "lora")]
    modules = parse_over(["method.peft.target_modules=all-linear,[query, value]"])
    assert modules == {"method.peft.target_modules": ["all-linear", '["query", "value"]']}
    assert make_rows(BASE, modules)[1].recipe.method.peft.target_modules == {"query", "value"}


@pytest.mark.parametrize(
    ("arguments", "rates", "message"),
    [
        (["method=full,full"], {}, "same folder name"),
        (["method=full"], {"lora": 1.0}, "method 'lora' is not compared"),
        (["method=nix"], {}, "unknown"),
        (["method"], {}, "FIELD=VALUE"),
        (["training.seed=1,2"], {}, "--seeds"),
        (["data.max_train_sample=1"], {}, "max_train_samples"),
        (["data.max_train_samples=few"], {}, "few"),
        (["method=full,lora", "method.peft.r=4,8"], {}, "row 'full, r=4'"),
    ],
)
def test_wrong_words_are_one_line(arguments, rates, message):
    with pytest.raises(UserError, match=message) as error:
        make_rows(BASE, parse_over(arguments), rates)
    assert "\n" not in str(error.value)


def test_words_stay_as_they_were_written():
    found = parse_over(["model.revision=1.10,0123,1:30,2024-05-01,no", "data.max_train_samples=10,20"])
    assert found["model.revision"] == ["1.10", "0123", "1:30", "2024-05-01", "no"]
    assert make_rows(BASE, found)[0].recipe.model.revision == "1.10"


def test_rows_are_told_apart_where_the_ends_of_paths_do_not(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    rows = make_rows(BASE, parse_over([f"model.name_or_path={tmp_path}/a/bert,b/bert"]))
    assert [row.name for row in rows] == ["~/a/bert", "b/bert"]
    assert rows[0].values == {"model.name_or_path": "~/a/bert"}
    long = make_rows(BASE, parse_over([f"data.train_split={'x' * 300},{'x' * 299}y"]))
    assert len({row.folder for row in long}) == 2
    assert all(len(row.folder) < 130 for row in long)


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_learning_rate_that_is_none_is_refused(rate):
    with pytest.raises(UserError, match="must be a number above 0"):
        make_rows(BASE, {"method": ["full"]}, {"full": rate})
