"""Build an encoder-decoder from an encoder checkpoint: BERT2BERT (Rothe et al. 2020, section 2)."""

import copy
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
)

from peftkit.errors import UserError
from peftkit.system.logging import logger


@dataclass(frozen=True, kw_only=True)
class LoadableCheckpoint:
    """A checkpoint that `from_pretrained` loads.

    Attributes:
        path: The checkpoint, or a temporary folder with the encoder-decoder built from the checkpoint.
        missing_keys: Parameters that no checkpoint contains.
        unused: Modules of the encoder that the encoder-decoder does not use.
    """

    path: str
    missing_keys: frozenset[str] = frozenset()
    unused: tuple[str, ...] = ()


@contextmanager
def open_checkpoint(
    source: str, auto_model: Any, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]
) -> Iterator[LoadableCheckpoint]:
    """Open a checkpoint; build an encoder-decoder from an encoder if `auto_model` needs one.

    `options` are keywords of `from_pretrained`. Raises UserError for a model that is neither.
    """
    if auto_model is not AutoModelForSeq2SeqLM:
        yield LoadableCheckpoint(path=source)
        return
    trust = {name: options[name] for name in ("revision", "trust_remote_code")}
    config = AutoConfig.from_pretrained(source, **trust)
    if type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        yield LoadableCheckpoint(path=source)
        return
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        raise UserError(
            f"model.name_or_path: {config.model_type} is neither an encoder-decoder nor an encoder; "
            "use a model such as T5, BART or BERT"
        )
    logger.info(
        "%s is an encoder: building an encoder-decoder from two copies, with new cross-attention", config.model_type
    )
    with tempfile.TemporaryDirectory() as folder:
        yield _build_encoder_decoder(source, tokenizer, {**trust, "dtype": options["dtype"]}, folder)


def build_encoder_decoder_config(config: Any) -> Any:
    """Return the config; for an encoder, the config of an encoder-decoder built from two copies."""
    if type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING or not hasattr(config, "is_decoder"):
        return config
    decoder = copy.deepcopy(config)
    decoder.is_decoder = decoder.add_cross_attention = True
    paired = EncoderDecoderConfig.from_encoder_decoder_configs(config, decoder)
    paired.decoder_start_token_id = paired.pad_token_id = 0
    return paired


def _build_encoder_decoder(
    source: str, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any], folder: str
) -> LoadableCheckpoint:
    begin = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    end = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    encoder, encoder_info = AutoModel.from_pretrained(source, output_loading_info=True, **options)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source, is_decoder=True, add_cross_attention=True, output_loading_info=True, **options
    )
    decoder, decoder_info = loaded
    config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder.config, decoder.config)
    ids = {"decoder_start_token_id": begin, "eos_token_id": end, "pad_token_id": tokenizer.pad_token_id}
    for name, value in ids.items():
        setattr(config, name, value)
    model = EncoderDecoderModel(encoder=encoder, decoder=decoder, config=config)
    model.generation_config.update(**ids)
    model.save_pretrained(folder)
    missing = {f"encoder.{name}" for name in encoder_info["missing_keys"] if not name.startswith("pooler.")}
    missing |= {
        f"decoder.{name}"
        for name in decoder_info["missing_keys"]
        # A new output bias is zero, not random. Its module contains the tied embeddings, so it is not a new head.
        if not name.endswith(("predictions.bias", "lm_head.bias", "decoder.bias"))
    }
    unused = ("encoder.pooler",) if getattr(encoder, "pooler", None) is not None else ()
    return LoadableCheckpoint(path=folder, missing_keys=frozenset(missing), unused=unused)
