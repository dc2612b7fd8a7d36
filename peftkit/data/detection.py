"""Detect the task of a file of rows and the columns that the task reads, from their names and values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peftkit.data.candidates import (
    GENERATION_PAIRS,
    LABEL_NAMES,
    TEXT_NAMES,
    TEXT_PAIRS,
    Columns,
    find_labels,
    find_named_pair,
    find_separator,
    find_tagged,
    has_few_values,
    rank_by_name,
)
from peftkit.data.columns import ColumnProfile
from peftkit.data.descriptions import count, describe_label, list_others, show_names
from peftkit.errors import UserError
from peftkit.tasks import (
    MultiLabelClassification,
    Seq2Seq,
    SequenceClassification,
    SequenceRegression,
    TokenClassification,
)
from peftkit.tasks.word_alignment import repair_tags

TASKS: tuple[type, ...] = (
    SequenceClassification, MultiLabelClassification, SequenceRegression, TokenClassification, Seq2Seq,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DetectedTask:
    """A task with the columns of the data.

    Attributes:
        task: The task.
        fields: The fields of the task that belong in a recipe, in order.
        comments: What was detected, by field.
    """

    task: Any
    fields: Mapping[str, Any]
    comments: Mapping[str, str] = field(default_factory=dict)


def detect_task(
    profiles: Sequence[ColumnProfile], where: str, *, task: type | None = None, given: Mapping[str, str] | None = None,
    label_names: Sequence[str] = (),
) -> DetectedTask:  # fmt: skip
    """Detect the task and its columns, except the class `task` and the columns `given` by task field.

    Raises UserError that names what was not detected and the option to pass.
    """
    columns = Columns(where=where, profiles=profiles, given=given or {}, label_names=label_names)
    task = task or _choose_task(columns)
    if task is TokenClassification:
        return _detect_tags(columns)
    if task is Seq2Seq:
        return _detect_generation(columns)
    return _detect_label(columns, task)


def _choose_task(columns: Columns) -> type:
    if {"tokens", "tags"} & set(columns.given):
        return TokenClassification
    if {"source", "target"} & set(columns.given):
        return Seq2Seq
    label = columns.get_given("label")
    if label is None:
        if find_tagged(columns):
            return TokenClassification
        if find_named_pair(columns, GENERATION_PAIRS) and not rank_by_name(find_labels(columns), LABEL_NAMES):
            return Seq2Seq
        candidates = find_labels(columns)
        if not candidates:
            if len([one for one in columns.select("texts") if len(one.distinct) > 1]) > 1:
                return Seq2Seq
            raise columns.fail("column of labels", "pass --label COLUMN, or --source COLUMN --target COLUMN")
        label = candidates[0]
    if label.kind.startswith("lists") or find_separator(label):
        return MultiLabelClassification
    is_number = label.kind in ("numbers", "whole numbers") and not label.names
    is_score = is_number and (label.kind == "numbers" or not has_few_values(label))
    return SequenceRegression if is_score else SequenceClassification


def _detect_label(columns: Columns, task: type) -> DetectedTask:
    """Detect text, label and the second text of a pair."""
    label = columns.get_given("label")
    candidates = [label] if label else find_labels(columns, task)
    if not candidates:
        wanted = {MultiLabelClassification: "column of lists of labels", SequenceRegression: "column of numbers"}
        raise columns.fail(wanted.get(task, "column of labels that occur in several rows"), "pass --label COLUMN")
    label = candidates[0]
    if len(label.distinct) < 2 and task is not MultiLabelClassification:
        raise UserError(f"{columns.where}: column '{label.name}' has 1 value (expected 2 or more); pass --label COLUMN")
    if task is SequenceRegression and label.kind not in ("numbers", "whole numbers"):
        raise UserError(f"{columns.where}: column {label.describe()} has no numbers; pass another --label or --task")
    fields: dict[str, Any] = {}
    comments: dict[str, str] = {}
    texts = [one for one in columns.select("texts") if one.name != label.name]
    pair = find_named_pair(columns, TEXT_PAIRS)
    if given := columns.get_given("text"):
        texts = [given, *texts]
    elif pair and "text_pair" not in columns.given and label not in pair:
        texts = [pair[0], *(one for one in texts if one not in pair)]
        fields["text_pair"] = pair[1].name
    else:
        texts = rank_by_name(texts, TEXT_NAMES) or sorted(texts, key=lambda one: -one.mean_length)
    if not texts:
        raise columns.fail("column of texts", "pass --text COLUMN")
    if second := columns.get_given("text_pair"):
        fields["text_pair"] = second.name
    others = [
        one.name
        for one in columns.select("texts")
        if one not in candidates and one.name not in (texts[0].name, label.name)
    ]
    comments["text"] = "column of the text"
    if "text_pair" in fields:
        comments |= {"text": "column of the first text", "text_pair": "column of the second text; remove it for one"}
    elif others and not given:
        comments["text"] += f"; other columns of texts: {', '.join(others)} (text_pair reads a second one)"
    fields = {"text": texts[0].name, **fields, "label": label.name}
    separator = find_separator(label)
    comments["label"] = describe_label(label, candidates[1:], task, separator)
    if task is MultiLabelClassification and separator not in (None, ","):
        fields["separator"] = separator
    if columns.label_names and task is not SequenceRegression:
        fields["label_names"] = list(columns.label_names)
    found = task(**fields)
    return DetectedTask(task=found, fields=fields | {"max_length": found.max_length}, comments=comments)


def _detect_tags(columns: Columns) -> DetectedTask:
    pairs = find_tagged(columns)
    if not pairs:
        raise columns.fail(
            "column of lists of words with a column of as many BIO tags", "pass --tokens COLUMN and --tags COLUMN"
        )
    words, tags = pairs[0]
    fields: dict[str, Any] = {"tokens": words.name, "tags": tags.name}
    names = columns.label_names or tags.names
    if tags.kind == "lists of whole numbers" and not names:
        raise UserError(
            f"{columns.where}: column '{tags.name}' has numbers without names; pass --label_names O,B-TYPE,I-TYPE,... "
            "in the order of the numbers"
        )
    if columns.label_names:
        fields["label_names"] = list(columns.label_names)
    if tags.kind == "lists of texts":
        names = sorted(tags.distinct)
        if any(repair_tags(value) != value for value in tags.values):
            fields["repair"] = True
    comments = {
        "tokens": "column of the words" + list_others(one.name for one, _ in pairs[1:] if one != words),
        "tags": f"column of the tags: {count(len(names), 'tag')} ({show_names(names)})"
        + list_others(one.name for _, one in pairs[1:] if one != tags),
        "repair": "an I- tag that continues no entity begins one",
    }
    task = TokenClassification(**fields)
    return DetectedTask(task=task, fields=fields | {"max_length": task.max_length}, comments=comments)


def _detect_generation(columns: Columns) -> DetectedTask:
    source, target = columns.get_given("source"), columns.get_given("target")
    texts = columns.select("texts")
    pair = find_named_pair(columns, GENERATION_PAIRS)
    order = "taken by their names"
    if source is None and target is None and pair:
        source, target = pair
    elif source is None or target is None:
        order = "taken in the order of the file; exchange source and target if they are reversed"
        free = [one for one in texts if one not in (source, target)]
        if source is None and free:
            source = free.pop(0)
        if target is None and free:
            target = free.pop(0)
    if source is None or target is None:
        raise columns.fail("column of source texts and one of target texts", "pass --source COLUMN --target COLUMN")
    fields: dict[str, Any] = {"source": source.name, "target": target.name}
    others = [one.name for one in texts if one not in (source, target)]
    task = Seq2Seq(**fields)
    comments = {
        "source": "column of the source text" + list_others(others),
        "target": "column of the target text" if "source" in columns.given and "target" in columns.given
        else f"column of the target text; columns {order}",
    }  # fmt: skip
    lengths = {"max_source_length": task.max_source_length, "max_target_length": task.max_target_length}
    return DetectedTask(task=task, fields=fields | lengths, comments=comments)
