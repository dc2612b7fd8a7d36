import json
import subprocess
import sys

import pytest

from peftkit.cli.main import main
from peftkit.recipe.serialization import recipe_to_yaml


def exit_code(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code, capsys.readouterr()


def test_help_and_import_load_no_torch(real_interpreter):
    code = (
        "import sys, peftkit\n"
        "from peftkit.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as ended: assert ended.code == 0\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)\n"
    )
    message = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert message.returncode == 0, message.stderr
    for command in ("train", "compare", "report", "export", "combine", "predict"):
        assert command in message.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "invalid choice: 'trian'"),
        (["train"], "missing RECIPE"),
        (["train", "nowhere.yaml"], "nowhere.yaml: no such recipe file"),
        (["train", "recipes/lora_cls.py", "--training.max_step", "3"], "use 'training.max_steps'"),
        (["compare", "recipes/lora_cls.py", "--methods", "full,loraa"], "use 'lora'"),
        (["compare", "recipes/lora_cls.py", "--learning_rates", "full"], "expected METHOD=NUMBER, got 'full'"),
        (["compare", "recipes/lora_cls.py", "--methods", "full", "--over", "method=lora"], "pass only one"),
        (["compare", "recipes/lora_cls.py", "--quick", "--seeds", "2"], "one trial and one seed"),
        (
            ["compare", "recipes/lora_cls.py", "--over", "data.max_train_sample=3"],
            "use 'data.max_train_samples'",
        ),
        (["compare", "recipes/lora_cls.py", "--jobs", "9999"], "runs sharing a device give invalid memory"),
        (["report", "nowhere"], "no such folder"),
        (["report", "tests"], "contains no report.json"),
        (["report", "tests", "--examples", "-1"], "must be at least 0"),
        (["report", "tests", "--format", "pdf"], "invalid choice: 'pdf'"),
        (["export", "nowhere", "out"], "not a finished run"),
        (["export", "a", "b", "--tolerence", "1"], "unknown argument '--tolerence'"),
        (["export", "a", "b", "--push_to_hub", "me/it"], "not logged in to the Hub"),
        (["combine", "tests", "out"], "expected two or more runs"),
        (["combine", "tests", "recipes", "out"], "tests: not a finished run"),
        (
            ["combine", "tests", "recipes", "out", "--weights", "a,b"],
            "expected numbers separated by commas",
        ),
        (["predict", "nowhere", "x.csv"], "x.csv: no such file"),
        (["predict", "nowhere", "README.md"], "unknown file format '.md'; pass --input_format"),
        (["predict", "nowhere", "README.md", "--input_format", "text"], "not a run or a model"),
        (["predict", "nowhere", "README.md", "--top_k", "0"], "--top_k: must be at least 1, got 0"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(arguments, message, capsys, tmp_path, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    code, output = exit_code(arguments, capsys)
    assert code == 2
    assert message in output.err
    assert output.err.count("\n") == 1
    assert output.err.startswith("peftkit: ")


def test_debug_shows_the_traceback(capsys):
    code, output = exit_code(["--debug", "train", "nowhere.yaml"], capsys)
    assert code == 2
    assert "Traceback" in output.err


def test_train_export_and_predict_from_yaml(small_recipe, capsys, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe_to_yaml(small_recipe()))
    code, output = exit_code(["train", str(file), "--training.max_steps", "4"], capsys)
    assert code == 0, output.err
    code, output = exit_code(["export", str(tmp_path / "run"), str(tmp_path / "out")], capsys)
    assert code == 0, output.err
    assert "max logit difference" in output.err
    texts = tmp_path / "texts.csv"
    texts.write_text("text\nReturn the mean.\n")
    arguments = ["predict", str(tmp_path / "out"), str(texts), "--output", str(tmp_path / "found.jsonl")]
    assert exit_code(arguments, capsys)[0] == 0
    assert (tmp_path / "found.jsonl").read_text().startswith('{"row": 0, "label": ')


def test_train_help_lists_the_recipes_fields(capsys, request, monkeypatch):
    monkeypatch.chdir(request.config.rootpath)
    code, output = exit_code(["train", "recipes/lora_cls.py", "--help"], capsys)
    assert code == 0
    assert "--training.max_steps" in output.out
    assert "--method.peft.lora_alpha (default: 16)" in output.out


@pytest.mark.parametrize("command", ["train", "check", "plan", "compare"])
def test_a_recipe_file_cannot_turn_on_remote_code(tmp_path, capsys, command):
    model = tmp_path / "model"
    model.mkdir()
    trap = tmp_path / "trap"
    (model / "config.json").write_text(
        json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}, "architectures": ["Own"]})
    )
    (model / "own.py").write_text(f"open({str(trap)!r}, 'w').close()\nraise SystemExit\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {{name_or_path: {model}, trust_remote_code: true}}\n")
    with pytest.raises(SystemExit) as ended:
        main([command, str(recipe)])
    assert ended.value.code == 2
    assert "pass --model.trust_remote_code true" in capsys.readouterr().err
    assert not trap.exists()
