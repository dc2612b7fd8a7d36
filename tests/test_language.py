"""Language rules of code and documentation: banned words, short first lines of docstrings, errors without questions."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ("peftkit", "recipes", "benchmarks")
CODE = (*PACKAGE, "tests")
MAX_SUMMARY = 100
# Replacements by banned word.
BANNED = {
    "told": "passed, logged or reported",
    "said": "predicted, logged or reported",
    "asked": "requested",
    "kept": "stored, retained or unchanged",
    "anew": "again",
    "ordinary": "standard",
    "so many": "a number",
    "of its own": "separate",
    "word": "option or argument",
    "words": "options or arguments",
}
PATTERN = re.compile(rf"\b({'|'.join(BANNED)})\b".replace(" ", r"\s+(?:#\s*)?"), re.IGNORECASE)
# Code and pages about the words of a text may contain "word".
ABOUT_WORDS = (
    "peftkit/comparison/report/formatting.py",
    "peftkit/data/",
    "peftkit/metrics/",
    "peftkit/prediction/",
    "peftkit/tasks/",
    "recipes/lora_ner.py",
    "benchmarks/plain_trainer.py",
    "benchmarks/seq2seq_base.py",
    "tests/cli/test_init.py",
    "tests/data/",
    "tests/integration/test_stored_runs.py",
    "tests/metrics/",
    "tests/prediction/",
    "tests/tasks/",
    "docs/",
    "CHANGELOG.md",
)
BUILT_PAGES = "docs/_build/"


def name_file(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def list_sources(folders: tuple[str, ...] = CODE) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")) if path != Path(__file__)]


def list_pages() -> list[Path]:
    pages = [ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in pages if not name_file(page).startswith(BUILT_PAGES)]


def read_code(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of each string, docstring and comment; strings of Python 3.12 and later have parts."""
    kinds = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type in kinds:
            yield token.start[0], token.string


def read_prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the prose of a page without code blocks and inline code; of the changelog only the unreleased section."""
    text = path.read_text(encoding="utf-8")
    if path.name == "CHANGELOG.md":
        headings = [match.start() for match in re.finditer(r"^## ", text, re.MULTILINE)]
        released = [start for start in headings if not text.startswith("## Unreleased", start)]
        text = text[: min(released, default=len(text))]
    for code in (r"^ *(```|~~~).*?^ *\1", r"`[^`]*`", r"\]\([^)]*\)"):
        text = re.sub(code, lambda match: "\n" * match[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL)
    yield 1, text


def find_banned(texts: Iterator[tuple[int, str]], name: str) -> Iterator[str]:
    """Yield one line per banned word: file, line, word and replacement."""
    for first_line, text in texts:
        for match in PATTERN.finditer(text):
            banned = " ".join(match[0].lower().replace("#", " ").split())
            if not (banned in ("word", "words") and name.startswith(ABOUT_WORDS)):
                line = first_line + text.count("\n", 0, match.start())
                yield f"{name}:{line}: '{banned}'; use {BANNED[banned]}"


def test_code_has_no_banned_words():
    problems = [problem for path in list_sources() for problem in find_banned(read_code(path), name_file(path))]
    for path in [*(ROOT / "peftkit").rglob("*.jinja"), *(ROOT / "peftkit").rglob("*.js")]:
        problems += find_banned(iter([(1, path.read_text(encoding="utf-8"))]), name_file(path))
    assert not problems, "\n" + "\n".join(problems)


def test_pages_have_no_banned_words():
    problems = [problem for path in list_pages() for problem in find_banned(read_prose(path), name_file(path))]
    assert not problems, "\n" + "\n".join(problems)


def test_docstrings_begin_with_a_short_line_and_errors_ask_no_question():
    problems = []
    for path in list_sources(PACKAGE):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                summary = (ast.get_docstring(node) or "").partition("\n")[0]
                if len(summary) > MAX_SUMMARY:
                    line = getattr(node, "lineno", 1)
                    problems.append(f"{name_file(path)}:{line}: docstring starts with {len(summary)} characters")
            if isinstance(node, ast.Raise) and node.exc is not None and "Error(" in ast.unparse(node.exc):
                strings = [part.value for part in ast.walk(node.exc) if isinstance(part, ast.Constant)]
                if any("?" in text for text in strings if isinstance(text, str)):
                    problems.append(f"{name_file(path)}:{node.lineno}: error asks a question; use an imperative fix")
    assert not problems, "\n" + "\n".join(problems)


def test_the_search_finds_a_banned_word_and_names_the_replacement():
    texts = iter([(4, '"""A model\n\nis Kept."""'), (9, "# as so\n# many")])
    assert list(find_banned(texts, "a.py")) == [
        "a.py:6: 'kept'; use stored, retained or unchanged",
        "a.py:9: 'so many'; use a number",
    ]
    assert not list(find_banned(iter([(1, "a word")]), "docs/page.md"))
