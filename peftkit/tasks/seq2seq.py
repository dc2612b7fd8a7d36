"""A text becomes another text: summarization, translation, data to text."""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from peftkit.errors import UserError
from peftkit.metrics.bootstrap import Statistic
from peftkit.metrics.generation import TOKENIZERS, bleu_interval, text_metrics, text_statistics
from peftkit.tasks.default import IGNORED, PlainTask, at, blank_text, text_problems
from peftkit.tasks.token_loss import Seq2SeqTokenTrainer

# Logits of a whole vocabulary are large: of a held-out batch so many rows are kept, and numbers in all.
HELD_OUT_ROWS = 4
HELD_OUT_NUMBERS = 2_000_000
# Keywords of generation that the library does not check before it generates.
COUNTS = {
    "num_beams", "num_return_sequences", "max_new_tokens", "min_new_tokens", "max_length", "min_length", "top_k",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
}  # fmt: skip
LIMITS = {"max_new_tokens", "max_length"}
ONE_TEXT_A_ROW = {"num_return_sequences": 1, "return_dict_in_generate": False}


@dataclass(frozen=True, kw_only=True)
class Seq2Seq(PlainTask):
    """A target text for a source text, by an encoder-decoder; scored on what it generates.

    Args:
        source: Column of the source text.
        target: Column of the target text.
        references_column: Column with all right targets of a row, a list; they count in scores, not in training.
            Where the list is empty, or train has no such column, the target counts.
        source_prefix: What stands before every source text, such as `summarize: ` for T5.
        max_source_length: Tokens kept of a source; memory of activations grows with it.
        max_target_length: Tokens kept of a target in training, and the most that are generated.
        generation: Keywords of `transformers.GenerationConfig`, such as num_beams or no_repeat_ngram_size.
        tokenize: How BLEU and ROUGE cut text into words, by sacrebleu's names: 13a, intl, zh (Chinese), char, none.
            With 13a, ROUGE uses its own, which knows letters and digits of ASCII.
    """

    source: str = "source"
    target: str = "target"
    references_column: str | None = None
    source_prefix: str = ""
    max_source_length: int = 256
    max_target_length: int = 64
    generation: dict[str, Any] = field(default_factory=dict)
    tokenize: str = "13a"

    auto_model: ClassVar[Any] = AutoModelForSeq2SeqLM
    task_type: ClassVar[str] = "SEQ_2_SEQ_LM"
    trainer_class: ClassVar[type[Trainer]] = Seq2SeqTokenTrainer
    arguments_class: ClassVar[type[TrainingArguments]] = Seq2SeqTrainingArguments
    arguments: ClassVar[Mapping[str, Any]] = {"predict_with_generate": True}
    input_fields: ClassVar[tuple[str, ...]] = ("source",)
    length_fields: ClassVar[tuple[str, ...]] = ("max_source_length", "max_target_length")
    column_fields: ClassVar[tuple[str, ...]] = ("source", "target", "references_column")
    main_metrics: ClassVar[tuple[str, ...]] = ("rougeL", "bleu")
    label_smoothing: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.tokenize not in TOKENIZERS:
            raise UserError(f"task.tokenize: '{self.tokenize}' is none of {', '.join(TOKENIZERS)}")
        known = set(GenerationConfig().to_dict())
        for name in self.generation:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                raise UserError(f"task.generation: '{name}' is no keyword of GenerationConfig{hint}")
        for name in COUNTS & set(self.generation):
            if type(self.generation[name]) is not int:
                raise UserError(f"task.generation: {name}: '{self.generation[name]}' is not a whole number")
        for name, needed in ONE_TEXT_A_ROW.items():
            if self.generation.get(name, needed) != needed:
                raise UserError(f"task.generation: {name}: must be {needed}, one text a row; leave it out")
        try:
            _validated(GenerationConfig(**self._generation()))
        except TypeError as error:
            raise UserError(f"task.generation: {error}") from error

    def _generation(self) -> dict[str, Any]:
        # Both limits at once would make the library guess which one is meant.
        limit = {} if "max_length" in self.generation else {"max_new_tokens": self.max_target_length}
        return {**limit, **self.generation}

    @classmethod
    def of_model(cls, config: Any, length: int) -> "Seq2Seq | None":
        """For an encoder-decoder that was trained elsewhere."""
        kind = (config.architectures or [""])[0]
        return None if kind.endswith("Classification") else cls(max_source_length=length)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The column of the source."""
        return (self.source,)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that training data must have."""
        return (self.source, self.target)

    @property
    def scored_columns(self) -> tuple[str, ...]:
        """The column of all right targets."""
        return () if self.references_column is None else (self.references_column,)

    def find_labels(self, train: Dataset) -> tuple[str, ...]:
        """A text has no labels."""
        return ()

    def problems(self, dataset: Dataset, labels: Sequence[str], where: str) -> Iterator[str]:
        """A line for each row without a source or a target."""
        yield from self.input_problems(dataset, where)
        yield from text_problems(dataset, self.target, where)
        if self.references_column is not None and self.references_column in dataset.column_names:
            for row, right in enumerate(dataset[self.references_column]):
                if right is not None and not (isinstance(right, list) and all(isinstance(one, str) for one in right)):
                    yield f"{at(where, row, self.references_column)}: not a list of texts; correct it or remove the row"

    def input_problems(self, dataset: Dataset, where: str, first: int = 0) -> Iterator[str]:
        """A line for each row whose source is missing, empty or no text."""
        return text_problems(dataset, self.source, where, first)

    def texts(self, dataset: Dataset) -> list[str]:
        """The source."""
        return list(dataset[self.source])

    def class_counts(self, references: Sequence[Any]) -> Mapping[str, int]:
        """A text has no classes."""
        return {}

    def lengths(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Mapping[str, np.ndarray]:
        """Tokens of each source, prefix included, and of each target, before anything is cut."""
        sources = tokenizer([self.source_prefix + text for text in dataset[self.source]], verbose=False)["input_ids"]
        found = {"max_source_length": np.array([len(row) for row in sources])}
        if self.target in dataset.column_names:
            targets = tokenizer(text_target=list(dataset[self.target]), verbose=False)["input_ids"]
            found["max_target_length"] = np.array([len(row) for row in targets])
        return found

    def blank_batch(self, rows: int, classes: int) -> dict[str, torch.Tensor]:
        """Sources and targets of the full length."""
        labels = torch.zeros(rows, self.max_target_length, dtype=torch.long)
        return {**blank_text(rows, self.max_source_length), "labels": labels}

    def model_config(self, labels: Sequence[str]) -> Mapping[str, Any]:
        """The checkpoint's own head is used."""
        return {}

    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """The same pad token in config and tokenizer, and the recipe's generation settings."""
        model.config.pad_token_id = tokenizer.pad_token_id
        settings: Any = model.generation_config
        settings.pad_token_id = tokenizer.pad_token_id
        if "max_length" in self.generation:
            settings.max_new_tokens = None
        settings.update(**self._generation())
        _validated(settings)
        limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        asked = {"max_target_length": self.max_target_length}
        asked |= {f"generation.{name}": self.generation[name] for name in LIMITS & set(self.generation)}
        for name, length in asked.items():
            if limit is not None and length > limit:
                raise UserError(f"task.{name}: {length} is more than the {limit} positions of the decoder")

    def encode(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> Dataset:
        """Token ids of source and target, a row each."""
        targets = tokenizer(text_target=list(dataset[self.target]), truncation=True, max_length=self.max_target_length)[
            "input_ids"
        ]
        return self.encode_inputs(dataset, tokenizer).add_column("labels", targets)

    def encode_inputs(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        """Token ids of the source with its prefix, a row each."""
        return dataset.map(
            lambda batch: dict(
                tokenizer(
                    [self.source_prefix + text for text in batch[self.source]],
                    truncation=True,
                    max_length=self.max_source_length,
                    # A vocabulary of BERT's gives them; no encoder-decoder reads them.
                    return_token_type_ids=False,
                )
            ),
            batched=True,
            remove_columns=dataset.column_names,
            keep_in_memory=True,
        )

    def collator(self, tokenizer: PreTrainedTokenizerBase, model: Any) -> Callable[[list[Any]], Any]:
        """Pads sources with the pad token and targets with -100, and shifts targets for the decoder."""
        return DataCollatorForSeq2Seq(tokenizer, model=model, label_pad_token_id=IGNORED)

    def held_out(self, batch: Mapping[str, torch.Tensor], config: Any) -> Mapping[str, torch.Tensor]:
        """A few rows, with as many tokens of the target as keep the logits of a large vocabulary small."""
        vocabulary = config.get_text_config(decoder=True).vocab_size
        tokens = max(1, HELD_OUT_NUMBERS // (HELD_OUT_ROWS * vocabulary))
        return {
            name: tensor[:HELD_OUT_ROWS, :tokens] if name.startswith("decoder_") else tensor[:HELD_OUT_ROWS]
            for name, tensor in batch.items()
        }

    def reduce(self, logits: torch.Tensor) -> torch.Tensor:
        """The generated token ids, which is what evaluation hands over here."""
        return logits

    def decode(
        self,
        kept: np.ndarray,
        encoded: Dataset,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str],
    ) -> list[Mapping[str, Any]]:
        """`text` of each row."""
        ids = np.where(kept == IGNORED, tokenizer.pad_token_id, kept)
        return [{"text": text.strip()} for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def infer(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Generated token ids, of shape (rows, tokens)."""
        return model.generate(**batch)

    def references(self, dataset: Dataset, labels: Sequence[str]) -> list[Any]:
        """The right texts of each row, whole: never what is left of them after tokens were cut."""
        if self.references_column not in dataset.column_names:
            return [[right] for right in dataset[self.target]]
        several = zip(dataset[self.references_column], dataset[self.target], strict=True)
        return [list(right) if right else [target] for right, target in several]

    def score(self, answers: Sequence[Mapping[str, Any]], references: Sequence[Any]) -> dict[str, float]:
        """ROUGE, BLEU, chrF and exact match."""
        return text_metrics([answer["text"] for answer in answers], references, tokenize=self.tokenize)

    def statistics(self, answers: Sequence[Mapping[str, Any]], references: Sequence[Any]) -> Mapping[str, Statistic]:
        """ROUGE-L of drawn rows."""
        return text_statistics([answer["text"] for answer in answers], references, tokenize=self.tokenize)

    def intervals(self, answers: Sequence[Mapping[str, Any]], references: Sequence[Any]) -> dict[str, list[float]]:
        """95 % bootstrap intervals of ROUGE-L and BLEU over rows."""
        texts = [answer["text"] for answer in answers]
        bleu = bleu_interval(texts, references, tokenize=self.tokenize)
        return {**super().intervals(answers, references), "bleu_ci95": bleu}

    def said(self, answer: Mapping[str, Any]) -> str:
        """The text."""
        return answer["text"]

    def said_right(self, reference: Any) -> str:
        """The right texts."""
        return " | ".join(reference)

    def is_right(self, answer: Mapping[str, Any], reference: Any) -> bool:
        """Whether it is one of the right texts."""
        return answer["text"].strip() in {text.strip() for text in reference}


def _validated(settings: GenerationConfig) -> None:
    """Raise UserError for settings that contradict each other: the library would refuse to save them after training."""
    try:
        settings.validate(strict=True)
    except ValueError as error:
        raise UserError(f"task.generation: {' '.join(str(error).split())[:400]}") from error
