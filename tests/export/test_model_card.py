import json
from dataclasses import replace

import yaml
from huggingface_hub import ModelCard

from peftkit import DataConfig, lora, qlora
from peftkit.export.exporter import export
from peftkit.recipe.parser import read_recipe
from peftkit.runs.report import read_report
from peftkit.training.run import run


def test_the_card_has_the_hubs_metadata_and_all_that_a_reader_asks(trained_run, tmp_path):
    receipt = export(trained_run("bert", qlora()), tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    report = read_report(tmp_path / "run")
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.library_name == "transformers"
    assert {result.metric_name: result.metric_value for result in card.data.eval_results} == {
        name: round(report.metrics["test"][name], 6) for name in ("accuracy", "f1_macro")
    }
    text = card.text
    low, high = report.metrics["test"]["accuracy_ci95"]
    assert f"{low:.4f} to {high:.4f}" in text
    assert report.data["fingerprint"] in text
    assert f"{receipt.exported_difference:.2g}" in text
    assert "merged onto the original weights" in text
    assert "44 of 96 rows" in text.replace("\\", "")
    block = text.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "again.yaml").write_text(block)
    assert read_recipe(tmp_path / "again.yaml").method == read_recipe(tmp_path / "run" / "recipe.yaml").method


def test_what_the_data_says_is_no_markup(small_recipe, tmp_path):
    names = ["<script>alert(1)</script>", "a|b `c` [d](http://e)"]
    rows = [{"text": f"Return number {i} of an array.", "label": names[i % 2]} for i in range(120)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = replace(small_recipe("bert", lora()), data=DataConfig(path=str(tmp_path / "rows.jsonl")), name="x ``` <b>")
    run(recipe)
    export(tmp_path / "run", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    head, body = text.split("---\n")[1], text.split("---\n", 2)[2]
    assert yaml.safe_load(head)["model-index"][0]["name"] == "x ``` <b>"
    assert "<script>" not in body
    assert "<b>" not in body.split("````")[0]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in body
    assert "a\\|b \\`c\\` \\[d\\](http://e)" in body


def test_the_code_of_the_card_loads_the_adapter(trained_run, tmp_path):
    for method, name in ((lora(), "lora"), (qlora(), "qlora")):
        export(trained_run("bert", method, name=name), tmp_path / f"{name}-out", format="adapter")
        text = (tmp_path / f"{name}-out" / "README.md").read_text()
        code = text.split("```python\n")[1].split("```")[0].replace('"FOLDER"', repr(str(tmp_path / f"{name}-out")))
        found: dict = {}
        exec(code, found)
        assert type(found["model"]).__name__ == "PeftModelForSequenceClassification"
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert found["model"].config.id2label[0] == config["id2label"]["0"]
