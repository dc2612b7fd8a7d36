from collections import Counter

import pytest

from peftkit.data.demo.docstrings import LIBRARIES, MASKED, ROWS_PER_LIBRARY, extract_prose, load_docstrings


@pytest.fixture(scope="module")
def data():
    return load_docstrings()


def test_thousands_of_rows_in_balanced_classes(data):
    assert sum(len(split) for split in data.values()) > 3000
    for name, split in data.items():
        counts = Counter(split["label"])
        assert len(counts) == len(LIBRARIES)
        assert len(set(counts.values())) == 1
        assert max(counts.values()) <= ROWS_PER_LIBRARY[name]


def test_no_module_is_in_two_splits(data):
    modules = [set(split["module"]) for split in data.values()]
    assert not modules[0] & modules[1] | modules[0] & modules[2] | modules[1] & modules[2]


def test_no_row_names_its_library_or_stands_twice(data):
    texts = [text for split in data.values() for text in split["text"]]
    assert not [text for text in texts if MASKED.search(text)]
    assert len(set(texts)) == len(texts)
    assert all(len(text.split()) <= 41 for text in texts)


def test_prose_is_the_masked_opening():
    docstring = "Like `numpy.sort`, but sklearn-ish.\n\nUses np.sort and PyTorch.\n\nParameters\n----------\nx : int\n"
    assert extract_prose(docstring) == "Like [MASK], but [MASK]-ish. Uses [MASK] and [MASK]."
    assert extract_prose("One line.\n\n>>> f(1)\n2") == "One line."
