"""The threshold of a label that scores best by F1."""

import numpy as np

# Outside of these a threshold would predict a rare label in every row, or never.
LOWEST, HIGHEST = 0.05, 0.95


def find_best_threshold(probabilities: np.ndarray, right: np.ndarray, positives: int, rows: int) -> float:
    """Find the threshold with the best F1, of equals the middle one; `positives` of all `rows` have the label.

    `right` tells which of the given probabilities belong to rows with the label. The result is 0.5 where none does, or
    where no threshold beats predicting the label in every row.
    """
    if not right.any():
        return 0.5
    probabilities = probabilities.astype(np.float64)
    order = np.argsort(-probabilities, kind="stable")
    sorted_p = probabilities[order]
    hits = np.cumsum(right[order])
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + positives)
    # Predicting the first k rows needs a threshold between the k-th probability and the next, if they differ.
    below = np.append(sorted_p[1:], 0.0)
    candidates = (sorted_p + below) / 2
    allowed = (sorted_p > below) & (candidates >= LOWEST) & (candidates <= HIGHEST)
    if not allowed.any() or f1[allowed].max() <= 2 * positives / (rows + positives):
        return 0.5
    best = np.flatnonzero(allowed & (f1 >= f1[allowed].max()))
    return round(float(candidates[best[len(best) // 2]]), 6)
