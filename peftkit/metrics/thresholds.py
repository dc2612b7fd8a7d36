"""Decision threshold of a label with the best F1."""

import numpy as np

# A threshold outside of these limits could predict a rare label in every row, or in none.
LOWEST, HIGHEST = 0.05, 0.95


def find_best_threshold(probabilities: np.ndarray, has_label: np.ndarray, positives: int, rows: int) -> float:
    """Find the (middle) threshold with the best F1; `positives` of all `rows` have the label.

    `has_label` marks the probabilities of rows with the label. The result is 0.5 if no row has the label, or if no
    threshold is better than predicting the label in every row.
    """
    if not has_label.any():
        return 0.5
    probabilities = probabilities.astype(np.float64)
    order = np.argsort(-probabilities, kind="stable")
    sorted_p = probabilities[order]
    hits = np.cumsum(has_label[order])
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + positives)
    # Predicting the first k rows needs a threshold between the k-th probability and the next, if they differ.
    below = np.append(sorted_p[1:], 0.0)
    candidates = (sorted_p + below) / 2
    allowed = (sorted_p > below) & (candidates >= LOWEST) & (candidates <= HIGHEST)
    if not allowed.any() or f1[allowed].max() <= 2 * positives / (rows + positives):
        return 0.5
    best = np.flatnonzero(allowed & (f1 >= f1[allowed].max()))
    return round(float(candidates[best[len(best) // 2]]), 6)
