"""Running the cells of a comparison: training side by side, timing alone, then the report."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cflows
from baselines.harness import cells, checks, data, models, report, sampling
from baselines.harness.cells import Cell
from baselines.harness.claims import claimed
from baselines.harness.data import Width
from baselines.harness.plans import Plan, Sets, model_names, plan_cells
from baselines.harness.pool import Killed, side_by_side
from cflows.storage import write_beside

__all__ = ["Plan", "execute", "plan_cells"]

PAUSE = 0.2  # seconds between two looks at cells that another process holds


def execute(plan: Plan) -> int:
    """Run what is not done yet, print each cell as it ends, write the report; 1 if a cell failed.

    Raises:
        DataError: a data set cannot be used.
        ModelError: a model or a depth cannot.

    """
    started = time.perf_counter()
    sets = _load(plan.data, plan.dequantise)
    todo = plan_cells(plan, sets)
    plan.out.mkdir(parents=True, exist_ok=True)
    since = _write_manifest(plan, sets, todo)
    for name, (_, rows) in sets.items():
        sizes = " / ".join(f"{len(part):,}" for part in (rows.train, rows.validation, rows.test))
        for note in rows.notes:
            print(f"cflows: {note}", file=sys.stderr)
        _say(f"{name}: {rows.features} columns, {sizes} rows to train / validate / test")
        if rows.note:
            _say(rows.note)
    _say(f"{len(todo)} cells on {plan.jobs} process(es), one thread each, into {plan.out}")
    width = len(str(len(todo)))
    for count, (cell, result) in enumerate(_train(todo, plan, since), 1):
        _say(f"[{count:{width}}/{len(todo)}] {_line(cell, result)}")
    if plan.comparison != "likelihood":
        _say("timing densities and samples, one model at a time")
        _time(todo, plan.out)
    page = report.write(plan.out)
    _say("\n" + report.summary(plan.out))
    _say(f"\n{time.perf_counter() - started:.0f} s; the report, with pictures: {page}")
    return 0 if all(cells.finished(cell, plan.out) for cell in todo) else 1


def _load(names: Sequence[str], dequantise: Width | None = None) -> Sets:
    """The data sets by what tables call them, with where each is loaded from again.

    Files of one name are all called by their paths as given: what a data set is called must not
    hang on which was given first.
    """
    found: dict[tuple[str, str], tuple[str, data.Dataset]] = {}
    if dequantise is not None and set(names) <= set(data.names()):
        raise data.DataError(f"--dequantise is for files; {', '.join(names)} have what they need")
    for name in names:
        rows = data.load(name, dequantise=None if name in data.names() else dequantise)
        checks.refuse_unusable(rows)
        source = str(Path(name).resolve()) if rows.kind == "file" else name
        found.setdefault((rows.name, source), (name, rows))  # ./a.csv and a.csv are one
    shared = Counter(name for name, _ in found)
    return {
        given if shared[name] > 1 else name: (source, rows)
        for (name, source), (given, rows) in found.items()
    }


def _train(todo: Sequence[Cell], plan: Plan, since: float) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Each cell with its result, as it ends; finished ones first.

    A cell that another process holds is left for later, and its result taken from the disk.
    """
    waiting = []
    for cell in todo:
        done = cells.finished(cell, plan.out)
        if done is None:
            waiting.append(cell)
        else:
            yield cell, done
    work = partial(cells.attempt, work=cells.run, out=plan.out, since=since)
    said = False
    while waiting:
        held = []
        for cell, result in _attempts(work, waiting, plan):
            if result == cells.HELD:
                held.append(cell)
            else:
                yield cell, result
        if held and not said:
            _say(f"waiting for {len(held)} cell(s) that another process works on")
            said = True
        while held and not any(cells.is_free(cell, plan.out) for cell in held):
            time.sleep(PAUSE)
        waiting = held


def _attempts(
    work: Callable[[Cell], dict[str, Any]], waiting: Sequence[Cell], plan: Plan
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    if plan.jobs == 1 or len(waiting) <= 1:
        for cell in waiting:
            yield cell, work(cell)
        return
    for cell, result in side_by_side(work, waiting, plan.jobs):
        if isinstance(result, Killed):
            result = cells.fail(cell, plan.out, _why(result))
        yield cell, result


def _why(death: Killed) -> str:
    if death.exit_code == -9:  # what the kernel does to a process when memory runs out
        return "its process was killed (exit code -9; out of memory?)"
    reason = f"its worker process ended with exit code {death.exit_code}"
    if death.started:
        return reason
    return f'{reason} before it began: a script must call this below `if __name__ == "__main__":`'


def _time(todo: Sequence[Cell], out: Path) -> None:
    """Time the cells that are finished, and say which cannot be; no other command does so here."""
    with claimed(out / "cells" / ".timing", wait=True):
        for cell in todo:
            if cells.finished(cell, out) is not None:
                result = cells.cost_of(cell, out)
                if result.get("status") == "failed":
                    _say(_line(cell, result))


def _line(cell: Cell, result: dict[str, Any]) -> str:
    name = f"{cell.data} {cell.model}"
    if cell.depth is not None:
        name += f" {cell.depth} {models.find(cell.found).unit}"
    if cell.view != "default":
        name += f" {cell.view}"
    if cell.seed:
        name += f" seed {cell.seed}"
    if result["status"] != "ok":
        return f"{name:32} failed: {result['error']}"
    bits = f"  {result['bits_per_dim']:.3f} bits/dim" if "bits_per_dim" in result else ""
    return (
        f"{name:32} test log-likelihood {result['test_log_prob']:9.3f} "
        f"± {result['test_log_prob_2se']:.3f}{bits}  ({result['train_seconds']:.0f} s)"
    )


def _write_manifest(plan: Plan, sets: Sets, todo: Sequence[Cell]) -> float:
    """Write manifest.json; return when, by the clock of its file system."""
    path = plan.out / "manifest.json"
    manifest = {
        "command": plan.command,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "comparison": plan.comparison,
        "seed": list(plan.seeds),
        "models": [name for name, _ in model_names(plan.models)],
        "labels": {name: models.find(found).label for name, found in model_names(plan.models)},
        "steps": plan.steps,
        "budget": plan.budget,
        "parameters": plan.parameters,
        "patience": plan.patience,
        "protocol": "patience" if plan.is_patient else "fixed",
        "hidden": {cell.key: list(cell.hidden) for cell in todo if cell.hidden},
        "quick": plan.quick,
        "dequantise": plan.dequantise,
        "versions": {
            "python": platform.python_version(),
            "cflows": cflows.__version__,
            "torch": torch.__version__,
            "torchdiffeq": _version("torchdiffeq"),
            "numpy": np.__version__,
        },
        "processor": sampling.processor(),
        "processors": os.cpu_count(),
        "threads": 1,
        "jobs": plan.jobs,
        "device": plan.device,
        "dtype": "float32",
        "solver": {
            name: solvers
            for name, found in model_names(plan.models)
            if (solvers := models.solvers(found))
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
            cell.key: {
                "data": cell.data,
                "model": cell.model,
                "depth": cell.depth,
                "seed": cell.seed,
                "view": cell.view,
            }
            for cell in todo
        },
    }
    text = json.dumps(manifest, indent=1) + "\n"
    write_beside(path, lambda beside: beside.write_text(text))
    return path.stat().st_mtime


def _version(package: str) -> str:
    """The version of a package that costs too much to import for its number alone."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _say(text: str) -> None:
    print(text, file=sys.stdout, flush=True)
