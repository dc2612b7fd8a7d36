"""Time of an optimizer step and the bytes it sends, from traced operations and hardware speeds."""

from dataclasses import dataclass

from peftkit.planning.hardware import Hardware
from peftkit.planning.tracing import ModelMemory, StepMemory
from peftkit.planning.zero import Placement

UPDATE_BYTES = 28
"""Moved by Adam for a trained weight of 4 bytes: itself, gradient, two moments; all but the gradient both ways."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of an optimizer step of one rank by part, and the bytes that the rank sends.

    Attributes:
        compute: Forward and backward.
        network: Communication.
        update: The optimizer, and what offloading moves to and from the host.
        sent: Bytes that one rank sends.
        overlaps: Whether communication goes on beside computing.
    """

    compute: float
    network: float
    update: float
    sent: int
    overlaps: bool

    @property
    def seconds(self) -> float:
        """Seconds of the whole step; communication overlaps with computing where possible."""
        both = max(self.compute, self.network) if self.overlaps else self.compute + self.network
        return both + self.update

    @property
    def bound(self) -> str:
        """Part that takes most of the step."""
        spent = {"compute": self.compute, "network": self.network, "optimizer": self.update}
        return max(spent, key=lambda name: spent[name])


def count_sent_bytes(memory: ModelMemory, placement: Placement, ranks: int, micro_steps: int) -> int:
    """Count the bytes that one rank sends in an optimizer step of `micro_steps` forward and backward passes.

    ZeRO paper, section 7: an all-reduce moves its tensor twice, so plain data parallel training and stages 1 and 2
    move twice the gradients; stage 3 gathers the weights for forward and for backward and moves gradients once. What is
    frozen has no gradients, but is gathered.
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
        # Gradients go down and new weights come up.
        update += (memory.gradients + memory.trained_weights) / shards / hardware.host_link
    if placement.offload_param:
        update += 2 * micro_steps * memory.weights / shards / hardware.host_link
    # Operators of a small model finish before the next one is launched.
    passes = max(step.flops / hardware.flops, step.operators * hardware.launch)
    return StepTime(
        compute=micro_steps * passes, network=sent / between, update=update, sent=sent,
        # On a CPU the same cores compute and communicate.
        overlaps=not hardware.is_host,
    )  # fmt: skip
