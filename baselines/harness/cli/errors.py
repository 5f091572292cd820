"""The one line that a command ends with which cannot be done."""

from __future__ import annotations

import sys
from typing import NoReturn

from baselines.harness.cli import torchrun

__all__ = ["fail", "is_failed_computation", "is_ours", "one_line"]


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


def is_ours(error: Exception) -> bool:
    """Whether an error says what was wrong with the command, its files or its names."""
    from baselines.harness.data import DataError
    from baselines.harness.executors.slurm import ClusterError
    from baselines.harness.report.contents import ReportError
    from baselines.models.model import ModelError
    from cflows import LoadError

    ours = ClusterError | DataError | LoadError | ModelError | ReportError | OSError
    return isinstance(error, ours)


def is_failed_computation(error: Exception) -> bool:
    """Whether the command was right, and its computation came to no end."""
    from baselines import InversionError
    from cflows import ProcessError, SolverError, TrainingError

    return isinstance(error, InversionError | ProcessError | SolverError | TrainingError)
