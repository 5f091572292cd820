"""Running the cells of a comparison: training side by side, timing alone, then the report."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cflows
from baselines.harness import alone, cells, checks, data, depth, models, report, sampling
from baselines.harness.cells import Cell
from baselines.harness.data import Width
from baselines.harness.pool import Killed, side_by_side
from cflows.storage import write_beside

__all__ = ["COMPARISONS", "Plan", "execute", "plan_cells"]

Sets = dict[str, tuple[str, data.Dataset]]
WORK = {"ffjord": 16, "ffjord-matching": 16, "iaf": 8}  # roughly, for the order of the cells alone
COMPARISONS = ("compare", "likelihood", "sampling", "depth")


@dataclass(frozen=True)
class Plan:
    """What a command asks for.

    Attributes:
        comparison: a name in ``COMPARISONS``.
        data: names of data sets, or files.
        models: names of models; the Gaussian is added to every table.
        seeds: one cell each.
        depths: for every model alike, or None for each model's own.
        steps: optimiser steps a cell, or None for each model's own.
        budget: training seconds a cell, or None.
        quick: whether to use the models' quick steps.
        device: ``"cpu"`` or ``"cuda"``.
        jobs: cells trained at a time, a process and a thread each.
        out: DIR.
        preprocess: the map behind each model, one of ``data_end.PREPROCESS``; with ``quick``
            nothing is chosen, and ``"auto"`` is ``"whiten"``.
        command: as it was typed, for the manifest.
        dequantise: noise for quantised columns of files, as ``data.load`` takes it.

    """

    comparison: str
    data: Sequence[str]
    models: Sequence[str]
    seeds: Sequence[int]
    depths: Sequence[int] | None
    steps: int | None
    budget: float | None
    quick: bool
    device: str
    jobs: int
    out: Path
    command: str
    preprocess: str = "auto"
    dequantise: Width | None = None


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
    _write_manifest(plan, sets, todo)
    for name, (_, rows) in sets.items():
        sizes = " / ".join(f"{len(part):,}" for part in (rows.train, rows.validation, rows.test))
        for note in rows.notes:
            print(f"cflows: {note}", file=sys.stderr)
        _say(f"{name}: {rows.features} columns, {sizes} rows to train / validate / test")
        if rows.note:
            _say(rows.note)
    _say(f"{len(todo)} cells on {plan.jobs} process(es), one thread each, into {plan.out}")
    width = len(str(len(todo)))
    for count, (cell, result) in enumerate(_train(todo, plan), 1):
        _say(f"[{count:{width}}/{len(todo)}] {_line(cell, result)}")
    if plan.comparison != "likelihood":
        _say("timing densities and samples, one model at a time")
        _time(todo, plan.out)
    alone.measure(plan.comparison, todo, plan.out, plan.models, quick=plan.quick,
                  device=plan.device, say=_say)  # fmt: skip
    page = report.write(plan.out)
    _say("\n" + report.summary(plan.out))
    _say(f"\n{time.perf_counter() - started:.0f} s; the report, with pictures: {page}")
    return 0 if all(cells.finished(cell, plan.out) for cell in todo) else 1


def plan_cells(plan: Plan, sets: Sets) -> list[Cell]:
    """Return the cells of a plan, the longest first so that processes end together."""
    listed: list[tuple[int, Cell]] = []
    preprocess = "whiten" if plan.quick and plan.preprocess == "auto" else plan.preprocess
    deepest_only = plan.comparison in ("likelihood", "sampling")
    for name, (source, rows) in sets.items():
        common: dict[str, Any] = {
            "data": name,
            "source": source,
            "checksum": rows.checksum,
            "device": plan.device,
            "dequantise": plan.dequantise if rows.kind == "file" else None,
            "pixels": rows.pixels and (rows.pixels.levels, rows.pixels.alpha),
        }
        for model_name in plan.models:
            model = models.find(model_name)
            for deep in depth.settings(model, plan.depths, deepest_only=deepest_only):
                work = WORK.get(model_name, 1) * deep * rows.features
                configuration = models.configuration(model_name, rows.features, deep)
                for seed in plan.seeds:
                    cell = Cell(
                        **common,
                        model=model_name,
                        depth=deep,
                        seed=seed,
                        steps=_steps(plan, model),
                        seconds=plan.budget,
                        learning_rate=model.learning_rate,
                        preprocess=preprocess,
                        configuration=configuration,
                    )
                    listed.append((work, cell))
        gaussian = Cell(
            **common, model=models.GAUSSIAN, depth=None, seed=0, steps=0, seconds=None,
            learning_rate=0.0, preprocess="whiten",
        )  # fmt: skip
        listed.append((0, gaussian))
    return [cell for _, cell in sorted(listed, key=lambda item: -item[0])]


def _steps(plan: Plan, model: models.Model) -> int | None:
    if plan.steps is not None or plan.budget is not None:
        return plan.steps
    return model.quick_steps if plan.quick else model.steps


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


def _train(todo: Sequence[Cell], plan: Plan) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Each cell with its result, as it ends; finished ones first."""
    waiting = []
    for cell in todo:
        done = cells.finished(cell, plan.out)
        if done is None:
            waiting.append(cell)
        else:
            yield cell, done
    if plan.jobs == 1 or len(waiting) <= 1:
        for cell in waiting:
            yield cell, cells.run(cell, plan.out)
        return
    for cell, result in side_by_side(partial(cells.run, out=plan.out), waiting, plan.jobs):
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
    """Time the cells that are finished, and say which cannot be."""
    for cell in todo:
        if cells.finished(cell, out) is not None:
            result = cells.cost_of(cell, out)
            if result.get("status") == "failed":
                _say(_line(cell, result))


def _line(cell: Cell, result: dict[str, Any]) -> str:
    name = f"{cell.data} {cell.model}"
    if cell.depth is not None:
        name += f" {cell.depth} {models.find(cell.model).unit}"
    if cell.seed:
        name += f" seed {cell.seed}"
    if result["status"] != "ok":
        return f"{name:32} failed: {result['error']}"
    bits = f"  {result['bits_per_dim']:.3f} bits/dim" if "bits_per_dim" in result else ""
    return (
        f"{name:32} test log-likelihood {result['test_log_prob']:9.3f} "
        f"± {result['test_log_prob_2se']:.3f}{bits}  ({result['train_seconds']:.0f} s)"
    )


def _write_manifest(plan: Plan, sets: Sets, todo: Sequence[Cell]) -> None:
    path = plan.out / "manifest.json"
    manifest = {
        "command": plan.command,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "comparison": plan.comparison,
        "seed": list(plan.seeds),
        "models": list(plan.models),
        "steps": plan.steps,
        "budget": plan.budget,
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
        "solver": {name: found for name in plan.models if (found := models.solvers(name))},
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
            }
            for cell in todo
        },
    }
    text = json.dumps(manifest, indent=1) + "\n"
    write_beside(path, lambda beside: beside.write_text(text))


def _version(package: str) -> str:
    """The version of a package that costs too much to import for its number alone."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _say(text: str) -> None:
    print(text, file=sys.stdout, flush=True)
