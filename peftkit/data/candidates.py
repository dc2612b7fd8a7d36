"""Candidate columns for the fields of a task, the best first."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peftkit.data.columns import ColumnProfile
from peftkit.errors import UserError
from peftkit.tasks import MultiLabelClassification, SequenceClassification, SequenceRegression

TEXT_NAMES = (
    "text", "sentence", "review", "content", "body", "comment", "message", "document", "utterance", "question", "query",
    "description", "title",
)  # fmt: skip
LABEL_NAMES = (
    "label", "labels", "class", "category", "target", "sentiment", "emotion", "emotions", "topic", "intent", "tag",
    "tags", "stars", "rating", "score", "similarity",
)  # fmt: skip
WORDS_NAMES = ("tokens", "words")
TAG_NAMES = ("ner_tags", "tags", "labels", "ner")
TEXT_PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text1", "text2"),
    ("text_a", "text_b"), ("sentence_a", "sentence_b"), ("question", "sentence"), ("query", "passage"),
)  # fmt: skip
GENERATION_PAIRS = (
    ("source", "target"), ("document", "summary"), ("article", "highlights"), ("article", "summary"),
    ("dialogue", "summary"), ("text", "summary"), ("input", "output"), ("prompt", "completion"),
    ("prompt", "response"), ("instruction", "output"), ("instruction", "response"), ("question", "answer"),
)  # fmt: skip
NOT_DATA = re.compile(r"(.*_)?(id|idx|index|guid|uuid)|unnamed: \d+")
SEPARATORS = (",", ";", "|")
# A separator must be in this share of the cells, or the cells are names.
SEPARATED_SHARE = 0.05
Pair = tuple[ColumnProfile, ColumnProfile]
BIO = re.compile(r"O|[BI]-.+")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a file and the choices of the user, in messages under the name of the file."""

    where: str
    profiles: Sequence[ColumnProfile]
    given: Mapping[str, str]
    label_names: Sequence[str] = ()

    def get_given(self, name: str) -> ColumnProfile | None:
        """Return the column that the option `--NAME` names. Raises UserError when the file has no such column."""
        if name not in self.given:
            return None
        for profile in self.profiles:
            if profile.name == self.given[name]:
                return profile
        known = ", ".join(profile.name for profile in self.profiles)
        raise UserError(f"--{name} {self.given[name]}: {self.where} has no such column (columns: {known})")

    def select(self, *kinds: str) -> list[ColumnProfile]:
        """Return columns of these kinds, except identifiers and columns that belong to another field."""
        taken = set(self.given.values())
        return [
            profile
            for profile in self.profiles
            if profile.kind in kinds and profile.name not in taken and not _is_identifier(profile)
        ]

    def fail(self, missing: str, fix: str) -> UserError:
        """Return the error for columns that were not found."""
        found = ", ".join(profile.describe() for profile in self.profiles)
        return UserError(f"{self.where}: found no {missing} (columns: {found}); {fix}")


def find_labels(columns: Columns, task: type | None = None) -> list[ColumnProfile]:
    """Find the columns that may be the label of a text, the best first: by name, then by kind."""
    lists = columns.select("lists of texts", "lists of whole numbers")
    separated = [one for one in columns.select("texts") if find_separator(one)]
    classes = columns.select("texts", "whole numbers", "booleans")
    few = [one for one in classes if (has_few_values(one) or one.names) and one not in separated]
    # A score may have few values too.
    numbers = [one for one in columns.select("numbers", "whole numbers") if one not in few or task]
    by_task: dict[type | None, list[ColumnProfile]] = {
        None: [*lists, *few, *separated, *numbers], SequenceClassification: [*few, *separated],
        MultiLabelClassification: [*lists, *separated], SequenceRegression: numbers,
    }  # fmt: skip
    found = by_task[task]
    if task is SequenceClassification and not found:
        named = columns.select("texts", "whole numbers", "numbers")
        found = rank_by_name([one for one in named if len(one.distinct) > 1], LABEL_NAMES)
    if task is MultiLabelClassification and not found:
        found = few
    # Of the only columns of texts one is the text.
    texts = columns.select("texts")
    if "text" not in columns.given and texts and all(one in found for one in texts):
        longest = max(texts, key=lambda one: one.mean_length)
        found = [one for one in found if one != longest]
    named = rank_by_name(found, LABEL_NAMES)
    return named + [one for one in found if one not in named]


def find_tagged(columns: Columns) -> list[Pair]:
    """Find the pairs of a column of words and a column of as many tags, the best first."""
    given_words, given_tags = columns.get_given("tokens"), columns.get_given("tags")
    words = [given_words] if given_words else columns.select("lists of texts")
    tags = [given_tags] if given_tags else columns.select("lists of texts", "lists of whole numbers")
    pairs = {
        (one.name, other.name): (one, other)
        for one in rank_by_name(words, WORDS_NAMES) or words
        for other in [*rank_by_name(tags, TAG_NAMES), *tags]
        if one != other
        and [len(value) for value in one.values] == [len(value) for value in other.values]
        and (other.kind == "lists of whole numbers" or all(map(BIO.fullmatch, other.distinct)))
    }
    return list(pairs.values())


def find_named_pair(columns: Columns, names: Sequence[tuple[str, str]]) -> Pair | None:
    """Find the first pair of names that are both columns of texts."""
    by_name = {one.name.lower(): one for one in columns.select("texts")}
    return next(((by_name[a], by_name[b]) for a, b in names if a in by_name and b in by_name), None)


def rank_by_name(profiles: Sequence[ColumnProfile], names: Sequence[str]) -> list[ColumnProfile]:
    """Return the columns with a known name, in the order of the names."""
    known = [one for one in profiles if one.name.lower() in names]
    return sorted(known, key=lambda one: names.index(one.name.lower()))


def _is_identifier(profile: ColumnProfile) -> bool:
    return NOT_DATA.fullmatch(profile.name.lower()) is not None and not has_few_values(profile)


def has_few_values(profile: ColumnProfile) -> bool:
    """Return whether a value occurs in two rows on average."""
    return 2 <= len(profile.distinct) <= len(profile.values) / 2


def find_separator(profile: ColumnProfile) -> str | None:
    """Return the separator of several labels in one text, if the parts repeat more than the texts do."""
    if profile.kind != "texts":
        return None
    for separator in SEPARATORS:
        cells = [[part.strip() for part in str(value).split(separator)] for value in profile.values]
        several = sum(len(cell) > 1 for cell in cells)
        parts = {part for cell in cells for part in cell if part}
        is_repeated = len(parts) <= len(cells) / 2 and len(parts) < len(profile.distinct)
        if several > SEPARATED_SHARE * len(cells) and is_repeated:
            return separator
    return None
