import ast

from peftkit.data.demo.summaries import extract_summaries, load_summaries


def test_a_summary_is_not_in_its_source_nor_in_two_splits():
    data = load_summaries()
    targets = [{target.lower() for target in split["target"]} for split in data.values()]
    assert [len(found) for found in targets] == [len(split) for split in data.values()]
    assert not targets[0] & targets[1] | targets[0] & targets[2] | targets[1] & targets[2]
    for split in data.values():
        assert all(row["target"].lower() not in row["source"].lower() for row in split)


CODE = """
def f():
    '''Return the `mean` of it.

    The body has ten words so that it is long enough.
    '''

def g():
    '''Only one line of text.'''
"""


def test_summaries_are_of_docstrings_with_a_body(monkeypatch):
    tree = ast.parse(CODE)
    monkeypatch.setattr("peftkit.data.demo.summaries.parse_modules", lambda package, _: [(f"{package}.module", tree)])
    assert list(extract_summaries(["numpy"])) == [
        ("numpy.module", "The body has ten words so that it is long enough.", "Return the mean of it.")
    ]
