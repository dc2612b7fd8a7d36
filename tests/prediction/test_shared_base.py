import json

import pytest
from peft import IA3Config

from peftkit import Method, TokenClassification, full, lora, qlora
from peftkit.errors import UserError
from peftkit.prediction.batch import predict
from peftkit.prediction.predictor import load
from peftkit.prediction.shared_base import share_base
from peftkit.training.run import run

TEXTS = ["Return the mean of an array.", "Parse the header of a request."]


@pytest.fixture
def folders(small_recipe, tmp_path):
    """Three tasks' adapters, with their own heads, on one base."""
    rows = [{"text": f"Return number {i} of an array.", "label": "ab"[i % 2]} for i in range(120)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(small_recipe("bert", lora(), output_dir=str(tmp_path / "library")))
    other = Method(name="ia3", peft=IA3Config())
    run(small_recipe("bert", other, path=str(tmp_path / "rows.jsonl"), output_dir=str(tmp_path / "parity")))
    tags = TokenClassification(max_length=32)
    run(small_recipe("bert", lora(), tags, "demo-entities", output_dir=str(tmp_path / "entities")))
    return [tmp_path / name for name in ("library", "parity", "entities")]


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
def test_the_base_is_held_once(small_recipe, tmp_path, method):
    for name, seed in (("a", 3), ("b", 4)):
        run(small_recipe("bert", method, output_dir=str(tmp_path / name), seed=seed))
    models = {name: load(tmp_path / name) for name in ("a", "b")}
    before = models["b"](TEXTS)
    apart = sum(weights_of(*models.values()).values())
    shared = share_base(models.items())
    together = sum(weights_of(*shared.values()).values())
    alone = sum(weights_of(shared["a"]).values())
    assert apart > 1.9 * alone
    assert together < 1.1 * alone
    assert shared["b"](TEXTS) == before


def test_what_shares_no_base_is_refused_before_weights_load_naming_both(small_recipe, folders, tmp_path, monkeypatch):
    monkeypatch.setattr("peftkit.prediction.predictor.load_predictor", lambda _: pytest.fail("weights were loaded"))
    run(small_recipe("roberta", lora(), output_dir=str(tmp_path / "other")))
    rows = tmp_path / "in.jsonl"
    rows.write_text(json.dumps({"text": TEXTS[0]}) + "\n")
    with pytest.raises(UserError, match=r"library was trained on .*bert, other on .*roberta with other weights"):
        predict([folders[0], tmp_path / "other"], rows, tmp_path / "out.jsonl")
    run(small_recipe("bert", full(), output_dir=str(tmp_path / "whole")))
    with pytest.raises(UserError, match="only if each is an adapter"):
        predict([folders[0], tmp_path / "whole"], rows, tmp_path / "out.jsonl")
    with pytest.raises(UserError, match="two folders are named library"):
        predict([folders[0], folders[0]], rows, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
