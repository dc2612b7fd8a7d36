from itertools import pairwise

import numpy as np
import pytest
from scipy.special import softmax

from peftkit import SequenceClassification
from peftkit.metrics.calibration import compute_calibration_error, fit_temperature
from peftkit.tasks import collect_settings
from tests.tasks.encoded import encoded_split


def test_the_error_is_the_gap_of_each_bin_by_its_rows():
    # Ten answers at 0.95 of which nine are right, ten at 0.65 of which three are: gaps of 0.05 and 0.35.
    confidences = [0.95] * 10 + [0.65] * 10
    right = [True] * 9 + [False] + [True] * 3 + [False] * 7
    assert compute_calibration_error(confidences, right) == pytest.approx((0.05 + 0.35) / 2)
    assert compute_calibration_error([1.0, 1.0], [True, True]) == 0.0
    assert compute_calibration_error([1.0, 0.0], [False, False]) == pytest.approx(0.5)


def test_it_is_the_sum_over_bins_that_the_paper_writes():
    random = np.random.default_rng(0)
    confidences = random.uniform(0.2, 1.0, 500)
    right = random.uniform(size=500) < confidences**2
    found, edges = 0.0, np.linspace(0, 1, 16)
    for low, high in pairwise(edges):
        mine = (confidences > low) & (confidences <= high)
        if mine.any():
            found += mine.mean() * abs(right[mine].mean() - confidences[mine].mean())
    assert compute_calibration_error(confidences, right) == pytest.approx(found)


def test_the_temperature_undoes_what_made_the_logits_too_sure():
    random = np.random.default_rng(1)
    logits = random.normal(size=(20_000, 4)) * 1.5
    right = np.array([random.choice(4, p=row) for row in softmax(logits, axis=-1)])
    assert fit_temperature(logits, right) == pytest.approx(1.0, abs=0.05)
    assert fit_temperature(logits * 3, right) == pytest.approx(3.0, abs=0.15)
    assert fit_temperature(np.zeros((0, 4)), np.zeros(0, dtype=int)) == 1.0


def test_the_task_takes_it_from_validation_and_puts_it_into_what_it_says():
    random = np.random.default_rng(2)
    logits = (random.normal(size=(3000, 3)) * 1.5).astype(np.float32)
    right = np.array([random.choice(3, p=row / row.sum()) for row in softmax(logits.astype(float), axis=-1)])
    labels = ("a", "b", "c")
    task = SequenceClassification().calibrate(encoded_split(logits * 2, labels, encoded={"labels": right.tolist()}))
    assert task.temperature == pytest.approx(2.0, abs=0.15)
    assert collect_settings(task) == {"calibration_temperature": task.temperature}
    references = [labels[place] for place in right]
    errors = [
        one.metrics.compute(one.decode(encoded_split(logits * 2, labels)), references)["ece"]
        for one in (SequenceClassification(), task)
    ]
    assert errors[1] < errors[0] / 3
    given = SequenceClassification(temperature=5.0)
    assert given.calibrate(encoded_split(logits, labels, encoded={"labels": right.tolist()})).temperature == 5.0


def test_of_many_labels_the_largest_logits_are_kept():
    import torch

    logits = torch.randn(5, 300)
    kept = SequenceClassification().postprocess(logits).numpy()
    assert kept.shape == (5, 64, 2)
    labels = tuple(f"label {place}" for place in range(300))
    said = [row["label"] for row in SequenceClassification().decode(encoded_split(kept, labels))]
    assert said == [labels[place] for place in logits.argmax(-1)]
