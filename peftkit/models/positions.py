"""Maximum number of positions of a model."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from peftkit.models.loading import disable_zero3, resolve_source, translate_load_errors
from peftkit.recipe.schema import ModelConfig


def find_position_limit(model: PreTrainedModel) -> int | None:
    """Find the maximum number of input tokens of a model; None for relative positions without a limit."""
    config: Any = getattr(model.config, "encoder", model.config)
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    tables = [module for name, module in model.named_modules() if name.endswith("position_embeddings")]
    relative = getattr(config, "relative_attention_num_buckets", None) or not getattr(
        config, "position_biased_input", True
    )
    if relative and not any(isinstance(module, torch.nn.Embedding) for module in tables):
        return None
    for module in tables:
        # In RoBERTa the first positions, up to the id of the pad token, are for padding.
        if limit and getattr(module, "padding_idx", None) is not None:
            return limit - module.padding_idx - 1
    return limit


def read_position_limit(config: ModelConfig) -> int | None:
    """Read the position limit from the config, without reading weights."""
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    # The random state is restored: this call does not change the initialization of the head.
    with translate_load_errors(config), disable_zero3(), torch.random.fork_rng(devices=[]), torch.device("meta"):
        found = AutoConfig.from_pretrained(resolve_source(config), revision=config.revision, **options)
        # An encoder-decoder of two models has no AutoModel class; its encoder has the limit.
        return find_position_limit(AutoModel.from_config(getattr(found, "encoder", found), **options))
