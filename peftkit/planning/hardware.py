"""Hardware of a plan: assumed values, or a measurement of this machine."""

import time
from dataclasses import dataclass, replace

import psutil
import torch


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Devices and connections, in bytes, bytes per second and operations per second.

    Attributes:
        memory: Memory of a device.
        reserved: Memory not available for tensors: libraries, driver context, fragmentation.
        flops: Operations per second of a device in training, not the peak of the data sheet.
        launch: Minimum seconds from one PyTorch operator to the next.
        memory_bandwidth: Memory bandwidth of a device.
        bandwidth: Ring bandwidth between the devices of a host.
        network: Bandwidth between hosts, per device.
        host_link: Bandwidth between a device and the memory of its host.
        host_bandwidth: Memory bandwidth of the host, per device.
        devices_per_host: Number of devices per host.
        is_host: Whether the device is the processor of the host, so that offloading frees no memory.
    """

    memory: int
    reserved: int
    flops: float
    launch: float
    memory_bandwidth: float
    bandwidth: float
    network: float
    host_link: float
    host_bandwidth: float
    devices_per_host: int
    is_host: bool = False


GPU = Hardware(
    memory=24 * 2**30, reserved=2**30, flops=40e12, launch=5e-6, memory_bandwidth=800e9, bandwidth=12e9, network=3e9,
    host_link=12e9, host_bandwidth=25e9, devices_per_host=8,
)  # fmt: skip
"""Assumed GPU: PCIe between devices, 25 Gbit/s per device between hosts."""
CPU = replace(
    GPU, flops=50e9, launch=0, memory_bandwidth=8e9, bandwidth=1e9, host_link=8e9, host_bandwidth=8e9, is_host=True
)
"""Assumed rank on one core of a server."""


def measure_local_hardware() -> tuple[Hardware, bool]:
    """Measure the speed of this machine's device with a matrix product; also return whether it is a GPU."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        return replace(
            GPU, memory=torch.cuda.get_device_properties(0).total_memory, flops=_measure_matmul("cuda") / 2
        ), True
    total = psutil.virtual_memory().total
    return replace(CPU, memory=total, flops=_measure_matmul("cpu") / 2), False


def _measure_matmul(device: str) -> float:
    """Measure the floating point operations per second of a large matrix product."""
    size = 4096 if device == "cuda" else 1024
    left = torch.ones(size, size, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        (left @ left)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
