"""Parameter counts of a model."""

import torch


def count_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Number of `trainable` and `total` weights; a 4-bit weight counts as one, a ZeRO-3 shard as the whole."""
    trainable = total = 0
    for parameter in model.parameters():
        count = getattr(parameter, "ds_numel", parameter.numel())
        if hasattr(parameter, "quant_state"):
            count = parameter.quant_state.shape.numel()
        total += count
        trainable += count if parameter.requires_grad else 0
    return {"trainable": trainable, "total": total}
