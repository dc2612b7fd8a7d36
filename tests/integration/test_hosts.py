"""Two hosts: network namespaces of this machine, each with its own folder, joined by one link that can be cut."""

import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import count

import pytest

from peftkit.checkpoints.manifest import find_last_complete
from peftkit.runs.report import read_report
from tests.integration.test_recipes import BIN, ROOT

pytestmark = [pytest.mark.hosts, pytest.mark.xdist_group("ranks")]
DOCUMENTED = ROOT / "docs" / "how-to" / "multi_node.md"
SMALL = ["--data.max_train_samples", "96", "--data.max_eval_samples", "40", "--task.max_length", "32"]
SMALL += ["--training.per_device_train_batch_size", "4", "--training.disable_tqdm", "true"]
SMALL += ["--training.logging_steps", "1"]
# Seconds that a rank waits for a silent one, and in which ranks and launchers have then ended.
TIMEOUT, TO_END = 5, 60
ENDLESS = ["--training.max_steps", "100000", "--training.ddp_timeout", str(TIMEOUT)]
numbers = count()


class Hosts:
    """Two network namespaces and the processes that were started in them."""

    def __init__(self, folder):
        self.folder = folder
        number = next(numbers)
        self.names = [f"peftkit-{os.getpid()}-{number}-{host}" for host in range(2)]
        self.addresses = ["10.77.0.1", "10.77.0.2"]
        self.launched = []

    def make(self):
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", "veth", "netns", self.names[0], "type", "veth", "peer", "veth", "netns", self.names[1])
        for name, address in zip(self.names, self.addresses, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "veth")
            for device in ("lo", "veth"):
                ip("-n", name, "link", "set", device, "up")

    def remove(self):
        for name in self.names:
            if name in ip("netns", "list"):
                self.kill(self.names.index(name))
                ip("netns", "delete", name)

    def kill(self, host):
        """Kill every process of a host, as if it lost its power; its connections are closed."""
        for pid in ip("netns", "pids", self.names[host]).split():
            os.kill(int(pid), signal.SIGKILL)

    def cut_the_link(self):
        ip("-n", self.names[1], "link", "set", "veth", "down")

    def launch(self, launcher, words, output_dir="run"):
        """Start one rank on each host by its documented line; `host0` and `host1` are disks that they do not share."""
        environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        environment |= {"GLOO_SOCKET_IFNAME": "veth", "NCCL_SOCKET_IFNAME": "veth"}
        lines = [line for line in DOCUMENTED.read_text().splitlines() if "--node_rank " in line]
        commands = [line.split() for line in lines if line.startswith(launcher)]
        assert len(commands) == 2
        here = {"node0": self.addresses[0], "8": "1", "recipes/lora_cls.py": str(ROOT / "recipes" / "lora_cls.py")}
        for host, (name, command) in enumerate(zip(self.names, commands, strict=True)):
            folder = self.folder / f"host{host}"
            folder.mkdir()
            (folder / "hosts").write_text("".join(f"{address} slots=1\n" for address in self.addresses))
            command = [here.get(word, word) for word in command] + [*SMALL, "--training.output_dir", output_dir, *words]
            with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
                self.launched.append(
                    subprocess.Popen(
                        ["ip", "netns", "exec", name, sys.executable, str(BIN / command[0]), *command[1:]],
                        cwd=folder, env=environment, stdout=out, stderr=err, start_new_session=True,
                    )
                )  # fmt: skip

    def said(self, host, kind="err"):
        return (self.folder / f"host{host}" / kind).read_text()

    def wait_for_training(self):
        until = time.monotonic() + 300
        while " loss " not in self.said(0, "out"):
            assert time.monotonic() < until, self.said(0) + self.said(1)
            assert all(process.poll() is None for process in self.launched), self.said(0) + self.said(1)
            time.sleep(0.2)

    def codes(self, seconds):
        """The exit codes of both hosts' launchers, within `seconds`."""
        until = time.monotonic() + seconds
        return [process.wait(max(0.1, until - time.monotonic())) for process in self.launched]


def ip(*words):
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def hosts(tmp_path):
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the program ip (Debian: iproute2)")
    # The server of the forks is to start outside the namespaces, whose processes are killed.
    subprocess.run([sys.executable, "-c", ""], check=True)
    found = Hosts(tmp_path)
    try:
        try:
            found.make()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces can't be made here: {error.stderr.strip()}")
        yield found
    finally:
        found.remove()


@pytest.fixture
def model(checkpoints):
    return ["--model.name_or_path", str(checkpoints / "bert")]


@pytest.mark.parametrize(("launcher", "shared"), [("torchrun", False), ("deepspeed", True)])
def test_two_hosts_train_one_run(launcher, shared, hosts, model, tmp_path, request):
    if launcher == "torchrun":
        request.getfixturevalue("real_interpreter")
    output = str(tmp_path / "shared" / "run") if shared else "run"
    hosts.launch(launcher, [*model, "--training.max_steps", "3"], output)
    assert hosts.codes(300) == [0, 0], hosts.said(0) + hosts.said(1)
    folder = tmp_path / "host0" / output
    report = read_report(folder)
    assert report.status == "complete"
    assert (report.environment["processes"], report.environment["hosts"]) == (2, 2)
    assert len(report.memory_per_rank) == 2
    assert report.audit["verdict"] == "passed"
    assert report.round_trip["rows"] == 32
    assert not (folder / ".filling").exists()
    assert "peftkit: saved run to" in hosts.said(0)
    assert "peftkit" not in hosts.said(1).replace(str(ROOT), "")
    assert " loss " in hosts.said(0, "out")
    assert " loss " not in hosts.said(1, "out")
    assert sorted(path.name for path in (tmp_path / "host1").iterdir()) == ["err", "hosts", "out"]


def test_a_host_that_is_killed_ends_the_other(hosts, model, tmp_path):
    folder = tmp_path / "shared" / "run"
    saving = ["--training.save_strategy", "steps", "--training.save_steps", "1", "--training.save_total_limit", "2"]
    hosts.launch("torchrun", [*model, *ENDLESS, *saving], str(folder))
    hosts.wait_for_training()
    until = time.monotonic() + 60
    while find_last_complete(folder) is None and time.monotonic() < until:
        time.sleep(0.2)
    hosts.kill(0)
    assert hosts.codes(TO_END) == [-signal.SIGKILL, 1]
    report = read_report(folder)
    assert report.status == "failed"
    assert report.error.startswith("the connection to the other ranks was lost: ")
    assert "(rank 1 of 2, host " in report.error
    assert "start the run again" in report.error
    assert f"peftkit, rank 1: {report.error}" in hosts.said(1)
    assert find_last_complete(folder) is not None
    left = {path.name for path in folder.iterdir() if "checkpoint-" not in path.name}
    assert left == {"report.json", "tensorboard"}


def test_hosts_whose_link_is_cut_end_in_time(hosts, model, tmp_path):
    hosts.launch("deepspeed", [*model, *ENDLESS, "--training.deepspeed", "ds_configs/zero2.json"])
    hosts.wait_for_training()
    hosts.cut_the_link()
    assert hosts.codes(TIMEOUT + TO_END) == [1, 1]
    for host in range(2):
        folder = tmp_path / f"host{host}" / "run"
        report = read_report(folder)
        assert report.status == "failed"
        assert "the connection to the other ranks was lost" in report.error
        assert f"(rank {host} of 2, host " in report.error
        assert report.error in hosts.said(host)
        assert not list(folder.glob(".*"))
    assert len(read_report(tmp_path / "host0" / "run").history) >= 1
