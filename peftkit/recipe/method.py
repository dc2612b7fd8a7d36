"""A method is data: an optional `peft` config and an optional quantization. Full fine-tuning has neither."""

import copy
import difflib
from dataclasses import dataclass
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftConfig, PeftType
from transformers import BitsAndBytesConfig

from peftkit.errors import UserError

FULL_LEARNING_RATE = 5e-5
ADAPTER_LEARNING_RATE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """The frozen base in 4 bits, by bitsandbytes; fields as in `transformers.BitsAndBytesConfig`.

    Args:
        bnb_4bit_quant_type: `nf4`, whose levels fit normally distributed weights, or `fp4`.
        bnb_4bit_use_double_quant: Quantize the block scales too (QLoRA paper, section 3): about 0.4 bit a weight less.
        bnb_4bit_compute_dtype: What a block is expanded to before it is multiplied; `auto` is bfloat16 on a GPU that
            has it, float32 elsewhere.
        bnb_4bit_quant_storage: How the packed bits are stored; ZeRO-3 shards them only as a float type.
    """

    bnb_4bit_quant_type: str = "nf4"
    bnb_4bit_use_double_quant: bool = True
    bnb_4bit_compute_dtype: str = "auto"
    bnb_4bit_quant_storage: str = "uint8"

    def config(self, skipped: tuple[str, ...]) -> BitsAndBytesConfig:
        """The library's config, with the modules named in `skipped` kept in full precision."""
        compute = self.bnb_4bit_compute_dtype
        if compute == "auto":
            compute = "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=self.bnb_4bit_use_double_quant,
            bnb_4bit_compute_dtype=compute,
            bnb_4bit_quant_storage=self.bnb_4bit_quant_storage,
            llm_int8_skip_modules=list(skipped),
        )


@dataclass(frozen=True, kw_only=True)
class Method:
    """How the pretrained weights are adapted.

    Args:
        name: What tables call it; its kind when empty.
        peft: Any config of `peft`, by its own class and arguments; null trains every weight.
        quantization: Quantize the frozen base; null keeps it as loaded. Needs `peft`.
    """

    name: str = ""
    peft: PeftConfig | None = None
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        if self.quantization is not None and self.peft is None:
            raise UserError("method.quantization: a quantized base can't be trained itself; give method.peft too")
        if not self.name:
            object.__setattr__(self, "name", self.kind)

    @property
    def kind(self) -> str:
        """`full`, or the `peft` type in small letters, with a `q` before it on a quantized base."""
        if self.peft is None:
            return "full"
        kind = PeftType(self.peft.peft_type).value.lower()
        return f"q{kind}" if self.quantization is not None else kind


def full() -> Method:
    """Train every weight."""
    return Method(name="full")


def lora(*, r: int = 8, lora_alpha: int = 16, target_modules: Any = "all-linear", **config: Any) -> Method:
    """Low-rank adapters (LoRA) beside the frozen weights; `config` is any other argument of `peft.LoraConfig`."""
    return Method(name="lora", peft=LoraConfig(r=r, lora_alpha=lora_alpha, target_modules=target_modules, **config))


def qlora(*, quantization: Quantization | None = None, **config: Any) -> Method:
    """LoRA on a base in 4-bit NF4 with double quantization; `config` as in `lora`."""
    return Method(name="qlora", peft=lora(**config).peft, quantization=quantization or Quantization())


def usual_learning_rate(method: Method) -> float:
    """Where to start when the recipe names none: 5e-5 for all weights, 1e-3 for the few of an adapter."""
    return FULL_LEARNING_RATE if method.peft is None else ADAPTER_LEARNING_RATE


def named_method(word: str, base: Method) -> Method:
    """The method that `word` names, sharing with `base` what both have.

    `full`, `lora`, `qlora`, `dora` and `rslora` reuse the LoRA settings of `base`; any other word is a method of
    `peft` by its own name (`ia3`, `prefix_tuning`, `oft`, ...) with its config's defaults. Raises UserError.
    """
    if word == base.name and (word == "full") == (base.peft is None):
        return base
    shared = base.peft if isinstance(base.peft, LoraConfig) else lora().peft
    if word == "full":
        return full()
    if word == "lora":
        return Method(name=word, peft=_lora_variant(shared))
    if word == "qlora":
        return Method(name=word, peft=_lora_variant(shared), quantization=base.quantization or Quantization())
    if word == "dora":
        return Method(name=word, peft=_lora_variant(shared, use_dora=True))
    if word == "rslora":
        return Method(name=word, peft=_lora_variant(shared, use_rslora=True))
    configs = peft.PEFT_TYPE_TO_CONFIG_MAPPING
    for peft_type, config_class in configs.items():
        if word.lower() == peft_type.value.lower():
            try:
                return Method(name=word, peft=config_class())
            except (TypeError, ValueError) as error:
                raise UserError(f"--methods {word}: its config needs arguments ({error}); give a recipe file") from None
    usual = ["full", "lora", "qlora", "dora", "rslora", "ia3"]
    near = difflib.get_close_matches(word, usual, n=1) or difflib.get_close_matches(
        word, [kind.value.lower() for kind in configs], n=1
    )
    hint = f"did you mean '{near[0]}'?" if near else "a method of peft, or a recipe file"
    raise UserError(f"--methods: unknown method '{word}'; {hint}")


def _lora_variant(config: PeftConfig | None, *, use_dora: bool = False, use_rslora: bool = False) -> LoraConfig:
    variant = copy.deepcopy(config)
    assert isinstance(variant, LoraConfig)
    variant.use_dora, variant.use_rslora = use_dora, use_rslora
    return variant
