"""Near-duplicate search by cosine similarity of words and word pairs."""

import re
from collections.abc import Iterator, Sequence

# A word, or one character of a script without spaces between words.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
# Rows compared at a time; limits the memory of the product.
CHUNK = 250


def find_near_duplicates(texts: Sequence[str], others: Sequence[str], threshold: float) -> Iterator[tuple[int, int]]:
    """Yield the pair of indices in `texts` and `others` for each cosine of at least `threshold`."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.preprocessing import normalize

    counts = CountVectorizer(ngram_range=(1, 2), binary=True, tokenizer=WORD.findall, token_pattern=None)
    try:
        unit = normalize(counts.fit_transform([*texts, *others])).tocsr()
    except ValueError:
        # No text contains a word.
        return
    transposed = unit[len(texts) :].T.tocsr()
    for start in range(0, len(texts), CHUNK):
        near = (unit[start : min(start + CHUNK, len(texts))] @ transposed).tocoo()
        close = near.data >= threshold
        yield from ((int(row) + start, int(other)) for row, other in zip(near.row[close], near.col[close], strict=True))
