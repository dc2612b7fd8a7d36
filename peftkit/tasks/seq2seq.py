"""Task: generate a text from a text, as in summarization and translation."""

import difflib
import uuid
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
)

from peftkit.errors import UserError
from peftkit.metrics.base import MetricSet
from peftkit.metrics.generation import TOKENIZERS, make_generation_metrics
from peftkit.tasks.base import ColumnSpec, EncodedSplit, ModelSpec, OutputKind, TrainerSpec, set_pad_token
from peftkit.tasks.default import IGNORED, DefaultTask, find_text_problems, locate_cell
from peftkit.tasks.token_loss import Seq2SeqTokenTrainer

# Generation keywords whose type transformers checks only during generation.
COUNTS = {
    "num_beams", "num_return_sequences", "max_new_tokens", "min_new_tokens", "max_length", "min_length", "top_k",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
}  # fmt: skip
LIMITS = {"max_new_tokens", "max_length"}
ONE_TEXT_PER_ROW = {"num_return_sequences": 1, "return_dict_in_generate": False}


@dataclass(frozen=True, kw_only=True)
class Seq2Seq(DefaultTask):
    """A target text for a source text, with an encoder-decoder; metrics are computed on generated text.

    Args:
        source: Column of the source text.
        target: Column of the target text.
        references_column: Column with a list of all reference texts of a row, for metrics only. If the list is empty,
            or train lacks the column, the target is the reference.
        source_prefix: Text before every source, such as "summarize: " for T5.
        max_source_length: Maximum number of tokens of a source; activation memory grows with this length.
        max_target_length: Maximum number of tokens of a target in training and of a generated text.
        generation: Keywords of `transformers.GenerationConfig`, such as num_beams or no_repeat_ngram_size.
        tokenize: sacrebleu's tokenizer for BLEU and ROUGE: 13a, intl, zh (Chinese), char, none. With 13a ROUGE uses
            the default tokenizer of rouge-score, which reads ASCII letters and digits.
    """

    source: str = "source"
    target: str = "target"
    references_column: str | None = None
    source_prefix: str = ""
    max_source_length: int = 256
    max_target_length: int = 64
    generation: dict[str, Any] = field(default_factory=dict)
    tokenize: str = "13a"

    output_kind: ClassVar[OutputKind] = "text"
    trainer: ClassVar[TrainerSpec] = TrainerSpec(
        trainer_class=Seq2SeqTokenTrainer,
        arguments_class=Seq2SeqTrainingArguments,
        defaults={"predict_with_generate": True},
        supports_label_smoothing=True,
    )

    def __post_init__(self) -> None:
        if self.tokenize not in TOKENIZERS:
            raise UserError(f"task.tokenize: unknown tokenizer '{self.tokenize}'; use one of {', '.join(TOKENIZERS)}")
        super().__post_init__()
        known = set(GenerationConfig().to_dict())
        for name in self.generation:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                fix = f"use '{near[0]}'" if near else "remove it"
                raise UserError(f"task.generation: '{name}' is not a keyword of GenerationConfig; {fix}")
        for name in COUNTS & set(self.generation):
            if type(self.generation[name]) is not int:
                raise UserError(f"task.generation: {name}: expected an integer, got '{self.generation[name]}'")
        for name, needed in ONE_TEXT_PER_ROW.items():
            if self.generation.get(name, needed) != needed:
                raise UserError(f"task.generation: {name}: must be {needed} (one text per row); remove it")
        try:
            _check_generation(GenerationConfig(**self._build_generation_options()))
        except TypeError as error:
            raise UserError(f"task.generation: {error}") from error

    def _build_generation_options(self) -> dict[str, Any]:
        # Only one of the two limits: otherwise the result depends on the precedence in transformers.
        limit = {} if "max_length" in self.generation else {"max_new_tokens": self.max_target_length}
        return {**limit, **self.generation}

    @property
    def metrics(self) -> MetricSet:
        """ROUGE, BLEU, chrF, and exact match with any of the references."""
        return self.build_metrics(
            make_generation_metrics(self.tokenize),
            main=("rougeL", "bleu"),
            is_correct=lambda prediction, target: prediction["text"].strip() in {text.strip() for text in target},
        )

    @property
    def model(self) -> ModelSpec:
        """An encoder-decoder with the head of the checkpoint."""
        return ModelSpec(
            auto_class=AutoModelForSeq2SeqLM, peft_task_type="SEQ_2_SEQ_LM", match=_match_generator,
            configure=self._configure,
        )  # fmt: skip

    @property
    def columns(self) -> ColumnSpec:
        """The source and target texts, and the references of evaluation."""
        return ColumnSpec(
            inputs=(self.source,),
            targets=(self.target,),
            eval_only=() if self.references_column is None else (self.references_column,),
            fields=("source", "target", "references_column"),
            input_fields=("source",),
            max_lengths={"max_source_length": self.max_source_length, "max_target_length": self.max_target_length},
        )

    def find_labels(self, train: Dataset) -> tuple[str, ...]:
        """Return no labels."""
        return ()

    def validate(self, rows: Dataset, labels: Sequence[str] | None, where: str, first: int = 0) -> Iterator[str]:
        """Yield one line per row whose source, target or references are missing or not text."""
        yield from find_text_problems(rows, self.source, where, first)
        if labels is None:
            return
        yield from find_text_problems(rows, self.target, where)
        if self.references_column is not None and self.references_column in rows.column_names:
            for row, references in enumerate(rows[self.references_column]):
                if references is not None and not (
                    isinstance(references, list) and all(isinstance(one, str) for one in references)
                ):
                    location = locate_cell(where, row, self.references_column)
                    yield f"{location}: not a list of texts; correct it or remove the row"

    def token_lengths(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Mapping[str, np.ndarray]:
        """Count the tokens of each source, prefix included, and of each target before truncation."""
        sources = tokenizer([self.source_prefix + text for text in rows[self.source]], verbose=False)["input_ids"]
        found = {"max_source_length": np.array([len(row) for row in sources])}
        if self.target in rows.column_names:
            targets = tokenizer(text_target=list(rows[self.target]), verbose=False)["input_ids"]
            found["max_target_length"] = np.array([len(row) for row in targets])
        return found

    def _configure(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        set_pad_token(model, tokenizer)
        settings: Any = model.generation_config
        settings.pad_token_id = tokenizer.pad_token_id
        if "max_length" in self.generation:
            settings.max_new_tokens = None
        settings.update(**self._build_generation_options())
        _check_generation(settings)
        limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        lengths = {"max_target_length": self.max_target_length}
        lengths |= {f"generation.{name}": self.generation[name] for name in LIMITS & set(self.generation)}
        for name, length in lengths.items():
            if limit is not None and length > limit:
                raise UserError(f"task.{name}: the decoder has {limit} positions, got {length}; use at most {limit}")

    def encode(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str] | None) -> Dataset:
        """Return token ids of the source with its prefix; with `labels` also those of the target."""
        encoded = rows.map(
            lambda batch: dict(
                tokenizer(
                    [self.source_prefix + text for text in batch[self.source]],
                    truncation=True,
                    max_length=self.max_source_length,
                    # A BERT tokenizer returns token types, which no encoder-decoder reads.
                    return_token_type_ids=False,
                )
            ),
            batched=True,
            remove_columns=rows.column_names,
            keep_in_memory=True,
            # Nothing is cached; without a fingerprint the tokenizer would be pickled to compute one.
            new_fingerprint=uuid.uuid4().hex,
        )
        if labels is None:
            return encoded
        targets = tokenizer(text_target=list(rows[self.target]), truncation=True, max_length=self.max_target_length)
        return encoded.add_column("labels", targets["input_ids"])

    def collator(self, tokenizer: PreTrainedTokenizerBase, model: Any) -> Callable[[list[Any]], Any]:
        """Return a collator that pads sources and targets and shifts targets for the decoder."""
        return DataCollatorForSeq2Seq(tokenizer, model=model, label_pad_token_id=IGNORED)

    def postprocess(self, logits: torch.Tensor, *, detail: bool = False) -> torch.Tensor:
        """Return the generated token ids unchanged."""
        return logits

    def decode(self, split: EncodedSplit, *, detail: bool = False) -> list[Mapping[str, Any]]:
        """Return the generated `text` of each row."""
        ids = np.where(split.outputs == IGNORED, split.tokenizer.pad_token_id, split.outputs)
        return [{"text": text.strip()} for text in split.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def targets(self, rows: Dataset, labels: Sequence[str]) -> list[Any]:
        """Return the reference texts of each row, without truncation."""
        if self.references_column not in rows.column_names:
            return [[target] for target in rows[self.target]]
        several = zip(rows[self.references_column], rows[self.target], strict=True)
        return [list(references) if references else [target] for references, target in several]


def _check_generation(settings: GenerationConfig) -> None:
    """Raise UserError for contradictory settings, which transformers would refuse to save after training."""
    try:
        settings.validate(strict=True)
    except ValueError as error:
        raise UserError(f"task.generation: {' '.join(str(error).split())[:400]}") from error


def _match_generator(config: Any, length: int) -> Mapping[str, Any] | None:
    return None if (config.architectures or [""])[0].endswith("Classification") else {"max_source_length": length}
