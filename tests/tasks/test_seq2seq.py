import json
from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from peftkit import DataConfig, ModelConfig, Seq2Seq, full, lora, qlora
from peftkit.data.demo.summaries import load_summaries
from peftkit.data.splits import load_splits
from peftkit.errors import UserError
from peftkit.export.exporter import export
from peftkit.models.loading import load_base, load_tokenizer
from peftkit.prediction.batch import predict
from peftkit.training.run import run
from tests.tasks.encoded import encoded_split

TASK = Seq2Seq(source_prefix="summarize: ", max_source_length=32, max_target_length=8)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ModelConfig(), TASK)


def test_prefix_and_both_lengths(tokenizer):
    data = Dataset.from_dict({"source": ["one " * 60, "two"], "target": ["three " * 60, "four"]})
    encoded = TASK.encode(data, tokenizer, ())
    assert [len(row) for row in encoded["input_ids"]] == [32, 7]
    assert [len(row) for row in encoded["labels"]] == [8, 3]
    assert tokenizer.decode(encoded["input_ids"][1], skip_special_tokens=True) in ("summarize : two", "summarize: two")
    lengths = TASK.token_lengths(data, tokenizer)
    assert lengths["max_source_length"].tolist() == [66, 7]
    assert lengths["max_target_length"].tolist() == [62, 3]


def test_ignored_places_are_freed_before_decoding(tokenizer):
    ids = tokenizer("return the mean")["input_ids"]
    kept = np.array([ids + [-100] * 3, ids[:2] + [-100] * (len(ids) + 1)])
    found = TASK.decode(encoded_split(kept, tokenizer=tokenizer))
    assert [row["text"] for row in found] == ["return the mean", "return"]


def test_references_are_whole_and_may_be_several(tokenizer):
    data = Dataset.from_dict({"source": ["a"], "target": ["x " * 99], "targets": [["x", "y"]]})
    assert TASK.targets(data, ()) == [["x " * 99]]
    several = replace(TASK, references_column="targets")
    assert several.targets(data, ()) == [["x", "y"]]
    assert several.metrics.compute([{"text": "y"}], several.targets(data, ()))["exact_match"] == 1.0
    empty = Dataset.from_dict({"source": ["a"], "target": ["x"], "targets": [[]]})
    assert several.targets(empty, ()) == [["x"]]
    broken = Dataset.from_dict({"source": ["a"], "target": ["x"], "targets": ["x"]})
    assert "not a list of texts" in next(several.validate(broken, (), "f"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"generation": {"num_beam": 4}}, r"task\.generation: 'num_beam' is not a keyword .* use 'num_beams'"),
        ({"generation": {"temperature": 0.5}}, r"task\.generation: .*temperature"),
        ({"generation": {"length_penalty": 2.0}}, r"task\.generation: .*length_penalty"),
        ({"generation": {"num_return_sequences": 2, "num_beams": 2}}, r"num_return_sequences: must be 1"),
        ({"generation": {"return_dict_in_generate": True}}, r"return_dict_in_generate: must be False"),
        ({"generation": {"num_beams": "two"}}, r"task\.generation: num_beams: expected an integer, got 'two'"),
        ({"tokenize": "xx"}, r"task\.tokenize: unknown tokenizer 'xx'; use one of 13a"),
    ],
)
def test_wrong_words_are_one_line(fields, message):
    with pytest.raises(UserError, match=message):
        Seq2Seq(**fields)


@pytest.mark.parametrize(
    ("architecture", "method"),
    [
        ("t5", full()),
        ("t5", lora()),
        ("t5", qlora()),
        ("bart", lora()),
        ("bert", full()),
        ("bert", lora()),
        ("bert", qlora()),
    ],
    ids=lambda v: v if isinstance(v, str) else v.name,
)
def test_it_trains_generates_exports_and_predicts(small_recipe, tmp_path, architecture, method):
    task = replace(TASK, generation={"num_beams": 2, "no_repeat_ngram_size": 2})
    report = run(small_recipe(architecture, method, task, "demo-summaries", max_steps=6))
    assert report.audit["verdict"] == "passed"
    assert {"rougeL", "bleu", "chrf", "exact_match", "rougeL_ci95"} <= set(report.metrics["test"])
    assert report.data["labels"] == []
    receipt = export(tmp_path / "run", tmp_path / "out")
    assert receipt.exported_difference <= 1e-4
    assert receipt.rows == 4
    assert (tmp_path / "run" / "held_out.safetensors").stat().st_size < 9e6
    load_summaries()["test"].select(range(8)).to_json(tmp_path / "rows.jsonl")
    predict([tmp_path / "out"], tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
    model, words = (kind.from_pretrained(tmp_path / "out") for kind in (AutoModelForSeq2SeqLM, AutoTokenizer))
    assert model.generation_config.num_beams == 2
    assert model.generation_config.max_new_tokens == 8
    source = load_summaries()["test"][0]["source"]
    ids = model.generate(
        **words(
            "summarize: " + source, truncation=True, max_length=32, return_token_type_ids=False, return_tensors="pt"
        )
    )
    expected = words.decode(ids[0], skip_special_tokens=True).strip()
    # Outputs of a text alone and in a padded batch may differ by rounding; here they are equal.
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["text"] == expected


def test_scores_during_training_are_of_generated_text(small_recipe):
    report = run(small_recipe("t5", full(), TASK, "demo-summaries", max_steps=4, eval_strategy="steps", eval_steps=2))
    during = [row for row in report.history if "eval_rougeL" in row]
    assert len(during) == 2
    assert during[-1]["eval_rougeL"] == pytest.approx(report.metrics["validation"]["rougeL"])


def test_a_misspelt_column_of_references_is_said():
    with pytest.raises(UserError, match=r"no column 'targetz' .*set the column with --task\.references_column"):
        load_splits(DataConfig(path="demo-summaries"), replace(TASK, references_column="targetz"))


def test_a_target_longer_than_the_decoder_is_refused(checkpoints, tokenizer):
    model = load_base(ModelConfig(name_or_path=str(checkpoints / "bart")), TASK, tokenizer, ()).model
    with pytest.raises(UserError, match="max_target_length: the decoder has 512 positions, got 2000"):
        replace(TASK, max_target_length=2000).model.configure(model, tokenizer)
    with pytest.raises(UserError, match=r"generation\.max_new_tokens: the decoder has 512 positions, got 600"):
        replace(TASK, generation={"max_new_tokens": 600}).model.configure(model, tokenizer)
