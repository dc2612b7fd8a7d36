from dataclasses import replace

import pytest

from peftkit.planning.hardware import GPU
from peftkit.planning.scaling import of_rows, strong_scaling, weak_scaling
from peftkit.planning.step_time import sent_bytes, step_time
from tests.planning.test_zero import BY_NAME, MODEL, STEP

SLOW_NETWORK = replace(GPU, flops=1e12, bandwidth=1e6, network=1e5, devices_per_host=8)


@pytest.mark.parametrize(("name", "factor"), [("none", 2), ("zero1", 2), ("zero2", 2), ("zero3", 3)])
def test_what_the_zero_paper_says_is_sent(name, factor):
    # Section 7, of a model that is trained whole, in units of its size.
    whole = replace(MODEL, weights=MODEL.trained_weights)
    assert sent_bytes(whole, BY_NAME[name], 4, 1) == factor * MODEL.trained_weights * 3 // 4


def test_a_frozen_base_is_gathered_by_stage_3_alone():
    assert sent_bytes(MODEL, BY_NAME["zero2"], 2, 1) == 400
    assert sent_bytes(MODEL, BY_NAME["zero3"], 2, 1) == (2 * 4000 + 400) // 2
    assert sent_bytes(MODEL, BY_NAME["zero3"], 2, 4) == 4 * sent_bytes(MODEL, BY_NAME["zero3"], 2, 1)
    assert sent_bytes(MODEL, BY_NAME["none"], 2, 4) == sent_bytes(MODEL, BY_NAME["none"], 2, 1)


def test_what_bounds_a_step():
    assert step_time(MODEL, STEP, BY_NAME["none"], 1, 1, GPU).bound == "compute"
    assert step_time(MODEL, STEP, BY_NAME["zero3"], 8, 1, SLOW_NETWORK).bound == "network"
    slow_memory = replace(GPU, host_link=1.0, host_bandwidth=1.0)
    assert step_time(MODEL, STEP, BY_NAME["zero2_offload"], 8, 1, slow_memory).bound == "optimizer"


def test_a_small_model_waits_for_its_operators():
    slow = replace(GPU, launch=1.0)
    assert step_time(MODEL, STEP, BY_NAME["none"], 1, 2, slow).compute == 2 * STEP.operators
    assert step_time(MODEL, STEP, BY_NAME["none"], 1, 2, replace(GPU, launch=0)).compute == 2 * STEP.flops / GPU.flops


def test_the_cores_of_a_cpu_do_not_compute_while_they_communicate():
    beside = step_time(MODEL, STEP, BY_NAME["zero3"], 8, 1, SLOW_NETWORK)
    after = step_time(MODEL, STEP, BY_NAME["zero3"], 8, 1, replace(SLOW_NETWORK, is_host=True))
    assert beside.seconds == max(beside.compute, beside.network) + beside.update
    assert after.seconds == beside.compute + beside.network + beside.update


def test_weak_scaling_keeps_the_batch_and_loses_to_the_network():
    rows = weak_scaling(MODEL, STEP, BY_NAME["zero2"], SLOW_NETWORK)
    assert [row.devices for row in rows] == [2**power for power in range(11)]
    assert {row.rows for row in rows} == {8}
    assert rows[0].efficiency == 1
    assert rows[-1].efficiency < 0.9 < rows[3].efficiency
    assert rows[-1].peak < rows[0].peak


def test_strong_scaling_ends_at_one_row_a_device():
    steps = (STEP, replace(STEP, rows=16, forward=900, backward=1500, released=1100, flops=2 * 10**9))
    rows = strong_scaling(MODEL, steps, BY_NAME["none"], GPU, 32)
    assert [(row.devices, row.rows) for row in rows] == [(1, 8), (2, 8), (4, 8), (8, 4), (16, 2), (32, 1)]
    assert rows[-1].samples_per_second > rows[0].samples_per_second


def test_a_step_between_two_that_were_traced():
    steps = (STEP, replace(STEP, rows=16, forward=900, flops=3 * 10**9))
    assert of_rows(steps, 12).forward == 700
    assert of_rows(steps, 12).flops == 2 * 10**9
    assert of_rows(steps, 8) == STEP
