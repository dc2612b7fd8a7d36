"""Every architecture, task and method: trained, saved, read back by a fresh process, exported, and read back again.

`pytest tests/integration/test_receipts.py --receipts FILE` tries them all and writes the table; without the option,
those in which a head, a tie or a name was ever lost.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, PrefixTuningConfig, PromptEncoderConfig, VeraConfig

from peftkit import (
    DataConfig,
    Method,
    MultiLabelClassification,
    Seq2Seq,
    SequenceClassification,
    SequenceRegression,
    TokenClassification,
    full,
    lora,
    qlora,
)
from peftkit.data.demo.docstrings import load_docstrings
from peftkit.export.exporter import export
from peftkit.system.files import write_text
from peftkit.training.run import run

pytestmark = pytest.mark.integration
TASKS = {
    "one label": (SequenceClassification(max_length=32), "demo"),
    "several labels": (MultiLabelClassification(label="labels", max_length=32), "rows"),
    "number": (SequenceRegression(label="length", max_length=32), "rows"),
    "tags": (TokenClassification(max_length=32), "demo-entities"),
    "text": (Seq2Seq(max_source_length=32, max_target_length=8), "demo-summaries"),
}
ALL = "all-linear"
METHODS = {
    "full": full(),
    "lora": lora(),
    "qlora": qlora(),
    "dora": Method(name="dora", peft=LoraConfig(use_dora=True, target_modules=ALL)),
    "rslora": Method(name="rslora", peft=LoraConfig(use_rslora=True, target_modules=ALL)),
    "ia3": Method(name="ia3", peft=IA3Config()),
    "loha": Method(name="loha", peft=LoHaConfig(target_modules=["query", "value"])),
    "lokr": Method(name="lokr", peft=LoKrConfig(target_modules=["query", "value"])),
    "vera": Method(name="vera", peft=VeraConfig(r=8, target_modules=["query", "value"])),
    "prefix_tuning": Method(name="prefix_tuning", peft=PrefixTuningConfig(num_virtual_tokens=4)),
    "p_tuning": Method(name="p_tuning", peft=PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=16)),
}
PROMPTS = ("prefix_tuning", "p_tuning")
ENCODERS = ("bert", "roberta", "deberta", "albert", "electra", "distilbert", "modernbert")
THREE = ("full", "lora", "qlora")
EVERY = [
    *((architecture, "one label", method) for architecture in (*ENCODERS, "t5", "bart", "gpt2")
      for method in THREE),
    *((architecture, "tags", method) for architecture in (*ENCODERS, "gpt2") for method in THREE),
    *((architecture, task, method) for architecture in ("bert", "deberta", "modernbert", "t5", "bart", "gpt2")
      for task in ("several labels", "number") for method in ("lora", "qlora")),
    *((architecture, "text", method) for architecture in ("t5", "bart", "bert") for method in THREE),
    *(("bert", "one label", method) for method in METHODS if method not in THREE),
]  # fmt: skip
USUALLY = [
    *((architecture, "one label", "lora") for architecture in ("albert", "electra", "distilbert", "gpt2")),
    *((architecture, "one label", "qlora") for architecture in ("deberta", "modernbert", "t5", "bart")),
    ("t5", "one label", "full"),
    ("bart", "several labels", "lora"), ("t5", "number", "lora"), ("modernbert", "tags", "lora"),
    ("distilbert", "tags", "qlora"), ("t5", "text", "qlora"), ("bart", "text", "lora"), ("bert", "text", "qlora"),
    ("bert", "one label", "vera"),
]  # fmt: skip


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        cases = EVERY if metafunc.config.getoption("--receipts") else USUALLY
        metafunc.parametrize("case", cases, ids=[", ".join(case) for case in cases])


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Docstrings with several labels and with a number."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    with path.open("w") as file:
        for row in load_docstrings()["train"].select(range(300)):
            labels = [f"library {row['label']}", *(["long"] if len(row["text"]) > 200 else [])]
            file.write(json.dumps({"text": row["text"], "labels": labels, "length": len(row["text"]) / 500}) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def table(request):
    """A line a case; written at the end where the option names a file."""
    lines: list[str] = []
    yield lines
    if target := request.config.getoption("--receipts"):
        write_text(Path(target), "\n".join([HEAD, *lines]) + "\n")


HEAD = """\
# Receipts

Small models built from their configs, trained for 6 steps, and 32 held-out rows (of texts 4). *Run*: the run's folder,
loaded by a fresh process with plain `transformers` and `peft`, against the model in memory. *Export*: the exported
folder, loaded likewise, against the same weights before they were merged; then against the model in memory. Differences
are the largest of a logit, over rows; 1e-4 is allowed. Made by
`pytest tests/integration/test_receipts.py --receipts FILE`.

| architecture | task | method | run: difference | same answers | same texts | exported as | export: difference | \
against the live model | same answers | same texts |
| --- | --- | --- | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |"""


def _share(value):
    return "" if value is None else f"{100 * value:.4g} %"


def test_what_is_saved_is_what_was_trained(case, small_recipe, rows, table, tmp_path):
    architecture, task_name, method_name = case
    task, path = TASKS[task_name]
    recipe = small_recipe(architecture, METHODS[method_name], task, path)
    if path == "rows":
        recipe = replace(recipe, data=DataConfig(path=rows, max_train_samples=96, max_eval_samples=40))
    report = run(recipe)
    back = report.round_trip
    assert back["difference"] <= 1e-4
    assert back["label_agreement"] == 1.0
    assert back["text_agreement"] == (1.0 if task_name == "text" else None)
    form = "adapter" if method_name in PROMPTS else "model"
    receipt = export(tmp_path / "run", tmp_path / "out", format=form)
    assert receipt.exported_difference <= 1e-4
    # What leaves 4 bits for the original weights may answer otherwise; nothing else may.
    if receipt.shipped in (None, "merged onto the dequantized weights"):
        assert receipt.live_difference <= 1e-4
        assert receipt.label_agreement == 1.0
        assert receipt.text_agreement in (None, 1.0)
    cells = [
        *case, f"{back['difference']:.1g}", _share(back["label_agreement"]), _share(back["text_agreement"]),
        receipt.shipped or ("adapter" if form == "adapter" else "merged"), f"{receipt.exported_difference:.1g}",
        f"{receipt.live_difference:.1g}", _share(receipt.label_agreement), _share(receipt.text_agreement),
    ]  # fmt: skip
    table.append(f"| {' | '.join(cells)} |")
