import pytest

from peftkit.data import near_duplicates
from peftkit.data.near_duplicates import find_near_duplicates

TEXTS = ["the cat sat on the mat today", "a dog ran over the hill", "the cat sat on the mat tonight"]


@pytest.mark.parametrize(
    ("threshold", "pairs"), [(0.7, {(0, 0), (0, 2), (1, 1), (2, 0), (2, 2)}), (0.99, {(0, 0), (1, 1), (2, 2)})]
)
def test_pairs_above_the_threshold_are_found_over_chunks(monkeypatch, threshold, pairs):
    monkeypatch.setattr(near_duplicates, "CHUNK", 2)
    assert set(find_near_duplicates(TEXTS, TEXTS, threshold)) == pairs


def test_characters_are_words_in_scripts_without_spaces():
    assert set(find_near_duplicates(["猫は庭で寝ています"], ["猫は庭で寝ていました", "犬が走る"], 0.6)) == {(0, 0)}


def test_texts_without_words_have_no_duplicates():
    assert list(find_near_duplicates(["...", "!"], ["..."], 0.5)) == []
