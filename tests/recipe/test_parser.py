import re
from pathlib import Path

import pytest
import yaml
from peft import IA3Config, LoraConfig

from peftkit import DataConfig, Method, ModelConfig, Quantization, Recipe, SequenceClassification, full, lora, qlora
from peftkit.comparison.runner import compare
from peftkit.errors import UserError
from peftkit.recipe.parser import build_parser, dict_to_recipe, parse_recipe, read_recipe
from peftkit.recipe.serialization import recipe_to_dict, recipe_to_yaml
from peftkit.tasks import TASKS
from peftkit.training.run import run

ROOT = Path(__file__).resolve().parents[2]
LORA = Recipe(name="a", method=lora(r=4), training={"learning_rate": 1e-3, "max_steps": 10})


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ("--method.peft.r 16", lambda r: r.method.peft.r == 16 and r.method.peft.lora_alpha == 16),
        ("--method.peft.target_modules [query,value]", lambda r: r.method.peft.target_modules == {"query", "value"}),
        ("--training.max_steps 20", lambda r: r.training["max_steps"] == 20),
        ("--training.max_steps -1", lambda r: r.training["max_steps"] == -1),
        ("--training.deepspeed ds_configs/zero2.json", lambda r: r.training["deepspeed"] == "ds_configs/zero2.json"),
        ("--task.max_length 9", lambda r: r.task == SequenceClassification(max_length=9)),
        ("--data.path x.csv --data.max_train_samples 5", lambda r: r.data.max_train_samples == 5),
        ("--data.data_files.train a.jsonl", lambda r: r.data.data_files == {"train": "a.jsonl"}),
        ("--model.revision v1", lambda r: r.model.revision == "v1"),
        ("--method.peft null", lambda r: r.method.peft is None),
        ("--method.peft peft.IA3Config", lambda r: isinstance(r.method.peft, IA3Config)),
    ],
)
def test_a_word_sets_its_field(arguments, read):
    assert read(parse_recipe(arguments.split(), LORA))


def test_fields_not_named_keep_the_recipes_values():
    assert recipe_to_dict(parse_recipe([], LORA)) == recipe_to_dict(LORA)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--training.max_step 3", "use 'training.max_steps'"),
        ("--trainin.max_steps 3", "use 'training.max_steps'"),
        ("--method.peft.lora_alfa 3", "use 'method.peft.lora_alpha'"),
        ("--task.max_len 3", "use 'task.max_length'"),
        ("--modell.name x", "use 'model.name_or_path'"),
        ("--task SequenceRegression --task.class_weights x", "the task of this recipe has no such field"),
        ("--training.learning_rate fast", "training.learning_rate: expected float, got 'fast'"),
        ("--method.peft.r four", "method.peft.r: expected int, got 'four'"),
        ("--data.max_train_samples x", "data.max_train_samples: expected int or null, got 'x'"),
    ],
)
def test_a_wrong_word_is_one_line_with_the_right_one(arguments, message):
    with pytest.raises(UserError) as raised:
        parse_recipe(arguments.split(), LORA)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        LORA,
        Recipe(name="f", method=full(), data=DataConfig(path="a/b", data_files={"train": "x.csv"})),
        Recipe(name="q", method=qlora(r=2, quantization=Quantization(bnb_4bit_quant_type="fp4"))),
        Recipe(
            model=ModelConfig(name_or_path="m", dtype="bfloat16"), task=SequenceClassification(text="t", max_length=7)
        ),
        Recipe(method=lora(target_modules=["value", "query"], lora_dropout=0.1), training={"optim": "adamw_torch"}),
    ],
)
def test_yaml_holds_the_whole_recipe(recipe, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe_to_yaml(recipe))
    assert recipe_to_yaml(read_recipe(file)) == recipe_to_yaml(recipe)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {max_step: 3}", "use 'training.max_steps'"),
        ("modle: {name_or_path: x}", "use 'model"),
        ("training: {max_steps: many}", "expected int"),
        ("method: {peft: {class_path: peft.LoraConfig, init_args: {rank: 3}}}", "unknown field 'method.peft.rank'"),
        ("- a", "expected a mapping"),
        ("a: [", "invalid YAML"),
    ],
)
def test_a_wrong_yaml_is_one_line_naming_the_file(text, message, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=re.escape(str(file))) as raised:
        read_recipe(file)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"learning_rat": 1}, "use 'training.learning_rate'"),
        ({"learning_rate": "x"}, "expected float, got 'x'"),
    ],
)
def test_a_wrong_field_of_a_python_recipe_is_one_line_too(training, message):
    with pytest.raises(UserError) as raised:
        parse_recipe([], Recipe(training=training))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe = 3", "no recipe found; define `recipe"),
        ("import nowhere", "ModuleNotFoundError"),
        ("x = DataConfig(", "SyntaxError"),
    ],
)
def test_a_python_recipe_that_cannot_be_read_is_one_line(text, message, tmp_path):
    (tmp_path / "recipe.py").write_text(text)
    with pytest.raises(UserError, match=message):
        read_recipe(tmp_path / "recipe.py")


def test_every_recipe_file_is_read_as_yaml_too(tmp_path):
    files = sorted((ROOT / "recipes").glob("*.py"))
    assert files
    for path in files:
        recipe = read_recipe(path)
        assert recipe.name == path.stem
        file = tmp_path / "recipe.yaml"
        file.write_text(recipe_to_yaml(recipe))
        assert recipe_to_dict(read_recipe(file)) == recipe_to_dict(recipe)


def test_no_home_folder_in_a_saved_recipe():
    home = str(Path.home())
    recipe = Recipe(model=ModelConfig(name_or_path=f"{home}/m"), training={"output_dir": f"{home}/run"})
    if home != "/":
        assert home not in recipe_to_yaml(recipe)
        assert yaml.safe_load(recipe_to_yaml(recipe))["model"]["name_or_path"] == "~/m"


def test_a_value_that_is_also_the_librarys_default_is_kept_when_written():
    arguments = ["--training.learning_rate", "5e-5", "--training.save_strategy=steps"]
    assert parse_recipe(arguments, Recipe(method=lora())).training == {"learning_rate": 5e-5, "save_strategy": "steps"}


def test_a_method_without_a_name_is_called_what_it_is():
    assert parse_recipe(["--method.peft", "null"], LORA).method.name == "full"
    assert parse_recipe(["--method.peft", "peft.IA3Config"], LORA).method.name == "ia3"
    assert parse_recipe(["--method.name", "mine", "--method.peft.r", "2"], LORA).method.name == "mine"
    assert Method(peft=LoraConfig()).name == "lora"
    assert qlora().kind == "qlora"


def test_no_token_in_a_saved_recipe():
    recipe = parse_recipe(["--training.hub_token", "secret"], LORA)
    assert recipe.training["hub_token"] == "secret"
    assert "secret" not in recipe_to_yaml(recipe)


def test_a_local_path_is_saved_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("text,label\n")
    found = recipe_to_dict(Recipe(data=DataConfig(path="rows.csv"), model=ModelConfig(name_or_path="org/model")))
    assert found["data"]["path"] == str(tmp_path / "rows.csv")
    assert found["model"]["name_or_path"] == "org/model"


def test_help_lists_every_field_with_default_and_meaning():
    text = " ".join(build_parser(LORA, "x").format_help().split())
    for field in ("--model.name_or_path", "--data.data_files", "--training.warmup_steps", "--task.max_length"):
        assert field in text
    assert "--method.peft.r (default: 4) Lora attention dimension" in text
    assert "Maximum number of tokens of a text" in text
    assert "Column of the text." in text
    missing = [a.dest for a in build_parser(LORA, "x")._actions if not a.help]
    assert not missing


def test_lora_configs_class_is_kept_with_its_other_arguments():
    recipe = parse_recipe(["--method.peft.use_dora", "true"], LORA)
    assert isinstance(recipe.method.peft, LoraConfig)
    assert recipe.method.peft.use_dora
    assert recipe.method.peft.r == 4


def test_a_task_by_its_bare_name(tmp_path):
    from peftkit import Seq2Seq, TokenClassification

    recipe = parse_recipe(["--task", "TokenClassification", "--task.stride", "9"], Recipe())
    assert recipe.task == TokenClassification(stride=9)
    assert parse_recipe(["--task=peftkit.tasks.Seq2Seq"], Recipe()).task == Seq2Seq()
    (tmp_path / "r.yaml").write_text("task: {class_path: Seq2Seq, init_args: {generation: {num_beams: 4}}}\n")
    assert read_recipe(tmp_path / "r.yaml").task == Seq2Seq(generation={"num_beams": 4})
    (tmp_path / "r.yaml").write_text("task: Seq2Sec\n")
    with pytest.raises(UserError, match=r"'Seq2Sec' is not a task \(expected one of .*\); use 'Seq2Seq'"):
        read_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize("kind", TASKS, ids=lambda kind: kind.__name__)
def test_every_task_goes_to_yaml_and_back(tmp_path, kind):
    recipe = Recipe(task=kind())
    (tmp_path / "r.yaml").write_text(recipe_to_yaml(recipe))
    assert read_recipe(tmp_path / "r.yaml").task == kind()


@pytest.mark.parametrize(
    "plain",
    [
        {"task": {"class_path": "intruder.Task"}},
        {"task": "intruder.Task"},
        {"method": {"peft": {"class_path": "intruder.Config", "init_args": {"r": 1}}}},
        {"method": {"peft": "intruder.Config"}},
    ],
)
def test_reading_a_recipe_imports_no_module_that_it_names(tmp_path, monkeypatch, plain):
    (tmp_path / "intruder.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"is not a class of peft or peftkit|is not a task"):
        dict_to_recipe(plain)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "  ",
        ".",
        "..",
        "../escape",
        "/tmp/escape",
        "a/b",
        "a\\b",
        "a\x1b[31mb",
        "a\nb",
        "\u202eabc",
        "x" * 300,
        "é" * 101,
    ],
)
def test_a_name_is_the_plain_name_of_a_folder(name):
    with pytest.raises(UserError, match=r"^name: "):
        parse_recipe([f"--name={name}"], LORA)
    with pytest.raises(UserError, match=r"^name: "):
        run(Recipe(name=name))
    with pytest.raises(UserError, match=r"^name: "):
        compare(Recipe(name=name), {})


@pytest.mark.parametrize("name", ["été 2024", "lora-r=8", "<b>", "名前", ".hidden"])
def test_a_name_may_hold_what_a_folder_name_may(name):
    assert parse_recipe([f"--name={name}"], LORA).name == name
