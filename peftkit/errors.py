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
    """The trained or saved model does not match the recipe. Exit code 1."""


class DivergedError(AuditError):
    """The training loss diverged. Exit code 1."""


class NotReproducedError(AuditError):
    """The saved model differs from the trained model. Exit code 1."""


class LostRankError(Exception):
    """Another rank ended or did not respond in time. Exit code 1."""


class Terminated(KeyboardInterrupt):
    """SIGTERM from a launcher or a scheduler. Exit code 143."""


def install_sigterm_handler() -> None:
    """Make SIGTERM end this process like Ctrl-C: the run cleans up and writes its report."""
    signal.signal(signal.SIGTERM, _handle_sigterm)


def ignore_sigterm() -> None:
    """Ignore further SIGTERM while the process ends: a launcher sends it to all ranks when one rank ends."""
    if signal.getsignal(signal.SIGTERM) is _handle_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _handle_sigterm(number: int, frame: Any) -> None:
    ignore_sigterm()
    raise Terminated("ended by SIGTERM")


def run_with_exit_code(act: Callable[[], None], *, debug: bool = False) -> int:
    """Run `act` and return the exit code; print a failure as one line to standard error.

    Exit codes: 0 success, 1 failure, 2 an error that the user can fix, 130 interrupted, 143 ended by SIGTERM. With
    `debug` the traceback is printed first. Every rank raises the same UserError, so only local rank 0 prints it. Every
    rank prints other errors.
    """
    try:
        act()
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        code, line = _describe_error(error)
        local, rank = os.environ.get("LOCAL_RANK", "0"), os.environ.get("RANK", "0")
        if local == "0" or not isinstance(error, UserError | AuditError | KeyboardInterrupt):
            print(f"peftkit: {line}" if rank == "0" else f"peftkit, rank {rank}: {line}", file=sys.stderr)
        return code


def _describe_error(error: BaseException) -> tuple[int, str]:
    if isinstance(error, KeyboardInterrupt):
        return 143 if isinstance(error, Terminated) else 130, str(error) or "interrupted"
    if isinstance(error, UserError | AuditError | LostRankError):
        return (2 if isinstance(error, UserError) else 1), str(error)
    return 1, f"{type(error).__name__}: {' '.join(str(error).split())[:500]} (use --debug for the traceback)"
