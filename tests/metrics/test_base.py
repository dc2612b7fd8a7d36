import math

import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef

import peftkit
from peftkit import Metric, MultiLabelClassification, SequenceClassification, SequenceRegression
from peftkit.errors import UserError
from peftkit.metrics import base
from peftkit.training.run import run


def score_matthews(predictions, targets):
    return float(matthews_corrcoef(targets, [prediction["label"] for prediction in predictions]))


MATTHEWS = Metric(name="matthews", function=score_matthews, bounds=(-1.0, 1.0), hub_name="matthews_correlation")


@pytest.fixture
def matthews(monkeypatch):
    monkeypatch.setattr(base, "_REGISTERED", {})
    peftkit.register_metric(MATTHEWS, task=SequenceClassification)


def test_a_registered_metric_is_in_the_report_and_can_be_the_main_one(matthews, small_recipe):
    report = run(small_recipe(task=SequenceClassification(max_length=32, main_metric="matthews")))
    scores = report.metrics["test"]
    assert -1 <= scores["matthews"] <= 1
    low, high = scores["matthews_ci95"]
    assert low <= scores["matthews"] <= high
    assert {"accuracy", "f1_macro", "ece", "accuracy_ci95"} <= set(scores)


def test_a_metric_belongs_to_its_task(matthews):
    assert SequenceClassification(main_metric="matthews").metrics.main == ("matthews", "accuracy", "f1_macro")
    assert "matthews" not in [metric.name for metric in MultiLabelClassification().metrics.metrics]


def test_registering_again_replaces_and_a_name_of_the_task_is_refused(matthews):
    peftkit.register_metric(
        Metric(name="matthews", function=lambda predictions, targets: 1.0), task=SequenceClassification
    )
    found = SequenceClassification().metrics
    assert [metric.name for metric in found.metrics].count("matthews") == 1
    assert found.compute([{"label": "a"}], ["b"])["matthews"] == 1.0
    with pytest.raises(UserError, match="has a built-in metric 'accuracy'"):
        peftkit.register_metric(Metric(name="accuracy", function=score_matthews), task=SequenceClassification)


def test_an_unknown_main_metric_names_the_nearest():
    with pytest.raises(UserError, match=r"task\.main_metric: unknown metric 'rsme'; use 'rmse'"):
        SequenceRegression(main_metric="rsme")


def test_metrics_that_share_a_function_call_it_once():
    calls = []

    def both(predictions, targets):
        calls.append(1)
        return {"a": 1.0, "b": 2.0}

    metrics = (Metric(name="a", function=both), Metric(name="b", function=both))
    found = base.MetricSet(metrics=metrics, main=("a",), is_correct=lambda prediction, target: True)
    assert found.compute([], []) == {"a": 1.0, "b": 2.0}
    assert len(calls) == 1


def test_a_metric_without_a_statistic_is_resampled_by_its_function():
    predictions, targets = [{"label": name} for name in "aabbab"], list("abbbaa")
    metric = Metric(name="matthews", function=score_matthews)
    found = base.MetricSet(metrics=(metric,), main=("matthews",), is_correct=lambda prediction, target: True)
    statistic = found.statistics(predictions, targets)["matthews"]
    assert statistic(np.arange(6)) == score_matthews(predictions, targets)
    assert statistic(np.array([0, 2])) == 1.0


def test_a_lower_error_ranks_higher_and_is_bounded_below_only():
    rmse = SequenceRegression(main_metric="rmse").metrics.main_metrics[0]
    assert rmse.rank(0.1) > rmse.rank(0.2)
    assert rmse.bounds == (0.0, math.inf)
    assert rmse.format_difference(0.01234) == "0.0123"
    accuracy = SequenceClassification().metrics.main_metrics[0]
    assert accuracy.rank(0.2) > accuracy.rank(0.1)
    assert accuracy.format_difference(0.01234) == "1.2"
