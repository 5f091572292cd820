"""The one line that a command ends with which cannot be done."""

from __future__ import annotations

import sys
from typing import NoReturn

from baselines.harness.cli import standard_streams, torchrun

__all__ = ["fail", "one_line", "status_of"]


def fail(message: str, status: int = 2) -> NoReturn:
    """Say why in one line, of several processes in one, and end with this status."""
    if torchrun.speaks():
        print(f"cflows: {message}", file=sys.stderr)
    raise SystemExit(status)


def one_line(error: Exception) -> str:
    """An error as one line, that of the system with the file first."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def status_of(error: Exception) -> int | None:
    """2 for what was wrong with a command, 1 for a computation that came to no end, or None."""
    from baselines import InversionError
    from baselines.harness.data import DataError
    from baselines.harness.executors.slurm import ClusterError
    from baselines.harness.report.contents import ReportError
    from baselines.models.model import ModelError
    from cflows import LoadError, ProcessError, SolverError, TrainingError

    if standard_streams.failed(error):
        return None
    if isinstance(error, ClusterError | DataError | LoadError | ModelError | ReportError | OSError):
        return 2
    if isinstance(error, InversionError | ProcessError | SolverError | TrainingError):
        return 1
    return None
