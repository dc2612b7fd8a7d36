"""Compare sharding configs on one rank, two ranks and two hosts: loss, accuracy, speed, memory.

    python benchmarks/sharding.py --data FOLDER [--steps 30]

The global batch is always 32 rows. Two hosts are two network namespaces on this machine, which need iproute2 and root,
and are skipped otherwise. Finished runs are stored in WORK and are not repeated. Writes
benchmarks/results/sharding.json and prints the table.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from peftkit.planning.run_estimate import estimate_run

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "sharding.json"
BIN = Path(sys.executable).parent
IP = shutil.which("ip") or "ip"
LEARNING_RATES = {"full": 2e-4, "lora": 3e-3, "qlora": 3e-3}
SHARDINGS = {
    "1": ("none", "zero2", "zero3"),
    "2": ("none", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"),
    "hosts": ("none", "zero2", "zero3"),
}
HOSTS = ("peftkit-bench-0", "peftkit-bench-1")
ADDRESSES = ("10.78.0.1", "10.78.0.2")


def ip(*options: str) -> None:
    """Run the command `ip` of iproute2."""
    subprocess.run([IP, *options], check=True, capture_output=True)


def make_hosts() -> bool:
    """Create two namespaces with a link; return whether that succeeded."""
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
    """Remove the namespaces, if they exist."""
    for name in HOSTS:
        subprocess.run([IP, "netns", "delete", name], check=False, capture_output=True)


def make_commands(place: str, sharding: str, recipe: Path, options: list[str]) -> list[list[str]]:
    """Make one command, or one command per host."""
    ds = [] if sharding == "none" else ["--ds", sharding]
    run = [str(recipe), *options, *ds]
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
    """Train, or read the stored run."""
    folder = work / f"{method}-{place}-{sharding}-{steps}"
    if not (folder / "report.json").exists():
        options = [
            "--data.path", str(data), "--training.max_steps", str(steps), "--data.max_train_samples", str(32 * steps),
            "--data.max_eval_samples", "400", "--training.per_device_train_batch_size", "32" if place == "1" else "16",
            "--training.learning_rate", str(LEARNING_RATES[method]), "--training.warmup_steps", "3",
            "--training.disable_tqdm", "true", "--training.logging_steps", "1", "--training.output_dir", str(folder),
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment |= {"GLOO_SOCKET_IFNAME": "veth"} if place == "hosts" else {}
        recipe = HERE.parent / "recipes" / f"{method}_cls.py"
        with (work / f"{folder.name}.log").open("w") as log:
            started = [
                subprocess.Popen(command, env=environment, stdout=log, stderr=log)
                for command in make_commands(place, sharding, recipe, options)
            ]
            try:
                codes = [process.wait(900) for process in started]
            finally:
                for process in started:
                    process.kill()
        if any(codes):
            raise SystemExit(f"failed: {work / folder.name}.log")
    report = json.loads((folder / "report.json").read_text())
    plan = estimate_run(folder)
    losses = [row["loss"] for row in report["history"] if "loss" in row]
    ranks = report["environment"]["processes"]
    # The float32 copy of the trained weights, which is not part of the optimizer state.
    master = 0 if sharding == "none" else 4 * report["parameters"]["trainable"] // ranks
    planned = plan["optimizer"] - master if "offload" not in sharding else None
    return {
        "method": method, "place": place, "sharding": sharding, "ranks": ranks,
        "hosts": report["environment"]["hosts"], "losses": losses,
        "accuracy": report["metrics"]["test"]["accuracy"],
        "optimizer": report["optimizer_bytes"], "planned_optimizer": planned,
        "process_peak": max(rank["process_peak"] for rank in report["memory_per_rank"]),
        "planned_peak": plan["process_peak"],
        "steps_per_second": steps / report["times"]["train"],
        "environment": report["environment"],
    }  # fmt: skip


def plan_efficiency(method: str, data: Path, steps: int, work: Path) -> float:
    """Return the planned efficiency of two devices at constant global batch."""
    path = work / f"{method}-plan.json"
    command = [
        str(BIN / "peftkit"), "plan", str(HERE.parent / "recipes" / f"{method}_cls.py"), "--methods", method,
        "--speed-from", str(work / f"{method}-1-none-{steps}"), "--scaling", "--output", str(path),
        "--data.path", str(data), "--data.max_train_samples", str(32 * steps),
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    tables = json.loads(path.read_text())["scaling"]
    strong = next(rows for title, rows in tables.items() if title.startswith("strong"))
    return next(row["efficiency"] for row in strong if row["devices"] == 2)


def main() -> None:
    """Run every case and write the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--work", type=Path, default=Path("runs/sharding"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    places = ["1", "2"]
    if make_hosts():
        places.append("hosts")
    else:
        print("skipping two hosts: cannot create network namespaces (needs iproute2 and root)")
    rows = []
    try:
        for method in LEARNING_RATES:
            for place in places:
                for sharding in SHARDINGS[place]:
                    rows.append(train(method, place, sharding, options.data, options.steps, options.work))
                    row = rows[-1]
                    print(method, place, sharding, f"{row['losses'][-1]:.4f}", f"{row['accuracy']:.4f}", flush=True)
    finally:
        if "hosts" in places:
            remove_hosts()
    environment = rows[0]["environment"]
    for row in rows:
        del row["environment"]
    unsharded = {(row["method"], row["place"]): row["losses"] for row in rows if row["sharding"] == "none"}
    for row in rows:
        other = unsharded[row["method"], row["place"]]
        row["loss_apart"] = max(abs(a - b) for a, b in zip(row["losses"], other, strict=True))
    efficiency = {
        method: plan_efficiency(method, options.data, options.steps, options.work) for method in LEARNING_RATES
    }
    result = {
        "data": options.data.resolve().name, "steps": options.steps, "environment": environment, "rows": rows,
        "planned_efficiency": efficiency,
    }  # fmt: skip
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    heads = (
        "method | ranks | ZeRO | last loss | loss difference | accuracy | optimizer state | planned | peak | planned "
        "| steps/s"
    )
    print(f"\n| {heads} |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    on = {"1": "1 rank", "2": "2 ranks", "hosts": "2 hosts"}
    for row in rows:
        planned = row["planned_optimizer"]
        stage = row["sharding"].removeprefix("zero").replace("_", ", ")
        apart = f"{row['loss_apart']:.0e}" if row["loss_apart"] else ""
        print(
            f"| {row['method']} | {on[row['place']]} | {stage} | {row['losses'][-1]:.4f} | "
            f"{apart} | {row['accuracy']:.4f} | {max(row['optimizer']) / 1e6:.1f} MB | "
            f"{'' if planned is None else f'{planned / 1e6:.1f} MB'} | {row['process_peak'] / 2**20:,.0f} MiB | "
            f"{row['planned_peak'] / 2**20:,.0f} MiB | {row['steps_per_second']:.2f} |"
        )
    print("\n| method | planned efficiency of two devices | 2 ranks | 2 hosts |\n| --- | ---: | ---: | ---: |")
    speed = {(row["method"], row["place"]): row["steps_per_second"] for row in rows if row["sharding"] == "none"}
    for method, share in efficiency.items():
        measured = [speed[method, place] / speed[method, "1"] / 2 for place in places[1:]]
        print(f"| {method} | {share:.1%} | {' | '.join(f'{value:.0%}' for value in measured)} |")


if __name__ == "__main__":
    main()
