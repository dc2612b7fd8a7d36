from dataclasses import replace

import pytest

from peftkit.planning.hardware import GPU
from peftkit.planning.step_time import count_sent_bytes, estimate_step_time
from tests.planning.test_scaling import SLOW_NETWORK
from tests.planning.test_zero import BY_NAME, MODEL, STEP


@pytest.mark.parametrize(("name", "factor"), [("none", 2), ("zero1", 2), ("zero2", 2), ("zero3", 3)])
def test_what_the_zero_paper_says_is_sent(name, factor):
    # Section 7, of a model that is trained whole, in units of its size.
    whole = replace(MODEL, weights=MODEL.trained_weights)
    assert count_sent_bytes(whole, BY_NAME[name], 4, 1) == factor * MODEL.trained_weights * 3 // 4


def test_a_frozen_base_is_gathered_by_stage_3_alone():
    assert count_sent_bytes(MODEL, BY_NAME["zero2"], 2, 1) == 400
    assert count_sent_bytes(MODEL, BY_NAME["zero3"], 2, 1) == (2 * 4000 + 400) // 2
    assert count_sent_bytes(MODEL, BY_NAME["zero3"], 2, 4) == 4 * count_sent_bytes(MODEL, BY_NAME["zero3"], 2, 1)
    assert count_sent_bytes(MODEL, BY_NAME["none"], 2, 4) == count_sent_bytes(MODEL, BY_NAME["none"], 2, 1)


def test_what_bounds_a_step():
    assert estimate_step_time(MODEL, STEP, BY_NAME["none"], 1, 1, GPU).bound == "compute"
    assert estimate_step_time(MODEL, STEP, BY_NAME["zero3"], 8, 1, SLOW_NETWORK).bound == "network"
    slow_memory = replace(GPU, host_link=1.0, host_bandwidth=1.0)
    assert estimate_step_time(MODEL, STEP, BY_NAME["zero2_offload"], 8, 1, slow_memory).bound == "optimizer"


def test_a_small_model_waits_for_its_operators():
    slow = replace(GPU, launch=1.0)
    assert estimate_step_time(MODEL, STEP, BY_NAME["none"], 1, 2, slow).compute == 2 * STEP.operators
    assert (
        estimate_step_time(MODEL, STEP, BY_NAME["none"], 1, 2, replace(GPU, launch=0)).compute
        == 2 * STEP.flops / GPU.flops
    )


def test_the_cores_of_a_cpu_do_not_compute_while_they_communicate():
    beside = estimate_step_time(MODEL, STEP, BY_NAME["zero3"], 8, 1, SLOW_NETWORK)
    after = estimate_step_time(MODEL, STEP, BY_NAME["zero3"], 8, 1, replace(SLOW_NETWORK, is_host=True))
    assert beside.seconds == max(beside.compute, beside.network) + beside.update
    assert after.seconds == beside.compute + beside.network + beside.update
