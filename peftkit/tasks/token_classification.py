"""Task: predict a tag for each word, such as named entities in the BIO scheme."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import ClassLabel, Dataset
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    PreTrainedTokenizerBase,
)

from peftkit.errors import UserError
from peftkit.metrics.base import MetricSet
from peftkit.metrics.token_classification import METRICS, count_type_confusions, find_entities, score_entity_types
from peftkit.tasks.base import ColumnSpec, EncodedSplit, ModelSpec, OutputKind, TrainerSpec
from peftkit.tasks.default import IGNORED, DefaultTask, locate_cell, name_type
from peftkit.tasks.labels import check_label_names, describe_unknown_label, get_label_name
from peftkit.tasks.token_loss import TokenTrainer
from peftkit.tasks.word_alignment import (
    INPUT_TEXT,
    OUTSIDE,
    find_joined_spans,
    find_word_spans,
    locate_entity,
    repair_tags,
    split_into_parts,
)

NO_WORD = -1


@dataclass(frozen=True, kw_only=True)
class TokenClassification(DefaultTask):
    """A BIO tag for each word, predicted at its first token; a long text has overlapping parts.

    Args:
        tokens: Column of the words, a list of strings.
        tags: Column of the tags, a list of names such as B-person, I-person and O, or of numbers.
        label_names: Tag names in the order of their ids.
        max_length: Maximum number of tokens of one part, special tokens included; activation memory grows with this
            length.
        stride: Tokens by which neighbouring parts overlap; a word is predicted in the part where it has more context.
        repair: Read an I- tag that does not continue an entity as B-, instead of rejecting the row.
    """

    tokens: str = "tokens"
    tags: str = "ner_tags"
    label_names: list[str] = field(default_factory=list)
    max_length: int = 128
    stride: int = 32
    repair: bool = False

    output_kind: ClassVar[OutputKind] = "tokens"
    trainer: ClassVar[TrainerSpec] = TrainerSpec(trainer_class=TokenTrainer, supports_label_smoothing=True)

    @property
    def metrics(self) -> MetricSet:
        """Precision, recall and F1 of whole entities; the classes are the entity types."""
        return self.build_metrics(
            METRICS,
            main=("f1", "precision", "recall"),
            is_correct=lambda prediction, target: set(find_entities(prediction["tags"])) == set(find_entities(target)),
            per_class=lambda predictions, targets: score_entity_types([one["tags"] for one in predictions], targets),
            confusion=lambda predictions, targets: count_type_confusions([one["tags"] for one in predictions], targets),
            class_counts=lambda targets: Counter(kind for tags in targets for kind, _, _ in find_entities(tags)),
            class_names=lambda labels: tuple(dict.fromkeys(label[2:] for label in labels if label != OUTSIDE)),
        )

    @property
    def model(self) -> ModelSpec:
        """A token classifier."""
        return ModelSpec(
            auto_class=AutoModelForTokenClassification, peft_task_type="TOKEN_CLS", match=_match_tagger,
            tokenizer_options=_require_prefix_space,
        )  # fmt: skip

    @property
    def columns(self) -> ColumnSpec:
        """The words and their tags."""
        return ColumnSpec(
            inputs=(self.tokens,),
            targets=(self.tags,),
            fields=("tokens", "tags"),
            input_fields=("tokens",),
            max_lengths={"max_length": self.max_length},
            has_words=True,
        )

    def _read_tag_names(self, dataset: Dataset) -> list[list[str] | None]:
        """Return the tag names of each row; None if the tags are missing."""
        feature = getattr(dataset.features[self.tags], "feature", None)
        return [
            [str(get_label_name(tag, feature, self.label_names)) for tag in row] if isinstance(row, list) else None
            for row in dataset[self.tags]
        ]

    def find_labels(self, train: Dataset) -> tuple[str, ...]:
        """Return the tags in the order of the recipe or dataset, else `O`, then B- and I- of each entity type."""
        feature = getattr(train.features[self.tags], "feature", None)
        found = {tag for row in self._read_tag_names(train) for tag in row or ()}
        declared: tuple[str, ...] = ()
        if self.label_names:
            values = {tag for row in train[self.tags] if isinstance(row, list) for tag in row}
            declared = check_label_names(self.label_names, values, feature, self.tags)
        elif isinstance(feature, ClassLabel):
            declared = tuple(feature.names)
        if declared:
            # Repair may produce a B- tag that no row has.
            repaired = (f"B{tag[1:]}" for tag in declared if tag.startswith("I-")) if self.repair else ()
            return tuple(dict.fromkeys((*declared, *repaired)))
        kinds = sorted({tag[2:] for tag in found if _is_bio(tag) and tag != OUTSIDE})
        if not kinds and any(tag.isdigit() for tag in found):
            raise UserError(f"train, column '{self.tags}': tags are numbers; set their names in task.label_names")
        if not kinds:
            raise UserError(f"train, column '{self.tags}': no entity found; use a column with lists of B-, I- and O")
        return (OUTSIDE, *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI"))

    def validate(self, rows: Dataset, labels: Sequence[str] | None, where: str, first: int = 0) -> Iterator[str]:
        """Yield one line per row without words, or with tags that are invalid, unknown or not one per word."""
        for row, words in enumerate(rows[self.tokens], first):
            if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
                found = "no words" if not words else f"{name_type(words)}, not a list of words"
                yield f"{locate_cell(where, row, self.tokens)}: {found}; correct it or remove the row"
        if labels is not None:
            yield from self._find_tag_problems(rows, labels, where)

    def _find_tag_problems(self, rows: Dataset, labels: Sequence[str], where: str) -> Iterator[str]:
        known, fix = set(labels), "correct it or remove the row"
        for row, (words, tags) in enumerate(zip(rows[self.tokens], self._read_tag_names(rows), strict=True)):
            place = locate_cell(where, row, self.tags)
            if tags is None:
                yield f"{place}: missing list of tags; {fix}"
                continue
            if isinstance(words, list) and len(words) != len(tags):
                yield f"{place}: expected one tag per word, got {len(tags)} tags for {len(words)} words; {fix}"
            tags = repair_tags(tags) if self.repair else tags
            for position, (before, tag) in enumerate(zip([OUTSIDE, *tags], tags, strict=False)):
                if not _is_bio(tag):
                    yield f"{place}, word {position}: expected a BIO tag (B-, I- or O), got '{tag}'; {fix}"
                    break
                if tag not in known:
                    yield f"{place}, word {position}: {describe_unknown_label(tag, self.label_names)}; {fix}"
                    break
                if tag.startswith("I-") and before[1:] != tag[1:]:
                    more = "correct it, or set task.repair true to read it as B-"
                    yield f"{place}, word {position}: '{tag}' after '{before}' continues no entity; {more}"
                    break

    def token_lengths(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Mapping[str, np.ndarray]:
        """Count the tokens of each row before it is split into parts, special tokens included."""
        special = tokenizer.num_special_tokens_to_add(False)
        return {"max_length": np.array([sum(counts) + special for counts in self._count_word_tokens(rows, tokenizer)])}

    def count_cut_entities(
        self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, targets: Sequence[Any]
    ) -> tuple[int, int]:
        """Count the entities that no single part contains, and all entities."""
        budget = self.max_length - tokenizer.num_special_tokens_to_add(False)
        cut = total = 0
        for counts, tags in zip(self._count_word_tokens(rows, tokenizer), targets, strict=True):
            held = [(first, end) for first, end, _, _ in split_into_parts(counts, budget, self.stride)]
            for _, begin, last in find_entities(tags):
                total += 1
                whole = any(first <= begin and last < end and sum(counts[first:end]) <= budget for first, end in held)
                cut += not whole or not all(counts[begin : last + 1])
        return cut, total

    def _count_word_tokens(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """Count the tokens of each word, one list per row."""
        rows = [list(words) for words in dataset[self.tokens]]
        encoded = tokenizer(rows, is_split_into_words=True, add_special_tokens=False, verbose=False)
        found = []
        for row, words in enumerate(rows):
            places = [place for place in encoded.word_ids(row) if place is not None]
            found.append(np.bincount(np.array(places, dtype=int), minlength=len(words)).tolist())
        return found

    def encode(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str] | None) -> Dataset:
        """Return token ids of every part; with `labels` the tag id on the first token of each word, else -100.

        Column `document` is the row of a part. Column `words` has one entry per token: the number of the word that
        starts there, or -1 if no word starts there or another part predicts the word.
        """
        encoded = self._encode_parts(rows, tokenizer)
        if labels is None:
            return encoded
        ids = {name: index for index, name in enumerate(labels)}
        targets = self.targets(rows, labels)
        tagged = [
            [IGNORED if word == NO_WORD else ids[targets[document][word]] for word in words]
            for document, words in zip(encoded["document"], encoded["words"], strict=True)
        ]
        return encoded.add_column("labels", tagged)

    def _encode_parts(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        special = tokenizer.num_special_tokens_to_add(False)
        columns: dict[str, list[Any]] = {"document": [], "words": []}
        for document, (words, counts) in enumerate(
            zip(dataset[self.tokens], self._count_word_tokens(dataset, tokenizer), strict=True)
        ):
            for first, end, own_first, own_end in split_into_parts(counts, self.max_length - special, self.stride):
                encoded = tokenizer(
                    words[first:end], is_split_into_words=True, truncation=True, max_length=self.max_length
                )
                starts: list[int] = []
                seen = None
                for place in encoded.word_ids():
                    word = NO_WORD if place is None or place == seen else first + place
                    starts.append(word if own_first <= word < own_end else NO_WORD)
                    seen = place
                columns["document"].append(document)
                columns["words"].append(starts)
                for name, values in encoded.items():
                    columns.setdefault(name, []).append(values)
        return Dataset.from_dict(columns)

    def collator(self, tokenizer: PreTrainedTokenizerBase, model: Any) -> Callable[[list[Any]], Any]:
        """Return a collator that pads tokens and tags to the longest part."""
        pad = DataCollatorForTokenClassification(tokenizer)

        def collate(rows: list[Any]) -> Any:
            return pad([{name: row[name] for name in row if name not in ("document", "words")} for row in rows])

        return collate

    def postprocess(self, logits: torch.Tensor, *, detail: bool = False) -> torch.Tensor:
        """Return the best tag id per token, (parts, tokens); with `detail` also the probability, (..., 2)."""
        if not detail:
            return logits.argmax(-1)
        probabilities, ids = logits.float().softmax(-1).max(-1)
        return torch.stack([ids.float(), probabilities], -1)

    def decode(self, split: EncodedSplit, *, detail: bool = False) -> list[Mapping[str, Any]]:
        """Return `tags` and `entities` with first and last word of each row; a word without a token is `O`.

        With `detail` an entity has a `score`, the mean probability of the tags of its words, and `start` and `end`:
        character positions in the input text, or in the words joined by spaces.
        """
        rows = list(split.rows[self.tokens])
        ids = split.outputs[..., 0].astype(int) if detail else split.outputs
        tags = [[OUTSIDE] * len(words) for words in rows]
        for found, document, words in zip(ids, split.encoded["document"], split.encoded["words"], strict=True):
            for place, word in enumerate(words):
                if word != NO_WORD:
                    tags[document][word] = split.labels[found[place]]
        predictions: list[Mapping[str, Any]] = [
            {
                "tags": found,
                "entities": [
                    {"type": kind, "first_word": first, "last_word": last, "text": " ".join(words[first : last + 1])}
                    for kind, first, last in find_entities(found)
                ],
            }
            for found, words in zip(tags, rows, strict=True)
        ]
        if detail:
            self._add_positions(predictions, split)
        return predictions

    def _add_positions(self, predictions: Sequence[Mapping[str, Any]], split: EncodedSplit) -> None:
        scores = [[1.0] * len(words) for words in split.rows[self.tokens]]
        for part, document, words in zip(split.outputs, split.encoded["document"], split.encoded["words"], strict=True):
            for place, word in enumerate(words):
                if word != NO_WORD:
                    scores[document][word] = float(part[place, 1])
        texts = split.rows[INPUT_TEXT] if INPUT_TEXT in split.rows.column_names else [None] * len(split.rows)
        for prediction, words, text, found in zip(predictions, split.rows[self.tokens], texts, scores, strict=True):
            spans = find_joined_spans(words) if text is None else find_word_spans(text)
            text = " ".join(words) if text is None else text
            for entity in prediction["entities"]:
                entity |= locate_entity(entity["first_word"], entity["last_word"], text, spans, found)

    def targets(self, rows: Dataset, labels: Sequence[str]) -> list[Any]:
        """Return the tags of each row."""
        return [repair_tags(tags or []) if self.repair else tags for tags in self._read_tag_names(rows)]


def _is_bio(tag: str) -> bool:
    return tag == OUTSIDE or (tag[:2] in ("B-", "I-") and len(tag) > 2)


def _match_tagger(config: Any, length: int) -> Mapping[str, Any] | None:
    is_tagger = (config.architectures or [""])[0].endswith("ForTokenClassification")
    return {"max_length": length, "stride": length // 4} if is_tagger else None


def _require_prefix_space(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, Any]:
    # A byte-level tokenizer must encode every word as if it follows a space.
    is_byte_level = "ByteLevel" in str(getattr(tokenizer.backend_tokenizer, "pre_tokenizer", ""))
    return {"add_prefix_space": True} if is_byte_level else {}
