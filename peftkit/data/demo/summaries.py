"""Demo summarization data: docstrings of installed packages, with the summary line as the target."""

import ast
import random
import re
from collections.abc import Iterable, Iterator

from datasets import Dataset, DatasetDict

from peftkit.data.demo.docstrings import (
    LIBRARIES,
    SEED,
    extract_prose,
    hash_module,
    iterate_documentable,
    load_or_build,
    parse_modules,
)

# The base model `demo-seq2seq` was trained on modules below 0.5; these rows come from other modules.
SHARES = {"train": (0.5, 0.78), "validation": (0.78, 0.85), "test": (0.85, 1.0)}
FILES = 600
MAX_ROWS = {"train": 3000, "validation": 400, "test": 600}
BUILDER = 1


def load_summaries() -> DatasetDict:
    """Load or build `train`, `validation` and `test` with columns `source` and `target`."""
    return load_or_build("summaries", f"{SHARES} {FILES} {MAX_ROWS} {BUILDER}", build_summaries)


def build_summaries() -> DatasetDict:
    """Build the splits: read, drop duplicates, split by module. Deterministic for given package versions."""
    splits: dict[str, list[dict[str, str]]] = {split: [] for split in SHARES}
    rows = list(extract_summaries(LIBRARIES.values()))
    random.Random(SEED).shuffle(rows)
    seen = set()
    for module, body, summary in rows:
        split = next((name for name, (low, high) in SHARES.items() if low <= hash_module(module) < high), None)
        if split is None or summary.lower() in seen or len(splits[split]) == MAX_ROWS[split]:
            continue
        seen.add(summary.lower())
        splits[split].append({"source": body, "target": summary})
    return DatasetDict({split: Dataset.from_list(found) for split, found in splits.items()})


def extract_summaries(packages: Iterable[str | None]) -> Iterator[tuple[str, str, str]]:
    """Yield (module, body, summary line) of docstrings that have both."""
    for package in packages:
        for module, tree in parse_modules(package, FILES):
            for node in iterate_documentable(tree):
                first, _, rest = (ast.get_docstring(node) or "").partition("\n\n")
                summary, body = _strip_markup(first), extract_prose(rest, is_masked=False)
                if 3 <= len(summary.split()) <= 20 and len(body.split()) >= 10 and summary.lower() not in body.lower():
                    yield module, body, summary


def _strip_markup(text: str) -> str:
    return re.sub(r":\w+(?::\w+)?:|[`*]+", "", " ".join(text.split()))
