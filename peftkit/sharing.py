"""Several models that were trained on one base keep one copy of it."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from peftkit.errors import UserError
from peftkit.files import without_home
from peftkit.log import logger
from peftkit.predictor import Predictor


def share_base(predictors: Mapping[str, Predictor]) -> dict[str, Predictor]:
    """Let all models use the first one's copy of each frozen weight that they have alike; adapters and heads stay.

    What a model answers does not change, since only equal bytes are shared. Raises UserError, naming both, when two
    were not trained on the same base.
    """
    bases = {name: _base(predictor) for name, predictor in predictors.items()}
    first = next(iter(bases))
    for name, base in bases.items():
        if base != bases[first]:
            raise UserError(
                f"{first} was trained on {bases[first][0]}, {name} on {base[0]} with other weights: they share none; "
                "predict with each alone"
            )
    kept: dict[tuple[Any, ...], torch.Tensor] = {}
    shared = 0
    for predictor in predictors.values():
        for tensor in _weights(predictor.model):
            same = kept.setdefault(_identity(tensor), tensor.data)
            if same.data_ptr() != tensor.data_ptr():
                shared += tensor.numel() * tensor.element_size()
                tensor.data = same
    logger.info("%d models share one base: %.1f MB are held once", len(predictors), shared / 1e6)
    return dict(predictors)


def _base(predictor: Predictor) -> tuple[str, str | None]:
    contract = predictor.contract
    if contract is None or not contract["adapter"]:
        raise UserError("several models are predicted with only where each is an adapter: give folders of such runs")
    return without_home(contract["base"]["name_or_path"]), contract["base"]["sha256"]


def _weights(model: Any) -> list[torch.Tensor]:
    """Weights that nothing will train: in evaluation all of them are only read."""
    return [parameter for parameter in model.parameters() if parameter.numel()]


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    raw = tensor.detach().contiguous().flatten().view(torch.uint8).cpu().numpy()
    digest = hashlib.blake2b(raw.data, digest_size=16).digest()
    # Weights in 4 bits carry their scales with them, so only of equal kind, and with equal scales, they are equal.
    state = getattr(tensor, "quant_state", None)
    scales = None if state is None else hashlib.blake2b(state.absmax.cpu().numpy().tobytes()).digest()
    return type(tensor).__name__, tensor.dtype, tuple(tensor.shape), digest, scales
