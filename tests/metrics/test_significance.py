import numpy as np
import pytest
from scipy import stats

from peftkit.metrics.classification import make_label_statistics
from peftkit.metrics.significance import adjust_p_values, compare_paired_scores, compute_seed_interval, resample_scores

RIGHT = ["a"] * 400
ROWS = np.arange(400)


def answers(share, seed):
    """Answers of which this share is right."""
    return list(np.where(np.random.default_rng(seed).random(400) < share, "a", "b"))


def difference(one, other, n_resamples=2000):
    """Of two methods, each a list of answers a seed."""
    runs = [[make_label_statistics(said, RIGHT)["accuracy"] for said in method] for method in (one, other)]
    means = tuple(float(np.mean([run(ROWS) for run in method])) for method in runs)
    drawn = (resample_scores(method, 400, n_resamples=n_resamples) for method in runs)
    return compare_paired_scores(*drawn, means)


def test_the_paired_bootstrap_is_scipys_on_the_same_numbers():
    one, other = answers(0.8, 1), answers(0.75, 2)
    found = difference([one], [other])
    hits = [(np.array(said) == "a").astype(float) for said in (one, other)]
    theirs = stats.bootstrap(
        hits, lambda a, b, axis: a.mean(axis) - b.mean(axis), paired=True, method="percentile", n_resamples=2000, rng=0
    )
    assert found.ci95 == pytest.approx(list(theirs.confidence_interval), abs=1e-12)
    assert found.mean == pytest.approx(hits[0].mean() - hits[1].mean())


def test_identical_methods_do_not_differ():
    same = [answers(0.8, 1), answers(0.8, 2), answers(0.8, 3)]
    found = difference(same, same)
    assert found.mean == 0.0
    assert found.p_value > 0.9
    assert found.ci95[0] < 0 < found.ci95[1]
    alone = difference(same[:1], same[:1])
    assert (alone.p_value, alone.ci95) == (1.0, [0.0, 0.0])


def test_a_large_difference_is_found_and_its_size_with_it():
    found = difference([answers(0.9, seed) for seed in (1, 2, 3)], [answers(0.7, seed) for seed in (4, 5, 6)])
    assert found.p_value < 0.005
    assert found.ci95[0] < found.mean < found.ci95[1]
    assert found.mean == pytest.approx(0.2, abs=0.04)


def test_a_lucky_seed_is_no_better_method():
    # On the same rows seed by seed; the methods differ by what one seed won and no more.
    usual, lucky = answers(0.7, 1), answers(0.9, 2)
    over_rows_alone = difference([lucky], [usual])
    over_seeds_too = difference([lucky, usual, usual], [usual, usual, usual])
    assert over_rows_alone.p_value < 0.005
    assert over_seeds_too.p_value > 0.05


def test_methods_that_err_on_the_same_rows_are_told_apart_by_few():
    right = answers(0.7, 1)
    better = ["a" if place % 10 == 0 else said for place, said in enumerate(right)]
    found = difference([better], [right])
    assert 0 < found.mean < 0.05
    assert found.p_value < 0.05
    # Errors at other rows, as many of them: the same difference is then nothing.
    elsewhere = list(np.random.default_rng(5).permutation(better))
    assert difference([elsewhere], [right]).p_value > 0.1


def test_holm_by_hand():
    assert adjust_p_values([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjust_p_values([0.5, 0.9]) == [1.0, 1.0]
    assert adjust_p_values([]) == []


def test_the_interval_over_seeds_is_students():
    scores = [0.80, 0.84, 0.85]
    theirs = stats.ttest_1samp(scores, 0).confidence_interval(0.95)
    assert compute_seed_interval(scores) == pytest.approx([theirs.low, theirs.high])
    assert compute_seed_interval([0.8]) is None
    assert compute_seed_interval([0.8, 0.8]) == [0.8, 0.8]
