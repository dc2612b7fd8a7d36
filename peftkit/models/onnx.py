"""Export a Transformers model to ONNX with the library's exporter, and run an ONNX file like a model."""

import contextlib
import copy
import importlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from peftkit.errors import UserError
from peftkit.tasks.default import get_first_output

FILE = "model.onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime", "transformers.exporters")
# The exporter would trace a dimension of 1, and for some models of 2, as a constant.
MIN_ROWS = 2
MIN_LENGTH = 8


def write_onnx(model: PreTrainedModel, batch: Mapping[str, torch.Tensor], folder: Path, *, int8: bool = False) -> None:
    """Write the forward pass of a float32 model to `folder`, with the inputs of `batch` and logits.

    Batch size and lengths are dynamic. The weights of `model.onnx` are in `model.onnx.data`; the library also writes
    `config.json` and `export.json`. With `int8` the weights of matrix products and embeddings are integers, and
    activations are quantized at run time. The model stays unchanged. Raises UserError if the library cannot export the
    model or a package is missing.
    """
    with _silence():
        _check_packages()
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass
        from transformers.exporters import OnnxConfig, OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer
        from transformers.exporters.exporter_onnx import OnnxExporter

        # One scale per column halves the error. Sums of full 8-bit weights would overflow without VNNI.
        how = OnnxRuntimeDynamicConfig(per_channel=True, reduce_range=True)
        config = OnnxConfig(dynamic=True, quantizer=OnnxRuntimeQuantizer(how) if int8 else None)
        sample: dict[str, Any] = {name: _repeat_rows(tensor) for name, tensor in batch.items()}
        kind = type(model).__name__
        try:
            with _return_logits(model):
                exported = OnnxExporter().export(model, sample, config)
        except Exception as error:
            raise UserError(f"export: cannot export {kind} to ONNX: {_find_reason(error)}") from error
        if fixed := _find_fixed_size(exported.program):
            raise UserError(f"export: cannot export {kind} to ONNX: the input would have a fixed size ({fixed})")
        # The stack traces of the nodes contain local paths.
        ClearMetadataAndDocStringPass()(exported.program)
        exported.config = copy.deepcopy(model.config)
        exported.config.architectures = [kind]
        exported.save_pretrained(folder)


@dataclass(frozen=True)
class OnnxOutput:
    """Output of an ONNX model.

    Attributes:
        logits: Float32 tensor on the CPU.
    """

    logits: torch.Tensor


class OnnxModel:
    """An ONNX model in ONNX Runtime on the CPU, called like a Transformers model: `model(**batch).logits`.

    Inputs that the graph does not have are ignored. There is no `generate`.
    """

    device = torch.device("cpu")

    def __init__(self, folder: Path) -> None:
        _check_packages()
        import onnxruntime

        self.config: Any = AutoConfig.from_pretrained(folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(folder / FILE, options, providers=["CPUExecutionProvider"])
        self._inputs = [value.name for value in self._session.get_inputs()]

    def __call__(self, **batch: torch.Tensor) -> OnnxOutput:
        """Compute the logits of a batch."""
        (logits,) = self._session.run(["logits"], {name: batch[name].cpu().numpy() for name in self._inputs})
        return OnnxOutput(logits=torch.from_numpy(logits))


def _check_packages() -> None:
    try:
        for name in PACKAGES:
            importlib.import_module(name)
    except ImportError as error:
        raise UserError("export: ONNX packages are not installed; run pip install 'peftkit[onnx]'") from error


def _repeat_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Repeat rows and tokens up to the minimum dimensions; every row has the same number of end tokens."""
    rows, length = tensor.shape
    return tensor.repeat(-(-MIN_ROWS // rows), -(-MIN_LENGTH // length))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress output, log messages and warnings of the libraries."""
    disabled, handlers = logging.root.manager.disable, list(logging.root.handlers)
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        # The quantizer adds a root handler that would write to a closed stream.
        logging.root.handlers[:] = handlers


@contextlib.contextmanager
def _return_logits(model: Any) -> Iterator[None]:
    """Make the model return only logits, in evaluation mode; restore the model afterwards."""
    own = dict(vars(model))
    training = [module for module in model.modules() if module.training]
    forward = model.forward
    model.forward = lambda **inputs: {"logits": get_first_output(forward(**inputs).logits)}
    model.eval()
    try:
        yield
    finally:
        # The library leaves `forward` on the instance, which would hide the method of the class.
        if "forward" in own:
            model.forward = own["forward"]
        else:
            del model.forward
        for module in training:
            module.training = True


def _find_fixed_size(program: Any) -> str:
    """Describe a graph input with a constant dimension; empty without one."""
    for value in program.graph.inputs:
        sizes = [str(size) for size in value.shape]
        if any(size.isdecimal() for size in sizes):
            return f"{value.name} of {' x '.join(size if size.isdecimal() else 'any' for size in sizes)}"
    return ""


def _find_reason(error: BaseException) -> str:
    """Return the first line of the innermost cause; outer errors only explain how to report a bug."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {' '.join(line.split())}"[:300]
