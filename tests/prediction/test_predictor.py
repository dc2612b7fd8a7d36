import pytest

import peftkit
from peftkit import DataConfig, SequenceClassification, TokenClassification, lora
from peftkit.data.demo.docstrings import LIBRARIES
from peftkit.errors import UserError
from peftkit.export.exporter import export
from peftkit.training.run import run

TEXTS = ["Return the mean of an array.", "Parse the header of a request."]


def test_two_lines_answer_a_list_of_texts(trained_run, tmp_path):
    export(trained_run(), tmp_path / "out")
    model = peftkit.load(tmp_path / "out")
    answers = model(TEXTS)
    assert [set(answer["probabilities"]) for answer in answers] == [set(LIBRARIES)] * 2
    assert answers == peftkit.load(str(tmp_path / "out"))([{"text": text} for text in TEXTS])
    (best,) = model(TEXTS[:1], top_k=2)
    assert list(best["probabilities"].values()) == sorted(answers[0]["probabilities"].values(), reverse=True)[:2]
    assert next(iter(best["probabilities"])) == best["label"]
    assert model([]) == []
    with pytest.raises(UserError, match="mixed types"):
        model(["a", 5])
    with pytest.raises(UserError, match="top_k: must be at least 1, got 0"):
        model(TEXTS, top_k=0)
    with pytest.raises(UserError, match="expected a list of texts, got a string"):
        model(TEXTS[0])
    with pytest.raises(UserError, match=r"row 1 \(from 0\), column 'text': empty"):
        model([TEXTS[0], " "])
    with pytest.raises(UserError, match=r"expected 1 texts \(text\) per row, got 2"):
        model([("one", "two")])
    with pytest.raises(UserError, match="missing column 'text' \\(columns: words\\)"):
        model([{"words": "one"}])


def test_the_temperature_travels_with_the_folder(small_recipe, tmp_path):
    run(small_recipe("bert", lora(), SequenceClassification(max_length=32, temperature=5.0)))
    export(tmp_path / "run", tmp_path / "out")
    hot, plain = peftkit.load(tmp_path / "out"), peftkit.load(tmp_path / "run")
    assert hot.task.temperature == plain.task.temperature == 5.0
    cold = hot.__class__(**{**vars(hot), "task": SequenceClassification(max_length=32)})
    one, other = (max(model(TEXTS[:1])[0]["probabilities"].values()) for model in (hot, cold))
    assert 1 / len(LIBRARIES) < one < other


def test_entities_have_their_place_in_the_text(small_recipe, tmp_path):
    run(small_recipe("bert", lora(), TokenClassification(max_length=32), "demo-entities", max_steps=30))
    model = peftkit.load(tmp_path / "run")
    text = "Return  the mean of `axis`, or None."
    # A head that has hardly learned may find nothing; one that calls everything an entity is certain to.
    head = model.model.get_base_model().classifier.modules_to_save["default"]
    head.bias.data[model.labels.index(next(label for label in model.labels if label.startswith("B-")))] += 100
    (answer,) = model([text])
    words = ["Return", "the", "mean", "of", "`", "axis", "`", ",", "or", "None", "."]
    assert [entity["text"] for entity in answer["entities"]] == words
    for entity in answer["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"]
        assert entity["score"] == pytest.approx(1.0, abs=1e-3)
    (listed,) = model([["Return", "mean"]])
    assert [(entity["start"], entity["end"]) for entity in listed["entities"]] == [(0, 6), (7, 11)]
    assert model([["Return", "mean"], text]) == [listed, answer]
    assert model([text, ["Return", "mean"]]) == [answer, listed]


def test_a_pair_is_given_as_a_tuple(small_recipe, tmp_path):
    import json
    from dataclasses import replace

    rows = [{"a": f"one {i}", "b": f"two {i}", "label": "xy"[i % 2]} for i in range(120)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = SequenceClassification(text="a", text_pair="b", max_length=32)
    recipe = small_recipe("bert", lora(), task)
    run(replace(recipe, data=DataConfig(path=str(tmp_path / "rows.jsonl"))))
    model = peftkit.load(tmp_path / "run")
    assert model([("one", "two")]) == model([{"a": "one", "b": "two"}])
    assert model([("one", "two")]) != model([("one", "three")])
