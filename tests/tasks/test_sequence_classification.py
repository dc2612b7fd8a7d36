import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from peftkit import ModelConfig, SequenceClassification, full
from peftkit.errors import UserError
from peftkit.models.loading import load_tokenizer
from peftkit.training.run import run
from tests.tasks.encoded import encoded_split

TASK = SequenceClassification(max_length=6)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ModelConfig(), TASK)


def test_rows_are_encoded_in_order_and_cut(tokenizer):
    data = Dataset.from_dict({"text": ["a b", "a b c d e f g h i"], "label": ["y", "x"], "other": [1, 2]})
    encoded = TASK.encode(data, tokenizer, ("x", "y"))
    assert encoded["labels"][:] == [1, 0]
    assert [len(ids) for ids in encoded["input_ids"]] == [4, 6]
    assert "other" not in encoded.column_names


def test_pairs_are_the_tokenizers_own(tokenizer):
    task = SequenceClassification(text="a", text_pair="b", max_length=9)
    data = Dataset.from_dict({"a": ["one two"], "b": ["three four five six seven"], "label": ["x"]})
    encoded = task.encode(data, tokenizer, ("x", "y"))[0]
    pair = tokenizer("one two", "three four five six seven", truncation=True, max_length=9)
    assert encoded["input_ids"] == pair["input_ids"]
    assert encoded["token_type_ids"] == pair["token_type_ids"] == [0] * 4 + [1] * 5
    assert task.columns.texts(data) == ["one two\tthree four five six seven"]
    assert task.token_lengths(data, tokenizer)["max_length"].tolist() == [10]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a", "b"], "label": ["x", None]}, "f.csv, row 1 (from 0), column 'label': no label"),
        (
            {"text": ["a", "b"], "label": ["x", "z"]},
            "row 1 (from 0), column 'label': label 'z' does not occur in train",
        ),
        ({"text": ["a", None], "label": ["x", "y"]}, "row 1 (from 0), column 'text': null, not text"),
        ({"text": ["  ", "b"], "label": ["x", "y"]}, "row 0 (from 0), column 'text': empty"),
        ({"text": [1, 2], "label": ["x", "y"]}, "row 0 (from 0), column 'text': int, not text"),
    ],
)
def test_an_unreadable_row_is_named(columns, message):
    problems = list(TASK.validate(Dataset.from_dict(columns), ("x", "y"), "f.csv"))
    assert message in problems[0]
    assert not list(TASK.validate(Dataset.from_dict({"text": ["a"], "label": ["x"]}), ("x", "y"), "f.csv"))


def test_an_unlabelled_row_of_a_hub_data_set_is_named():
    data = Dataset.from_dict({"text": ["a"], "label": [-1]}).cast_column("label", ClassLabel(names=["x", "y"]))
    assert "no label" in next(TASK.validate(data, ("x", "y"), "test"))


def test_names_of_numbers_keep_their_order(tokenizer):
    data = Dataset.from_dict({"text": ["a", "b", "c"], "label": [2, 0, 1]})
    task = SequenceClassification(label_names=["zebra", "ant", "cow"])
    labels = task.find_labels(data)
    assert labels == ("zebra", "ant", "cow")
    assert task.targets(data, labels) == ["cow", "zebra", "ant"]
    assert task.encode(data, tokenizer, labels)["labels"][:] == [2, 0, 1]
    assert TASK.find_labels(data) == ("0", "1", "2")
    short = SequenceClassification(label_names=["a", "b"])
    assert "row 0 (from 0), column 'label': label '2' is not in task.label_names" in next(
        short.validate(data, short.find_labels(data), "f")
    )


@pytest.mark.parametrize(
    ("values", "feature", "names", "right"),
    [
        ([0, 1], ClassLabel(names=["neg", "pos"]), ["pos", "neg"], ["neg", "pos"]),
        ([0, 1], ClassLabel(names=["LABEL_0", "LABEL_1"]), ["neg", "pos"], ["neg", "pos"]),
        ([0, 1], Value("int64"), ["1", "0"], ["0", "1"]),
        (["0", "1"], Value("string"), ["1", "0"], ["0", "1"]),
        ([1, 5, 3], Value("int64"), ["1", "2", "3", "4", "5"], ["1", "5", "3"]),
    ],
)
def test_a_value_that_is_a_name_keeps_it_whatever_the_order(values, feature, names, right):
    data = Dataset.from_dict({"label": values}, features=Features({"label": feature}))
    task = SequenceClassification(label_names=names)
    assert task.find_labels(data) == tuple(names)
    assert task.targets(data, names) == right


def test_values_that_are_half_names_half_numbers_are_refused():
    with pytest.raises(UserError, match="mixes names such as '1' and numbers such as '0'"):
        SequenceClassification(label_names=["1", "x"]).find_labels(Dataset.from_dict({"label": [0, 1]}))


def test_lists_are_no_single_labels():
    data = Dataset.from_dict({"text": ["a", "b"], "label": [["x"], ["y"]]})
    assert TASK.find_labels(data) == ()
    assert "expected one label, got list; use MultiLabelClassification" in next(TASK.validate(data, (), "f"))


def test_answers_are_labels_and_probabilities():
    class Model:
        def __call__(self, **batch):
            return type("Output", (), {"logits": torch.tensor([[0.0, 1.0986123], [5.0, -5.0]])})

    outputs = TASK.postprocess(Model()().logits, detail=True).numpy()
    found = TASK.decode(encoded_split(outputs, ("x", "y")), detail=True)
    assert [row["label"] for row in found] == ["y", "x"]
    assert found[0]["probabilities"] == pytest.approx({"x": 0.25, "y": 0.75})
    assert TASK.decode(encoded_split(TASK.postprocess(torch.tensor([[0.0, 1.0]])).numpy(), ("x", "y"))) == [
        {"label": "y", "confidence": 0.731059}
    ]


def test_class_weights_are_those_of_torch_and_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    train = Dataset.from_dict({"labels": [0, 0, 0, 1, 1, 2]})
    logits, right = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, 0])
    given = SequenceClassification(class_weights={"b": 3.0, "c": 0.5}).loss(train, ("a", "b", "c"), 0.1)
    weights = torch.tensor([1.0, 3.0, 0.5])
    plain = torch.nn.functional.cross_entropy(logits, right, reduction="none", label_smoothing=0.1)
    assert given({"logits": logits}, right) == pytest.approx(float((plain * weights[right]).mean()))
    balanced = SequenceClassification(class_weights="balanced").loss(train, ("a", "b", "c"), 0.0)
    expected = torch.tensor(
        compute_class_weight("balanced", classes=np.arange(3), y=train["labels"][:]), dtype=torch.float
    )
    plain = torch.nn.functional.cross_entropy(logits, right, reduction="none")
    assert balanced({"logits": logits}, right) == pytest.approx(float((plain * expected[right]).mean()))
    # Two micro-batches of an accumulated one add up to the mean over both.
    parts = [balanced({"logits": logits[part]}, right[part], 5) for part in (slice(0, 2), slice(2, 5))]
    assert float(sum(parts)) == pytest.approx(float(balanced({"logits": logits}, right)))
    by_number = SequenceClassification(class_weights={1: 3}).loss(train, ("0", "1", "2"), 0.0)
    assert by_number({"logits": logits}, right) != plain.mean()
    with pytest.raises(UserError, match=r"task\.class_weights: a: expected a positive number, got x"):
        SequenceClassification(class_weights={"a": "x"}).loss(train, ("a", "b", "c"), 0.0)
    with pytest.raises(UserError, match=r"task\.class_weights: unknown label 'd'"):
        SequenceClassification(class_weights={"d": 1.0}).loss(train, ("a", "b", "c"), 0.0)


def test_class_weights_and_label_smoothing_train(small_recipe, tmp_path):
    losses = {}
    for name, task, words in (
        ("plain", SequenceClassification(max_length=32), {}),
        ("weights", SequenceClassification(max_length=32, class_weights={"dataframes": 50.0}), {}),
        ("smooth", SequenceClassification(max_length=32), {"label_smoothing_factor": 0.2}),
    ):
        recipe = small_recipe(
            "bert", full(), task, max_steps=3, logging_steps=1, output_dir=str(tmp_path / name), **words
        )
        report = run(recipe)
        assert report.audit["verdict"] == "passed"
        losses[name] = report.history[0]["loss"]
    assert losses["weights"] > 2 * losses["plain"]
    assert losses["smooth"] != losses["plain"]


def test_accumulation_keeps_a_weighted_loss(small_recipe, tmp_path):
    task = SequenceClassification(max_length=32, class_weights="balanced")
    same = {"max_steps": 3, "logging_steps": 1}
    whole = run(small_recipe("bert", full(), task, output_dir=str(tmp_path / "a"), **same))
    parts = run(
        small_recipe(
            "bert", full(), task, output_dir=str(tmp_path / "b"), per_device_train_batch_size=2,
            gradient_accumulation_steps=4, **same,
        )
    )  # fmt: skip
    assert parts.history[0]["loss"] == pytest.approx(whole.history[0]["loss"], rel=0.05)


@pytest.mark.parametrize("architecture", ["bart", "gpt2"])
def test_other_families_train(small_recipe, architecture):
    assert run(small_recipe(architecture, max_steps=4)).audit["verdict"] == "passed"
