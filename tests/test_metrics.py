import numpy as np
import pytest

from peftkit.metrics import classification_intervals, classification_metrics


def test_the_published_example_of_macro_f1():
    # scikit-learn's documentation of f1_score: macro F1 of these is 0.26...
    found = classification_metrics(np.array([0, 2, 1, 0, 0, 1]), np.array([0, 1, 2, 0, 1, 2]))
    assert found["f1_macro"] == pytest.approx(0.26666667)
    assert found["accuracy"] == pytest.approx(2 / 6)


def test_an_interval_covers_the_score_and_narrows_with_rows():
    rng = np.random.default_rng(0)
    widths = []
    for rows in (50, 800):
        right = rng.integers(0, 3, rows)
        predicted = np.where(rng.random(rows) < 0.8, right, (right + 1) % 3)
        score = classification_metrics(predicted, right)
        found = classification_intervals(predicted, right, n_resamples=300)
        for name in ("accuracy", "f1_macro"):
            low, high = found[f"{name}_ci95"]
            assert low < score[name] < high
        widths.append(found["accuracy_ci95"][1] - found["accuracy_ci95"][0])
    # The interval's width goes with one over the root of the rows: a quarter here.
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.4)


def test_an_interval_agrees_with_the_binomial():
    right = np.zeros(400, dtype=int)
    predicted = np.r_[np.zeros(300, dtype=int), np.ones(100, dtype=int)]
    low, high = classification_intervals(predicted, right)["accuracy_ci95"]
    error = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert (low, high) == pytest.approx((0.75 - error, 0.75 + error), abs=0.006)


def test_the_same_seed_gives_the_same_interval_and_a_perfect_score_has_none():
    right = np.array([0, 1, 0, 1, 1, 0])
    assert classification_intervals(right[::-1], right, seed=3) == classification_intervals(right[::-1], right, seed=3)
    assert classification_intervals(right, right)["accuracy_ci95"] == [1.0, 1.0]
