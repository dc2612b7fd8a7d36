"""Demo classification data: docstrings of installed packages, with the library as the label.

`ast` parses the docstrings, so nothing is imported. Library names are masked, near-duplicates are dropped, classes are
balanced, and all docstrings of a module are in one split.
"""

import ast
import hashlib
import importlib.util
import itertools
import random
import re
import sysconfig
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_from_disk
from datasets.config import HF_DATASETS_CACHE

from peftkit.data.near_duplicates import find_near_duplicates
from peftkit.system.files import atomic_directory
from peftkit.system.logging import logger

# Package by label; None is the standard library.
LIBRARIES: dict[str, str | None] = {
    "dataframes": "pandas",
    "deep learning": "torch",
    "language models": "transformers",
    "machine learning": "sklearn",
    "numerical arrays": "numpy",
    "scientific computing": "scipy",
    "standard library": None,
}
DISTRIBUTIONS = {"sklearn": "scikit-learn"}
MASKED = re.compile(
    r"\b(?:pandas|pd|(?:py)?torch(?:script)?|transformers?|hugging\s?face|hf|sklearn|scikit[- ]?learn|scikit|numpy|"
    r"np|scipy|c?python|stdlib)\b(?:\.\w+)*",
    re.IGNORECASE,
)
ROWS_PER_LIBRARY = {"train": 360, "validation": 60, "test": 120}
SHARES = {"train": 0.62, "validation": 0.12, "test": 0.26}
MAX_WORDS = 40
FILES_PER_LIBRARY = 260
NEAR_DUPLICATE = 0.7
SEED = 20
BUILDER = 2


def load_docstrings() -> DatasetDict:
    """Load or build `train`, `validation` and `test` with columns `text`, `label` and `module`.

    The rows depend on the installed versions of the libraries, which change the fingerprint in the report.
    """
    settings = f"{ROWS_PER_LIBRARY} {SHARES} {MAX_WORDS} {SEED} {BUILDER} {FILES_PER_LIBRARY} {NEAR_DUPLICATE}"
    return load_or_build("docstrings", f"{settings} {MASKED.pattern}", build_docstrings)


def load_or_build(name: str, settings: str, build: Callable[[], DatasetDict]) -> DatasetDict:
    """Load data from the cache, or build the data; library versions and `settings` are the cache key."""
    versions = [f"{found} {version(DISTRIBUTIONS.get(found, found))}" for found in LIBRARIES.values() if found]
    key = hashlib.sha256(f"{sysconfig.get_python_version()} {versions} {settings}".encode()).hexdigest()[:16]
    folder = Path(HF_DATASETS_CACHE) / "peftkit" / f"{name}-{key}"
    if not (folder / "dataset_dict.json").exists():
        logger.info("building demo data '%s' from installed packages (first use only)", name)
        built = build()
        # Use the folder of another rank that finishes first.
        try:
            with atomic_directory(folder) as temporary:
                built.save_to_disk(str(temporary))
        except Exception:
            if not (folder / "dataset_dict.json").exists():
                raise
    return load_from_disk(str(folder))


def build_docstrings() -> DatasetDict:
    """Build the splits: read, mask, deduplicate, split by module, balance."""
    rows = [
        {"text": text, "label": label, "module": module}
        for label, package in LIBRARIES.items()
        for module, text in _list_docstrings(package)
    ]
    random.Random(SEED).shuffle(rows)
    rows = _drop_near_duplicates(rows)
    features = Features(
        {"text": Value("string"), "label": ClassLabel(names=list(LIBRARIES)), "module": Value("string")}
    )
    return DatasetDict(
        {split: Dataset.from_list(found, features=features) for split, found in _split_by_module(rows).items()}
    )


def _find_folder(package: str | None) -> Path:
    if package is None:
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _list_docstrings(package: str | None) -> list[tuple[str, str]]:
    """List (module, text) of one library, from a seeded sample of files."""
    found = []
    for module, tree in parse_modules(package, FILES_PER_LIBRARY):
        for node in iterate_documentable(tree):
            text = extract_prose(ast.get_docstring(node) or "")
            if len(text.split()) >= 8:
                found.append((module, text))
    return found


def parse_modules(package: str | None, files: int) -> Iterator[tuple[str, ast.Module]]:
    """Yield module name and syntax tree for a seeded sample of files; None is the standard library."""
    root = _find_folder(package)
    skipped = {"tests", "test", "testing", "site-packages", "idlelib", "lib2to3", "_vendor", "__pycache__", "externals"}
    paths = sorted(p for p in root.rglob("*.py") if not skipped & set(p.relative_to(root).parts))
    random.Random(f"{SEED} {package}").shuffle(paths)
    for path in paths[:files]:
        try:
            yield (
                ".".join([package or "stdlib", *path.relative_to(root).with_suffix("").parts]),
                ast.parse(path.read_bytes()),
            )
        except (SyntaxError, ValueError):
            continue


def iterate_documentable(
    tree: ast.Module,
) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield the nodes of a module that may have a docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


SECTION = re.compile(
    r">>>|\.\. |:param|:return|[-*=~^]{3,}|@|```|\w[\w ]*:$|"
    r"(?:parameters?|returns?|args|arguments|examples?|raises|warn(?:s|ings?)|yields|notes?|see also|attributes)\b\W*$",
    re.IGNORECASE,
)


def extract_prose(docstring: str, *, is_masked: bool = True) -> str:
    """Return at most 40 words before the first section, list or example, with library names masked."""
    lines = [line.strip() for line in docstring.splitlines()]
    opening = itertools.takewhile(lambda line: not SECTION.match(line), lines)
    text = re.sub(r":\w+(?::\w+)?:|[`*]+", "", " ".join(opening))
    text = re.sub(r"https?://\S+", "", text)
    return " ".join((MASKED.sub("[MASK]", text) if is_masked else text).split()[:MAX_WORDS])


def _drop_near_duplicates(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Drop each row whose word cosine with an earlier row is at least `NEAR_DUPLICATE`."""
    texts = [row["text"] for row in rows]
    dropped = {row for row, earlier in find_near_duplicates(texts, texts, NEAR_DUPLICATE) if earlier < row}
    return [row for index, row in enumerate(rows) if index not in dropped]


def _split_by_module(rows: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """Assign each module to a split by the hash of the module name, then balance the classes."""
    splits: dict[str, list[dict[str, str]]] = {split: [] for split in SHARES}
    taken = {(split, label): 0 for split in SHARES for label in LIBRARIES}
    for row in rows:
        place = hash_module(row["module"])
        split = next((s for s, edge in _list_edges() if place < edge), "test")
        if taken[split, row["label"]] < ROWS_PER_LIBRARY[split]:
            taken[split, row["label"]] += 1
            splits[split].append(row)
    for split in SHARES:
        fewest = min(taken[split, label] for label in LIBRARIES)
        if fewest < ROWS_PER_LIBRARY[split]:
            counts = dict.fromkeys(LIBRARIES, 0)
            balanced = []
            for row in splits[split]:
                counts[row["label"]] += 1
                if counts[row["label"]] <= fewest:
                    balanced.append(row)
            splits[split] = balanced
    return splits


def hash_module(module: str) -> float:
    """Return a number from 0 to 1 from the module's name, so that a module is in one split."""
    return int(hashlib.sha256(f"{SEED} {module}".encode()).hexdigest()[:8], 16) / 16**8


def _list_edges() -> list[tuple[str, float]]:
    total, edges = 0.0, []
    for split, share in SHARES.items():
        total += share
        edges.append((split, total))
    return edges
