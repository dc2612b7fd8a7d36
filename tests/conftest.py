"""Small real models of several architectures, on real text; nothing here needs a network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import gc
import hashlib
import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    ModernBertConfig,
    RobertaConfig,
    T5Config,
)

from peftkit import DataConfig, Method, ModelConfig, Recipe, SequenceClassification, lora
from peftkit.models.demo import find_demo_model
from peftkit.recipe.serialization import recipe_to_yaml
from peftkit.system.files import write_text
from peftkit.system.logging import set_up_logging
from peftkit.tasks import Task
from peftkit.training.run import run
from tests.fork_server import write_interpreter

ROOT = Path(__file__).resolve().parent.parent
SHAPES = {
    "bert": BertConfig(
        vocab_size=30522, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    ),
    "roberta": RobertaConfig(
        vocab_size=30522, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=514, pad_token_id=0, bos_token_id=101, eos_token_id=102,
    ),
    "deberta": DebertaV2Config(
        vocab_size=30522, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        relative_attention=True, pos_att_type=["p2c", "c2p"],
    ),
    # Its end of sentence is the BERT tokenizer's [SEP], on which the classifier of T5 pools.
    "t5": T5Config(
        vocab_size=30522, d_model=64, d_kv=16, num_layers=2, num_decoder_layers=2, num_heads=4, d_ff=128,
        eos_token_id=102, pad_token_id=0, decoder_start_token_id=0,
    ),
    "bart": BartConfig(
        vocab_size=30522, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128, max_position_embeddings=512,
        pad_token_id=0, bos_token_id=101, eos_token_id=102, decoder_start_token_id=102, forced_eos_token_id=102,
    ),
    "albert": AlbertConfig(
        vocab_size=30522, embedding_size=32, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, pad_token_id=0, bos_token_id=101, eos_token_id=102,
    ),
    "electra": ElectraConfig(
        vocab_size=30522, embedding_size=32, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128,
    ),
    "distilbert": DistilBertConfig(vocab_size=30522, dim=64, n_layers=2, n_heads=4, hidden_dim=128),
    "modernbert": ModernBertConfig(
        vocab_size=30522, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
        pad_token_id=0, bos_token_id=101, eos_token_id=102, cls_token_id=101, sep_token_id=102,
    ),
    # A decoder whose tokenizer has no pad token, as GPT-2's has none.
    "gpt2": GPT2Config(
        vocab_size=30522, n_embd=64, n_layer=2, n_head=4, n_positions=512, bos_token_id=102, eos_token_id=102,
    ),
}  # fmt: skip


UNIT_TEST_SECONDS, UNIT_TEST_CPU_SECONDS = 20, 10


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """In CI, fail an unmarked test that takes too long.

    The limits are of wall time and of CPU time: other load on the machine adds to the first only.
    """
    wall, cpu = time.monotonic(), time.process_time()
    result = yield
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    is_unit = not any(item.get_closest_marker(name) for name in ("integration", "hosts", "browser"))
    if os.environ.get("CI") == "true" and is_unit and wall > UNIT_TEST_SECONDS and cpu > UNIT_TEST_CPU_SECONDS:
        pytest.fail(f"unit test took {wall:.0f} s (expected at most {UNIT_TEST_SECONDS} s); mark it integration")
    return result


def pytest_addoption(parser):
    parser.addoption("--receipts", metavar="FILE", help="try every architecture, task and method; the table goes there")


@pytest.fixture(scope="session", autouse=True)
def quiet():
    set_up_logging()


@pytest.fixture(scope="module", autouse=True)
def freeze_imported_objects():
    """Exclude the objects of imported libraries from garbage collection: they take half the time of a small run."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder that all workers of this session share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def fork_interpreter(shared_folder):
    """Let `sys.executable` run programs in forks of a server that has imported the libraries."""
    real = sys.executable
    if hasattr(os, "fork") and not torch.cuda.is_available():
        is_worker = "PYTEST_XDIST_WORKER" in os.environ
        with FileLock(shared_folder / "interpreter.lock"):
            sys.executable = str(write_interpreter(shared_folder, os.getppid() if is_worker else os.getpid()))
    yield real
    sys.executable = real


@pytest.fixture
def real_interpreter(fork_interpreter, monkeypatch):
    """Let `sys.executable` be the real interpreter, which starts a new process and imports everything."""
    monkeypatch.setattr(sys, "executable", fork_interpreter)


@pytest.fixture(scope="session")
def checkpoints(shared_folder):
    """Folders of small checkpoints without a classifier, by architecture; `bert` comes without a pooler."""
    folder = shared_folder / "checkpoints"
    with FileLock(f"{folder}.lock"):
        if folder.exists():
            return folder
        tokenizer = AutoTokenizer.from_pretrained(find_demo_model())
        for name, config in SHAPES.items():
            torch.manual_seed(0)
            options = {"add_pooling_layer": False} if name in ("bert", "roberta") else {}
            AutoModel.from_config(config, **options).save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
        tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
        tokenizer.save_pretrained(folder / "gpt2")
    return folder


@pytest.fixture(scope="session")
def two_labels(shared_folder):
    """A JSONL file of 120 rows with two labels."""
    path = shared_folder / "two_labels.jsonl"
    rows = [{"text": f"Return number {i} of an array.", "label": "ab"[i % 2]} for i in range(120)]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def small_recipe(checkpoints, tmp_path):
    """A recipe on the embedded text and a small BERT: 6 steps, a second or two."""

    def make(
        architecture: str = "bert",
        method: Method | None = None,
        task: Task | None = None,
        path: str = "demo",
        **training,
    ):
        return Recipe(
            name="small",
            model=ModelConfig(name_or_path=str(checkpoints / architecture)),
            data=DataConfig(path=path, max_train_samples=96, max_eval_samples=40),
            task=task or SequenceClassification(max_length=32),
            method=method or lora(),
            training={
                "max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "seed": 3,
                "disable_tqdm": True, "output_dir": str(tmp_path / "run"), **training,
            },
        )  # fmt: skip

    return make


@pytest.fixture
def trained_run(small_recipe, shared_folder, tmp_path):
    """A copy of the finished run of a small recipe, in the test's folder; each recipe is trained once per session."""

    def copy(*arguments, name: str = "run", data: DataConfig | None = None, **training):
        recipe = small_recipe(*arguments, **training, output_dir="run")
        recipe = replace(recipe, data=data or recipe.data)
        key = hashlib.sha256(recipe_to_yaml(recipe).encode()).hexdigest()[:16]
        folder = shared_folder / "runs" / key
        folder.parent.mkdir(exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                unfinished = folder.with_name(f"{key}-unfinished")
                shutil.rmtree(unfinished, ignore_errors=True)
                run(replace(recipe, training={**recipe.training, "output_dir": str(unfinished)}))
                unfinished.rename(folder)
        return shutil.copytree(folder, tmp_path / name)

    return copy
