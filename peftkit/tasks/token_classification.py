"""Each word of a text has a tag: named entities in the BIO scheme."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import ClassLabel, Dataset
from seqeval.metrics.sequence_labeling import get_entities
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)

from peftkit.errors import UserError
from peftkit.metrics.bootstrap import Statistic
from peftkit.metrics.entities import (
    entity_metrics,
    entity_statistics,
    entity_type_scores,
    shown_entities,
    type_confusions,
)
from peftkit.tasks.default import IGNORED, PlainTask, at, blank_text, first_output, kind_of
from peftkit.tasks.labels import check_label_names, label_name, unknown_label
from peftkit.tasks.token_loss import TokenTrainer
from peftkit.tasks.word_alignment import OUTSIDE, joined_spans, parts, placed, repaired, word_spans

NO_WORD = -1
# The column of a text that was given whole and then split into words.
TEXT = "text as given"


@dataclass(frozen=True, kw_only=True)
class TokenClassification(PlainTask):
    """A BIO tag for each word. The first token of a word carries its tag; a long text is read in overlapping parts.

    Args:
        tokens: Column of the words, a list of strings.
        tags: Column of their tags, a list of names such as B-person, I-person and O, or of numbers.
        label_names: The order of the tags; or, where the data has numbers, the tags in the order of those.
        max_length: Tokens of one part, special ones included; memory of activations grows with it.
        stride: Tokens by which neighbouring parts overlap; a word counts in the part where it has more context.
        repair: Read an I- tag that continues nothing as the B- that it should be, instead of refusing the row.
    """

    tokens: str = "tokens"
    tags: str = "ner_tags"
    label_names: list[str] = field(default_factory=list)
    max_length: int = 128
    stride: int = 32
    repair: bool = False

    auto_model: ClassVar[Any] = AutoModelForTokenClassification
    trainer_class: ClassVar[type[Trainer]] = TokenTrainer
    task_type: ClassVar[str] = "TOKEN_CLS"
    input_fields: ClassVar[tuple[str, ...]] = ("tokens",)
    length_fields: ClassVar[tuple[str, ...]] = ("max_length",)
    too_long: ClassVar[str] = "are read in parts"
    column_fields: ClassVar[tuple[str, ...]] = ("tokens", "tags")
    main_metrics: ClassVar[tuple[str, ...]] = ("f1", "precision", "recall")
    label_smoothing: ClassVar[bool] = True

    @classmethod
    def of_model(cls, config: Any, length: int) -> "TokenClassification | None":
        """For a tagger that was trained elsewhere."""
        kind = (config.architectures or [""])[0]
        return cls(max_length=length, stride=length // 4) if kind.endswith("ForTokenClassification") else None

    @property
    def inputs(self) -> tuple[str, ...]:
        """The column of the words."""
        return (self.tokens,)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that training data must have."""
        return (self.tokens, self.tags)

    def _names(self, dataset: Dataset) -> list[list[str] | None]:
        """The tags by name, a list a row; None where there is none."""
        feature = getattr(dataset.features[self.tags], "feature", None)
        return [
            [str(label_name(tag, feature, self.label_names)) for tag in row] if isinstance(row, list) else None
            for row in dataset[self.tags]
        ]

    def find_labels(self, train: Dataset) -> tuple[str, ...]:
        """`O`, then B- and I- of each type of entity; as the recipe or the data set orders them if it does."""
        feature = getattr(train.features[self.tags], "feature", None)
        found = {tag for row in self._names(train) for tag in row or ()}
        declared: tuple[str, ...] = ()
        if self.label_names:
            values = {tag for row in train[self.tags] if isinstance(row, list) for tag in row}
            declared = check_label_names(self.label_names, values, feature, self.tags)
        elif isinstance(feature, ClassLabel):
            declared = tuple(feature.names)
        if declared:
            # A tag that is repaired may be one that no row had.
            begun = (f"B{tag[1:]}" for tag in declared if tag.startswith("I-")) if self.repair else ()
            return tuple(dict.fromkeys((*declared, *begun)))
        kinds = sorted({tag[2:] for tag in found if _is_bio(tag) and tag != OUTSIDE})
        if not kinds and any(tag.isdigit() for tag in found):
            raise UserError(f"train, column '{self.tags}': has numbers; name their tags in task.label_names")
        if not kinds:
            raise UserError(f"train, column '{self.tags}': no entity found; a tagger needs lists of B-, I- and O")
        return (OUTSIDE, *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI"))

    def problems(self, dataset: Dataset, labels: Sequence[str], where: str) -> Iterator[str]:
        """A line for each row whose words and tags do not fit, or that has a tag which BIO or train does not know."""
        yield from self.input_problems(dataset, where)
        known, fix = set(labels), "correct it or remove the row"
        for row, (words, tags) in enumerate(zip(dataset[self.tokens], self._names(dataset), strict=True)):
            place = at(where, row, self.tags)
            if tags is None:
                yield f"{place}: no list of tags; {fix}"
                continue
            if isinstance(words, list) and len(words) != len(tags):
                yield f"{place}: {len(tags)} tags for {len(words)} words; {fix}"
            tags = repaired(tags) if self.repair else tags
            for position, (before, tag) in enumerate(zip([OUTSIDE, *tags], tags, strict=False)):
                if not _is_bio(tag):
                    yield f"{place}, word {position}: '{tag}' is no BIO tag, which are B-, I- and O; {fix}"
                    break
                if tag not in known:
                    yield f"{place}, word {position}: {unknown_label(tag, self.label_names)}; {fix}"
                    break
                if tag.startswith("I-") and before[1:] != tag[1:]:
                    more = "correct it, or read it as the beginning of an entity with task.repair true"
                    yield f"{place}, word {position}: '{tag}' after '{before}' continues nothing; {more}"
                    break

    def input_problems(self, dataset: Dataset, where: str, first: int = 0) -> Iterator[str]:
        """A line for each row without words."""
        for row, words in enumerate(dataset[self.tokens], first):
            if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
                found = "no words" if not words else f"{kind_of(words)}, not a list of words"
                yield f"{at(where, row, self.tokens)}: {found}; correct it or remove the row"

    def texts(self, dataset: Dataset) -> list[str]:
        """The words with a space between them."""
        return [" ".join(words) for words in dataset[self.tokens]]

    def class_names(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The types of entities."""
        return tuple(dict.fromkeys(label[2:] for label in labels if label != OUTSIDE))

    def class_counts(self, references: Sequence[Any]) -> Mapping[str, int]:
        """Entities of each type."""
        return Counter(kind for tags in references for kind, _, _ in get_entities(list(tags)))

    def lengths(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Mapping[str, np.ndarray]:
        """Tokens of each row before it is split, special ones included."""
        special = tokenizer.num_special_tokens_to_add(False)
        return {"max_length": np.array([sum(counts) + special for counts in self._word_lengths(dataset, tokenizer)])}

    def entities_cut(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, references: Sequence[Any]
    ) -> tuple[int, int] | None:
        """How many entities no part holds whole, and how many there are."""
        budget = self.max_length - tokenizer.num_special_tokens_to_add(False)
        cut = total = 0
        for counts, tags in zip(self._word_lengths(dataset, tokenizer), references, strict=True):
            held = [(first, end) for first, end, _, _ in parts(counts, budget, self.stride)]
            for _, begin, last in get_entities(list(tags)):
                total += 1
                whole = any(first <= begin and last < end and sum(counts[first:end]) <= budget for first, end in held)
                cut += not whole or not all(counts[begin : last + 1])
        return cut, total

    def tokenizer_options(self, tokenizer: PreTrainedTokenizerBase) -> Mapping[str, Any]:
        """A byte-level vocabulary must see every word as one that follows a space."""
        bytewise = "ByteLevel" in str(getattr(tokenizer.backend_tokenizer, "pre_tokenizer", ""))
        return {"add_prefix_space": True} if bytewise else {}

    def blank_batch(self, rows: int, classes: int) -> dict[str, torch.Tensor]:
        """Parts of the full length, and a tag for each token."""
        labels = torch.zeros(rows, self.max_length, dtype=torch.long)
        return {**blank_text(rows, self.max_length), "labels": labels}

    def model_config(self, labels: Sequence[str]) -> Mapping[str, Any]:
        """Keywords of `from_pretrained` that give the model its head."""
        return {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {name: index for index, name in enumerate(labels)},
        }

    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """The same pad token in config and tokenizer."""
        model.config.pad_token_id = tokenizer.pad_token_id

    def _word_lengths(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """Tokens of each word, a list a row."""
        rows = [list(words) for words in dataset[self.tokens]]
        encoded = tokenizer(rows, is_split_into_words=True, add_special_tokens=False, verbose=False)
        found = []
        for row, words in enumerate(rows):
            places = [place for place in encoded.word_ids(row) if place is not None]
            found.append(np.bincount(np.array(places, dtype=int), minlength=len(words)).tolist())
        return found

    def encode(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> Dataset:
        """Token ids and tag ids: a word's tag on its first token in the one part that owns the word, else -100."""
        ids = {name: index for index, name in enumerate(labels)}
        right = self.references(dataset, labels)
        encoded = self.encode_inputs(dataset, tokenizer)
        tagged = [
            [IGNORED if word == NO_WORD else ids[right[document][word]] for word in words]
            for document, words in zip(encoded["document"], encoded["words"], strict=True)
        ]
        return encoded.add_column("labels", tagged)

    def encode_inputs(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        """Token ids of every part, its row (`document`), and of each token the word that it begins, or -1 (`words`)."""
        special = tokenizer.num_special_tokens_to_add(False)
        columns: dict[str, list[Any]] = {"document": [], "words": []}
        for document, (words, counts) in enumerate(
            zip(dataset[self.tokens], self._word_lengths(dataset, tokenizer), strict=True)
        ):
            for first, end, own_first, own_end in parts(counts, self.max_length - special, self.stride):
                encoded = tokenizer(
                    words[first:end], is_split_into_words=True, truncation=True, max_length=self.max_length
                )
                begun: list[int] = []
                seen = None
                for place in encoded.word_ids():
                    word = NO_WORD if place is None or place == seen else first + place
                    begun.append(word if own_first <= word < own_end else NO_WORD)
                    seen = place
                columns["document"].append(document)
                columns["words"].append(begun)
                for name, values in encoded.items():
                    columns.setdefault(name, []).append(values)
        return Dataset.from_dict(columns)

    def collator(self, tokenizer: PreTrainedTokenizerBase, model: Any) -> Callable[[list[Any]], Any]:
        """Pads tokens and tags to the longest part of the batch."""
        pad = DataCollatorForTokenClassification(tokenizer)

        def collate(rows: list[Any]) -> Any:
            return pad([{name: row[name] for name in row if name not in ("document", "words")} for row in rows])

        return collate

    def reduce(self, logits: torch.Tensor) -> torch.Tensor:
        """The most probable tag's id of each token, of shape (parts, tokens)."""
        return logits.argmax(-1)

    def decode(
        self,
        kept: np.ndarray,
        encoded: Dataset,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str],
    ) -> list[Mapping[str, Any]]:
        """`tags` of each row, and its `entities` with their first and last word; a word without a token is `O`."""
        rows = list(dataset[self.tokens])
        tags = [[OUTSIDE] * len(words) for words in rows]
        for found, document, words in zip(kept, encoded["document"], encoded["words"], strict=True):
            for place, word in enumerate(words):
                if word != NO_WORD:
                    tags[document][word] = labels[found[place]]
        return [
            {
                "tags": found,
                "entities": [
                    {"type": kind, "first_word": first, "last_word": last, "text": " ".join(words[first : last + 1])}
                    for kind, first, last in get_entities(found)
                ],
            }
            for found, words in zip(tags, rows, strict=True)
        ]

    def infer(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The most probable tag's id of each token and its probability, of shape (parts, tokens, 2)."""
        probabilities, ids = first_output(model(**batch).logits).float().softmax(-1).max(-1)
        return torch.stack([ids.float(), probabilities], -1)

    def answer(
        self,
        kept: np.ndarray,
        encoded: Dataset,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str],
    ) -> list[Mapping[str, Any]]:
        """`tags` and `entities` as in `decode`; an entity's place in the text, and a `score` from 0 to 1.

        `start` and `end` count characters of the text that was given, or of the words with a space between them. The
        score is the mean probability of its words' tags.
        """
        sure = [[1.0] * len(words) for words in dataset[self.tokens]]
        for part, document, words in zip(kept, encoded["document"], encoded["words"], strict=True):
            for place, word in enumerate(words):
                if word != NO_WORD:
                    sure[document][word] = float(part[place, 1])
        given = dataset[TEXT] if TEXT in dataset.column_names else [None] * len(dataset)
        answers = self.decode(kept[..., 0].astype(int), encoded, dataset, tokenizer, labels)
        for answer, words, text, scores in zip(answers, dataset[self.tokens], given, sure, strict=True):
            spans = joined_spans(words) if text is None else word_spans(text)
            text = " ".join(words) if text is None else text
            for entity in answer["entities"]:
                entity |= placed(entity["first_word"], entity["last_word"], text, spans, scores)
        return answers

    def row_of(self, given: Any) -> Mapping[str, Any]:
        """The words of a text: runs of letters and digits, and each other character but spaces."""
        if not isinstance(given, str):
            return {self.tokens: list(given)}
        return {self.tokens: [given[start:end] for start, end in word_spans(given)], TEXT: given}

    def references(self, dataset: Dataset, labels: Sequence[str]) -> list[Any]:
        """The right tags of each row."""
        return [repaired(tags or []) if self.repair else tags for tags in self._names(dataset)]

    def score(self, answers: Sequence[Mapping[str, Any]], references: Sequence[Any]) -> dict[str, float]:
        """Precision, recall and F1 of whole entities, over all and per type."""
        return entity_metrics([answer["tags"] for answer in answers], references)

    def statistics(self, answers: Sequence[Mapping[str, Any]], references: Sequence[Any]) -> Mapping[str, Statistic]:
        """F1 of drawn rows."""
        return entity_statistics([answer["tags"] for answer in answers], references)

    def class_scores(
        self, answers: Sequence[Mapping[str, Any]], references: Sequence[Any]
    ) -> Mapping[str, Mapping[str, float]]:
        """Precision, recall, F1 of each type of entity, and how many there are."""
        return entity_type_scores([answer["tags"] for answer in answers], references)

    def said(self, answer: Mapping[str, Any]) -> str:
        """The entities."""
        return shown_entities((entity["type"], entity["text"]) for entity in answer["entities"])

    def confusions(
        self, answers: Sequence[Mapping[str, Any]], references: Sequence[Any]
    ) -> Mapping[tuple[str, str], int]:
        """Words by the type that is right and the type that was answered, `O` outside of entities."""
        return type_confusions([answer["tags"] for answer in answers], references)

    def said_right(self, reference: Any) -> str:
        """The entities by their words' numbers."""
        return shown_entities((kind, f"words {first} to {last}") for kind, first, last in get_entities(reference))

    def is_right(self, answer: Mapping[str, Any], reference: Any) -> bool:
        """Whether every entity is found and no other."""
        return set(get_entities(answer["tags"])) == set(get_entities(reference))


def _is_bio(tag: str) -> bool:
    return tag == OUTSIDE or (tag[:2] in ("B-", "I-") and len(tag) > 2)
