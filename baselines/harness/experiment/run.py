"""Running the cells of a comparison: training side by side, timing alone, then the report."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

import cflows
from baselines.harness import data
from baselines.harness.data import Width
from baselines.harness.data.sources import is_once
from baselines.harness.executors import slurm
from baselines.harness.executors.process_pool import Killed, side_by_side
from baselines.harness.experiment import cells, checks, cost_sweeps
from baselines.harness.experiment.cell import Cell
from baselines.harness.experiment.forecast import Forecast, predicted
from baselines.harness.experiment.locks import claimed
from baselines.harness.experiment.plan import Plan, Sets, model_names, plan_cells
from baselines.harness.experiment.progress import Progress, left, line, say
from baselines.harness.metrics import timing
from baselines.harness.report import contents
from baselines.harness.results import layout
from baselines.harness.results.records import Failure, Outcome
from baselines.models import registry
from cflows.core.atomic_write import write_whole

__all__ = ["Plan", "execute", "plan_cells"]

Item = TypeVar("Item")
Answer = TypeVar("Answer")

PICTURES = 6.0  # seconds that the report takes
PAUSE = 0.2  # seconds between two looks at cells that another process holds


def execute(plan: Plan) -> int:
    """Run what is not done yet, print each cell as it ends, write the report; 1 if a cell failed.

    Raises:
        DataError: a data set cannot be used.
        ModelError: a model or a depth cannot.
        ClusterError: jobs cannot be submitted from here.

    """
    started = time.perf_counter()
    if plan.executor != "local":
        slurm.check(plan.executor)
    sets = _load(plan.data, plan.dequantise, plan.columns, plan.drop)
    todo = plan_cells(plan, sets)
    plan.out.mkdir(parents=True, exist_ok=True)
    since = _write_manifest(plan, sets, todo)
    for name, (_, rows) in sets.items():
        sizes = " / ".join(f"{len(part):,}" for part in (rows.train, rows.validation, rows.test))
        for note in rows.notes:
            print(f"cflows: {note}", file=sys.stderr)
        say(f"{name}: {rows.features} columns, {sizes} rows to train / validate / test")
        if rows.note:
            say(rows.note)
    where = f"on {plan.jobs} process(es), one thread each"
    if plan.executor != "local":
        where = f"as jobs of {plan.executor}"
    say(f"{len(todo)} cells {where}, into {plan.out}")
    waiting = [cell for cell in todo if cells.finished(cell, plan.out) is None]
    forecast, timing_takes = _forecast(waiting, plan, sets)
    if waiting:
        say(left(forecast.left()))
    with Progress(len(todo), forecast) as progress:
        _train(todo, plan, since, progress)
    if plan.comparison != "likelihood":
        say(f"timing densities and samples, one model at a time, {left(timing_takes)}")
        for cell, result in _timed(todo, plan):
            say(line(cell, result))
    chosen = dict(model_names(plan.models))
    with claimed(plan.out / layout.CELLS / layout.TIMING, wait=True):
        cost_sweeps.measure(
            plan.comparison, todo, plan.out, chosen, quick=plan.quick, device=plan.device, say=say
        )
    page = contents.write(plan.out)
    say("\n" + contents.summary(plan.out))
    say(f"\n{time.perf_counter() - started:.0f} s; the report, with pictures: {page}")
    return 0 if all(cells.finished(cell, plan.out) for cell in todo) else 1


def _load(
    names: Sequence[str],
    dequantise: Width | None = None,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] = (),
) -> Sets:
    """The data sets by what tables call them, with where each is loaded from again."""
    loaded: dict[tuple[str, str], tuple[str, data.Dataset]] = {}
    if dequantise is not None and set(names) <= set(data.names()):
        raise data.DataError(f"--dequantise is for files; {', '.join(names)} have what they need")
    if once := [name for name in names if is_once(name)]:
        raise data.DataError(
            f"{once[0]}: a comparison reads its data again in each process; give it a file, in "
            "place of a pipe"
        )
    for name in names:
        noise = None if name in data.names() else dequantise
        rows = data.load(name, dequantise=noise, columns=columns, drop=drop)
        checks.refuse_unusable(rows)
        source = str(Path(name).resolve()) if rows.kind == "file" else name
        loaded.setdefault((rows.name, source), (name, rows))  # ./a.csv and a.csv are one
    # Files of one name are all called by their paths, whichever of them comes first.
    shared = Counter(name for name, _ in loaded)
    return {
        as_given if shared[name] > 1 else name: (source, rows)
        for (name, source), (as_given, rows) in loaded.items()
    }


def _forecast(waiting: Sequence[Cell], plan: Plan, sets: Sets) -> tuple[Forecast, float]:
    """How long the cells will take, with what comes after them; and that alone."""
    torch.set_num_threads(1)
    # Of cells that differ in their seeds alone one is tried.
    tried = {
        cell: predicted(cell, sets[cell.data][1]) for cell in dict.fromkeys(map(_seedless, waiting))
    }
    each = [tried[_seedless(cell)] for cell in waiting]
    timed = 0.0 if plan.comparison == "likelihood" else sum(timing for _, timing in each)
    jobs = plan.jobs or max(1, len(waiting))
    seconds = [seconds for seconds, _ in each]
    return Forecast(waiting, seconds, jobs, timed + PICTURES), timed + PICTURES


def _seedless(cell: Cell) -> Cell:
    return replace(cell, seed=0)


def _train(todo: Sequence[Cell], plan: Plan, since: float, progress: Progress) -> None:
    """Run what is not finished, say what each cell came to; leave what is held for later."""
    waiting = []
    for cell in todo:
        if (done := cells.finished(cell, plan.out)) is None:
            waiting.append(cell)
        else:
            progress.ended(cell, done, before=True)
    attempt = partial(cells.attempt, work=cells.run, out=plan.out, since=since)
    said = False
    while waiting:
        held = []
        for cell, result in _attempts(attempt, waiting, plan):
            if result["status"] == "held":
                held.append(cell)
            else:
                progress.ended(cell, result)
        if held and not said:
            progress.say(f"waiting for {len(held)} cell(s) that another process works on")
            said = True
        while held and not any(cells.is_free(cell, plan.out) for cell in held):
            time.sleep(PAUSE)
        waiting = held


def _attempts(
    attempt: Callable[[Cell], Outcome], waiting: Sequence[Cell], plan: Plan
) -> Iterator[tuple[Cell, Outcome]]:
    results: Generator[tuple[Cell, Outcome | Killed | slurm.Lost], None, None]
    if plan.executor != "local":
        results = _submitted(attempt, waiting, plan)
    elif plan.jobs == 1 or len(waiting) <= 1:
        results = ((cell, attempt(cell)) for cell in waiting)
    else:
        results = side_by_side(attempt, waiting, plan.jobs)
    # Closed here, so that an interruption ends the processes before it is answered.
    with closing(results):
        for cell, result in results:
            if isinstance(result, Killed | slurm.Lost):
                result = cells.fail(cell, plan.out, _why(result))
            yield cell, result


def _submitted(
    work: Callable[[Item], Answer], items: Sequence[Item], plan: Plan
) -> Generator[tuple[Item, Answer | slurm.Lost], None, None]:
    jobs = plan.jobs or None if plan.executor == "slurm" else plan.jobs
    return slurm.submitted(
        work, items, plan.executor, plan.out / "jobs", jobs=jobs, settings=plan.cluster
    )


def _why(death: Killed | slurm.Lost) -> str:
    if isinstance(death, slurm.Lost):
        return death.reason
    if death.exit_code == -9:  # what the kernel does to a process when memory runs out
        return "its process was killed (exit code -9; out of memory?)"
    reason = f"its worker process ended with exit code {death.exit_code}"
    if death.started:
        return reason
    return f'{reason} before it began: a script must call this below `if __name__ == "__main__":`'


def _timed(todo: Sequence[Cell], plan: Plan) -> list[tuple[Cell, Failure]]:
    """Time the cells that are finished; return those that cannot be, with their results."""
    if plan.executor == "local":
        return _time(todo, plan.out)
    # One job for all: one after the other on one machine, which is the trained cells' kind.
    ((_, failed),) = _submitted(partial(_time, out=plan.out), [todo], plan)
    if isinstance(failed, slurm.Lost):
        return [(cell, cells.fail(cell, plan.out, f"timing: {failed.reason}")) for cell in todo]
    return failed


def _time(todo: Sequence[Cell], out: Path) -> list[tuple[Cell, Failure]]:
    """No other command times cells of this directory meanwhile."""
    with claimed(out / layout.CELLS / layout.TIMING, wait=True):
        costs = [(cell, cells.cost_of(cell, out)) for cell in todo if cells.finished(cell, out)]
    return [(cell, cost) for cell, cost in costs if "error" in cost]


def _write_manifest(plan: Plan, sets: Sets, todo: Sequence[Cell]) -> float:
    """Write manifest.json; return when, by the clock of its file system."""
    path = plan.out / layout.MANIFEST
    origins = dict(model_names(plan.models))
    manifest = {
        "command": plan.command,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "comparison": plan.comparison,
        "seed": list(plan.seeds),
        "models": list(origins),
        "labels": {name: registry.find(origin).label for name, origin in origins.items()},
        "steps": plan.steps,
        "budget": plan.budget,
        "parameters": plan.parameters,
        "patience": plan.patience,
        "protocol": "patience" if plan.is_patient else "fixed",
        "hidden": {cell.key: list(cell.hidden) for cell in todo if cell.hidden},
        "quick": plan.quick,
        "dequantise": plan.dequantise,
        "bounds": dict(plan.bounds),
        "columns": plan.columns,
        "drop": plan.drop,
        "versions": {
            "python": platform.python_version(),
            "cflows": cflows.__version__,
            "torch": torch.__version__,
            "torchdiffeq": _version("torchdiffeq"),
            "numpy": np.__version__,
        },
        "processor": timing.processor(),
        "processors": os.cpu_count(),
        "threads": 1,
        "jobs": plan.jobs,
        "executor": plan.executor,
        "device": plan.device,
        "dtype": "float32",
        "solver": {
            name: solvers
            for name, origin in origins.items()
            if (solvers := registry.solvers(origin))
        },
        "data": {
            name: {
                "checksum": rows.checksum,
                "rows": [len(rows.train), len(rows.validation), len(rows.test)],
                "features": rows.features,
                "columns": list(rows.columns),
                "kind": rows.kind,
                "source": rows.source,
                "licence": rows.licence,
                **({"note": rows.note} if rows.note else {}),
            }
            for name, (_, rows) in sets.items()
        },
        "cells": {
            cell.key: {n: getattr(cell, n) for n in ("data", "model", "depth", "seed", "view")}
            for cell in todo
        },
    }
    write_whole(path, json.dumps(manifest, indent=1) + "\n")
    return path.stat().st_mtime


def _version(package: str) -> str:
    """The version of a package that costs too much to import for its number alone."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
