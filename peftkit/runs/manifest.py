"""What belongs together: weights, base, labels, tokenizer and task of a saved folder, and how it is loaded."""

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from transformers import PreTrainedTokenizerBase

from peftkit.errors import UserError
from peftkit.system.files import redact_home, write_json

MANIFEST = "contract.json"
FORMAT = 1
# Of a folder's weights, the first kind that is there.
WEIGHT_PATTERNS = ("model*.safetensors", "pytorch_model*.bin")
PARTS = ("auto_class", "adapter", "base", "dtype", "quantization", "labels", "tokenizer", "task")
HELD_OUT = "held_out.safetensors"
RECIPE = "recipe.yaml"


def write_manifest(folder: Path, **parts: Any) -> None:
    """Write what `parts` say, and the size and SHA-256 of each file of weights in the folder."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _hash_file(path)}
        for path in sorted(folder.iterdir())
        if path.suffix in (".safetensors", ".onnx", ".data") and path.name != HELD_OUT
    }
    write_json(folder / MANIFEST, {"format": FORMAT, **parts, "files": files})


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The folder's contract, its files of weights found whole; None where there is none. Raises UserError."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        contract = json.loads(path.read_text(encoding="utf-8"))
        newer = contract["format"] > FORMAT
        files = {str(name): (int(told["bytes"]), str(told["sha256"])) for name, told in contract["files"].items()}
        if not newer and (lacking := [part for part in PARTS if part not in contract]):
            raise KeyError(lacking[0])
        if any(Path(name).name != name for name in files):
            raise ValueError("a file's name with a folder in it")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: can't be read ({error!r}); take it anew from its source") from None
    if newer:
        raise UserError(f"{path}: of a newer peftkit (format {contract['format']}, this one reads {FORMAT})")
    for name, (right, digest) in files.items():
        file = folder / name
        if not file.is_file():
            raise UserError(f"{folder}: {name} is missing; take the folder anew from its source")
        if (size := file.stat().st_size) != right:
            raise UserError(f"{file}: has {size:,} bytes of {right:,}; take it anew from its source")
        if _hash_file(file) != digest:
            raise UserError(f"{file}: its bytes are not those that were saved; take it anew from its source")
    return contract


def check_labels(folder: Path, contract: Mapping[str, Any], labels: tuple[str, ...]) -> None:
    """Raise UserError when the labels of the folder's config are not those of its contract."""
    if list(labels) != contract["labels"]:
        raise UserError(
            f"{folder}: its config.json names the labels {_format_labels(labels)}, it was trained with "
            f"{_format_labels(contract['labels'])}; labels and weights don't belong together"
        )


def check_tokenizer(folder: Path, contract: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError when the folder's tokenizer is not the one that its model was trained with."""
    found, right = identify_tokenizer(tokenizer), contract["tokenizer"]
    if found != right:
        raise UserError(
            f"{folder}: its tokenizer has {found['tokens']:,} tokens ({found['sha256'][:8]}), it was trained with one "
            f"of {right['tokens']:,} ({right['sha256'][:8]}); tokenizer and weights don't belong together"
        )


def check_base(folder: Path, contract: Mapping[str, Any], source: str, revision: str | None) -> None:
    """Raise UserError when the weights at `source` are not those of the base that the folder was trained on."""
    right = contract["base"]
    found = identify_base(source, revision)
    if right["sha256"] is not None and found["sha256"] is not None and found["sha256"] != right["sha256"]:
        raise UserError(
            f"{folder}: was trained on {right['name_or_path']} ({right['sha256'][:8]}), but {redact_home(source)} "
            f"has other weights ({found['sha256'][:8]}); adapter and base don't belong together"
        )


def identify_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """How many tokens it has, and a SHA-256 of all that decides what a text becomes but the length it is cut to."""
    special = sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    how = sorted(tokenizer.get_vocab().items()) if backend is None else json.loads(backend.to_str())
    if isinstance(how, dict):
        how |= {"truncation": None, "padding": None}
    digest = hashlib.sha256(json.dumps([how, special], ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return {"tokens": len(tokenizer), "sha256": digest.hexdigest()}


def identify_base(source: str, revision: str | None = None) -> dict[str, Any]:
    """The commit, for a model of the hub, and a SHA-256 of its weights; None for what can't be told."""
    folder, commit = Path(source), None
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(source, revision=revision, local_files_only=True))
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
            return {"revision": revision, "sha256": None}
        commit = folder.name
    for pattern in WEIGHT_PATTERNS:
        if files := sorted(folder.glob(pattern)):
            whole = hashlib.sha256("".join(_hash_file(file) for file in files).encode())
            return {"revision": commit, "sha256": whole.hexdigest()}
    return {"revision": commit, "sha256": None}


def _hash_file(path: Path) -> str:
    stat = path.stat()
    return _hash_unchanged_file(path.resolve(), stat.st_size, stat.st_mtime_ns)


@lru_cache
def _hash_unchanged_file(path: Path, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _format_labels(labels: Any) -> str:
    names = [str(label) for label in labels]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
