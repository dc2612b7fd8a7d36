"""Methods under every sharding, on one rank, two ranks and two hosts: loss, accuracy, optimizer state, speed, memory.

    python benchmarks/sharding.py --data FOLDER [--steps 12] [--places 1,2,hosts]

The same global batch of 32 rows everywhere. Two hosts are two network namespaces of this machine, made with iproute2
as root, and left out where they can't be made. What is done already stands in WORK and is not done again. Writes
benchmarks/results/sharding.json and prints the table.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "sharding.json"
BIN = Path(sys.executable).parent
IP = shutil.which("ip") or "ip"
METHODS = ("full", "lora", "qlora")
SHARDINGS = {
    "1": ("none", "zero2", "zero3"),
    "2": ("none", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"),
    "hosts": ("none", "zero2", "zero3"),
}
HOSTS = ("peftkit-bench-0", "peftkit-bench-1")
ADDRESSES = ("10.78.0.1", "10.78.0.2")


def ip(*words: str) -> None:
    """Run iproute2's command."""
    subprocess.run([IP, *words], check=True, capture_output=True)


def make_hosts() -> bool:
    """Two namespaces joined by a link; whether they could be made."""
    if not Path(IP).exists() or os.geteuid() != 0:
        return False
    remove_hosts()
    try:
        for name in HOSTS:
            ip("netns", "add", name)
        ip("link", "add", "veth", "netns", HOSTS[0], "type", "veth", "peer", "veth", "netns", HOSTS[1])
        for name, address in zip(HOSTS, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "veth")
            for device in ("lo", "veth"):
                ip("-n", name, "link", "set", device, "up")
    except subprocess.CalledProcessError:
        remove_hosts()
        return False
    return True


def remove_hosts() -> None:
    """Remove the namespaces, if they are there."""
    for name in HOSTS:
        subprocess.run([IP, "netns", "delete", name], check=False, capture_output=True)


def commands(place: str, sharding: str, recipe: Path, words: list[str]) -> list[list[str]]:
    """One command, or one for each host."""
    ds = [] if sharding == "none" else ["--ds", sharding]
    run = [str(recipe), *words, *ds]
    if place == "1":
        return [[sys.executable, *run]]
    if place == "2":
        return [[str(BIN / "torchrun"), "--nproc_per_node", "2", "--standalone", *run]]
    return [
        [IP, "netns", "exec", name, str(BIN / "torchrun"), "--nnodes", "2", "--nproc_per_node", "1",
         "--node_rank", str(rank), "--master_addr", ADDRESSES[0], "--master_port", "29500", *run]
        for rank, name in enumerate(HOSTS)
    ]  # fmt: skip


def train(method: str, place: str, sharding: str, data: Path, steps: int, work: Path) -> dict:
    """Train once, or read what was trained."""
    folder = work / f"{method}-{place}-{sharding}"
    if not (folder / "report.json").exists():
        words = [
            "--data.path", str(data), "--training.max_steps", str(steps), "--data.max_train_samples", str(32 * steps),
            "--data.max_eval_samples", "400", "--training.per_device_train_batch_size", "32" if place == "1" else "16",
            "--training.disable_tqdm", "true", "--training.logging_steps", "1", "--training.output_dir", str(folder),
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment |= {"GLOO_SOCKET_IFNAME": "veth"} if place == "hosts" else {}
        recipe = HERE.parent / "recipes" / f"{method}_cls.py"
        log = (work / f"{folder.name}.log").open("w")
        started = [
            subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            for command in commands(place, sharding, recipe, words)
        ]
        codes = [process.wait(900) for process in started]
        if any(codes):
            raise SystemExit(f"failed: {work / folder.name}.log")
    report = json.loads((folder / "report.json").read_text())
    losses = [row["loss"] for row in report["history"] if "loss" in row]
    ranks = report["environment"]["processes"]
    # The float32 copy of the trained weights, which is no part of the optimizer's own state.
    master = 0 if sharding == "none" else 4 * report["parameters"]["trainable"] // ranks
    planned = report["plan"]["optimizer"] - master if "offload" not in sharding else None
    return {
        "method": method, "place": place, "sharding": sharding, "ranks": ranks,
        "hosts": report["environment"]["hosts"], "loss": losses[-1], "first_loss": losses[0],
        "accuracy": report["metrics"]["test"]["accuracy"],
        "optimizer": report["optimizer_bytes"], "planned_optimizer": planned,
        "process_peak": max(rank["process_peak"] for rank in report["memory_per_rank"]),
        "steps_per_second": steps / report["times"]["train"],
        "environment": report["environment"],
    }  # fmt: skip


def main() -> None:
    """Run every case and write the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--places", default="1,2,hosts")
    parser.add_argument("--work", type=Path, default=Path("runs/sharding"))
    words = parser.parse_args()
    words.work.mkdir(parents=True, exist_ok=True)
    places = words.places.split(",")
    if "hosts" in places and not make_hosts():
        print("no two hosts: network namespaces can't be made here (iproute2, as root)")
        places.remove("hosts")
    rows = []
    try:
        for method in METHODS:
            for place in places:
                for sharding in SHARDINGS[place]:
                    rows.append(train(method, place, sharding, words.data, words.steps, words.work))
                    row = rows[-1]
                    print(method, place, sharding, f"{row['loss']:.4f}", f"{row['accuracy']:.4f}", flush=True)
    finally:
        if "hosts" in places:
            remove_hosts()
    environment = rows[0]["environment"]
    for row in rows:
        del row["environment"]
    result = {"data": words.data.resolve().name, "steps": words.steps, "environment": environment, "rows": rows}
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print("\n| method | on | sharding | loss | accuracy | optimizer state a rank | peak a rank | steps/s |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    on = {"1": "1 rank", "2": "2 ranks", "hosts": "2 hosts"}
    for row in rows:
        print(
            f"| {row['method']} | {on[row['place']]} | {row['sharding']} | {row['loss']:.4f} | {row['accuracy']:.4f} | "
            f"{max(row['optimizer']) / 1e6:.1f} MB | {row['process_peak'] / 2**20:,.0f} MiB | "
            f"{row['steps_per_second']:.2f} |"
        )


if __name__ == "__main__":
    main()
