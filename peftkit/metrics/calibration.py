"""Calibration: expected calibration error and temperature scaling."""

from collections.abc import Sequence

import numpy as np

BINS = 15
COLDEST, HOTTEST = 0.1, 10.0


def compute_calibration_error(confidences: Sequence[float], right: Sequence[bool]) -> float:
    """Compute the mean gap between confidence and accuracy over 15 bins of equal width.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 2, equation 3. `confidences` are the
    probabilities of the predicted classes, from 0 to 1.
    """
    from sklearn.calibration import calibration_curve

    accuracies, means = calibration_curve(np.asarray(right, dtype=int), confidences, n_bins=BINS)
    # `calibration_curve` omits empty bins; its bin edges are the same as here.
    places = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidences)
    counts = np.bincount(places, minlength=BINS)
    return float(np.sum(counts[counts > 0] * np.abs(accuracies - means)) / len(confidences))


def fit_temperature(logits: np.ndarray, right: np.ndarray) -> float:
    """Fit the temperature, from 0.1 to 10, that maximizes the likelihood (Guo et al., section 4.2).

    `logits` has the shape (rows, classes); `right` is the index of each row's reference class. Returns 1 without rows.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    if not len(right):
        return 1.0
    rows = np.arange(len(right))

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(logits / np.exp(log_temperature), axis=-1)[rows, right].mean())

    found = minimize_scalar(loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded")
    return round(float(np.exp(found.x)), 4) if found.fun < loss(0.0) else 1.0
