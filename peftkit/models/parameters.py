"""Parameter counts of a model."""

import torch


def count_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Count `trainable` and `total` weights; 4-bit weights and ZeRO-3 shards count in their full shape."""
    trainable = total = 0
    for parameter in model.parameters():
        count = getattr(parameter, "ds_numel", parameter.numel())
        if hasattr(parameter, "quant_state"):
            count = parameter.quant_state.shape.numel()
        total += count
        trainable += count if parameter.requires_grad else 0
    return {"trainable": trainable, "total": total}
