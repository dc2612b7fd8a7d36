from dataclasses import replace

from peftkit.planning.hardware import GPU
from peftkit.planning.scaling import estimate_strong_scaling, estimate_weak_scaling
from tests.planning.test_zero import BY_NAME, MODEL, STEP

SLOW_NETWORK = replace(GPU, flops=1e12, bandwidth=1e6, network=1e5, devices_per_host=8)


def test_weak_scaling_keeps_the_batch_and_loses_to_the_network():
    rows = estimate_weak_scaling(MODEL, STEP, BY_NAME["zero2"], SLOW_NETWORK)
    assert [row.devices for row in rows] == [2**power for power in range(11)]
    assert {row.rows for row in rows} == {8}
    assert rows[0].efficiency == 1
    assert rows[-1].efficiency < 0.9 < rows[3].efficiency
    assert rows[-1].peak < rows[0].peak


def test_strong_scaling_ends_at_one_row_a_device():
    steps = (STEP, replace(STEP, rows=16, forward=900, backward=1500, released=1100, flops=2 * 10**9))
    rows = estimate_strong_scaling(MODEL, steps, BY_NAME["none"], GPU, 32)
    assert [(row.devices, row.rows) for row in rows] == [(1, 8), (2, 8), (4, 8), (8, 4), (16, 2), (32, 1)]
    assert rows[-1].samples_per_second > rows[0].samples_per_second
