import json
import random

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, List
from transformers import AutoTokenizer, pipeline

from peftkit import ModelConfig, TokenClassification, full, lora, qlora
from peftkit.data.demo.entities import load_entities
from peftkit.errors import UserError
from peftkit.export.exporter import export
from peftkit.models.loading import load_tokenizer
from peftkit.prediction.batch import predict
from peftkit.tasks.token_classification import repair_tags, split_into_parts
from peftkit.training.run import run
from tests.tasks.encoded import encoded_split

TASK = TokenClassification(max_length=24, stride=8)
WORDS = ["Angela", "Merkel", "visited", "the", "University", "of", "Oxford", "antidisestablishmentarianism", "."]
TAGS = ["B-PER", "I-PER", "O", "O", "B-ORG", "I-ORG", "I-ORG", "O", "O"]
LABELS = ("O", "B-ORG", "I-ORG", "B-PER", "I-PER")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ModelConfig(), TASK)


def test_every_word_is_owned_once_by_a_part_that_fits():
    chance = random.Random(0)
    for _ in range(300):
        counts = [chance.choice((0, 1, 1, 2, 3, 5, 9)) for _ in range(chance.randrange(1, 60))]
        budget, stride = chance.randrange(4, 20), chance.randrange(0, 12)
        owned = []
        ends = []
        for first, end, own_first, own_end in split_into_parts(counts, budget, stride):
            assert first <= own_first <= own_end <= end
            assert sum(counts[first:end]) <= budget or end == first + 1
            owned += range(own_first, own_end)
            ends.append(end)
        assert owned == list(range(len(counts)))
        assert ends == sorted(set(ends))


def test_an_entity_across_a_cut_is_seen_whole_by_the_next_part():
    found = list(split_into_parts([1] * 100, 30, 10))
    # Any 5 words in a row lie whole in some part that owns their middle.
    for start in range(95):
        middle = start + 2
        assert any(f <= start and start + 5 <= e and o <= middle < x for f, e, o, x in found), start


def test_a_long_document_loses_no_tag(tokenizer):
    data = Dataset.from_dict({"tokens": [WORDS * 7, WORDS[:2]], "ner_tags": [TAGS * 7, TAGS[:2]]})
    encoded = TASK.encode(data, tokenizer, LABELS)
    assert len(encoded) > 3
    assert max(map(len, encoded["input_ids"])) <= 24
    # What a perfect model would say: the tag on the first token of a word, and anything at all elsewhere.
    width = max(map(len, encoded["labels"]))
    kept = np.array(
        [[2 if tag == -100 else tag for tag in tags] + [-100] * (width - len(tags)) for tags in encoded["labels"]]
    )
    answers = TASK.decode(encoded_split(kept, LABELS, encoded=encoded, rows=data, tokenizer=tokenizer))
    assert [answer["tags"] for answer in answers] == [TAGS * 7, TAGS[:2]]
    assert answers[1]["entities"] == [{"type": "PER", "first_word": 0, "last_word": 1, "text": "Angela Merkel"}]
    assert TASK.metrics.compute(answers, TASK.targets(data, LABELS))["f1"] == 1.0
    tagged = sum(tag != -100 for tags in encoded["labels"] for tag in tags)
    assert tagged == len(WORDS) * 7 + 2


def test_the_first_token_of_a_word_carries_its_tag(tokenizer):
    data = Dataset.from_dict({"tokens": [WORDS], "ner_tags": [TAGS]})
    row = TokenClassification(max_length=64).encode(data, tokenizer, LABELS)[0]
    tokens = tokenizer.convert_ids_to_tokens(row["input_ids"])
    tagged = [token for token, tag in zip(tokens, row["labels"], strict=True) if tag != -100]
    assert len(tagged) == len(WORDS)
    assert not [token for token in tagged if token.startswith(("##", "["))]
    assert [LABELS[tag] for tag in row["labels"] if tag != -100] == TAGS


def test_a_word_longer_than_a_part_keeps_its_tag(tokenizer):
    task = TokenClassification(max_length=8, stride=2)
    data = Dataset.from_dict({"tokens": [["a", "x" * 90, "b"]], "ner_tags": [["O", "B-PER", "O"]]})
    encoded = task.encode(data, tokenizer, LABELS)
    assert max(map(len, encoded["input_ids"])) <= 8
    assert sorted(tag for tags in encoded["labels"] for tag in tags if tag != -100) == [0, 0, 3]


def test_a_byte_level_tokenizer_sees_words_after_a_space(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.train_from_iterator([" the array of the arrays"] * 50, trainers.BpeTrainer(special_tokens=["<pad>"]))
    PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>").save_pretrained(tmp_path)
    assert TASK.model.tokenizer_options(AutoTokenizer.from_pretrained(tmp_path)) == {"add_prefix_space": True}


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (["O", "I-PER"], "f, row 0 (from 0), column 'ner_tags', word 1: 'I-PER' after 'O' continues no entity"),
        (["B-ORG", "I-PER"], "'I-PER' after 'B-ORG' continues no entity"),
        (["O"], "expected one tag per word, got 1 tags for 2 words"),
        (["O", "B-LOC"], "word 1: label 'B-LOC' does not occur in train"),
        (None, "missing list of tags"),
        (["O", "S-PER"], "word 1: expected a BIO tag (B-, I- or O), got 'S-PER'"),
    ],
)
def test_tags_that_are_not_bio_are_named(tags, message):
    data = Dataset.from_dict({"tokens": [["a", "b"], ["c"]], "ner_tags": [tags, ["O"]]})
    assert message in next(TASK.validate(data, LABELS, "f"))


def test_tags_can_be_repaired():
    assert repair_tags(["I-a", "I-a", "O", "I-b", "I-a"]) == ["B-a", "I-a", "O", "B-b", "B-a"]
    task = TokenClassification(repair=True)
    data = Dataset.from_dict({"tokens": [["a", "b"]], "ner_tags": [["O", "I-PER"]]})
    assert not list(task.validate(data, LABELS, "f"))
    assert task.targets(data, LABELS) == [["O", "B-PER"]]


def test_tags_by_number_and_other_schemes(tokenizer):
    data = Dataset.from_dict({"tokens": [["a", "b"]], "ner_tags": [[0, 3]]})
    task = TokenClassification(label_names=list(LABELS))
    assert task.find_labels(data) == LABELS
    assert task.targets(data, LABELS) == [["O", "B-PER"]]
    with pytest.raises(UserError, match=r"tags are numbers; set their names in task\.label_names"):
        TASK.find_labels(data)
    hub = data.cast_column("ner_tags", List(ClassLabel(names=list(LABELS))))
    assert TASK.find_labels(hub) == LABELS
    assert TASK.encode(hub, tokenizer, LABELS)["labels"][0] == [-100, 0, 3, -100]
    with pytest.raises(UserError, match="no entity found; use a column with lists of B-, I- and O"):
        TASK.find_labels(Dataset.from_dict({"tokens": [["a"]], "ner_tags": [["S-PER"]]}))
    for column in ([5], ["B-PER O"]):
        assert "missing list of tags" in next(
            TASK.validate(Dataset.from_dict({"tokens": [["a"]], "ner_tags": column}), LABELS, "f")
        )


def test_tags_without_a_beginning_can_be_repaired_though_none_is_declared(tokenizer):
    data = Dataset.from_dict({"tokens": [["a", "b"]], "ner_tags": [[1, 1]]})
    data = data.cast_column("ner_tags", List(ClassLabel(names=["O", "I-PER"])))
    task = TokenClassification(repair=True)
    labels = task.find_labels(data)
    assert labels == ("O", "I-PER", "B-PER")
    assert not list(task.validate(data, labels, "f"))
    assert task.encode(data, tokenizer, labels)["labels"][0] == [-100, 2, 1, -100]


def test_a_declared_name_is_kept_whatever_the_order():
    data = Dataset.from_dict({"ner_tags": [[0, 1, 2]]})
    data = data.cast_column("ner_tags", List(ClassLabel(names=["O", "B-PER", "I-PER"])))
    task = TokenClassification(label_names=["B-PER", "I-PER", "O"])
    assert task.find_labels(data) == ("B-PER", "I-PER", "O")
    assert task.targets(data, ()) == [["O", "B-PER", "I-PER"]]


@pytest.mark.parametrize(("architecture", "method"), [("bert", full()), ("bert", qlora()), ("roberta", lora())])
def test_it_trains_exports_and_predicts(small_recipe, tmp_path, architecture, method):
    report = run(small_recipe(architecture, method, TASK, "demo-entities", max_steps=10))
    assert report.audit["verdict"] == "passed"
    assert {"f1", "precision", "recall", "f1_macro", "f1_parameter", "f1_ci95"} <= set(report.metrics["test"])
    assert export(tmp_path / "run", tmp_path / "out").exported_difference <= 1e-4
    load_entities()["test"].select(range(40)).to_json(tmp_path / "rows.jsonl")
    for source in ("run", "out"):
        predict([tmp_path / source], tmp_path / "rows.jsonl", tmp_path / f"{source}.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [len(row["tags"]) for row in rows] == [len(words) for words in load_entities()["test"]["tokens"][:40]]
    pipeline("token-classification", model=str(tmp_path / "out"))("Return the mean of the array.")
