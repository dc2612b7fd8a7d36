"""Several models that were trained on one base keep one copy of it."""

import hashlib
from collections.abc import Iterable
from typing import Any

import torch

from peftkit.errors import UserError
from peftkit.prediction.predictor import Predictor
from peftkit.system.files import redact_home
from peftkit.system.logging import logger


def share_base(predictors: Iterable[tuple[str, Predictor]]) -> dict[str, Predictor]:
    """Let all models use the first one's copy of each frozen weight that they have alike; adapters and heads stay.

    Each is taken when the one before it has been gone through, so that a second base is let go before a third comes.
    What a model answers does not change, since only equal bytes are shared. Raises UserError, naming both, when two
    were not trained on the same base.
    """
    found: dict[str, Predictor] = {}
    kept: dict[tuple[Any, ...], torch.Tensor] = {}
    bases: dict[str, tuple[str, str | None]] = {}
    shared = 0
    for name, predictor in predictors:
        found[name], bases[name] = predictor, _base(predictor)
        first = next(iter(bases))
        if not _same_base(bases[first], bases[name]):
            raise UserError(
                f"{first} was trained on {bases[first][0]}, {name} on {bases[name][0]} with other weights: they share "
                "none; predict with each alone"
            )
        for tensor in predictor.model.parameters():
            same = kept.setdefault(_identity(tensor), tensor.data)
            if same.data_ptr() != tensor.data_ptr():
                shared += tensor.numel() * tensor.element_size()
                tensor.data = same
    logger.info("%d models share one base: %.1f MB are held once", len(found), shared / 1e6)
    return found


def _base(predictor: Predictor) -> tuple[str, str | None]:
    contract = predictor.contract
    if contract is None or not contract["adapter"]:
        raise UserError("several models are predicted with only where each is an adapter: give folders of such runs")
    return redact_home(contract["base"]["name_or_path"]), contract["base"]["sha256"]


def _same_base(one: tuple[str, str | None], other: tuple[str, str | None]) -> bool:
    """By their bytes, or by their names where those are not known."""
    return one[1] == other[1] if one[1] and other[1] else one[0] == other[0]


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Kind, shape and a digest of the bytes; the scales of weights in 4 bits stay with each."""
    raw = tensor.detach().contiguous().flatten().view(torch.uint8).cpu().numpy()
    digest = hashlib.blake2b(raw.data, digest_size=16).digest()
    return type(tensor).__name__, tensor.dtype, tuple(tensor.shape), digest
