"""A method is data: an optional `peft` config and an optional quantization. Full fine-tuning has neither."""

import copy
import difflib
import warnings
from dataclasses import dataclass
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftConfig, PeftModel, PeftType
from transformers import BitsAndBytesConfig, PreTrainedModel

from peftkit.errors import AuditError, UserError

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


def apply(
    method: Method, model: PreTrainedModel, head: tuple[str, ...], task_type: str, unused: tuple[str, ...] = ()
) -> PreTrainedModel | PeftModel:
    """Make `model` trainable by `method`; the modules named in `head` are trained and saved whatever the method.

    Modules named in `unused` get no adapter, where the method can leave modules out.

    Raises UserError when peft does not accept the config for this model.
    """
    if method.peft is None:
        return model
    config: Any = copy.deepcopy(method.peft)
    kind = type(config).__name__
    config.task_type = task_type
    if not hasattr(config, "modules_to_save"):
        raise UserError(f"method.peft: {kind} can't save the new head {', '.join(head)}; take another method")
    config.modules_to_save = sorted({*(config.modules_to_save or ()), *head})
    if unused and not isinstance(getattr(config, "exclude_modules", ""), str):
        config.exclude_modules = sorted({*(config.exclude_modules or ()), *unused})
    _check_targets(getattr(config, "target_modules", None), model)
    if method.quantization is not None:
        model = prepare_quantized(model)
    try:
        with warnings.catch_warnings():
            # GPT-2's transposed layers: peft sets it right by itself and warns of it.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
            adapted = peft.get_peft_model(model, config)
    except (ValueError, NotImplementedError, KeyError) as error:
        raise UserError(f"method.peft: {kind} does not fit {type(model).__name__}: {_first_line(error)}") from error
    return adapted


def _check_targets(targets: Any, model: torch.nn.Module) -> None:
    """Raise UserError for an entry of a list of modules that names none: peft passes over it."""
    if not isinstance(targets, list | tuple | set):
        return
    names = [name for name, _ in model.named_modules()]
    weighted = {name.rpartition(".")[2] for name, module in model.named_modules() if hasattr(module, "weight")}
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            kinds = sorted(name for name in weighted if not name.isdigit())
            near = difflib.get_close_matches(target, kinds, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(kinds[:30])}"
            raise UserError(f"method.peft.target_modules: no module '{target}'; {hint}")


def prepare_quantized(model: PreTrainedModel) -> PreTrainedModel:
    """Freeze a 4-bit base, all but its 4-bit layers in float32.

    A 4-bit layer rounds its bias to the compute dtype at its first use; done here, what is frozen stays as it is. A
    shard of ZeRO-3 stays as it is anyway: what is rounded is the copy that is gathered. On a CPU with bfloat16 units
    a 4-bit layer would repack its weights at the first evaluation, and could not be trained after; that is turned off.
    """
    model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    module: Any
    for module in model.modules():
        if type(module).__name__ != "Linear4bit":
            continue
        module.support_avx512bf16_for_cpu = False
        if module.bias is not None and not hasattr(module.bias, "ds_tensor"):
            module.bias.data = module.bias.data.to(module.compute_dtype)
    return model


def can_be_merged(model: torch.nn.Module) -> bool:
    """Whether what was trained can become an ordinary model: everything but prompts before the input."""
    return not isinstance(model, PeftModel) or hasattr(model.base_model, "merge_and_unload")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def check_head(model: torch.nn.Module, missing_keys: set[str]) -> None:
    """Hold the head contract: each parameter the checkpoint did not bring is trainable and not quantized.

    Raises AuditError naming those that are not.
    """
    trained = {plain_name(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    if frozen := sorted(missing_keys - trained):
        raise AuditError(f"head contract: not in the checkpoint, yet frozen: {', '.join(frozen)}")
    # A new head in a 4-bit layer is packed only at its first use, so the layer's kind tells and not its weight.
    packed = {
        plain_name(f"{name}.{own}")
        for name, module in model.named_modules()
        if type(module).__module__.startswith("bitsandbytes.nn")
        for own, _ in module.named_parameters(recurse=False)
    }
    if quantized := sorted(missing_keys & packed):
        raise AuditError(f"head contract: not in the checkpoint, yet quantized: {', '.join(quantized)}")


def plain_name(name: str) -> str:
    """A parameter's name in the model without peft, given its name with peft around it."""
    name = name.removeprefix("base_model.").removeprefix("model.") if name.startswith("base_model.") else name
    parts = name.split(".")
    if "modules_to_save" in parts:
        at = parts.index("modules_to_save")
        parts = parts[:at] + parts[at + 2 :]
    return ".".join(part for part in parts if part not in ("original_module", "base_layer"))
