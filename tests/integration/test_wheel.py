"""The wheel, installed and used in an empty folder: everything that the commands need is in it."""

import json
import os
import subprocess
import sys
import zipfile

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.integration
SMALL = [
    "--training.max_steps", "2", "--training.per_device_train_batch_size", "8", "--data.max_train_samples", "32",
    "--data.max_eval_samples", "16", "--task.max_length", "16",
]  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, fork_interpreter):
    pytest.importorskip("hatchling", reason="the build backend is installed by the extra dev")
    folder = tmp_path_factory.mktemp("wheel")
    pip = [fork_interpreter, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)], check=True)
    (file,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(file)], check=True)
    return file


@pytest.fixture
def call(wheel, tmp_path, checkpoints):
    """Run the wheel's `python -m peftkit` in an empty folder; return its output."""
    environment = {**os.environ, "PYTHONPATH": str(wheel.parent / "site"), "OMP_NUM_THREADS": "1"}

    def run(*arguments, start=("-m", "peftkit")):
        found = subprocess.run(
            [sys.executable, *start, *map(str, arguments)], cwd=tmp_path, env=environment, capture_output=True,
            text=True,
        )  # fmt: skip
        assert found.returncode == 0, found.stderr
        return found.stdout + found.stderr

    return run


def test_the_wheel_has_types_recipes_and_deepspeed_configs(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for folder in ("recipes", "ds_configs"):
        assert {f"peftkit/{folder}/{path.name}" for path in (ROOT / folder).glob("*.*")} <= set(names)
    assert "peftkit/py.typed" in names
    assert wheel.stat().st_size < 8_500_000


def test_the_commands_work_outside_the_checkout(call, wheel, tmp_path, checkpoints):
    model = ["--model.name_or_path", checkpoints / "bert"]
    rows = [{"review": f"Return number {n} of an array.", "stars": n % 3} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    site = wheel.parent / "site"
    assert call(start=("-c", "import peftkit; print(peftkit.__file__)")).startswith(str(site))
    call("init", "own.yaml", "--data", "rows.jsonl", "--model", checkpoints / "bert")
    call("train", "own.yaml", *SMALL)
    methods = ["--methods", "full,recipes/qlora_cls.py"]
    said = call("compare", "recipes/lora_cls.py", "--quick", *methods, *model, *SMALL)
    assert "recipes/lora_cls.py: not in the current folder, using the recipe of the package" in said
    assert "[2/2] qlora, seed 1: test accuracy" in said
    call("export", "comparisons/lora_cls/runs/full/seed-1", "model")
    call("predict", "model", "rows.jsonl", "--text", "review", "--output", "labels.jsonl")
    assert len((tmp_path / "labels.jsonl").read_text().splitlines()) == 60
    call("check", "recipes/four_sentences.yaml", *model)
    saved = [path for path in tmp_path.rglob("*") if path.suffix in (".yaml", ".json", ".md", ".html")]
    assert len(saved) > 10
    assert not [path for path in saved if str(site) in path.read_text()]
