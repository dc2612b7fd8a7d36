"""Report of a failed run: status, error in one line, and measurements until the failure."""

import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from peftkit.distributed.process_group import has_several_ranks, leave_process_group
from peftkit.errors import AuditError, DivergedError, LostRankError, NotReproducedError, UserError
from peftkit.runs.report import FILE_NAME, Report, read_report
from peftkit.system.environment import is_out_of_memory, measure_process_age, read_process_peak_bytes
from peftkit.system.files import redact_home_in_text
from peftkit.system.logging import is_rank_zero
from peftkit.training.callbacks import ClockCallback


class FailureReporter:
    """Context manager that writes a report if the run fails, and leaves the process group.

    Attributes:
        report: The current report, which the run replaces after each step.
    """

    def __init__(self, folder: Path, report: Report, clock: ClockCallback) -> None:
        self.folder = folder
        self.report = report
        self.clock = clock

    def __enter__(self) -> "FailureReporter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, Exception | KeyboardInterrupt):
                self._write(error)
        finally:
            leave_process_group()

    def _write(self, error: BaseException) -> None:
        is_known = isinstance(error, UserError | AuditError)
        # Every rank raises a known error; another error, such as out of memory, may occur on this rank only.
        if (is_known and not is_rank_zero()) or has_report_of_cause(self.folder, error):
            return
        is_plain = is_known or isinstance(error, LostRankError)
        line = " ".join((str(error) if is_plain else f"{type(error).__name__}: {error}").split())[:500]
        measured: dict[str, Any] = {}
        if not self.report.times:
            measured = {
                "seed": self.report.recipe["training"].get("seed"),
                "memory": {"process_peak": read_process_peak_bytes()},
                "times": {"total": measure_process_age()}, "history": [dict(row) for row in self.clock.history],
            }  # fmt: skip
        report = replace(self.report, status=find_status(error), error=redact_home_in_text(line), **measured)
        report.write(self.folder)


def find_status(error: BaseException) -> str:
    """Return the `Report.status` of a run that ended with this error."""
    if is_out_of_memory(error):
        return "out_of_memory"
    if isinstance(error, DivergedError):
        return "diverged"
    return "not_reproduced" if isinstance(error, NotReproducedError) else "failed"


def has_report_of_cause(folder: Path, error: BaseException) -> bool:
    """Return whether another rank has written a report of the failure behind this error."""
    path = folder / FILE_NAME
    if not path.exists() or path.stat().st_mtime < time.time() - measure_process_age():
        return False
    is_consequence = has_several_ranks() and isinstance(error, LostRankError | KeyboardInterrupt)
    return is_consequence or read_report(folder).status == "out_of_memory"
