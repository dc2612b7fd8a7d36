import numpy as np
import pytest
from datasets import ClassLabel, Dataset

from peftkit import ModelConfig, SequenceClassification
from peftkit.errors import UserError
from peftkit.model import load_tokenizer

TASK = SequenceClassification(max_length=6)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ModelConfig())


def test_rows_are_encoded_in_order_and_cut(tokenizer):
    data = Dataset.from_dict({"text": ["a b", "a b c d e f g h i"], "label": ["y", "x"], "other": [1, 2]})
    encoded = TASK.encode(data, tokenizer, ("x", "y"), "train")
    assert encoded["labels"][:] == [1, 0]
    assert [len(ids) for ids in encoded["input_ids"]] == [4, 6]
    assert "other" not in encoded.column_names


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"text": ["a", "b"], "label": ["x", None]}, r"test, row 1 \(from 0\), column 'label': no label"),
        ({"text": ["a", "b"], "label": ["x", "z"]}, "label 'z' does not occur in train"),
        ({"text": ["a", None], "label": ["x", "y"]}, r"test, row 1 \(from 0\), column 'text': NoneType, not text"),
        ({"text": ["  ", "b"], "label": ["x", "y"]}, r"row 0 \(from 0\), column 'text': empty"),
        ({"text": [1, 2], "label": ["x", "y"]}, "int, not text"),
    ],
)
def test_an_unreadable_row_is_named(tokenizer, columns, said):
    with pytest.raises(UserError, match=said):
        TASK.encode(Dataset.from_dict(columns), tokenizer, ("x", "y"), "test")


def test_an_unlabelled_row_of_a_hub_data_set_is_named(tokenizer):
    data = Dataset.from_dict({"text": ["a"], "label": [-1]}).cast_column("label", ClassLabel(names=["x", "y"]))
    with pytest.raises(UserError, match="no label"):
        TASK.encode(data, tokenizer, ("x", "y"), "test")


def test_predictions_are_probabilities():
    found = TASK.predictions(np.array([[0.0, np.log(3.0)], [5.0, -5.0]], dtype=np.float32), ("x", "y"))
    assert [row["label"] for row in found] == ["y", "x"]
    assert found[0]["probabilities"] == pytest.approx({"x": 0.25, "y": 0.75})
