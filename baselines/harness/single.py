"""One model of the user's own: trained on a table, then asked for log-densities and samples.

A model's file is a ``TableFlow``: the flow ends in the map that was fitted to the training rows, so
that densities and samples are in the file's units, and it keeps the column names. All that is
written is written beside its place and renamed: it is there whole, or as it was before.
"""

from __future__ import annotations

import csv
import io
import math
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from baselines.harness import checks, data, likelihood, models
from baselines.harness.data import DataError, Dataset
from cflows import (
    Bijector,
    Flow,
    LoadError,
    TableFlow,
    behind,
    choose,
    fit,
    load,
    log_likelihood,
    standardise,
    whiten,
)
from cflows.distributed import leads
from cflows.flow import dtype_of
from cflows.storage import write_beside

__all__ = ["PREPROCESS", "Task", "sample", "score", "train"]

PREPROCESS = ("auto", "standardise", "whiten", "none")
FLOOR = 1e-6  # a direction of a thousandth of the largest spread: what float32 still inverts
VALIDATION_ROWS = 2000
VALIDATIONS = 20
SHOWN_ROWS = 10_000  # of the training rows, whose likelihood is only compared with the others'
DRAWN_AT_ONCE = 10_000

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Task:
    """What ``cflows fit`` was asked for.

    Attributes:
        model: a name in ``models.MODELS``.
        data: a registered name, or a file.
        out: the model's file.
        depth: layers or blocks; None for the deepest setting of a comparison.
        steps: optimiser steps at most; None for the model's own, or for none where seconds are
            given.
        seconds: training seconds at most, without those of the choice of a map.
        seed: of the first weights and of the training.
        preprocess: one of ``PREPROCESS``.
        device: ``"cpu"`` or ``"cuda"``.
        checkpoint: a path, or None.
        quick: the model's few steps in place of its own.

    """

    model: str
    data: str
    out: Path
    depth: int | None = None
    steps: int | None = None
    seconds: float | None = None
    seed: int = 0
    preprocess: str = "auto"
    device: str = "cpu"
    checkpoint: Path | None = None
    quick: bool = False


def train(task: Task) -> None:
    """Train a model behind a fixed map, save it and print what it is worth.

    Raises:
        ModelError: an unknown model, or one that cannot be built for these columns.
        DataError: the rows cannot be used.
        LoadError: the checkpoint is not one of this run.
        OSError: a file cannot be written; found out before the training.
        TrainingError: the training came to no end.

    """
    settings = models.find(task.model)
    _refuse_unwritable(task.out, task.data)
    if task.checkpoint is not None:
        _refuse_unwritable(task.checkpoint, task.data, task.out)
        if task.checkpoint.absolute() == task.out.absolute():
            raise FileExistsError(f"{task.out}: cannot be the checkpoint too; name another file")
    rows = data.load(task.data)
    _refuse_unusable(rows)
    if rows.note:
        print(rows.note)
    depth = max(settings.depths) if task.depth is None else task.depth
    steps = task.steps
    if steps is None and (task.seconds is None or task.quick):
        steps = settings.quick_steps if task.quick else settings.steps
    splits = [torch.from_numpy(part).float() for part in (rows.train, rows.validation, rows.test)]
    stride = max(1, len(splits[1]) // VALIDATION_ROWS)
    training: dict[str, Any] = {
        "learning_rate": settings.learning_rate,
        "seed": task.seed,
        "device": task.device,
        "progress": sys.stderr.isatty(),
    }

    def build(data_end: Bijector | None) -> Flow:
        flow = behind(_core(task, rows.features, depth), data_end)
        return TableFlow(flow.bijector, flow.base, rows.columns)

    build(None)  # a model that cannot be built says so before the first map is tried
    held_out = splits[1][::stride]
    name, data_end = _data_end(task.preprocess, build, splits[0], held_out, steps, training)
    flow = build(data_end)
    history = fit(
        flow,
        splits[0],
        held_out,
        steps=steps,
        seconds=task.seconds,
        validate_every=100 if steps is None else max(1, steps // VALIDATIONS),
        checkpoint=task.checkpoint,
        **training,
    )
    if not leads():
        return
    flow.save(task.out)
    print(
        f"{settings.label}, {depth} {settings.unit}, {name}: {history.steps} steps in "
        f"{history.seconds:.1f} s, ended by {history.stopped}; the state of step "
        f"{history.best_step} is kept"
    )
    _print_scores(flow, splits)
    print(f"the model: {task.out}")


def score(model: Path, source: Path, out: Path, device: str = "cpu") -> None:
    """Write the log-density, in nats, of each row of a file, in the file's order and units.

    Args:
        model: what ``train`` or ``flow.save`` wrote.
        source: .csv or .npy; the columns of a .csv are found by name where both have names.
        out: .csv with the header ``log_prob``, or .npy.
        device: where to compute.

    Raises:
        LoadError: the model is damaged or no flow.
        DataError: the file is no table of finite numbers, or its columns are not the model's.
        OSError: a file is not there or cannot be written.

    """
    _refuse_unwritable(out, model, source)
    _refuse_suffix(out)
    flow = _loaded(model, device)
    values, columns = data.table(source)
    values = values[:, _places(columns, _columns(flow), source)]
    x = torch.from_numpy(values).to(dtype_of(flow))
    if not bool(x.isfinite().all()):
        raise DataError(f"{source}: holds values beyond {torch.finfo(x.dtype).max:.0e}, the "
                        f"largest in the model's {str(x.dtype)[6:]}; drop such rows")  # fmt: skip
    _write(out, log_likelihood(flow, x)[:, None], ("log_prob",))
    print(f"log-densities of {len(x):,} rows: {out}")


def sample(model: Path, n: int, out: Path, seed: int = 0, device: str = "cpu") -> None:
    """Write n draws in the units and under the column names of the training file.

    Args:
        model: what ``train`` or ``flow.save`` wrote.
        n: rows, 1 or more.
        out: .csv with a header of column names, or .npy.
        seed: the same seed gives the same rows on one machine.
        device: where to compute.

    Raises:
        LoadError: the model is damaged or no flow.
        DataError: a draw is not finite; nothing is written then.
        OSError: a file is not there or cannot be written.

    """
    _refuse_unwritable(out, model)
    _refuse_suffix(out)
    flow = _loaded(model, device)
    with torch.random.fork_rng(devices=[torch.device("cuda")] if device == "cuda" else []):
        torch.manual_seed(seed)
        parts = [
            flow.sample(min(DRAWN_AT_ONCE, n - first)).cpu() for first in range(0, n, DRAWN_AT_ONCE)
        ]
    x = torch.cat(parts)
    lost = int((~x.isfinite()).any(1).sum())
    if lost:
        raise DataError(f"{lost} of {n} samples are not finite, so none is written: train {model} "
                        "anew, with more rows or fewer layers")  # fmt: skip
    _write(out, x, _columns(flow))
    print(f"{n:,} samples of {', '.join(_columns(flow))}: {out}")


def _refuse_unwritable(out: Path, *inputs: str | Path) -> None:
    """Find out before the work that its result could not be written, or would replace an input.

    Raises:
        OSError: which, and why.

    """
    folder = out.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{out}: there is no such folder to write to")
    if out.is_dir():
        raise IsADirectoryError(f"{out}: is a directory; name a file")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{out}: this folder may not be written to")
    for path in inputs:
        if os.path.exists(path) and os.path.exists(out) and os.path.samefile(path, out):
            raise FileExistsError(f"{out}: would overwrite what is read; name another file")


def _refuse_unusable(rows: Dataset) -> None:
    checks.refuse_single_precision(rows)
    if twice := [name for name in rows.columns if rows.columns.count(name) > 1]:
        raise DataError(f"{rows.source}: two columns are called {twice[0]!r}; rename one")


def _core(task: Task, features: int, depth: int) -> Flow:
    if depth < 1:
        raise models.ModelError(f"{task.model} needs a depth of at least 1, got {depth}")
    try:
        return models.preset(task.model, features, depth, task.seed)
    except ValueError as error:
        raise models.ModelError(
            f"{task.model} cannot be built for {features} columns at depth {depth}: {error}"
        ) from error


def _data_end(
    wanted: str,
    build: Callable[[Bijector | None], Flow],
    train: Tensor,
    validation: Tensor,
    steps: int | None,
    training: dict[str, Any],
) -> tuple[str, Bijector | None]:
    """The map that was asked for, or the one that a tenth of the steps behind each speaks for."""
    maps: dict[str, Callable[[Tensor], Bijector]] = {
        "standardise": standardise,
        "whiten": _whitened,
    }
    if wanted == "none":
        return "no preprocessing", None
    if wanted in maps:
        return wanted, maps[wanted](train)
    total = 1000 if steps is None else steps
    chosen = choose(
        build, train, validation, maps, steps=min(total, max(50, total // 10)), **training
    )
    scores = ", ".join(f"{value:.3f} ({name})" for name, value in chosen.scores.items())
    print(f"validation log-likelihood after a few steps: {scores}")
    return chosen.name, chosen.map


def _whitened(rows: Tensor) -> Bijector:
    """Whitening with a floor, whose warning becomes a line of the command."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted = whiten(rows, FLOOR)
    for warning in caught:
        print(f"cflows: {warning.message}", file=sys.stderr)
    return fitted


def _print_scores(flow: Flow, splits: list[Tensor]) -> None:
    print("log-likelihood of a row in nats, ± 2 standard errors:")
    for name, rows in zip(("training", "validation", "test"), splits, strict=True):
        rows = rows[:: math.ceil(len(rows) / SHOWN_ROWS)]
        log_prob = log_likelihood(flow, rows).double()
        error = 2 * float(log_prob.std()) / math.sqrt(len(log_prob))
        print(f"  {name:10} {float(log_prob.mean()):10.3f} ± {error:.3f}   {len(rows):,} rows")
    part = splits[2][: likelihood.CHECKED_ROWS]
    gap = likelihood.solver_gap(flow, part, log_likelihood(flow, part).double())
    if gap is not None:
        print(f"  solver gap, mean / max: {float(gap.mean()):.0e} / {float(gap.max()):.0e}")


def _loaded(model: Path, device: str) -> Flow:
    flow = load(model)
    if not isinstance(flow, Flow):
        raise LoadError(f"{model} holds a {type(flow).__name__}, not a flow")
    if flow.context_features:
        raise LoadError(f"{model} wants a context, which a file of rows does not give: use Python")
    return flow.to(device)


def _columns(flow: Flow) -> tuple[str, ...]:
    return flow.columns if isinstance(flow, TableFlow) else _numbered(flow.features)


def _numbered(features: int) -> tuple[str, ...]:
    return tuple(f"x{i}" for i in range(features))


def _places(given: tuple[str, ...], wanted: tuple[str, ...], source: Path) -> list[int]:
    """Where each of the model's columns stands in the file: by name where both have names.

    Columns of a file without a header, and of a model trained on one, are x0, x1, ...; they go by
    their order, unless the names on both sides are the same ones.
    """
    if twice := [name for name in given if given.count(name) > 1]:
        raise DataError(f"{source}: two columns are called {twice[0]!r}; rename one")
    if set(given) == set(wanted):
        return [given.index(name) for name in wanted]
    nameless = given == _numbered(len(given)) or (
        wanted == _numbered(len(wanted)) and not set(given) & set(wanted)
    )
    if nameless and len(given) == len(wanted):
        return list(range(len(wanted)))
    if nameless:
        raise DataError(f"{source}: has {len(given)} columns, the model {len(wanted)} "
                        f"({', '.join(wanted)}); give these, in this order")  # fmt: skip
    missing = [name for name in wanted if name not in given]
    extra = [name for name in given if name not in wanted]
    parts = [
        f"{what} {', '.join(map(repr, names))}"
        for what, names in (("lacks the column", missing), ("has the further column", extra))
        if names
    ]
    raise DataError(f"{source}: {' and '.join(parts)}; the model's columns are {', '.join(wanted)}")


def _refuse_suffix(out: Path) -> None:
    if out.suffix.lower() not in (".csv", ".npy"):
        raise DataError(f"{out}: cannot write a file with suffix {out.suffix!r}; "
                        "name it .csv or .npy")  # fmt: skip


def _write(out: Path, rows: Tensor, columns: tuple[str, ...]) -> None:
    """Write a .csv with a header and all digits of the rows' dtype, or a float64 .npy."""
    digits = "%.9g" if rows.dtype == torch.float32 else "%.17g"
    values: Matrix = rows.detach().cpu().double().numpy()
    if out.suffix.lower() == ".npy" and columns == ("log_prob",):
        values = values[:, 0]
    header = io.StringIO()
    csv.writer(header, lineterminator="").writerow(columns)

    def write(beside: Path) -> None:
        with open(beside, "wb") as file:
            if out.suffix.lower() == ".npy":
                np.save(file, values)
            else:
                np.savetxt(file, values, digits, delimiter=",", header=header.getvalue(),
                           comments="", encoding="utf-8")  # fmt: skip

    write_beside(out, write)
