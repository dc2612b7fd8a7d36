"""The errors that are part of peftkit's contract with its user, and the exit codes they end in."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any


class UserError(Exception):
    """Something the user can put right: one line saying what is wrong, where, and what to do. Exit code 2."""


class AuditError(Exception):
    """The run did not train what it said it would train, or did not save it. Exit code 1."""


class DivergedError(AuditError):
    """The training loss left all bounds. Exit code 1."""


class NotReproducedError(AuditError):
    """What was saved is not what was trained. Exit code 1."""


class LostRankError(Exception):
    """Another rank is gone, or did not answer in time: what is said by a rank that is not to blame. Exit code 1."""


class Terminated(KeyboardInterrupt):
    """Ended by SIGTERM, a launcher's or a scheduler's. Exit code 143."""


def install_sigterm_handler() -> None:
    """From now on SIGTERM ends this process as an interrupt from the keyboard does: a run tidies up and reports."""
    signal.signal(signal.SIGTERM, _end)


def ignore_sigterm() -> None:
    """What ends already is no longer interrupted: a launcher sends SIGTERM to all when the first of them has ended."""
    if signal.getsignal(signal.SIGTERM) is _end:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _end(number: int, frame: Any) -> None:
    ignore_sigterm()
    raise Terminated("ended by SIGTERM")


def run_with_exit_code(act: Callable[[], None], *, debug: bool = False) -> int:
    """Run `act` and turn how it ended into an exit code, saying a failure in one line on standard error.

    0 done; 1 failed; 2 the user can put it right; 130 interrupted; 143 ended by SIGTERM. With `debug` a traceback comes
    first. What the user can put right every process of a host would say alike, so one says it; any other failure is
    said by its rank.
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
