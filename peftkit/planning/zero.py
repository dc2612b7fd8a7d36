"""Memory of one rank for each ZeRO stage, derived from the memory without sharding."""

from dataclasses import dataclass
from typing import Any

from peftkit.distributed.deepspeed import read_deepspeed_config
from peftkit.planning.tracing import ModelMemory, StepMemory

MASTER_BYTES = 4
"""Bytes of the float32 copy of a trained weight in ZeRO (ZeRO paper, section 3.1)."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Placement of weights, gradients and optimizer state.

    Attributes:
        name: Name of the config in `ds_configs`, or `none`: plain data parallel training without DeepSpeed.
        stage: ZeRO stage: 0 no sharding, 1 optimizer state, 2 also gradients, 3 also weights.
        offload_optimizer: Whether master weights, optimizer state and gradients are in host memory.
        offload_param: Whether the sharded weights are in host memory.
        bucket: Number of elements of a gradient bucket; None for the square of the model's width.
        buckets: Number of gradient buckets: two if communication overlaps with the backward pass.
    """

    name: str
    stage: int
    offload_optimizer: bool = False
    offload_param: bool = False
    bucket: int | None = None
    buckets: int = 1


PLACEMENTS = (
    Placement(name="none", stage=0),
    Placement(name="zero1", stage=1, bucket=50_000_000),
    Placement(name="zero2", stage=2, bucket=50_000_000, buckets=2),
    Placement(name="zero2_offload", stage=2, offload_optimizer=True, bucket=50_000_000, buckets=2),
    Placement(name="zero3", stage=3),
    Placement(name="zero3_offload", stage=3, offload_optimizer=True, offload_param=True),
)


def parse_placement(config: str | dict[str, Any] | None) -> Placement:
    """Parse a DeepSpeed config or its name into a placement; None is no DeepSpeed. Raises UserError."""
    if config is None:
        return PLACEMENTS[0]
    zero = read_deepspeed_config(config).get("zero_optimization", {})
    bucket, stage = zero.get("reduce_bucket_size", 500_000_000), int(zero.get("stage", 0))
    optimizer, param = (_is_offloaded(zero.get(f"offload_{part}")) for part in ("optimizer", "param"))
    return Placement(
        name=f"zero{stage}{'_offload' * (optimizer or param)}" if stage else "none",
        stage=stage,
        offload_optimizer=optimizer,
        offload_param=param,
        bucket=None if bucket == "auto" else int(bucket),
        buckets=2 if zero.get("overlap_comm") and zero.get("stage") == 2 else 1,
    )


def _is_offloaded(options: dict[str, Any] | None) -> bool:
    return options is not None and options.get("device", "none") != "none"


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes of one rank.

    Attributes:
        weights: Weights on the device; with ZeRO-3 only the shard.
        quantization: Quantization scales, part of `weights`.
        gradients: Gradients that exist until the optimizer step.
        optimizer: Optimizer state, with ZeRO including the float32 master weights.
        buffers: Gradient buckets and, with ZeRO-3, gathered layers.
        activations: Peak of additional memory in forward and backward.
        peak: Peak memory of the device.
        host: Bytes in host memory.
    """

    weights: int
    quantization: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int
    peak: int
    host: int


def estimate_rank_memory(memory: ModelMemory, step: StepMemory, placement: Placement, ranks: int) -> RankMemory:
    """Estimate the bytes of one of `ranks` ranks for `step` with `placement`.

    ZeRO paper (Rajbhandari et al. 2020), section 5 and figure 1: stage 1 divides K Psi bytes of optimizer state by the
    number of ranks, stage 2 also 2 Psi bytes of gradients, stage 3 also 2 Psi bytes of weights. In addition to the
    paper: frozen weights have no state and no gradients, and only stage 3 divides them; buffers are as in DeepSpeed.
    """
    if placement.stage == 0:
        # Gradients are copied into buckets, to reduce them during the backward pass.
        buffers = memory.gradients if ranks > 1 else 0
        peak = memory.peak(step)
        return RankMemory(
            weights=memory.weights, quantization=memory.quantization, gradients=memory.gradients,
            optimizer=memory.optimizer, buffers=buffers,
            activations=max(0, peak - memory.weights - memory.optimizer - memory.gradients),
            peak=peak + buffers, host=0,
        )  # fmt: skip
    master = MASTER_BYTES * memory.trainable
    states = -(-(memory.master_optimizer + master) // ranks)
    gradients = memory.gradients if placement.stage == 1 else -(-memory.gradients // ranks)
    # The scales of 4-bit weights are not parameters, so they are not sharded or offloaded.
    shared = memory.weights - memory.quantization
    weights = shared if placement.stage < 3 else -(-shared // ranks)
    element = memory.gradients // max(1, memory.trainable)
    bucket = memory.width**2 if placement.bucket is None else placement.bucket
    buffers = placement.buckets * bucket * element
    if placement.stage == 3 and (ranks > 1 or placement.offload_param):
        # The current layer and the prefetched next layer; a single rank has whole layers.
        buffers += 2 * memory.largest_layer
    host = 0
    if placement.offload_optimizer:
        host += states + gradients
        states = gradients = 0
    if placement.offload_param:
        host += weights
        weights = 0
    weights += memory.quantization
    # The optimizer needs gradients in the dtype of the master weights.
    update = gradients + (-(-master // ranks) if memory.gradients < master and not placement.offload_optimizer else 0)
    whole = max(step.forward, step.backward) + step.accumulated
    activations = max(step.forward, step.released) if placement.stage > 1 else whole
    working = activations + (gradients if placement.stage > 1 else 0)
    return RankMemory(
        weights=weights, quantization=memory.quantization, gradients=gradients, optimizer=states, buffers=buffers,
        activations=max(0, activations - (memory.gradients if placement.stage == 1 else 0)),
        peak=weights + states + buffers + max(working, update), host=host,
    )  # fmt: skip
