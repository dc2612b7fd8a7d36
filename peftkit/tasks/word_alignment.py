"""Words and tags: word positions, BIO repair, splitting a long text into overlapping parts."""

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

OUTSIDE = "O"
# Column with the input text that was split into words for prediction.
INPUT_TEXT = "input text"


def find_word_spans(text: str) -> list[tuple[int, int]]:
    """Find start and end of each word: a run of letters and digits, or another character but white space."""
    return [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]


def find_joined_spans(words: Sequence[str]) -> list[tuple[int, int]]:
    """Find start and end of each word in the words joined by spaces."""
    starts = accumulate((len(word) + 1 for word in words), initial=0)
    return [(start, start + len(word)) for start, word in zip(starts, words, strict=False)]


def locate_entity(
    first: int, last: int, text: str, spans: Sequence[tuple[int, int]], scores: Sequence[float]
) -> dict[str, Any]:
    """Return start, end and text of words `first` to `last`, and their mean score."""
    start, end = spans[first][0], spans[last][1]
    return {
        "start": start,
        "end": end,
        "text": text[start:end],
        "score": sum(scores[first : last + 1]) / (last + 1 - first),
    }


def repair_tags(tags: Sequence[str]) -> list[str]:
    """Replace I- by B- in each tag that does not continue an entity."""
    return [
        f"B{tag[1:]}" if tag.startswith("I-") and before[1:] != tag[1:] else tag
        for before, tag in zip([OUTSIDE, *tags], tags, strict=False)
    ]


def split_into_parts(counts: Sequence[int], budget: int, stride: int) -> Iterator[tuple[int, int, int, int]]:
    """Split words with `counts` tokens into parts of at most `budget`: (first, end, own_first, own_end).

    Neighbouring parts share up to `stride` tokens. The earlier part owns the first half of the shared words, the later
    part the second half, so exactly one part owns each word. A word longer than a part gets a separate part.
    """
    before = [0, *accumulate(counts)]
    first = own_first = 0
    while True:
        end = first + 1
        while end < len(counts) and before[end + 1] - before[first] <= budget:
            end += 1
        if end == len(counts):
            yield first, end, own_first, end
            return
        following = end
        while following - 1 > first and before[end] - before[following - 1] <= min(stride, budget - 1):
            following -= 1
        # The next part must end after this one.
        while before[end + 1] - before[following] > budget and following < end:
            following += 1
        middle = following
        while middle < end and before[middle] - before[following] < (before[end] - before[following]) / 2:
            middle += 1
        yield first, end, own_first, middle
        first, own_first = following, middle
