"""Share one copy of the base weights between several models on the same base model."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from peftkit.errors import UserError
from peftkit.prediction.predictor import Predictor
from peftkit.system.files import redact_home
from peftkit.system.logging import logger


def check_shared_base(manifests: Mapping[str, Mapping[str, Any] | None]) -> None:
    """Raise UserError unless all manifests are of adapters on the same base model."""
    bases = {name: _read_base(name, manifest) for name, manifest in manifests.items()}
    first, (base, digest) = next(iter(bases.items()))
    for name, (other_base, other_digest) in bases.items():
        # Base models are equal by the hash of the weights, or by name if a hash is unknown.
        is_same = digest == other_digest if digest and other_digest else base == other_base
        if not is_same:
            raise UserError(
                f"{name}: base model mismatch with {first} (expected {base}, got {other_base} with other weights); "
                "predict with each model separately"
            )


def share_base(predictors: Iterable[tuple[str, Predictor]]) -> dict[str, Predictor]:
    """Replace weights with equal bytes by one shared tensor; adapters and heads stay separate.

    Predictors are loaded one at a time, so that at most two copies of the base model exist. Predictions do not change,
    because only equal weights are shared.
    """
    shared: dict[str, Predictor] = {}
    tensors: dict[tuple[Any, ...], torch.Tensor] = {}
    freed_bytes = 0
    for name, predictor in predictors:
        shared[name] = predictor
        for tensor in predictor.model.parameters():
            same = tensors.setdefault(_identify(tensor), tensor.data)
            if same.data_ptr() != tensor.data_ptr():
                freed_bytes += tensor.numel() * tensor.element_size()
                tensor.data = same
    logger.info("sharing one base model between %d models, saving %.1f MB of memory", len(shared), freed_bytes / 1e6)
    return shared


def _read_base(name: str, manifest: Mapping[str, Any] | None) -> tuple[str, str | None]:
    if manifest is None or not manifest["adapter"]:
        raise UserError(
            f"{name}: not an adapter (several models must be adapters of one base model); predict separately"
        )
    return redact_home(manifest["base"]["name_or_path"]), manifest["base"]["sha256"]


def _identify(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return type, dtype, shape and a digest of the bytes; the scales of 4-bit weights are not included."""
    raw = tensor.detach().contiguous().flatten().view(torch.uint8).cpu().numpy()
    digest = hashlib.blake2b(raw.data, digest_size=16).digest()
    return type(tensor).__name__, tensor.dtype, tuple(tensor.shape), digest
