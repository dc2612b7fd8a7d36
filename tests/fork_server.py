"""A Python interpreter whose libraries are already imported: each program runs in a fork of one server process.

`write_interpreter` writes an executable that takes the arguments of `python`. It hands them to the server with its
environment, working directory, standard streams, processor affinity and network namespace, passes signals on, and ends
as the program ends. The server starts with the first program. It imports peftkit from this checkout; a program that
would import another peftkit, or runs isolated (`-P`), imports its own.

The real interpreter runs what a fork cannot: other options, and other values of the variables that libraries read when
they are imported. Peak memory counts what the server has imported.
"""

import contextlib
import fcntl
import json
import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

PRELOADED = (
    "torch", "torch._dynamo", "torch.distributed.launcher.api", "transformers.trainer_seq2seq", "peft", "datasets",
    "transformers.models.auto.modeling_auto", "transformers.models.bert.modeling_bert", "pandas", "pyarrow.parquet",
    "transformers.models.t5.modeling_t5", "evaluate", "bitsandbytes", "deepspeed.launcher.runner",
    "tensorboardX", "jsonargparse", "sklearn.metrics", "scipy.stats", "nltk", "sacrebleu",
)  # fmt: skip
OWN = (
    "peftkit.cli.main", "peftkit.cli.commands.train", "peftkit.cli.commands.compare", "peftkit.training.run",
    "peftkit.comparison.worker", "peftkit.export.exporter", "peftkit.prediction.batch",
)  # fmt: skip
READ_AT_IMPORT = ("HF_", "TRANSFORMERS_", "LD_", "ARROW_", "PYTHONHASHSEED")
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
STREAMS = (0, 1, 2)
NETWORK = "/proc/self/ns/net"


def write_interpreter(folder: Path, owner: int) -> Path:
    """Write the executable to a folder; its server ends when the process `owner` has ended."""
    path = folder / "python"
    if path.exists():
        return path
    (folder / "environment.json").write_text(json.dumps(select_read_at_import()))
    command = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(folder), str(owner)]
    path.write_text("#!/bin/sh\nexec " + " ".join(f"'{argument}'" for argument in command) + ' "$@"\n')
    path.chmod(0o755)
    return path


def select_read_at_import() -> dict:
    """Select the environment variables that libraries read when they are imported."""
    return {name: value for name, value in os.environ.items() if name.startswith(READ_AT_IMPORT)}


def run_client(folder: Path, owner: int, words: list[str]) -> None:
    """Run a program in a fork of the server, or in the real interpreter, and end as it ends."""
    request = split_arguments(words)
    if request is None or json.loads((folder / "environment.json").read_text()) != select_read_at_import():
        os.execv(sys.executable, [sys.executable, *words])
    request |= {"environment": dict(os.environ), "folder": os.getcwd(), "executable": str(folder / "python")}
    request["memory_limit"] = resource.getrlimit(resource.RLIMIT_AS)
    request["cores"] = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    connection = connect(folder, owner)
    networks = [os.open(NETWORK, os.O_RDONLY)] if os.path.exists(NETWORK) else []
    socket.send_fds(connection, [b"\0"], [*STREAMS, *networks])
    connection.sendall(json.dumps(request).encode() + b"\n")
    answers = connection.makefile()
    pid = int(answers.readline())

    def forward(number: int, _) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in FORWARDED:
        signal.signal(number, forward)
    # The program alone holds its streams: their other ends see when it closes them.
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in STREAMS:
        os.dup2(nothing, stream)
    code = int(answers.readline() or 1)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def split_arguments(words: list[str]) -> dict | None:
    """Split a command line into options and program; None where a fork cannot run it."""
    found: dict = {"warnings": [], "flags": [], "program": []}
    while words and words[0] in ("-W", "-u", "-P"):
        option, *words = words
        if option == "-W":
            action, *words = words
            found["warnings"].append(action)
        found["flags"].append(option)
    if not words or (words[0].startswith("-") and words[0] not in ("-c", "-m")):
        return None
    return found | {"program": words}


def connect(folder: Path, owner: int) -> socket.socket:
    """Connect to the server; start it if it is not up."""
    connection = socket.socket(socket.AF_UNIX)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if connection.connect_ex(str(folder / "socket")) == 0:
            return connection
        (folder / "socket").unlink(missing_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        with (folder / "log").open("ab") as log:
            server = subprocess.Popen(
                [sys.executable, __file__, str(folder), str(owner), "--serve"], env=environment, cwd="/",
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        while connection.connect_ex(str(folder / "socket")):
            if server.poll() is not None:
                raise RuntimeError(f"the fork server ended: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)
    return connection


def serve(folder: Path, owner: int) -> dict:
    """Fork a process for each request; in the server this returns never, in a fork the request."""
    import gc
    import importlib

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    for name in (*PRELOADED, *OWN):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    del sys.path[0]
    gc.collect()
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen(64)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write)
    selector = selectors.DefaultSelector()
    for source in (listener, wake_read):
        selector.register(source, selectors.EVENT_READ)
    programs: dict[int, socket.socket] = {}
    while True:
        for key, _ in selector.select(timeout=2):
            if key.fileobj is listener:
                connection = listener.accept()[0]
                streams = socket.recv_fds(connection, 1, len(STREAMS) + 1)[1]
                # Nothing comes from a client that was killed by now.
                is_whole = (line := connection.makefile().readline()).endswith("\n")
                pid = os.fork() if is_whole else None
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    selector.close()
                    for other in (listener, connection, *programs.values()):
                        other.close()
                    os.close(wake_read)
                    os.close(wake_write)
                    for place, stream in zip(STREAMS, streams, strict=False):
                        os.dup2(stream, place)
                    for network in streams[len(STREAMS) :]:
                        enter_network(network)
                    for stream in streams:
                        os.close(stream)
                    return json.loads(line)
                for stream in streams:
                    os.close(stream)
                if pid:
                    with contextlib.suppress(OSError):
                        connection.sendall(f"{pid}\n".encode())
                    programs[pid] = connection
                    selector.register(connection, selectors.EVENT_READ, pid)
            elif key.fileobj == wake_read:
                os.read(wake_read, 4096)
            else:
                # The client was killed by SIGKILL, which it cannot pass on.
                selector.unregister(key.fileobj)
                os.kill(key.data, signal.SIGKILL)
        while programs and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            connection = programs.pop(ended[0])
            with contextlib.suppress(KeyError):
                selector.unregister(connection)
            with contextlib.suppress(OSError):
                connection.sendall(f"{os.waitstatus_to_exitcode(ended[1])}\n".encode())
            connection.close()
        try:
            os.kill(owner, 0)
        except ProcessLookupError:
            for pid in programs:
                os.kill(pid, signal.SIGKILL)
            os._exit(0)


def enter_network(namespace: int) -> None:
    """Join the network namespace of a file descriptor, if it is another one."""
    import ctypes

    if os.fstat(namespace).st_ino != os.stat(NETWORK).st_ino and ctypes.CDLL(None, use_errno=True).setns(namespace, 0):
        raise OSError(ctypes.get_errno(), "setns")


def run_program(request: dict) -> None:
    """Become the program of a request: its process state as the interpreter would set it, then its code."""
    import runpy
    import warnings

    import numpy
    import torch

    os.setsid()
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    if request["cores"]:
        os.sched_setaffinity(0, request["cores"])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(request["cores"]) or 1))
    numpy.random.seed()
    resource.setrlimit(resource.RLIMIT_AS, request["memory_limit"])
    unbuffered = "-u" in request["flags"] or bool(os.environ.get("PYTHONUNBUFFERED"))
    sys.stdout.reconfigure(line_buffering=unbuffered or os.isatty(1), write_through=unbuffered)
    for action in request["warnings"]:
        warnings.simplefilter(action)
        sys.warnoptions.append(action)
    kind, *rest = request["program"]
    sys.executable = request["executable"]
    sys.argv = request["program"] if kind != "-m" else rest
    first = {"-c": "", "-m": os.getcwd()}.get(kind, os.path.dirname(os.path.abspath(kind)))
    above = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:1] = ([] if "-P" in request["flags"] else [first]) + above
    unload_other_peftkit(is_isolated="-P" in request["flags"])
    if kind == "-m":
        return runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    if kind == "-c":
        source, name = rest[0], "<string>"
        sys.argv = ["-c", *rest[1:]]
    else:
        source, name = Path(kind).read_text(encoding="utf-8"), kind
        main.__file__ = kind
    exec(compile(source, name, "exec"), main.__dict__)


def unload_other_peftkit(is_isolated: bool) -> None:
    """Unload the server's peftkit if the program would import another one."""
    from importlib.machinery import PathFinder

    found = PathFinder.find_spec("peftkit")
    loaded = sys.modules.get("peftkit")
    if loaded is not None and (is_isolated or found is None or found.origin != loaded.__file__):
        for name in [name for name in sys.modules if name.partition(".")[0] == "peftkit"]:
            del sys.modules[name]


if __name__ == "__main__":
    place, number, *command_line = sys.argv[1:]
    if command_line == ["--serve"]:
        run_program(serve(Path(place), int(number)))
    else:
        run_client(Path(place), int(number), command_line)
