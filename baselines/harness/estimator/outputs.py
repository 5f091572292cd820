"""Outputs: refused before the work where they could not be written, kept elsewhere after it."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

from baselines.harness.estimator.task import Task
from baselines.models.model import ModelError
from cflows import Flow, TrainingError
from cflows.core.atomic_write import STDOUT, refuse_unwritable, target
from cflows.core.flow_file import packed
from cflows.training.checkpoint import exists

__all__ = ["keep", "refuse_output", "refuse_unkeepable"]


def refuse_output(out: Path, *inputs: str | Path) -> None:
    """Find out before the work that its result could not be written, or would replace an input.

    Raises:
        OSError: which, and why.

    """
    refuse_unwritable(out)
    if target(out) == STDOUT and sys.__stdout__ is None:
        raise OSError(f"{out}: standard output is closed; name a file")
    for path in inputs:
        if out.is_file() and os.path.exists(path) and os.path.samefile(path, out):
            raise FileExistsError(f"{out}: would overwrite what is read; name another file")


def refuse_unkeepable(core: Flow, task: Task) -> None:
    """Find out before the training that its model could not be kept.

    Raises:
        ModelError: a part of it is of a class that was not registered.
        OSError: there is no room for it, here or in the temporary folder.

    """
    try:
        size = len(packed(core))
    except TypeError as error:
        raise ModelError(f"{task.model} cannot be saved: {error}") from error
    try:
        refuse_unwritable(task.out, size)
    except OSError as error:
        reason = f"{task.out}: {_reason(error, task.out)}; the model takes about {size:,} bytes"
        try:
            refuse_unwritable(Path(tempfile.gettempdir()) / "model", size)
        except OSError:
            raise OSError(reason) from error
        print(f"cflows: {reason}: make room before the training ends, or it will be kept in "
              f"{tempfile.gettempdir()}", file=sys.stderr)  # fmt: skip


def keep(flow: Flow, task: Task) -> None:
    """Save a trained model; where that fails, in the temporary folder.

    Raises:
        TrainingError: it could not be saved under its name; says where it is kept.

    """
    try:
        flow.save(task.out)
    except OSError as error:
        kept = f"its training is kept in {task.checkpoint}: the same command goes on from there"
        if task.checkpoint is None or not exists(task.checkpoint):
            kept = "the model could not be kept in the temporary folder either"
        with contextlib.suppress(OSError):
            folder = Path(tempfile.mkdtemp(prefix="cflows-"))
            try:
                flow.save(folder / "model.flow")
                kept = f"the model was kept in {folder / 'model.flow'}"
            except OSError:
                folder.rmdir()
        raise TrainingError(f"{task.out}: {_reason(error, task.out)}; {kept}") from error


def _reason(error: OSError, out: Path) -> str:
    """What went wrong, in words that do not name the file again."""
    return error.strerror.lower() if error.strerror else str(error).removeprefix(f"{out}: ")
