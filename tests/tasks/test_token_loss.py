"""The same rows give the same losses, gradient norms and weights, however spread over ranks and micro-batches."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from peftkit import (
    DataConfig,
    ModelConfig,
    MultiLabelClassification,
    Recipe,
    Seq2Seq,
    SequenceClassification,
    SequenceRegression,
    TokenClassification,
    full,
    lora,
)
from peftkit.recipe.serialization import recipe_to_yaml
from tests.integration.ranks_in_a_row import trained

TESTS = Path(__file__).resolve().parents[1]
WORDS = ["a", "tensor", "of", "the", "shape", "that", "was", "given", "or", "new", "one", "with", "rows", "in", "order"]
NO_TOKEN = "\u200b"
TAGS = ["O", "B-x", "I-x", "O"]
TASKS = {
    "cls": ("bert", SequenceClassification(label="kind")),
    "weighted": ("bert", SequenceClassification(label="kind", class_weights="balanced")),
    "labels": ("bert", MultiLabelClassification(label="kinds")),
    "number": ("bert", SequenceRegression(label="number")),
    "ner": ("bert", TokenClassification()),
    "smooth_ner": ("bert", TokenClassification()),
    "seq2seq": ("t5", Seq2Seq(source="text")),
    "smooth_seq2seq": ("bart", Seq2Seq(source="text")),
}
LIMIT = 0.01
GLOBAL_BATCH = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows of 2 to 30 words, so that batches hold very different numbers of labelled tokens."""
    folder, draw = tmp_path_factory.mktemp("data"), random.Random(0)
    for split, rows in (("train", 5 * GLOBAL_BATCH), ("validation", 8), ("test", 8)):
        lines = []
        for row in range(rows):
            # A word of no token leaves a micro-batch of that one row without a labelled token.
            words = draw.choices(WORDS, k=draw.choice((2, 4, 12, 30))) if row else [NO_TOKEN]
            lines.append({
                "text": f"Text: {' '.join(words)}", "kind": "abb"[row % 3], "kinds": ["a", "b"][: row % 3],
                "number": len(words) / 10,
                "tokens": words, "ner_tags": [TAGS[place % 4] for place in range(len(words))],
                "target": " ".join(words[::-1][: draw.choice((1, 20))]),
            })  # fmt: skip
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def steady(checkpoints, tmp_path_factory):
    """The small checkpoints without dropout, which falls otherwise on every rank."""
    folder = tmp_path_factory.mktemp("steady")
    for name in ("bert", "t5", "bart"):
        (folder / name).mkdir()
        for path in (checkpoints / name).iterdir():
            if path.name != "config.json":
                (folder / name / path.name).symlink_to(path)
        config = json.loads((checkpoints / name / "config.json").read_text())
        none = {key: 0.0 for key in config if "dropout" in key and config[key] is not None}
        (folder / name / "config.json").write_text(json.dumps({**config, **none}))
    return folder


@pytest.fixture(scope="module")
def recipe(data, steady):
    """A recipe of 5 steps with gradient clipping and the same global batch for all ranks and accumulation steps."""

    def make(name, ranks=1, accumulated=1, **training):
        architecture, task = TASKS[name]
        return Recipe(
            name=name,
            model=ModelConfig(name_or_path=str(steady / architecture)),
            data=DataConfig(path=str(data)),
            task=task,
            method=full() if name == "cls" else lora(r=4, lora_alpha=8, lora_dropout=0.0),
            training={
                "num_train_epochs": 1, "learning_rate": 1e-2, "seed": 3, "logging_steps": 1, "report_to": "none",
                # With it Adam's steps depend on the size of a gradient, so that weights tell of a wrong one.
                "adam_epsilon": 1e-2, "max_grad_norm": LIMIT, "disable_tqdm": True, "use_cpu": True,
                "label_smoothing_factor": 0.1 if name.startswith("smooth") else 0.0,
                "per_device_train_batch_size": GLOBAL_BATCH // ranks // accumulated,
                "gradient_accumulation_steps": accumulated, **training,
            },
        )  # fmt: skip

    return make


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory):
    """Folder of a task's training by one rank, the whole batch at once."""
    folder, known = tmp_path_factory.mktemp("alone"), set()

    def train(name):
        if name not in known:
            trained(recipe(name), folder / name)
            known.add(name)
        return folder / name

    return train


def together(recipes, folder):
    """Train the named recipes on 2 ranks, one after the other in one launch."""
    folder.mkdir(exist_ok=True)
    for name, one in recipes.items():
        (folder / f"{name}.yaml").write_text(recipe_to_yaml(one))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [
        str(TESTS / "integration" / "ranks_in_a_row.py"),
        str(folder),
        *(str(folder / f"{name}.yaml") for name in recipes),
    ]
    done = subprocess.run(
        ["timeout", "400", *command], capture_output=True, text=True, check=False, cwd=TESTS.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def assert_same(folder, reference):
    histories = [torch.tensor(json.loads((one / "history.json").read_text())) for one in (folder, reference)]
    assert len(histories[1]) == 5
    assert histories[1][:, 1].min() > LIMIT, "clipping is to bite"
    torch.testing.assert_close(*histories, rtol=2e-4, atol=1e-5, msg=lambda text: f"loss, norm: {histories}\n{text}")
    learned, expected = (load_file(one / "learned.safetensors") for one in (folder, reference))
    assert learned.keys() == expected.keys()
    for name in learned:
        torch.testing.assert_close(learned[name], expected[name], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("name", ["cls", "weighted", "ner", "smooth_ner", "seq2seq", "smooth_seq2seq"])
def test_accumulated_micro_batches_train_as_one_batch(name, recipe, alone, tmp_path):
    trained(recipe(name, accumulated=8), tmp_path / "run")
    assert_same(tmp_path / "run", alone(name))


@pytest.mark.integration
@pytest.mark.xdist_group("token loss")
def test_two_ranks_train_as_one(recipe, alone, tmp_path):
    recipes = {name: recipe(name, ranks=2) for name in TASKS}
    recipes |= {f"{name}-accumulated": recipe(name, ranks=2, accumulated=2) for name in TASKS}
    together(recipes, tmp_path / "ranks")
    for name in recipes:
        assert_same(tmp_path / "ranks" / name, alone(name.partition("-")[0]))


@pytest.mark.integration
@pytest.mark.xdist_group("token loss")
def test_two_ranks_under_zero_train_as_one(recipe, alone, tmp_path):
    recipes = {
        f"{name}-{stage}-{accumulated}": recipe(name, 2, accumulated, deepspeed=f"ds_configs/{stage}.json")
        for name, stage, accumulated in (
            ("cls", "zero2", 2),
            ("ner", "zero2", 2),
            ("seq2seq", "zero2", 1),
            ("cls", "zero3", 1),
            ("ner", "zero3", 2),
        )
    }
    together(recipes, tmp_path / "ranks")
    for name in recipes:
        assert_same(tmp_path / "ranks" / name, alone(name.partition("-")[0]))
