"""Energy as the hardware itself counts it; nothing is estimated."""

from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Adds up what the counters of this host gained since it was made.

    Processors: the package counters of Linux's powercap (RAPL), which only root may read on most systems. GPUs: NVML's
    counter of each that this process sees, with the package `nvidia-ml-py`. All processes on them are counted alike.
    """

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._ranges = _package_ranges(powercap)
        self._gpus = _gpu_handles()
        self._last = self._read()
        self._joules = dict.fromkeys((kind for kind, _ in self._last), 0.0)

    def _read(self) -> dict[tuple[str, Any], float]:
        """Joules by counter, as they stand."""
        found: dict[tuple[str, Any], float] = {}
        for path in self._ranges:
            try:
                found["cpu", path] = int((path / "energy_uj").read_text()) / 1e6
            except OSError:
                continue
        for place, handle in enumerate(self._gpus):
            import pynvml

            found["gpu", place] = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
        return found

    def joules(self) -> dict[str, float]:
        """Joules so far of `cpu` and of `gpu`; a kind that no counter tells of is absent.

        A processor's counter starts again from zero, some after half an hour at full load: ask more often than that.
        """
        now = self._read()
        for (kind, place), value in now.items():
            gained = value - self._last.get((kind, place), value)
            self._joules[kind] += gained if gained >= 0 else gained + self._ranges.get(place, 0.0)
        self._last = now
        return dict(self._joules)


def _package_ranges(powercap: Path) -> dict[Path, float]:
    """Where each processor package counts, and the joules after which it starts again."""
    found = {}
    for path in sorted(powercap.glob("*-rapl:*")):
        # A zone below a package, such as its memory, has a second colon.
        if path.name.count(":") == 1:
            try:
                found[path] = int((path / "max_energy_range_uj").read_text()) / 1e6
            except (OSError, ValueError):
                continue
    return found


def _gpu_handles() -> list[Any]:
    import torch

    if not torch.cuda.is_available():
        return []
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        uuids = [torch.cuda.get_device_properties(index).uuid for index in range(torch.cuda.device_count())]
        handles = [pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}") for uuid in uuids]
        for handle in handles:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return []
    return handles
