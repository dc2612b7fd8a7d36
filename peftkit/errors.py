"""Exceptions that a user may see, and the exit codes of the commands."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any


class UserError(Exception):
    """An error that the user can fix: one line with the place, the problem and the fix. Exit code 2."""


class AuditError(Exception):
    """The model was not trained or saved as the recipe says. Exit code 1."""


class DivergedError(AuditError):
    """The training loss diverged. Exit code 1."""


class NotReproducedError(AuditError):
    """The saved model differs from the trained model. Exit code 1."""


class LostRankError(Exception):
    """Another rank ended or did not respond in time. Exit code 1."""


class Terminated(KeyboardInterrupt):
    """SIGTERM of a launcher or a scheduler. Exit code 143."""


def install_sigterm_handler() -> None:
    """Make SIGTERM end this process like Ctrl-C: a run cleans up and writes its report."""
    signal.signal(signal.SIGTERM, _end)


def ignore_sigterm() -> None:
    """Ignore further SIGTERM while the process ends: a launcher sends it to all ranks when the first has ended."""
    if signal.getsignal(signal.SIGTERM) is _end:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _end(number: int, frame: Any) -> None:
    ignore_sigterm()
    raise Terminated("ended by SIGTERM")


def run_with_exit_code(act: Callable[[], None], *, debug: bool = False) -> int:
    """Run `act` and return the exit code; print a failure as one line to standard error.

    0 success; 1 failed; 2 the user can fix it; 130 interrupted; 143 ended by SIGTERM. With `debug` the traceback is
    printed first. Every rank raises the same UserError, so one rank of a host prints it; every rank prints others.
    """
    try:
        act()
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        code, line = _code_and_line(error)
        local, rank = os.environ.get("LOCAL_RANK", "0"), os.environ.get("RANK", "0")
        if local == "0" or not isinstance(error, UserError | AuditError | KeyboardInterrupt):
            print(f"peftkit: {line}" if rank == "0" else f"peftkit, rank {rank}: {line}", file=sys.stderr)
        return code


def _code_and_line(error: BaseException) -> tuple[int, str]:
    if isinstance(error, KeyboardInterrupt):
        return 143 if isinstance(error, Terminated) else 130, str(error) or "interrupted"
    if isinstance(error, UserError | AuditError | LostRankError):
        return (2 if isinstance(error, UserError) else 1), str(error)
    return 1, f"{type(error).__name__}: {' '.join(str(error).split())[:500]} (--debug shows more)"
