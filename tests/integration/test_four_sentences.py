"""The smallest real use: a recipe of ten lines, four Chinese sentences, a BERT with a Chinese vocabulary."""

import json
from dataclasses import replace
from pathlib import Path

from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizer

from peftkit import ModelConfig
from peftkit.recipe.parser import read_recipe
from peftkit.training.run import run

ROOT = Path(__file__).resolve().parents[2]


def test_it_runs_as_the_recipe_says(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert len((ROOT / "recipes" / "four_sentences.yaml").read_text(encoding="utf-8").splitlines()) <= 10
    recipe = read_recipe("recipes/four_sentences.yaml")
    assert recipe.model.name_or_path == "bert-base-chinese"
    rows = [json.loads(line) for line in (ROOT / recipe.data.path).read_text(encoding="utf-8").splitlines()]
    assert [row["label"] for row in rows] == [1, 0, 1, 0]
    characters = sorted({character for row in rows for character in row["text"]})
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]), "utf-8")
    tokenizer = BertTokenizer(vocab=str(tmp_path / "vocab.txt"))
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(tmp_path / "bert")
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    words = AutoTokenizer.from_pretrained(tmp_path / "bert").tokenize(rows[0]["text"])
    assert words == list(rows[0]["text"])
    recipe = replace(
        recipe,
        model=ModelConfig(name_or_path=str(tmp_path / "bert")),
        training={**recipe.training, "output_dir": str(tmp_path / "run"), "logging_steps": 1, "disable_tqdm": True},
    )
    report = run(recipe)
    assert report.status == "complete"
    assert report.method == "full"
    assert report.audit == {**report.audit, "verdict": "passed", "end_step": 8}
    rates = [row["learning_rate"] for row in report.history if "learning_rate" in row]
    # Linear from 5e-5 to nothing, a step a row.
    assert rates == [5e-5 * (8 - step) / 8 for step in range(8)]
    assert "test uses the training split 'train'" in " ".join(report.data["decisions"])
    assert report.data["labels"] == ["0", "1"]
    assert len((tmp_path / "run" / "predictions.jsonl").read_text().splitlines()) == 4
