"""A run's folder to an ordinary model, and the proof that it is the one that was trained."""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file, save_file

from peftkit.errors import AuditError, UserError
from peftkit.files import new_folder, write_json
from peftkit.log import logger
from peftkit.measure import environment
from peftkit.methods import can_be_merged
from peftkit.parsing import recipe_to_dict
from peftkit.run_folder import RECEIPT, Trained, load_run, read_held_out
from peftkit.tasks.plain_task import first_output

FULL_TOLERANCE = 1e-4
HALF_TOLERANCE = 5e-2


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """How far the exported model is from the trained one, on held-out rows; differences are the largest of a logit.

    Attributes:
        rows: How many held-out rows were asked.
        tolerance: The most that a gated difference may be.
        exported_difference: The exported model, loaded afresh by plain transformers, against what was trained: the
            live model's own logits, or where it was in 4 or 16 bits the same weights, unmerged, in float32.
        label_agreement: Share of rows, tags or tokens that the exported and the live model name alike.
        reload_difference: The run read back from disk as it was trained, against the live model; where 16-bit
            arithmetic took part, up to 5e-2 passes.
        live_difference: The exported against the live model. For a quantized run this is what leaving 4 bits
            changes, and any size passes.
    """

    rows: int
    tolerance: float
    exported_difference: float
    label_agreement: float
    reload_difference: float
    live_difference: float


def export(run: Path, out: Path, *, tolerance: float = FULL_TOLERANCE, trust_remote_code: bool = False) -> Receipt:
    """Merge the run's adapter into its base in float32, save to `out`, and prove it in a fresh process.

    `tolerance` is the largest difference of a logit that passes. Raises AuditError past it, and UserError for a method
    that can't be merged; `out` then does not appear.
    """
    held_out = read_held_out(run)
    live = held_out.pop("logits")
    with new_folder(out) as folder:
        trained = load_run(run, trust_remote_code=trust_remote_code)
        quantized = trained.recipe.method.quantization is not None
        half = _half_precision(trained, run)
        reloaded = _logits(trained, held_out)
        reference = live
        if quantized or half:
            trained = load_run(run, full_precision=True, trust_remote_code=trust_remote_code)
            reference = _logits(trained, held_out)
        merged = _merged(trained)
        merged.config.update(dict(trained.task.settings()))
        merged.save_pretrained(folder)
        trained.tokenizer.save_pretrained(folder)
        auto_class = trained.recipe.task.auto_model.__name__
        recipe = trained.recipe
        del merged, trained
        exported = _fresh_logits(folder, held_out, auto_class)
        receipt = Receipt(
            rows=len(live),
            tolerance=tolerance,
            exported_difference=_largest(exported - reference, held_out),
            label_agreement=_agreement(exported, live, held_out),
            reload_difference=_largest(reloaded - live, held_out),
            live_difference=_largest(exported - live, held_out),
        )
        for what, difference, most in (
            ("the run read back", receipt.reload_difference, HALF_TOLERANCE if half else tolerance),
            ("the exported model", receipt.exported_difference, tolerance),
        ):
            if not difference <= most:
                raise AuditError(
                    f"export: {what} differs from what was trained by {difference:.3g} in a logit "
                    f"(tolerance {most:g}); not exported"
                )
        write_json(
            folder / RECEIPT,
            {**vars(receipt), "recipe": recipe_to_dict(recipe), "environment": environment()},
        )
    logger.info(
        "exported to %s: largest logit difference %.2g on %d held-out rows (tolerance %g)",
        out, receipt.exported_difference, receipt.rows, receipt.tolerance,
    )  # fmt: skip
    if quantized:
        logger.info(
            "the run's scores are of the 4-bit model; this is its adapter on the full-precision base: logits differ by "
            "up to %.2g, %.1f %% of the most probable labels agree; score it before you use it",
            receipt.live_difference, 100 * receipt.label_agreement,
        )  # fmt: skip
    return receipt


def _half_precision(trained: Trained, run: Path) -> bool:
    """Whether 16-bit arithmetic took part: in the weights, the Trainer's mixed precision or the 4-bit products."""
    recipe = trained.recipe
    if recipe.model.dtype != "float32" or any(recipe.training.get(name) for name in ("bf16", "fp16")):
        return True
    quantization = recipe.method.quantization
    if quantization is None or quantization.bnb_4bit_compute_dtype == "float32":
        return False
    from peftkit.report import read_report

    return quantization.bnb_4bit_compute_dtype != "auto" or bool(read_report(run).environment.get("gpus"))


def _merged(trained: Trained) -> Any:
    if not isinstance(trained.model, PeftModel):
        return trained.model
    if not can_be_merged(trained.model):
        kind = trained.model.active_peft_config.peft_type.value
        raise UserError(f"export: {kind} adds no weights that could be merged; the run's folder is its only form")
    inner: Any = trained.model.get_base_model()
    # Most methods of peft can't unload a trained head that is more than one layer; so the head goes first.
    for name, module in list(inner.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            parent, _, child = name.rpartition(".")
            own = module.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
            setattr(inner.get_submodule(parent), child, own)
    try:
        return trained.model.merge_and_unload(safe_merge=True)
    except (NotImplementedError, ValueError) as error:
        raise UserError(f"export: peft can't merge this adapter: {' '.join(str(error).split())}") from error


@torch.no_grad()
def _logits(trained: Trained, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits in float32 on the CPU, of shape (rows, labels)."""
    # A 4-bit model is loaded onto the GPU where there is one, any other onto the CPU.
    device = next(iter(trained.model.parameters())).device
    inputs = {name: tensor.to(device) for name, tensor in batch.items()}
    return first_output(trained.model(**inputs).logits).float().cpu()


def _fresh_logits(folder: Path, batch: dict[str, torch.Tensor], auto_class: str) -> torch.Tensor:
    """What a new process, with plain transformers alone, makes of the folder. Raises AuditError when it fails."""
    script = Path(__file__).with_name("fresh_process.py")
    with tempfile.TemporaryDirectory() as scratch:
        inputs, output = Path(scratch) / "inputs.safetensors", Path(scratch) / "output.safetensors"
        save_file(batch, inputs)
        words = [sys.executable, "-I", "-W", "ignore", script, folder, inputs, auto_class, output]
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True)  # noqa: S603
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise AuditError(f"export: a fresh process can't load the exported model: {said}")
        return load_file(output)["logits"]


def _of_text(values: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The values without those of padding, where there is one for each token of the input."""
    mask = batch["attention_mask"]
    return values[mask.bool()] if "decoder_input_ids" not in batch and values.shape[:2] == mask.shape else values


def _largest(difference: torch.Tensor, batch: dict[str, torch.Tensor]) -> float:
    # A NaN is no agreement: infinity fails every tolerance.
    return float(_of_text(difference, batch).abs().nan_to_num(nan=float("inf")).max())


def _agreement(exported: torch.Tensor, live: torch.Tensor, batch: dict[str, torch.Tensor]) -> float:
    """Share of rows, or of tokens, with the same largest logit; of numbers, with one that is within 0.01."""
    if exported.shape[-1] == 1:
        return float(torch.isclose(exported, live, atol=1e-2).float().mean())
    return float(_of_text((exported.argmax(-1) == live.argmax(-1)).float(), batch).mean())
