"""Time of an optimizer step and bytes sent, from traced operations and hardware speeds."""

from dataclasses import dataclass

from peftkit.planning.hardware import Hardware
from peftkit.planning.tracing import ModelMemory, StepMemory
from peftkit.planning.zero import Placement

UPDATE_BYTES = 28
"""Bytes that Adam reads and writes per 4-byte weight: weight and two moments (both ways), and the gradient."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of the parts of an optimizer step of one rank, and the bytes that the rank sends.

    Attributes:
        compute: Seconds of forward and backward passes.
        network: Seconds of communication.
        update: Seconds of the optimizer update and of transfers for offloading.
        sent: Bytes that one rank sends.
        overlaps: Whether communication overlaps with computation.
    """

    compute: float
    network: float
    update: float
    sent: int
    overlaps: bool

    @property
    def seconds(self) -> float:
        """Seconds of the whole step; communication overlaps with computation if possible."""
        both = max(self.compute, self.network) if self.overlaps else self.compute + self.network
        return both + self.update

    @property
    def bound(self) -> str:
        """Part with most of the step time."""
        spent = {"compute": self.compute, "network": self.network, "optimizer": self.update}
        return max(spent, key=lambda name: spent[name])


def count_sent_bytes(memory: ModelMemory, placement: Placement, ranks: int, micro_steps: int) -> int:
    """Count the bytes that one rank sends in an optimizer step of `micro_steps` passes.

    ZeRO paper, section 7: an all-reduce sends a tensor twice. Plain data parallel training and stages 1 and 2 send
    gradients twice. Stage 3 gathers the weights in forward and backward and sends gradients once. Frozen weights have
    no gradients, but are gathered.
    """
    share = (ranks - 1) / ranks
    if placement.stage == 0:
        return int(2 * share * memory.gradients)
    if placement.stage == 1:
        return int(share * (memory.gradients + memory.trained_weights))
    if placement.stage == 2:
        return int(share * (micro_steps * memory.gradients + memory.trained_weights))
    return int(share * micro_steps * (2 * memory.weights + memory.gradients))


def estimate_step_time(
    memory: ModelMemory, step: StepMemory, placement: Placement, ranks: int, micro_steps: int, hardware: Hardware
) -> StepTime:
    """Estimate the time of an optimizer step of `micro_steps` passes over `step.rows` rows each."""
    sent = count_sent_bytes(memory, placement, ranks, micro_steps)
    between = hardware.bandwidth if ranks <= hardware.devices_per_host else min(hardware.bandwidth, hardware.network)
    shards = ranks if placement.stage else 1
    moved = UPDATE_BYTES * memory.trainable / shards
    update = moved / (hardware.host_bandwidth if placement.offload_optimizer else hardware.memory_bandwidth)
    if placement.offload_optimizer:
        # Gradients move to the host and new weights to the device.
        update += (memory.gradients + memory.trained_weights) / shards / hardware.host_link
    if placement.offload_param:
        update += 2 * micro_steps * memory.weights / shards / hardware.host_link
    # In a small model an operator finishes before the launch of the next operator.
    passes = max(step.flops / hardware.flops, step.operators * hardware.launch)
    return StepTime(
        compute=micro_steps * passes, network=sent / between, update=update, sent=sent,
        # On a CPU computation and communication use the same cores.
        overlaps=not hardware.is_host,
    )  # fmt: skip
