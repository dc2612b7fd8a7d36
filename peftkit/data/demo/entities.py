"""Demo token classification data: code in docstrings of installed packages, tagged by type.

Authors mark code with backticks. The backticks are removed, and the marked text is an entity. The entity type is the
kind of the name, such as parameter or class.
"""

import ast
import builtins
import itertools
import random
import re
from collections.abc import Iterator

from datasets import Dataset, DatasetDict

from peftkit.data.demo.docstrings import (
    LIBRARIES,
    MAX_WORDS,
    SECTION,
    SEED,
    hash_module,
    iterate_documentable,
    load_or_build,
    parse_modules,
)

SHARES = {"train": (0.0, 0.7), "validation": (0.7, 0.8), "test": (0.8, 1.0)}
MAX_ROWS = {"train": 2400, "validation": 300, "test": 600}
FILES = 260
BUILDER = 1
MARKED = re.compile(r":[\w:]+:`~?([^`<]+?)`|``(.+?)``|`([^`]+?)`_{0,2}")
WORD = re.compile(r"\w+(?:\.\w+)*|[^\w\s]")
MAX_ENTITY_WORDS = 6


def load_entities() -> DatasetDict:
    """Load or build `train`, `validation` and `test` with columns `tokens` and `ner_tags`."""
    return load_or_build("entities", f"{SHARES} {FILES} {MAX_ROWS} {BUILDER}", build_entities)


def build_entities() -> DatasetDict:
    """Build the splits: read, drop duplicates, split by module. Deterministic for given package versions."""
    splits: dict[str, list[dict[str, list[str]]]] = {split: [] for split in SHARES}
    rows = [row for package in LIBRARIES.values() for row in _tag_docstrings(package)]
    random.Random(SEED).shuffle(rows)
    seen = set()
    for module, tokens, tags in rows:
        split = next(name for name, (low, high) in SHARES.items() if low <= hash_module(module) <= high)
        text = " ".join(tokens)
        if text in seen or len(splits[split]) == MAX_ROWS[split]:
            continue
        seen.add(text)
        splits[split].append({"tokens": tokens, "ner_tags": tags})
    return DatasetDict({split: Dataset.from_list(found) for split, found in splits.items()})


def _tag_docstrings(package: str | None) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield (module, words, tags) of docstrings whose first prose contains words marked as code."""
    for module, tree in parse_modules(package, FILES):
        defined = {
            node.name: "class" if isinstance(node, ast.ClassDef) else "function"
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        }
        for node in iterate_documentable(tree):
            lines = (line.strip() for line in (ast.get_docstring(node) or "").splitlines())
            opening = " ".join(itertools.takewhile(lambda line: not SECTION.match(line), lines))
            kinds = defined | dict.fromkeys(_list_parameters(node), "parameter")
            tokens, tags = tag_words(opening, kinds)
            if len(tokens) >= 8 and any(tag != "O" for tag in tags):
                yield module, tokens, tags


def _list_parameters(node: ast.AST) -> list[str]:
    found = [node] if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else []
    if isinstance(node, ast.ClassDef):
        found += [inner for inner in node.body if isinstance(inner, ast.FunctionDef) and inner.name == "__init__"]
    return [
        argument.arg
        for function in found
        for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    ]


def tag_words(text: str, kinds: dict[str, str]) -> tuple[list[str], list[str]]:
    """Return the first words of a docstring without backticks, and BIO tags from the types in `kinds`."""
    tokens: list[str] = []
    tags: list[str] = []
    end = 0
    for mark in (*MARKED.finditer(text), None):
        plain = WORD.findall(text[end : mark.start()] if mark else text[end:])
        tokens += plain
        tags += ["O"] * len(plain)
        if mark is None or len(tokens) >= MAX_WORDS:
            break
        end = mark.end()
        code = next(group for group in mark.groups() if group is not None)
        words = WORD.findall(code)
        kind = _find_kind(code.strip(), kinds)
        tokens += words
        tags += (
            [f"{'I' if index else 'B'}-{kind}" for index in range(len(words))]
            if len(words) <= MAX_ENTITY_WORDS
            else ["O"] * len(words)
        )
    return tokens[:MAX_WORDS], tags[:MAX_WORDS]


def _find_kind(code: str, kinds: dict[str, str]) -> str:
    name = code.removesuffix("()").rsplit(".", 1)[-1]
    if name in kinds:
        return kinds[name]
    if isinstance(getattr(builtins, name, None), type) and issubclass(getattr(builtins, name), BaseException):
        return "exception"
    if name in ("None", "True", "False") or re.fullmatch(r"-?[\d.]+|'.*'|\".*\"", code):
        return "value"
    if not re.fullmatch(r"[\w.]+(?:\(\))?", code):
        return "expression"
    return "function" if code.endswith("()") else "class" if name[:1].isupper() else "name"
