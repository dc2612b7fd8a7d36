import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from peftkit.metrics.bootstrap import compute_intervals
from peftkit.metrics.classification import make_label_statistics, score_classes, score_labels
from peftkit.metrics.generation import make_text_statistics, score_texts
from peftkit.metrics.multi_label import make_label_list_statistics, score_label_lists
from peftkit.metrics.regression import make_number_statistics, score_numbers
from peftkit.metrics.token_classification import make_entity_statistics, score_entities, score_entity_types


def classification_intervals(said, right, **options):
    return compute_intervals(make_label_statistics(said, right), len(right), **options)


def test_scikit_learns_examples_of_accuracy_and_macro_f1():
    found = score_labels(["0", "2", "1", "0", "0", "1"], ["0", "1", "2", "0", "1", "2"])
    assert found["f1_macro"] == pytest.approx(0.26666667)
    assert score_labels(["0", "2", "1", "3"], ["0", "1", "2", "3"])["accuracy"] == 0.5


def test_scikit_learns_example_of_multi_label_f1():
    # f1_score's documentation: [[0,0,0],[1,1,1],[0,1,1]] and [[0,0,0],[1,1,1],[1,1,0]] give 0.667, 1.0, 0.667.
    found = score_label_lists([[], ["a", "b", "c"], ["a", "b"]], [[], ["a", "b", "c"], ["b", "c"]])
    assert found["f1_macro"] == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)
    assert found["exact_match"] == pytest.approx(2 / 3)


def test_scipys_and_scikit_learns_examples_of_regression():
    found = score_numbers([10, 9, 2.5, 6, 4, 3, 2], [1, 2, 3, 4, 5, 6, 7])
    assert found["pearson"] == pytest.approx(-0.828503883588428)
    assert score_numbers([5, 6, 7, 8, 7], [1, 2, 3, 4, 5])["spearman"] == pytest.approx(0.8207826816681233)
    found = score_numbers([2.5, 0.0, 2, 8], [3, -0.5, 2, 7])
    assert found["mae"] == 0.5
    assert found["rmse"] == pytest.approx(0.612, abs=1e-3)


def test_seqevals_example():
    right = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    predicted = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    found = score_entities(predicted, right)
    assert found["f1"] == found["precision"] == found["recall"] == found["f1_macro"] == 0.5
    assert (found["f1_MISC"], found["f1_PER"]) == (0.0, 1.0)
    low, high = compute_intervals(make_entity_statistics(predicted, right), len(right))["f1_ci95"]
    assert (low, high) == (0.0, 1.0)


def test_no_entity_anywhere_is_a_score_of_zero():
    assert score_entities([["O"]], [["O"]])["f1"] == 0.0


def test_sacrebleus_example():
    said = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    right = [
        ["The dog bit the man.", "The dog had bit the man."],
        ["It was not unexpected.", "No one was surprised."],
        ["The man bit him first.", "The man had bitten the dog."],
    ]
    found = score_texts(said, right)
    assert found["bleu"] == pytest.approx(48.530827009929865)
    assert found["chrf"] == pytest.approx(59.73, abs=0.01)
    assert found["exact_match"] == pytest.approx(1 / 3)
    # The same with references of unequal number.
    assert score_texts(said, [right[0][:1], *right[1:]])["bleu"] > 0


def test_rouge_scores_own_example():
    # Of 9 and 8 words 6 are shared, and the longest common subsequence is 5.
    found = score_texts(["The quick brown dog jumps on the log."], [["The quick brown fox jumps over the lazy dog"]])
    assert found["rouge1"] == pytest.approx(2 * 6 / (8 + 9))
    assert found["rougeL"] == pytest.approx(2 * 5 / (8 + 9))
    assert found["rougeL"] < score_texts(["a b"], [["x", "a b"]])["rougeL"] == 1.0


def test_chinese_needs_its_tokenizer():
    said, right = ["今天天气很好我们去公园"], [["今天天气很好我们去学校"]]
    assert score_texts(said, right)["rouge1"] == 0.0
    found = score_texts(said, right, tokenize="zh")
    # 9 of 11 characters are the same, in order.
    assert found["rouge1"] == found["rougeL"] == pytest.approx(9 / 11)
    assert found["bleu"] > 70


def test_an_interval_covers_the_score_and_narrows_with_rows():
    rng = np.random.default_rng(0)
    widths = []
    for rows in (50, 800):
        right = rng.integers(0, 3, rows)
        predicted = np.where(rng.random(rows) < 0.8, right, (right + 1) % 3)
        right, predicted = right.astype(str), predicted.astype(str)
        score = score_labels(predicted, right)
        found = classification_intervals(predicted, right, n_resamples=300)
        for name in ("accuracy", "f1_macro"):
            low, high = found[f"{name}_ci95"]
            assert low < score[name] < high
        widths.append(found["accuracy_ci95"][1] - found["accuracy_ci95"][0])
    # The interval's width goes with one over the root of the rows: a quarter here.
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.4)


def test_an_interval_agrees_with_the_binomial():
    low, high = classification_intervals(["a"] * 300 + ["b"] * 100, ["a"] * 400)["accuracy_ci95"]
    error = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert (low, high) == pytest.approx((0.75 - error, 0.75 + error), abs=0.006)


def test_the_same_seed_gives_the_same_interval_and_a_perfect_score_has_none():
    right = list("abaabb")
    assert classification_intervals(right[::-1], right, seed=3) == classification_intervals(right[::-1], right, seed=3)
    assert classification_intervals(right, right)["accuracy_ci95"] == [1.0, 1.0]
    assert classification_intervals(["a"], ["a"])["f1_macro_ci95"] == [1.0, 1.0]


def test_statistics_are_the_metrics_themselves():
    # On all rows, each once, the fast statistics are the packages' own.
    rng = np.random.default_rng(1)
    right, said = rng.integers(0, 5, 60).astype(str), rng.integers(0, 6, 60).astype(str)
    lists = [[list("abcd")[i] for i in range(4) if rng.random() < 0.4] for _ in range(60)]
    numbers = rng.random(60).tolist()
    texts = [f"w{i % 7} of w{i % 3}" for i in range(60)]
    tags = [[["O", "B-x", "B-y"][i] for i in rng.integers(0, 3, 6)] for _ in range(60)]
    for statistics, metrics in (
        (make_label_statistics(said, right), score_labels(said, right)),
        (make_label_list_statistics(lists[::-1], lists), score_label_lists(lists[::-1], lists)),
        (make_number_statistics(numbers[::-1], numbers), score_numbers(numbers[::-1], numbers)),
        (make_text_statistics(texts[::-1], [[t] for t in texts]), score_texts(texts[::-1], [[t] for t in texts])),
        (make_entity_statistics(tags[::-1], tags), score_entities(tags[::-1], tags)),
    ):
        for name, statistic in statistics.items():
            assert statistic(np.arange(60)) == pytest.approx(metrics[name]), name


def test_scores_of_each_class_are_scikit_learns():
    rng = np.random.default_rng(2)
    right, said = rng.integers(0, 4, 80).astype(str), rng.integers(0, 5, 80).astype(str)
    found = score_classes(list(said), list(right))
    theirs = precision_recall_fscore_support(right, said, labels=sorted(found), zero_division=0)
    ours = [[values[name] for values in found.values()] for name in ("precision", "recall", "f1", "rows")]
    assert np.allclose(ours, theirs)


def test_scores_of_each_class_are_those_of_its_own_rows():
    one = score_classes(["a", "a", "b", "c"], ["a", "b", "b", "b"])
    assert one["a"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "rows": 1}
    assert one["b"]["rows"] == 3
    assert one["b"]["recall"] == pytest.approx(1 / 3)
    assert score_classes(["a", "a"], ["a", "a"]) == {"a": {"precision": 1.0, "recall": 1.0, "f1": 1.0, "rows": 2}}
    assert score_classes([[], []], [[], []]) == {}
    assert score_classes([["a"], []], [["a", "b"], []])["b"] == {"precision": 0, "recall": 0, "f1": 0, "rows": 1}
    kinds = score_entity_types([["B-x", "I-x", "O"]], [["B-x", "I-x", "B-y"]])
    assert (kinds["x"]["f1"], kinds["x"]["rows"], kinds["y"]["f1"], kinds["y"]["rows"]) == (1.0, 1, 0.0, 1)
    assert score_entity_types([["O"]], [["O"]]) == {}


def test_resamples_without_a_score_are_left_out():
    low, high = compute_intervals(make_number_statistics([1.0, 2.0, 3.0], [1.0, 2.5, 2.0]), 3)["pearson_ci95"]
    assert -1 <= low <= high <= 1
    assert np.isnan(compute_intervals(make_number_statistics([1.0, 1.0], [1.0, 2.0]), 2)["pearson_ci95"]).all()


def test_one_label_and_no_label_at_all():
    found = score_label_lists([["a"], [], ["a"]], [["a"], ["a"], []])
    assert found["f1_macro"] == found["f1_micro"] == pytest.approx(0.5)
    assert score_label_lists([[], []], [[], []]) == {"f1_macro": 0.0, "f1_micro": 0.0, "exact_match": 1.0}
