"""Options of `peftkit plan`, checked before heavy imports."""

from dataclasses import dataclass
from pathlib import Path

from peftkit.errors import UserError

SIZE_UNITS = {"GIB": 2**30, "MIB": 2**20, "KIB": 2**10, "GB": 10**9, "MB": 10**6, "KB": 10**3}


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Options of `peftkit plan`; None for an option that is not given.

    Attributes:
        gpus: Number of devices.
        gpu_memory: Memory of each device, such as `24GiB`.
        rows: Number of training rows; by default read from the data.
        tflops: Operations in 10^12 per second of a device in training.
        speed_from: Finished run of one process that provides `tflops`.
        bandwidth: Bandwidth between the devices of a host, in GB/s.
        network: Bandwidth between hosts per device, in GB/s.
        gpus_per_host: Number of devices per host.
        scaling: Whether to add the experimental scaling tables.
        output: JSON file for the plan.
    """

    gpus: int | None = None
    gpu_memory: str | None = None
    rows: int | None = None
    tflops: float | None = None
    speed_from: Path | None = None
    bandwidth: float | None = None
    network: float | None = None
    gpus_per_host: int | None = None
    scaling: bool = False
    output: Path | None = None

    def __post_init__(self) -> None:
        if self.output is not None and self.output.suffix != ".json":
            raise UserError(f"--output {self.output}: expected a .json file; use another name")
        for name in ("gpus", "rows", "tflops", "bandwidth", "network", "gpus_per_host"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise UserError(f"--{name.replace('_', '-')} {value}: must be more than 0")
        if self.tflops is not None and self.speed_from is not None:
            raise UserError("--tflops and --speed-from: use only one of them")
        # Raise the error of an invalid size before the recipe is read.
        _ = self.memory_bytes

    @property
    def memory_bytes(self) -> int | None:
        """Memory of a device in bytes. Raises UserError for an invalid size."""
        return None if self.gpu_memory is None else _parse_size(self.gpu_memory)


def _parse_size(text: str) -> int:
    for unit, factor in SIZE_UNITS.items():
        if text.upper().endswith(unit):
            try:
                size = int(float(text[: -len(unit)]) * factor)
            except (ValueError, OverflowError):
                break
            # As in accelerate, `Gb` means gigabits.
            size = size // 8 if len(unit) == 2 and text.endswith("b") else size
            if size > 0:
                return size
            break
    raise UserError(f"--gpu-memory {text}: not a size (expected a size such as 24GiB)")
