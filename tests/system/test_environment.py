import errno
import subprocess
import sys
import time

import torch

from peftkit.system.environment import is_out_of_memory, read_environment, read_peak_memory, read_process_peak_bytes


def test_the_peak_knows_what_was_freed():
    before = read_process_peak_bytes()
    block = torch.ones(before // 4 + 300 * 2**20, dtype=torch.uint8)
    size = block.numel()
    del block
    assert read_process_peak_bytes() > size
    assert read_peak_memory() == {"process_peak": read_process_peak_bytes()}


def test_a_small_process_started_by_a_large_one_is_small(real_interpreter):
    block = torch.ones(600 * 2**20, dtype=torch.uint8)
    code = "import importlib.util as u, sys; print([l for l in open('/proc/self/status') if 'VmHWM' in l])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(said.split()[1]) < 200 * 1024
    assert read_process_peak_bytes() >= block.numel()


def test_the_environment_names_versions_and_hardware():
    found = read_environment()
    assert {"torch", "transformers", "peft", "bitsandbytes", "peftkit"} <= set(found["packages"])
    assert found["cores"] >= 1
    assert found["memory"] > 2**30


def test_running_out_of_memory_is_told_from_a_bug():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(OSError(errno.ENOENT, "no such file"))
    wrapped = ValueError("the model can't be loaded")
    wrapped.__cause__ = RuntimeError("unable to mmap 90 bytes: Cannot allocate memory (12)")
    assert is_out_of_memory(wrapped)


def test_a_process_knows_how_old_it_is(real_interpreter):
    code = "import peftkit.system.environment as e, time; time.sleep(0.5); print(e.measure_process_age())"
    started = time.monotonic()
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    # The import of torch, and the half second; no more than it took in all.
    assert 0.5 < float(output) <= time.monotonic() - started + 0.1
