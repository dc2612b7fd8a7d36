"""Manifest `contract.json` of a saved folder: hashes of weights and tokenizer, labels, task, dtype."""

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
# The first pattern with a match selects the weights of a folder.
WEIGHT_PATTERNS = ("model*.safetensors", "pytorch_model*.bin")
PARTS = ("auto_class", "adapter", "base", "dtype", "quantization", "labels", "tokenizer", "task")
HELD_OUT = "held_out.safetensors"
RECIPE = "recipe.yaml"


def write_manifest(folder: Path, **parts: Any) -> None:
    """Write `parts`, and the size and SHA-256 of each weight file in the folder."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _hash_file(path)}
        for path in sorted(folder.iterdir())
        if path.suffix in (".safetensors", ".onnx", ".data") and path.name != HELD_OUT
    }
    write_json(folder / MANIFEST, {"format": FORMAT, **parts, "files": files})


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read the manifest and check the weight files; return None without a manifest. Raises UserError."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        newer = manifest["format"] > FORMAT
        files = {str(name): (int(file["bytes"]), str(file["sha256"])) for name, file in manifest["files"].items()}
        if not newer and (missing := [part for part in PARTS if part not in manifest]):
            raise KeyError(missing[0])
        if any(Path(name).name != name for name in files):
            raise ValueError("a file name contains a folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error!r}); download or copy the folder again") from None
    if newer:
        raise UserError(
            f"{path}: unsupported format (expected at most {FORMAT}, got {manifest['format']}); update peftkit"
        )
    for name, (expected, digest) in files.items():
        file = folder / name
        if not file.is_file():
            raise UserError(f"{folder}: {name} is missing; download or copy the folder again")
        if (size := file.stat().st_size) != expected:
            raise UserError(
                f"{file}: wrong size (expected {expected:,} bytes, got {size:,}); download or copy the folder again"
            )
        if _hash_file(file) != digest:
            raise UserError(f"{file}: wrong SHA-256; download or copy the folder again")
    return manifest


def check_labels(folder: Path, manifest: Mapping[str, Any], labels: tuple[str, ...]) -> None:
    """Raise UserError if the labels of the folder's config differ from the manifest."""
    if list(labels) != manifest["labels"]:
        raise UserError(
            f"{folder}: label mismatch: config.json has {_format_labels(labels)}, the weights were trained with "
            f"{_format_labels(manifest['labels'])}; download or copy the folder again"
        )


def check_tokenizer(folder: Path, manifest: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError if the folder's tokenizer differs from the tokenizer of training."""
    found, expected = identify_tokenizer(tokenizer), manifest["tokenizer"]
    if found != expected:
        raise UserError(
            f"{folder}: tokenizer mismatch (expected {expected['tokens']:,} tokens, {expected['sha256'][:8]}; got "
            f"{found['tokens']:,} tokens, {found['sha256'][:8]}); download or copy the folder again"
        )


def check_base(folder: Path, manifest: Mapping[str, Any], source: str, revision: str | None) -> None:
    """Raise UserError if the weights at `source` differ from the base model of training."""
    expected = manifest["base"]
    found = identify_base(source, revision)
    if expected["sha256"] is not None and found["sha256"] is not None and found["sha256"] != expected["sha256"]:
        raise UserError(
            f"{folder}: base model mismatch (expected {expected['name_or_path']}, {expected['sha256'][:8]}; got "
            f"{redact_home(source)}, {found['sha256'][:8]}); use the base model of training"
        )


def identify_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the vocabulary size and a SHA-256 of all tokenizer settings except length limits."""
    special = sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    settings = sorted(tokenizer.get_vocab().items()) if backend is None else json.loads(backend.to_str())
    if isinstance(settings, dict):
        settings |= {"truncation": None, "padding": None}
    digest = hashlib.sha256(json.dumps([settings, special], ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return {"tokens": len(tokenizer), "sha256": digest.hexdigest()}


def identify_base(source: str, revision: str | None = None) -> dict[str, Any]:
    """Return the commit of a Hub model and a SHA-256 of the weights; None if unknown."""
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
