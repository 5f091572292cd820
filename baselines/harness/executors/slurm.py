"""Cells as jobs of a cluster, by submitit (the extra ``slurm``), which is imported when asked for.

A job that the cluster stops, at its time limit or for a more urgent one, is queued again and goes
on from its cell's checkpoint.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from submitit import AutoExecutor, Job

__all__ = ["EXECUTORS", "ClusterError", "Lost", "check", "submitted"]

Item = TypeVar("Item")
Result = TypeVar("Result")

EXECUTORS = {"slurm": "slurm", "submitit-local": "local", "submitit-debug": "debug"}
MINUTES = 24 * 60  # a job's, where --slurm says nothing else
PAUSE = {"slurm": 2.0, "local": 0.1, "debug": 0.0}  # seconds between two looks at the jobs


class ClusterError(ValueError):
    """A cluster that cannot be used from here; one line with the remedy."""


@dataclass(frozen=True)
class Lost:
    """What stands for a result where a job ended without one, with the reason in one line."""

    reason: str


@dataclass(frozen=True)
class _Job(Generic[Item, Result]):
    work: Callable[[Item], Result]
    item: Item

    def __call__(self) -> Result:
        return self.work(self.item)

    def checkpoint(self) -> object:
        """What submitit queues again in place of a job that was stopped."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def check(executor: str) -> None:
    """See that jobs can be submitted from here, before anything is written.

    Raises:
        ClusterError: submitit is not installed, or there is no Slurm.

    """
    _executor(executor, Path("jobs"), 1, {})


def submitted(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    executor: str,
    folder: Path,
    *,
    jobs: int | None = None,
    settings: Mapping[str, str | int] | None = None,
) -> Generator[tuple[Item, Result | Lost], None, None]:
    """Yield each item with its result as its job ends; one job an item.

    Args:
        work: a function that can be imported by name.
        items: what it is called with; picklable.
        executor: a name in ``EXECUTORS``: Slurm, processes of this machine, or this process.
        folder: of the jobs' scripts and logs, seen from the cluster's machines too.
        jobs: how many at a time; None for as many as the cluster will take.
        settings: submitit's, such as ``{"slurm_partition": "gpu", "timeout_min": 60}``.

    Leaving the iteration early cancels the jobs.

    """
    submits = _executor(executor, folder, jobs, settings or {})
    pause = PAUSE[EXECUTORS[executor]]
    waiting = list(reversed(items))
    running: list[tuple[Item, Job[Result]]] = []
    try:
        if executor == "slurm":  # one array, whose parallelism Slurm keeps
            with submits.batch():
                running = [(item, submits.submit(_Job(work, item))) for item in items]
            waiting = []
        while waiting or running:
            while waiting and len(running) < (jobs or 1):
                item = waiting.pop()
                running.append((item, submits.submit(_Job(work, item))))
            ended = [pair for pair in running if pair[1].done()]
            for item, job in ended:
                running.remove((item, job))
                yield item, _result(job)
            if not ended:
                time.sleep(pause)
    finally:
        for _, job in running:
            with suppress(Exception):  # one that ended just now
                job.cancel()


def _executor(
    executor: str, folder: Path, jobs: int | None, settings: Mapping[str, str | int]
) -> AutoExecutor:
    try:
        import submitit
    except ModuleNotFoundError as error:
        if error.name != "submitit":
            raise
        raise ClusterError(
            f"--executor {executor} needs submitit, which is not installed: "
            "pip install 'cflows[slurm]'"
        ) from None
    chosen = {"name": "cflows", "cpus_per_task": 1, "timeout_min": MINUTES, **settings}
    if executor == "slurm" and jobs is not None:
        chosen["slurm_array_parallelism"] = jobs
    try:
        submits = submitit.AutoExecutor(folder=folder, cluster=EXECUTORS[executor])
        submits.update_parameters(**chosen)
    except (RuntimeError, NameError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise ClusterError(f"--executor {executor}: {reason}") from error
    return submits


def _result(job: Job[Result]) -> Result | Lost:
    try:
        return job.result()
    except Exception as error:  # submitit's own, or what it hands on from the job
        # submitit sets the job's traceback between two lines of dashes.
        parts = re.split(r"\n-{10,}\n", str(error).strip())
        said = parts[1].strip().splitlines()[-1:] if len(parts) > 2 else parts[0].splitlines()[:1]
        reason = " ".join(said) or type(error).__name__
        return Lost(f"its job {job.job_id} ended without a result ({job.state}): {reason}")
