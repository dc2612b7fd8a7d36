"""Descriptions of detected columns, one line each, for the comments of a starter recipe."""

from collections.abc import Iterable, Sequence

from peftkit.data.columns import ColumnProfile
from peftkit.tasks import MultiLabelClassification, SequenceClassification, SequenceRegression

MOST_SHOWN = 10
SHOWN_CHARACTERS = 30


def describe_label(label: ColumnProfile, others: Iterable[ColumnProfile], task: type, separator: str | None) -> str:
    """Describe the column of the label, its values and the other candidates."""
    missing = f"; {label.missing} of the rows read have none, remove them" if label.missing else ""
    other_names = missing + list_others(one.name for one in others)
    if task is SequenceRegression:
        numbers = [float(value) for value in label.values]
        hint = "; for classes use SequenceClassification" if label.kind == "whole numbers" else ""
        return f"column of the number: {label.kind} from {min(numbers):g} to {max(numbers):g}{hint}{other_names}"
    names: Sequence[str] = label.names or _sort(label.distinct)
    kind = "numbers" if label.kind in ("whole numbers", "numbers") else "names"
    if task is MultiLabelClassification:
        kind = f"lists of {'numbers' if 'whole' in label.kind else 'names'}"
        if label.kind == "texts":
            kind = f"names separated by '{separator or ','}'"
            parts = {part.strip() for value in label.values for part in str(value).split(separator or ",")}
            names = sorted(part for part in parts if part)
    if label.names:
        kind += ", named in the file"
    hint = ""
    if task is SequenceClassification and kind == "numbers":
        hint = "; for a score use SequenceRegression"
    return f"column of the label: {count(len(names), 'label')}, {kind} ({show_names(names)}){hint}{other_names}"


def show_names(names: Sequence[str]) -> str:
    """Return the first names, shortened."""
    shown = [name if len(name) <= SHOWN_CHARACTERS else f"{name[:SHOWN_CHARACTERS]}..." for name in names[:MOST_SHOWN]]
    return ", ".join(shown + ["..."] * (len(names) > MOST_SHOWN))


def count(number: int, noun: str) -> str:
    """Return the number and the noun, in the plural where needed."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def list_others(names: Iterable[str]) -> str:
    """Return the end of a description that names the other candidates; empty without any."""
    found = ", ".join(dict.fromkeys(names))
    return f"; other candidates: {found}" if found else ""


def _sort(names: Iterable[str]) -> list[str]:
    """Sort by number where all names are numbers, else alphabetically."""
    try:
        return sorted(names, key=float)
    except ValueError:
        return sorted(names)
