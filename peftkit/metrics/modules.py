"""Compute scores in an `evaluate` module, which checks and casts its inputs and needs no network."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

# Type of a prediction or a reference: a string, a list of strings, or a number.
Kind = Literal["string", "strings", "number"]


def compute_by_module(
    score: Callable[..., dict[str, float]],
    predictions: Sequence[Any],
    references: Sequence[Any],
    *,
    kinds: tuple[Kind, Kind],
    citation: str,
    **options: Any,
) -> dict[str, float]:
    """Compute the scores of `score(predictions, references, **options)` as an `evaluate` module.

    `kinds` are the types of a prediction and of a reference. The docstring of `score` describes the module.
    """
    import evaluate
    from datasets import Features, List, Value

    features = {"string": Value("string"), "strings": List(Value("string")), "number": Value("float64")}

    class Module(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description=score.__doc__,
                citation=citation,
                inputs_description="predictions and references: one per row",
                features=Features({"predictions": features[kinds[0]], "references": features[kinds[1]]}),
            )

        def _compute(self, predictions: Sequence[Any], references: Sequence[Any], **options: Any) -> dict[str, float]:
            return score(predictions, references, **options)

    return Module().compute(predictions=predictions, references=references, **options)
