import json

import pytest
from peft import IA3Config

from peftkit import Method, TokenClassification, full, lora, qlora
from peftkit.errors import UserError
from peftkit.prediction.batch import predict
from peftkit.prediction.predictor import load
from peftkit.prediction.shared_base import share_base

TEXTS = ["Return the mean of an array.", "Parse the header of a request."]


@pytest.fixture
def folders(trained_run, two_labels):
    """Three tasks' adapters, with their own heads, on one base."""
    tags = TokenClassification(max_length=32)
    return [
        trained_run(name="library"),
        trained_run("bert", Method(name="ia3", peft=IA3Config()), path=str(two_labels), name="parity"),
        trained_run("bert", lora(), tags, "demo-entities", name="entities"),
    ]


def test_in_one_pass_each_answers_as_it_does_alone(folders, tmp_path):
    rows = tmp_path / "in.jsonl"
    words = [{"text": text, "tokens": text.rstrip(".").split()} for text in TEXTS * 5]
    rows.write_text("".join(json.dumps(row) + "\n" for row in words))
    predict(folders, rows, tmp_path / "all.jsonl")
    together = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert set(together[0]) == {"row", "library", "parity", "entities"}
    for folder in folders:
        predict([folder], rows, tmp_path / f"{folder.name}.jsonl")
        alone = [json.loads(line) for line in (tmp_path / f"{folder.name}.jsonl").read_text().splitlines()]
        for one, all_of_them in zip(alone, together, strict=True):
            assert one == {"row": all_of_them["row"], **all_of_them[folder.name]}


def weights_of(*predictors):
    return {p.data_ptr(): p.numel() for one in predictors for p in one.model.parameters()}


@pytest.mark.parametrize("method", [lora(), qlora()], ids=["lora", "qlora"])
def test_the_base_is_held_once(trained_run, method):
    models = {name: load(trained_run("bert", method, name=name, seed=seed)) for name, seed in (("a", 3), ("b", 4))}
    before = models["b"](TEXTS)
    apart = sum(weights_of(*models.values()).values())
    shared = share_base(models.items())
    together = sum(weights_of(*shared.values()).values())
    alone = sum(weights_of(shared["a"]).values())
    assert apart > 1.9 * alone
    assert together < 1.1 * alone
    assert shared["b"](TEXTS) == before


def test_what_shares_no_base_is_refused_before_weights_load_naming_both(trained_run, folders, tmp_path, monkeypatch):
    monkeypatch.setattr("peftkit.prediction.predictor.load_predictor", lambda _: pytest.fail("weights were loaded"))
    trained_run("roberta", lora(), name="other")
    rows = tmp_path / "in.jsonl"
    rows.write_text(json.dumps({"text": TEXTS[0]}) + "\n")
    with pytest.raises(
        UserError,
        match=r"other: base model mismatch with library \(expected .*bert, got .*roberta with other weights\)",
    ):
        predict([folders[0], tmp_path / "other"], rows, tmp_path / "out.jsonl")
    trained_run("bert", full(), name="whole")
    with pytest.raises(UserError, match="several models must be adapters"):
        predict([folders[0], tmp_path / "whole"], rows, tmp_path / "out.jsonl")
    with pytest.raises(UserError, match="two folders have the name library"):
        predict([folders[0], folders[0]], rows, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
