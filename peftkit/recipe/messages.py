"""Messages of the recipe parser: one-line errors with the nearest field, and help on fields."""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import docstring_parser

from peftkit.recipe.serialization import NOT_IN_A_RECIPE, get_default, to_plain


def suggest_nearest(field: str, names: Sequence[str]) -> str:
    """Suggest the nearest field: first the part of the recipe, then the name within that part."""
    part, _, rest = field.partition(".")
    parts = {name.partition(".")[0] for name in names}
    close = difflib.get_close_matches(part, parts, n=1)
    within = [name for name in names if name.partition(".")[0] == close[0]] if close else []
    last = {name.rsplit(".", 1)[-1]: name for name in within or names}
    near = difflib.get_close_matches(field, within, n=1, cutoff=0.75) or [
        last[found]
        for found in difflib.get_close_matches((rest or field).rsplit(".", 1)[-1], list(last), n=1, cutoff=0.5)
    ]
    if near and near[0] != field:
        return f"; use '{near[0]}'"
    # The part of the recipe exists; the field belongs to another task or method.
    if close and close[0] == part:
        return f"; the {part} of this recipe has no such field; --help lists its fields"
    return f"; use '{close[0]}'" if close else "; --help lists every field"


def shorten_parser_error(message: str, names: Sequence[str]) -> str:
    """Shorten an error of jsonargparse to one line with the nearest field."""
    if unknown := re.search(r"[Uu]nrecognized arguments: *(\S+)", message):
        field = unknown.group(1).lstrip("-").split("=")[0]
        return f"unknown field '{field}'{suggest_nearest(field, names)}"
    where = ".".join(re.findall(r'Parser key "([^"]+)"', message))
    if option := re.search(r"Option '([^']+)' is not accepted", message):
        field = f"{where}.{option.group(1)}" if where else option.group(1)
        return f"unknown field '{field}'{suggest_nearest(field, names)}"
    message = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", message).replace("NoneType", "null")
    if found := re.search(r"Expected an? (.+?)\.? Got value: (.*)", message):
        return f"{where}: expected {found.group(1)}, got '{found.group(2).strip()}'"
    if found := re.search(r"Subtypes: [\[(](.+)[\])]\n(?:.*\n)*?\s*Given value: (.*)", message):
        return f"{where}: expected {found.group(1).replace(', ', ' or ')}, got '{found.group(2).strip()}'"
    return " ".join(message.split()).replace('Parser key "', "").replace('":', ":")


def read_field_help(kind: type) -> dict[str, str]:
    """Read the description of each field from its metadata or the docstring of the class."""
    found = {
        match.group(1): " ".join(match.group(2).split())
        for match in re.finditer(
            r"^ {4,8}(\w+) ?\(.*?\):\n((?:^ {12,}.*\n|^\s*\n(?= {12,}))+)", kind.__doc__ or "", re.MULTILINE
        )
    }
    if not found:
        described = docstring_parser.parse_from_object(kind).params
        found = {entry.arg_name: " ".join((entry.description or "").split()) for entry in described}
    for f in dataclasses.fields(kind):
        if "help" in f.metadata:
            found[f.name] = " ".join(str(f.metadata["help"]).split())
    return {name: text.replace("%", "%%") for name, text in found.items()}


def format_fields_help(kind: type, prefix: str, given: Mapping[str, Any]) -> str:
    """Format help on the fields of a data class: name, value in the recipe, description."""
    lines = [f"\n{prefix} is {kind.__name__}, with these fields:\n"]
    known = read_field_help(kind)
    for f in dataclasses.fields(kind):
        if f.init and f.name not in NOT_IN_A_RECIPE:
            value = given.get(f.name, to_plain(get_default(f)))
            meaning = known.get(f.name, "").replace("%%", "%")
            lines.append(f"  --{prefix}.{f.name} (default: {value})\n      {meaning}\n")
    return "".join(lines)
