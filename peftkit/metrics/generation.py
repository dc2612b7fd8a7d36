"""Metrics of generated text: ROUGE, BLEU, chrF, exact match."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from peftkit.metrics.base import Metric, Predictions, Targets
from peftkit.metrics.bootstrap import RESAMPLES, Statistic
from peftkit.metrics.modules import compute_by_module

PAPERS = "Lin 2004 (ROUGE); Papineni et al. 2002 (BLEU); Popovic 2015 (chrF); Post 2018 (sacrebleu)"


# Names of the sacrebleu tokenizers that split text into words for BLEU and ROUGE.
TOKENIZERS = ("13a", "intl", "zh", "char", "none")
BY_ROUGE = "shared with the best reference, mean over rows (rouge-score)"
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


class _SacrebleuTokenizer:
    """One of sacrebleu's tokenizers with the interface of rouge-score."""

    def __init__(self, tokenize: str) -> None:
        from sacrebleu.metrics import BLEU

        self.words = BLEU(tokenize=tokenize).tokenizer

    def tokenize(self, text: str) -> list[str]:
        return self.words(text.lower()).split()


@lru_cache
def _make_rouge_scorer(tokenize: str) -> Any:
    from rouge_score import rouge_scorer

    # "13a" means rouge-score's default tokenizer, ASCII letters and digits, as in published ROUGE.
    return rouge_scorer.RougeScorer(list(ROUGE), tokenizer=None if tokenize == "13a" else _SacrebleuTokenizer(tokenize))


def _compute_rouge(predictions: Sequence[str], references: Sequence[Sequence[str]], tokenize: str) -> np.ndarray:
    """Compute F-measures of shape (rows, 4); with several references the best one counts."""
    scorer = _make_rouge_scorer(tokenize)
    rows = (scorer.score_multi(list(reference), text) for text, reference in zip(predictions, references, strict=True))
    return np.array([[row[kind].fmeasure for kind in ROUGE] for row in rows])


def _transpose_references(references: Sequence[Sequence[str]]) -> Any:
    """Transpose references to sacrebleu's layout: the first of every row, the second of every row, ..."""
    most = max(map(len, references))
    return [[row[place] if place < len(row) else None for row in references] for place in range(most)]


def _compute_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str = "13a"
) -> dict[str, float]:
    """Compute ROUGE F-measures of 0 to 1, BLEU and chrF2 of 0 to 100, and exact match of one text per row."""
    from sacrebleu.metrics import BLEU, CHRF

    means = _compute_rouge(predictions, references, tokenize).mean(0)
    streams = _transpose_references(references)
    exact = [
        text.strip() in {one.strip() for one in reference}
        for text, reference in zip(predictions, references, strict=True)
    ]
    return {
        **dict(zip(ROUGE, map(float, means), strict=True)),
        "bleu": float(BLEU(tokenize=tokenize).corpus_score(list(predictions), streams).score),
        "chrf": float(CHRF().corpus_score(list(predictions), streams).score),
        "exact_match": float(np.mean(exact)),
    }


def score_texts(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str = "13a"
) -> dict[str, float]:
    """Compute ROUGE F-measures of 0 to 1, BLEU and chrF2 of 0 to 100, and exact match of one text per row.

    ROUGE is from rouge-score without stemmer, BLEU and chrF are from sacrebleu. `tokenize` is sacrebleu's name of the
    tokenizer. ROUGE uses the same tokenizer, except for `13a`.
    """
    return compute_by_module(
        _compute_scores, predictions, references, kinds=("string", "strings"), citation=PAPERS, tokenize=tokenize
    )


def make_text_statistics(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str = "13a"
) -> dict[str, Statistic]:
    """Return `rougeL` as a function of row numbers."""
    longest = _compute_rouge(predictions, references, tokenize)[:, ROUGE.index("rougeL")]
    return {"rougeL": lambda rows: float(longest[rows].mean())}


def compute_bleu_interval(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenize: str = "13a",
    n_resamples: int = RESAMPLES,
) -> list[float]:
    """Compute the 95 % interval of BLEU by resampling of counts in sacrebleu (Koehn 2004)."""
    from sacrebleu.metrics import BLEU

    bleu = BLEU(tokenize=tokenize).corpus_score(
        list(predictions), _transpose_references(references), n_bootstrap=n_resamples
    )
    return [float(bleu._mean - bleu._ci), float(bleu._mean + bleu._ci)]


@lru_cache
def make_generation_metrics(tokenize: str) -> tuple[Metric, ...]:
    """Return the metrics of generated text for one of sacrebleu's tokenizers."""

    def score(predictions: Predictions, targets: Targets) -> dict[str, float]:
        return score_texts([prediction["text"] for prediction in predictions], targets, tokenize=tokenize)

    def statistics(predictions: Predictions, targets: Targets) -> dict[str, Statistic]:
        return make_text_statistics([prediction["text"] for prediction in predictions], targets, tokenize=tokenize)

    def interval(predictions: Predictions, targets: Targets) -> list[float]:
        return compute_bleu_interval([prediction["text"] for prediction in predictions], targets, tokenize=tokenize)

    return (
        Metric(name="rouge1", title="ROUGE-1", function=score, description=f"F-measure of words {BY_ROUGE}."),
        Metric(name="rouge2", title="ROUGE-2", function=score, description=f"F-measure of pairs of words {BY_ROUGE}."),
        Metric(
            name="rougeL", title="ROUGE-L", function=score, statistic=statistics,
            description=f"F-measure of the longest common subsequence of words {BY_ROUGE}.",
        ),
        Metric(
            name="rougeLsum", title="ROUGE-Lsum", function=score,
            description=f"F-measure of the longest common subsequences of lines {BY_ROUGE}.",
        ),
        Metric(
            name="bleu", title="BLEU", bounds=(0.0, 100.0), function=score, interval=interval,
            description="Precision of sequences of 1 to 4 words with a penalty for short texts (sacrebleu).",
        ),
        Metric(
            name="chrf", title="chrF", bounds=(0.0, 100.0), function=score,
            description="F2 of sequences of 1 to 6 characters in all rows (sacrebleu).",
        ),
        Metric(
            name="exact_match", function=score,
            description="Share of rows whose text equals a reference, without spaces at the ends.",
        ),
    )  # fmt: skip
