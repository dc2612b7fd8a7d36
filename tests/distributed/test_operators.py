import os
import subprocess
import sys

from peftkit.distributed.deepspeed import adapt_config_to_cpu, read_deepspeed_config
from peftkit.distributed.operators import find_operator


def test_a_run_compiles_the_operator_of_its_optimizer():
    zero1, offload = read_deepspeed_config("zero1"), read_deepspeed_config("zero2_offload")
    optimizer = {"optimizer": {"type": "AdamW"}}
    assert find_operator(zero1) is None
    assert find_operator(zero1 | optimizer) == "fused_adam"
    assert find_operator(offload) == "cpu_adam"
    assert find_operator(adapt_config_to_cpu(offload)) is None
    assert find_operator(adapt_config_to_cpu(offload | optimizer)) == "cpu_adam"


ANNOUNCE = """
from peftkit.distributed.deepspeed import read_deepspeed_config
from peftkit.distributed.operators import announce_builds
from peftkit.system.logging import set_up_logging
set_up_logging()
announce_builds(read_deepspeed_config("zero2_offload"))
"""


def test_a_build_is_announced_until_the_operator_is_built(tmp_path):
    def announce():
        environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)}
        return subprocess.run(
            [sys.executable, "-c", ANNOUNCE], env=environment, capture_output=True, text=True, check=True
        ).stderr

    assert "compiling DeepSpeed's cpu_adam" in announce()
    (tmp_path / "cpu_adam" / "cpu_adam.so").touch()
    assert "compiling" not in announce()
