import pytest

from peftkit.planning.tracing import ModelMemory, StepMemory
from peftkit.planning.zero import PLACEMENTS, estimate_rank_memory

STEP = StepMemory(
    rows=8, forward=500, backward=900, accumulated=0, released=600, update=300, flops=10**9, operators=100
)
MODEL = ModelMemory(
    total=1000, trainable=100, weights=4000, quantization=0, trained_weights=400, gradients=400, optimizer=800,
    master_optimizer=800, largest_layer=50, width=4, steps=(STEP,),
)  # fmt: skip
BY_NAME = {placement.name: placement for placement in PLACEMENTS}


def count_model_states(trained: int, *, stage: int, ranks: int, frozen_bytes: int = 0) -> float:
    """Bytes a rank of weights, gradients and Adam's state in mixed precision.

    ZeRO paper, section 3.1: 2 bytes of each trained weight, 2 of its gradient, 12 of float32 weight, momentum and
    variance. `frozen_bytes` have none of these and are sharded by stage 3 alone.
    """
    weights, gradients, optimizer = 2 * trained + frozen_bytes, 2 * trained, 12 * trained
    return (
        weights / (ranks if stage > 2 else 1)
        + gradients / (ranks if stage > 1 else 1)
        + optimizer / (ranks if stage > 0 else 1)
    )


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_the_figures_of_the_zero_paper(stage, gigabytes):
    # Rajbhandari et al. 2020, figure 1: 7.5 billion weights, 64 GPUs.
    assert count_model_states(7_500_000_000, stage=stage, ranks=64) / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_the_figures_of_the_lora_paper():
    # Hu et al. 2021, section 4.2: GPT-3 in float16 takes 350 GB; rank 4 on query and value of its 96 layers, width
    # 12,288, is a checkpoint of 35 MB.
    trained = 96 * 2 * 4 * 2 * 12_288
    assert 2 * trained / 2**20 == pytest.approx(36, abs=0.5)
    assert count_model_states(trained, stage=0, ranks=1, frozen_bytes=2 * 175_000_000_000) / 1e9 == pytest.approx(
        350, rel=2e-3
    )


def test_the_figures_of_the_qlora_paper():
    # Dettmers et al. 2023, section 3: double quantization takes 0.127 bit a weight for scales, not 0.5; section 1: full
    # fine-tuning of 65 billion weights in 16 bits takes more than 780 GB, QLoRA less than 48 GB.
    weights = 65_000_000_000
    scales = weights / 64 * (8 + 32 / 256) / 8
    assert 8 * scales / weights == pytest.approx(0.127, abs=5e-4)
    assert count_model_states(weights, stage=0, ranks=1) / 1e9 > 780
    trained = 800_000_000
    assert count_model_states(trained, stage=0, ranks=1, frozen_bytes=int(weights / 2 + scales)) / 1e9 < 48


@pytest.mark.parametrize("ranks", [2, 8])
def test_each_stage_shards_one_thing_more(ranks):
    found = {name: estimate_rank_memory(MODEL, STEP, placement, ranks) for name, placement in BY_NAME.items()}
    assert found["none"].optimizer == 800
    for name in ("zero1", "zero2", "zero3"):
        # With the float32 copy that ZeRO's optimizers update.
        assert found[name].optimizer == (800 + 400) / ranks
    assert [found[name].gradients for name in ("zero1", "zero2", "zero3")] == [400, 400 / ranks, 400 / ranks]
    assert [found[name].weights for name in ("zero1", "zero2", "zero3")] == [4000, 4000, 4000 / ranks]
    assert found["zero2_offload"].optimizer == found["zero2_offload"].gradients == 0
    assert found["zero2_offload"].host == 1600 / ranks
    assert found["zero3_offload"].host == 5600 / ranks
    assert found["zero3_offload"].peak < found["zero3"].peak


def test_alone_nothing_is_copied_into_buckets():
    alone, two = (estimate_rank_memory(MODEL, STEP, BY_NAME["none"], ranks) for ranks in (1, 2))
    assert alone.peak == MODEL.peak(STEP) == 4000 + 800 + 900
    assert two.peak == alone.peak + MODEL.gradients
