"""Generated text beside what people wrote: ROUGE, BLEU, chrF, exact match."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import evaluate
import numpy as np
from datasets import Features, List, Value
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU, CHRF

from peftkit.metrics.base import Metric, Predictions, Targets
from peftkit.metrics.bootstrap import RESAMPLES, Statistic

# How BLEU, and ROUGE with it, cut text into words; by sacrebleu's names.
TOKENIZERS = ("13a", "intl", "zh", "char", "none")
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


class _Words:
    """One of sacrebleu's tokenizers, in the form that rouge-score asks for."""

    def __init__(self, tokenize: str) -> None:
        self.words = BLEU(tokenize=tokenize).tokenizer

    def tokenize(self, text: str) -> list[str]:
        return self.words(text.lower()).split()


@lru_cache
def _scorer(tokenize: str) -> rouge_scorer.RougeScorer:
    # For "13a" rouge-score's own: letters and digits of ASCII, as published ROUGE has it; it sees no Chinese at all.
    return rouge_scorer.RougeScorer(list(ROUGE), tokenizer=None if tokenize == "13a" else _Words(tokenize))


def _rouge(predictions: Sequence[str], references: Sequence[Sequence[str]], tokenize: str) -> np.ndarray:
    """F-measures of shape (rows, 4): with several references the best one counts."""
    scorer = _scorer(tokenize)
    rows = (scorer.score_multi(list(right), said) for said, right in zip(predictions, references, strict=True))
    return np.array([[row[kind].fmeasure for kind in ROUGE] for row in rows])


def _streams(references: Sequence[Sequence[str]]) -> Any:
    """References as sacrebleu has them: the first of every row, the second of every row, and so on."""
    most = max(map(len, references))
    return [[row[place] if place < len(row) else None for row in references] for place in range(most)]


class TextScores(evaluate.Metric):
    """ROUGE F-measures of 0 to 1 (rouge-score, no stemmer), BLEU and chrF2 of 0 to 100 (sacrebleu), exact match.

    `tokenize` is sacrebleu's name of the tokenizer; ROUGE uses it too, unless it is `13a`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="ROUGE-1, ROUGE-2, ROUGE-L, ROUGE-Lsum, BLEU, chrF2 and exact match",
            citation="Lin 2004 (ROUGE); Papineni et al. 2002 (BLEU); Popovic 2015 (chrF); Post 2018 (sacrebleu)",
            inputs_description="predictions: a text a row; references: one or more texts a row",
            features=Features({"predictions": Value("string"), "references": List(Value("string"))}),
        )

    def _compute(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]], tokenize: str = "13a"
    ) -> dict[str, float]:
        means = _rouge(predictions, references, tokenize).mean(0)
        streams = _streams(references)
        exact = [
            said.strip() in {one.strip() for one in right} for said, right in zip(predictions, references, strict=True)
        ]
        return {
            **dict(zip(ROUGE, map(float, means), strict=True)),
            "bleu": float(BLEU(tokenize=tokenize).corpus_score(list(predictions), streams).score),
            "chrf": float(CHRF().corpus_score(list(predictions), streams).score),
            "exact_match": float(np.mean(exact)),
        }


def text_metrics(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str = "13a"
) -> dict[str, float]:
    """`rouge1`, `rouge2`, `rougeL`, `rougeLsum`, `bleu`, `chrf` and `exact_match` of texts, one a row."""
    return TextScores().compute(predictions=predictions, references=references, tokenize=tokenize)


def text_statistics(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str = "13a"
) -> dict[str, Statistic]:
    """`rougeL` of drawn rows."""
    longest = _rouge(predictions, references, tokenize)[:, ROUGE.index("rougeL")]
    return {"rougeL": lambda rows: float(longest[rows].mean())}


def bleu_interval(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenize: str = "13a",
    n_resamples: int = RESAMPLES,
) -> list[float]:
    """95 % bootstrap interval of BLEU over rows: no mean over rows, so sacrebleu resamples its counts (Koehn 2004)."""
    bleu = BLEU(tokenize=tokenize).corpus_score(list(predictions), _streams(references), n_bootstrap=n_resamples)
    return [float(bleu._mean - bleu._ci), float(bleu._mean + bleu._ci)]


@lru_cache
def generation_metrics(tokenize: str) -> tuple[Metric, ...]:
    """Return the metrics of generated text whose words are separated by one of sacrebleu's tokenizers."""

    def score(predictions: Predictions, targets: Targets) -> dict[str, float]:
        return text_metrics([prediction["text"] for prediction in predictions], targets, tokenize=tokenize)

    def statistics(predictions: Predictions, targets: Targets) -> dict[str, Statistic]:
        return text_statistics([prediction["text"] for prediction in predictions], targets, tokenize=tokenize)

    def interval(predictions: Predictions, targets: Targets) -> list[float]:
        return bleu_interval([prediction["text"] for prediction in predictions], targets, tokenize=tokenize)

    return (
        Metric(name="rouge1", title="ROUGE-1", function=score),
        Metric(name="rouge2", title="ROUGE-2", function=score),
        Metric(name="rougeL", title="ROUGE-L", function=score, statistic=statistics),
        Metric(name="rougeLsum", title="ROUGE-Lsum", function=score),
        Metric(name="bleu", title="BLEU", bounds=(0.0, 100.0), function=score, interval=interval),
        Metric(name="chrf", title="chrF", bounds=(0.0, 100.0), function=score),
        Metric(name="exact_match", function=score),
    )
