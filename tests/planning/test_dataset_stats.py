import pytest

from peftkit import Seq2Seq, TokenClassification
from peftkit.data.splits import load_splits
from peftkit.models.loading import load_tokenizer
from peftkit.planning.dataset_stats import read_dataset_stats


def test_time_is_of_the_rows_as_they_are(small_recipe):
    task = Seq2Seq(max_source_length=64, max_target_length=16)
    recipe = small_recipe("t5", task=task, path="demo-summaries")
    found = read_dataset_stats(recipe, None)
    assert found.rows == 96
    # Sources and targets count by their tokens.
    encoded = task.encode(load_splits(recipe.data, task).train, load_tokenizer(recipe.model, task), ())
    tokens = sum(len(row["input_ids"]) + len(row["labels"]) for row in encoded)
    assert found.fill == pytest.approx(tokens / 96 / 80)
    assert read_dataset_stats(recipe, 7).fill == 1


def test_parts_of_a_long_text_are_rows(small_recipe):
    recipe = small_recipe(task=TokenClassification(max_length=16, stride=4), path="demo-entities")
    assert read_dataset_stats(recipe, None).rows > 96
