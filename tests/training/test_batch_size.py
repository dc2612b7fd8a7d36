import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from peftkit import full
from peftkit.runs.report import read_report
from peftkit.training.run import run

MOST = 3


@pytest.fixture
def small_memory(monkeypatch):
    """Memory runs out with more than three rows, from the second step on."""
    step = Trainer.training_step

    def limited(self, model, inputs, *rest, **how):
        if len(inputs["input_ids"]) > MOST and self.state.global_step:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(self, model, inputs, *rest, **how)

    monkeypatch.setattr(Trainer, "training_step", limited)


def test_a_smaller_batch_is_accumulated_to_the_same_whole_from_the_same_start(small_recipe, small_memory, tmp_path):
    found = run(small_recipe(method=full(), auto_find_batch_size=True, per_device_train_batch_size=4, logging_steps=1))
    requested = run(
        small_recipe(
            method=full(), per_device_train_batch_size=2, gradient_accumulation_steps=2, logging_steps=1,
            output_dir=str(tmp_path / "requested"),
        )
    )  # fmt: skip
    assert found.batch == {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    assert [row.get("loss") for row in found.history] == [row.get("loss") for row in requested.history]
    one, other = (load_file(tmp_path / folder / "model.safetensors") for folder in ("run", "requested"))
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def test_where_one_row_is_too_much_memory_has_run_out(small_recipe, monkeypatch, tmp_path):
    def none(self, *rest, **how):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Trainer, "training_step", none)
    with pytest.raises(RuntimeError, match="No executable batch size"):
        run(small_recipe(auto_find_batch_size=True, per_device_train_batch_size=2))
    assert read_report(tmp_path / "run").status == "out_of_memory"
