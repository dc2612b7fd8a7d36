"""Memory of one rank under each ZeRO stage, derived from the memory without sharding."""

from dataclasses import dataclass
from typing import Any

from peftkit.distributed.deepspeed import read_deepspeed_config
from peftkit.planning.tracing import ModelMemory, StepMemory

MASTER_BYTES = 4
"""Of the float32 copy of a trained weight that ZeRO's optimizers update (ZeRO paper, section 3.1)."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Placement of weights, gradients and optimizer state.

    Attributes:
        name: The config in `ds_configs`, or `none`: plain data parallel training without DeepSpeed.
        stage: 0, or the stage of ZeRO: 1 shards the optimizer's state, 2 gradients too, 3 weights too.
        offload_optimizer: Master weights, optimizer state and gradients are in the host's memory.
        offload_param: The sharded weights too.
        bucket: Elements of the buffer that gradients are reduced in; None is the square of the model's width.
        buckets: How many of them there are: two where communication overlaps the backward pass.
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


def _is_offloaded(words: dict[str, Any] | None) -> bool:
    return words is not None and words.get("device", "none") != "none"


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes of one rank.

    Attributes:
        weights: Weights that stay here, quantized or not; under ZeRO-3 a share of them.
        quantization: Bytes of scales among them.
        gradients: Gradients that stay until the optimizer's step.
        optimizer: The optimizer's state, with the float32 master weights that ZeRO keeps.
        buffers: Buckets of gradients and, under ZeRO-3, the layers that are gathered.
        activations: What forward and backward need beyond that, at the most.
        peak: Most that the device holds at once.
        host: What lies in the host's memory instead.
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
    """Estimate the bytes of one of `ranks` ranks for `step` under `placement`.

    ZeRO paper (Rajbhandari et al. 2020), section 5 and figure 1: each of K Psi bytes of optimizer state, 2 Psi of
    gradients and 2 Psi of weights is divided by the number of ranks from stage 1, 2 and 3 on. Beyond the paper: frozen
    weights have neither state nor gradients and are divided by stage 3 alone; buffers as DeepSpeed allocates them.
    """
    if placement.stage == 0:
        # Reducing gradients while the backward pass goes on copies them into buckets.
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
    # The scales of 4-bit weights are no parameters: they are neither sharded nor offloaded.
    shared = memory.weights - memory.quantization
    weights = shared if placement.stage < 3 else -(-shared // ranks)
    element = memory.gradients // max(1, memory.trainable)
    bucket = memory.width**2 if placement.bucket is None else placement.bucket
    buffers = placement.buckets * bucket * element
    if placement.stage == 3 and (ranks > 1 or placement.offload_param):
        # The layer at work and the next one, which is gathered ahead; alone a rank has them whole.
        buffers += 2 * memory.largest_layer
    host = 0
    if placement.offload_optimizer:
        host += states + gradients
        states = gradients = 0
    if placement.offload_param:
        host += weights
        weights = 0
    weights += memory.quantization
    # The optimizer wants gradients of the type of its own copy.
    update = gradients + (-(-master // ranks) if memory.gradients < master and not placement.offload_optimizer else 0)
    whole = max(step.forward, step.backward) + step.accumulated
    activations = max(step.forward, step.released) if placement.stage > 1 else whole
    working = activations + (gradients if placement.stage > 1 else 0)
    return RankMemory(
        weights=weights, quantization=memory.quantization, gradients=gradients, optimizer=states, buffers=buffers,
        activations=max(0, activations - (memory.gradients if placement.stage == 1 else 0)),
        peak=weights + states + buffers + max(working, update), host=host,
    )  # fmt: skip
