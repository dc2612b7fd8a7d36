"""Fine-tuning methods as data: an optional `peft` config and an optional quantization."""

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
    """A frozen base model in 4 bits (bitsandbytes); fields as in `transformers.BitsAndBytesConfig`.

    Args:
        bnb_4bit_quant_type: `nf4`, for normally distributed weights, or `fp4`.
        bnb_4bit_use_double_quant: Quantize the block scales too (QLoRA paper, section 3): saves about 0.4 bit per
            weight.
        bnb_4bit_compute_dtype: Dtype of the dequantized weights in a multiplication; `auto` is bfloat16 on a GPU that
            supports it, else float32.
        bnb_4bit_quant_storage: Dtype of the stored weights; ZeRO-3 shards only a float type.
    """

    bnb_4bit_quant_type: str = "nf4"
    bnb_4bit_use_double_quant: bool = True
    bnb_4bit_compute_dtype: str = "auto"
    bnb_4bit_quant_storage: str = "uint8"

    def config(self, skipped: tuple[str, ...]) -> BitsAndBytesConfig:
        """Return the `BitsAndBytesConfig`; the modules named in `skipped` stay in full precision."""
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
    """A fine-tuning method.

    Args:
        name: Name of the method in tables; if empty, the kind of the method.
        peft: Any config of `peft`, as class path and arguments; null trains every weight.
        quantization: Quantization of the frozen base model; null for none. Needs `peft`.
    """

    name: str = ""
    peft: PeftConfig | None = None
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        if self.quantization is not None and self.peft is None:
            raise UserError("method.quantization: a quantized base model needs an adapter; set method.peft")
        if not self.name:
            object.__setattr__(self, "name", self.kind)

    @property
    def kind(self) -> str:
        """`full`, or the `peft` type in lower case, with the prefix `q` on a quantized base model."""
        if self.peft is None:
            return "full"
        kind = PeftType(self.peft.peft_type).value.lower()
        return f"q{kind}" if self.quantization is not None else kind


def full() -> Method:
    """Train every weight."""
    return Method(name="full")


def lora(*, r: int = 8, lora_alpha: int = 16, target_modules: Any = "all-linear", **config: Any) -> Method:
    """Train low-rank adapters (LoRA); `config` is any other argument of `peft.LoraConfig`."""
    return Method(name="lora", peft=LoraConfig(r=r, lora_alpha=lora_alpha, target_modules=target_modules, **config))


def qlora(*, quantization: Quantization | None = None, **config: Any) -> Method:
    """Train LoRA adapters on a base model in 4-bit NF4 with double quantization; `config` as in `lora`."""
    return Method(name="qlora", peft=lora(**config).peft, quantization=quantization or Quantization())


def get_default_learning_rate(method: Method) -> float:
    """Return the default learning rate: 5e-5 for full fine-tuning, 1e-3 for an adapter."""
    return FULL_LEARNING_RATE if method.peft is None else ADAPTER_LEARNING_RATE


def find_method(name: str, base: Method, option: str = "--methods") -> Method:
    """Return the method called `name`, with the settings that it shares with `base`.

    `full`, `lora`, `qlora`, `dora` and `rslora` use the LoRA settings of `base`; any other name is a method of `peft`
    (`ia3`, `prefix_tuning`, `oft`, ...) with the defaults of its config. Raises UserError with the name of `option`.
    """
    if name == base.name and (name == "full") == (base.peft is None):
        return base
    shared = base.peft if isinstance(base.peft, LoraConfig) else lora().peft
    if name == "full":
        return full()
    if name == "lora":
        return Method(name=name, peft=_lora_variant(shared))
    if name == "qlora":
        return Method(name=name, peft=_lora_variant(shared), quantization=base.quantization or Quantization())
    if name == "dora":
        return Method(name=name, peft=_lora_variant(shared, use_dora=True))
    if name == "rslora":
        return Method(name=name, peft=_lora_variant(shared, use_rslora=True))
    configs = peft.PEFT_TYPE_TO_CONFIG_MAPPING
    for peft_type, config_class in configs.items():
        if name.lower() == peft_type.value.lower():
            try:
                return Method(name=name, peft=config_class())
            except (TypeError, ValueError) as error:
                raise UserError(f"{option} {name}: its config needs arguments ({error}); use a recipe file") from None
    known = ["full", "lora", "qlora", "dora", "rslora", "ia3"]
    near = difflib.get_close_matches(name, known, n=1) or difflib.get_close_matches(
        name, [kind.value.lower() for kind in configs], n=1
    )
    hint = f"use '{near[0]}'" if near else "use a method of peft or a recipe file"
    raise UserError(f"{option}: unknown method '{name}'; {hint}")


def _lora_variant(config: PeftConfig | None, *, use_dora: bool = False, use_rslora: bool = False) -> LoraConfig:
    variant = copy.deepcopy(config)
    assert isinstance(variant, LoraConfig)
    variant.use_dora, variant.use_rslora = use_dora, use_rslora
    return variant
