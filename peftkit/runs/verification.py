"""What is on disk, asked by a fresh process, against what was in memory: the proof that nothing was lost between."""

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file, save_file

from peftkit.errors import NotReproducedError
from peftkit.recipe.schema import Recipe
from peftkit.system.environment import is_out_of_memory_message
from peftkit.tasks import Task

FULL_TOLERANCE = 1e-4
HALF_TOLERANCE = 5e-2
# Of a launcher: with them a library would wait for other ranks.
NOT_FOR_A_FRESH_PROCESS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# Asked in this way whether there is a GPU, torch does not touch it.
WITHOUT_CUDA = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far one model's outputs are from another's, on the same rows.

    Attributes:
        rows: How many rows were asked.
        difference: The largest difference of a logit.
        label_agreement: Share of rows, tags or tokens, or of rows and labels, for which both name the same answer.
        text_agreement: Share of rows for which both generate the same tokens; None where nothing is generated.
        divergence: Kullback-Leibler divergence of the second from the first in nats, the mean over rows, tags or
            tokens (of several labels, their sum); of numbers, the mean absolute difference.
    """

    rows: int
    difference: float
    label_agreement: float
    text_agreement: float | None
    divergence: float


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """How far one model's outputs may be from another's.

    Attributes:
        difference: Of a logit, the most.
        label_agreement: Share of answers that must be the same; two nearly equal ones may change places.
        text_agreement: Share of rows for which both must generate the same tokens.
    """

    difference: float
    label_agreement: float = 0.95
    text_agreement: float = 1.0


def allowance(outputs: Mapping[str, torch.Tensor], *, half: bool = False, same_device: bool = True) -> Allowance:
    """What may lie between `outputs` and the same model's elsewhere: 1e-4 of the largest logit, and at least that.

    In 16 bits (`half`) it is 5e-2, and texts may differ, since of two nearly equal tokens either may be generated.
    Between a GPU and a CPU that happens in 32 bits as well, but rarely.
    """
    scale = max(1.0, float(outputs["logits"].abs().max()))
    if half:
        return Allowance(difference=HALF_TOLERANCE * scale, label_agreement=0.9, text_agreement=0.0)
    return Allowance(difference=FULL_TOLERANCE * scale, text_agreement=1.0 if same_device else 0.5)


def is_half(recipe: Recipe, dtype: str, *, on_gpu: bool) -> bool:
    """Whether arithmetic of 16 bits (or TF32's 19) takes part: by weights of `dtype`, mixed precision, 4-bit layers."""
    half = dtype != "float32" or any(recipe.training.get(name) for name in ("bf16", "fp16"))
    half |= on_gpu and bool(recipe.training.get("tf32"))
    if (quantization := recipe.method.quantization) is not None:
        compute = quantization.bnb_4bit_compute_dtype
        half |= on_gpu if compute == "auto" else compute != "float32"
    return half


def compared(
    task: Task, found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], batch: Mapping[str, Any]
) -> Difference:
    """How far `found` (`logits`, perhaps `generated`) is from `expected` on `batch`; padding does not count.

    Where `expected` has `counted`, true and false a token of the target, only those tokens do.
    """
    counted = expected.get("counted")
    if counted is None and expected["logits"].ndim == 3 and "decoder_input_ids" not in batch:
        counted = batch["attention_mask"].bool()
    logits, reference = (
        (outputs["logits"] if counted is None else outputs["logits"][counted]).float() for outputs in (found, expected)
    )
    texts = None
    if "generated" in expected:
        texts = _same_texts(found["generated"], expected["generated"])
    # A NaN is no agreement: infinity fails every tolerance.
    worst = (logits - reference).abs().nan_to_num(nan=float("inf")).max()
    return Difference(
        rows=len(expected["logits"]),
        difference=float(worst),
        label_agreement=float(task.same(logits, reference).float().mean()),
        text_agreement=texts,
        divergence=float(task.divergence(logits, reference).mean()),
    )


def _same_texts(one: torch.Tensor, other: torch.Tensor) -> float:
    """Share of rows with the same tokens; -1 is padding."""
    if one.shape != other.shape:
        width = max(one.shape[1], other.shape[1])
        one, other = (torch.nn.functional.pad(ids, (0, width - ids.shape[1]), value=-1) for ids in (one, other))
    return float((one == other).all(-1).float().mean())


def combined(parts: Sequence[Difference]) -> Difference:
    """Of several batches: the largest difference, and the other means by their rows."""
    rows = [part.rows for part in parts]

    def mean(values: list[float]) -> float:
        return sum(value * count for value, count in zip(values, rows, strict=True)) / sum(rows)

    texts = [part.text_agreement for part in parts if part.text_agreement is not None]
    return Difference(
        rows=sum(rows),
        difference=max(part.difference for part in parts),
        label_agreement=mean([part.label_agreement for part in parts]),
        text_agreement=mean(texts) if len(texts) == len(parts) else None,
        divergence=mean([part.divergence for part in parts]),
    )


def check(what: str, found: Difference, allowed: Allowance) -> None:
    """Raise NotReproducedError when logits, answers or texts differ by more than is allowed."""
    if not found.difference <= allowed.difference:
        raise NotReproducedError(
            f"{what} differs from what was trained by {found.difference:.3g} in a logit "
            f"(tolerance {allowed.difference:.3g})"
        )
    if found.label_agreement < allowed.label_agreement:
        raise NotReproducedError(
            f"{what} gives other answers than what was trained for {1 - found.label_agreement:.0%}"
        )
    if found.text_agreement is not None and found.text_agreement < allowed.text_agreement:
        share = 1 - found.text_agreement
        raise NotReproducedError(f"{what} generates other text than what was trained for {share:.0%} of rows")


def fresh_outputs(
    folder: Path, batch: Mapping[str, torch.Tensor], *, auto_class: str, dtype: str = "float32", **adapter: Any
) -> dict[str, torch.Tensor]:
    """What a process with plain transformers and peft makes of `folder`: `logits`, perhaps `generated`.

    `adapter` gives `base`, `revision` and `quantization` where the folder holds one, and `trust_remote_code`. Raises
    NotReproducedError when the folder can't be loaded there.
    """
    with tempfile.TemporaryDirectory() as scratch:
        inputs, output = Path(scratch) / "inputs.safetensors", Path(scratch) / "output.safetensors"
        save_file(dict(batch), inputs)
        question = {
            "folder": str(folder.resolve()), "auto_class": auto_class, "inputs": str(inputs), "output": str(output),
            "dtype": dtype, "trust_remote_code": False, **adapter,
        }  # fmt: skip
        if error := _ask(question):
            if is_out_of_memory_message(error):
                raise MemoryError(f"the fresh process that reads back what was saved: {error}")
            raise NotReproducedError(f"a fresh process can't load what was saved: {error}")
        return load_file(output)


def _ask(question: Mapping[str, Any]) -> str | None:
    process, said = _fresh_process()
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
        told = process.stdout.readline()
    except BrokenPipeError:
        told = ""
    if not told:
        _fresh_process.cache_clear()
        status = process.wait()
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
        return f"it ended with status {status}" + (f": {lines[-1][:300]}" if lines else "")
    return json.loads(told)["error"]


@lru_cache(maxsize=1)
def _fresh_process() -> tuple[subprocess.Popen[str], IO[bytes]]:
    """The process that loads plain libraries once and answers each question in a child, and what it says of errors.

    It ends with this one.
    """
    script = Path(__file__).with_name("reload_worker.py")
    said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # as long-lived as the process
    # A launcher gives each rank one thread; the others have left.
    launched = "LOCAL_WORLD_SIZE" in os.environ
    unwanted = {*NOT_FOR_A_FRESH_PROCESS, *(["OMP_NUM_THREADS"] if launched else [])}
    process = subprocess.Popen(  # noqa: S603
        # Without -P the files beside the script would hide packages of their names.
        [sys.executable, "-P", "-W", "ignore", str(script)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True,
        env={name: value for name, value in os.environ.items() if name not in unwanted} | WITHOUT_CUDA,
    )  # fmt: skip
    atexit.register(_end, process, said)
    return process, said


def _end(process: subprocess.Popen[str], said: IO[bytes]) -> None:
    process.kill()
    process.communicate()
    said.close()
