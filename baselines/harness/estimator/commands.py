"""One model of the user's own: trained on a table, then asked for log-densities and samples.

A model's file is a ``TableFlow``: the flow ends in the map that was fitted to the training rows, so
that densities and samples are in the file's units, and it keeps the column names. All that is
written is written beside its place and renamed: it is there whole, or as it was before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from baselines import InversionError
from baselines.harness.data import DataError, Dataset
from baselines.harness.data.bounds import Bounds, bounded, refuse_unknown, within
from baselines.harness.data.quantised import Width
from baselines.harness.data.rows import SPLITS
from baselines.harness.data.streams import Stream
from baselines.harness.estimator.table_io import (
    all_columns,
    beside_the_rows,
    columns,
    context_columns,
    read,
    refuse_suffix,
    write,
)
from baselines.harness.estimator.table_rows import Rows, Source, open_rows
from baselines.harness.experiment import data_end
from baselines.harness.metrics import likelihood
from baselines.models import registry
from baselines.models.model import ModelError
from cflows import (
    Bijector,
    Bounded,
    Flow,
    LoadError,
    ODEBijector,
    SolverError,
    TableFlow,
    TrainingError,
    behind,
    fit,
    inside,
    load,
    log_likelihood,
    standardise,
    whiten,
)
from cflows.core.atomic_write import STDOUT, refuse_unwritable, target
from cflows.core.collectives import leads
from cflows.core.flow import dtype_of
from cflows.core.flow_file import packed
from cflows.core.messages import listed
from cflows.core.registry import again, configuration_of
from cflows.core.table_flow import Outside
from cflows.training.checkpoint import exists, refuse_unusable
from cflows.training.few_rows import for_few_rows
from cflows.training.preprocessing import extent
from cflows.training.rows import Data, rows_for

__all__ = ["PREPROCESS", "Task", "goes_on", "sample", "score", "train"]

PREPROCESS = ("auto", "standardise", "whiten", "none")
FLOOR = 1e-6  # a direction of a thousandth of the largest spread: what float32 still inverts
VALIDATION_ROWS = 2000
VALIDATIONS = 20
SHOWN_ROWS = 10_000  # of the training rows, whose likelihood is only compared with the others'
DRAWN_AT_ONCE = 10_000
DRAWN_NUMBERS = 1_000_000  # of the draws behind a training, at most
NO_GAIN = (
    "the training gained nothing over a Gaussian: fewer layers, a lower learning rate, more rows"
)


@dataclass(frozen=True)
class Task:
    """What ``cflows fit`` was asked for.

    Attributes:
        model: a name that ``models.find`` knows.
        data: a registered name, or a file.
        out: the model's file.
        depth: layers or blocks; None for the deepest setting of a comparison.
        steps: optimiser steps at most; None for the model's own, or for none where seconds are
            given.
        seconds: training seconds at most, those of the choice of a map included.
        seed: of the first weights and of the training.
        preprocess: one of ``PREPROCESS``.
        device: ``"cpu"`` or ``"cuda"``.
        checkpoint: a path, or None.
        quick: the model's few steps in place of its own.
        context: columns that are given to the model and not modelled.
        weights: the column that says how much each row counts, and is not modelled; or None.
        dequantise: noise for quantised columns, as ``data.files.read`` takes it.
        bounds: of columns, by name; None for none.
        columns: the columns to model, or None for all; likewise.
        drop: columns to leave out; likewise.

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
    context: tuple[str, ...] = ()
    weights: str | None = None
    dequantise: Width | None = None
    bounds: Bounds | None = None
    columns: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()


def train(task: Task) -> None:
    """Train a model behind a fixed map, save it and print what it is worth.

    Raises:
        ModelError: an unknown model, or one that cannot be built for these columns.
        DataError: the rows cannot be used.
        LoadError: the checkpoint is not one of this run.
        OSError: a file cannot be written; found out before the training.
        TrainingError: the training came to no end.

    """
    settings = registry.find(task.model)
    _refuse_unwritable(task.out, task.data)
    if target(task.out) == STDOUT:
        raise OSError(f"{task.out}: a model is no text to be printed; name a file")
    if task.checkpoint is not None:
        _refuse_unwritable(task.checkpoint, task.data, task.out)
        if target(task.checkpoint) == target(task.out):
            raise FileExistsError(f"{task.out}: cannot be the checkpoint too; name another file")
        refuse_unusable(task.checkpoint)
    rows = open_rows(
        task.data,
        context=task.context,
        weights=task.weights,
        dequantise=task.dequantise,
        columns=task.columns,
        drop=task.drop,
    )
    refuse_unknown([rows.columns], task.bounds or {})
    bounds = bounded(within(rows.rows, rows.columns, task.bounds or {}))
    depth = max(settings.depths) if task.depth is None else task.depth
    training_rows = rows.train()
    own = settings.quick_steps if task.quick else settings.steps
    usual, learning_rate = for_few_rows(own, settings.learning_rate, len(training_rows[0]))
    steps = task.steps
    if steps is None and (task.seconds is None or task.quick):
        steps = usual
    training: dict[str, Any] = {
        "objective": settings.objective,
        "patience": settings.patience,
        "learning_rate": learning_rate,
        "warmup": settings.warmup_of(steps),
        "seed": task.seed,
        "device": task.device,
        "progress": sys.stderr.isatty(),
    }

    def build(data_end: Bijector | None) -> Flow:
        return behind(_core(task, rows, depth), data_end)

    # A model that cannot be built, or kept, says so before the first map is tried.
    core = build(None)
    if leads():
        _refuse_unkeepable(core, task)
        for note in rows.rows.notes:
            print(f"cflows: {note}", file=sys.stderr)
        if isinstance(rows.rows, Dataset) and rows.rows.note:
            print(rows.rows.note)

    def seldom(n: int) -> int:
        return max(1, n // VALIDATION_ROWS)

    held_out = rows.standardised(rows.few("validation", seldom))
    training["weights"] = rows.weights_of("train", lambda _: 1)
    training["validation_weights"] = rows.weights_of("validation", seldom)
    name, end, chosen_in = _data_end(task, build, training_rows, held_out, steps, training, bounds)
    flow = build(end)
    history = fit(
        flow,
        training_rows,
        held_out,
        steps=steps,
        seconds=None if task.seconds is None else max(task.seconds - chosen_in, 1e-9),
        validate_every=None if steps is None else max(1, steps // VALIDATIONS),
        checkpoint=task.checkpoint,
        **training,
    )
    flow = _named(flow, rows, extent(training_rows[0])).to(task.device)
    if not leads():
        return
    _keep(flow, task)
    print(
        f"{settings.label}, {settings.counted(depth)}, {name}: {history.steps} steps in "
        f"{history.seconds:.1f} s, ended by {history.stopped}; the state of step "
        f"{history.best_step} is kept"
    )
    if history.gain == 0:
        print(f"cflows: {NO_GAIN}", file=sys.stderr)
    _print_scores(flow, rows)
    _print_draws(flow, rows, task)
    print(f"the model: {task.out}")


def score(
    model: Path, source: Path, out: Path, device: str = "cpu", context: Path | None = None
) -> None:
    """Write the log-density, in nats, of each row of a file, in the file's order and units.

    Args:
        model: what ``train`` or ``flow.save`` wrote.
        source: .csv, .npy or .npz; the columns of a .csv are found by name where both have names.
            A conditional model's context columns stand in it too, behind the others where there are
            no names, unless ``context`` is given.
        out: .csv with the header ``log_prob``, or .npy.
        device: where to compute.
        context: a file of the context columns alone: a row for each row of source, or one for all.

    Raises:
        LoadError: the model is damaged or no flow.
        DataError: a file is no table of finite numbers, or its columns are not the model's.
        OSError: a file is not there or cannot be written.

    """
    _refuse_unwritable(out, model, source, *([] if context is None else [context]))
    refuse_suffix(out)
    flow = _loaded(model, device)
    own, beside = columns(flow), context_columns(flow)
    _refuse_context(model, flow, context)
    seen = None
    if context is None:
        x = read(source, (*own, *beside), flow)
        if beside:
            x, seen = x[:, : len(own)], x[:, len(own) :]
    else:
        x, seen = read(source, own, flow), read(context, beside, flow)
        if len(seen) not in (1, len(x)):
            raise DataError(f"{context}: has {len(seen)} rows for the {len(x)} of {source}; give "
                            "as many, or one for all")  # fmt: skip
    write(out, log_likelihood(flow, x, seen)[:, None], ("log_prob",))
    print(f"log-densities of {len(x):,} rows: {out}", file=beside_the_rows(out))


def sample(
    model: Path,
    n: int,
    out: Path,
    seed: int = 0,
    device: str = "cpu",
    context: Path | None = None,
) -> None:
    """Write n draws in the units and under the column names of the training file.

    A conditional model draws n rows for each row of the context, which stands behind them in the
    output, so that ``score`` reads it as it is.

    Args:
        model: what ``train`` or ``flow.save`` wrote.
        n: rows, 1 or more.
        out: .csv with a header of column names, or .npy.
        seed: the same seed gives the same rows on one machine.
        device: where to compute.
        context: a file of the context columns, for a conditional model.

    Raises:
        LoadError: the model is damaged or no flow.
        DataError: the context is missing or not the model's, or a draw is not finite; nothing is
            written then.
        OSError: a file is not there or cannot be written.

    """
    _refuse_unwritable(out, model, *([] if context is None else [context]))
    refuse_suffix(out)
    flow = _loaded(model, device)
    _refuse_context(model, flow, context)
    if context is None and flow.context_features:
        raise DataError(f"{model} wants the context {', '.join(context_columns(flow))}; give it "
                        "with --context FILE")  # fmt: skip
    seen = None
    if context is not None:
        seen = read(context, context_columns(flow), flow).repeat_interleave(n, 0)
    x = _drawn(flow, n if seen is None else len(seen), seen, seed, device)
    lost = int((~x.isfinite()).any(1).sum())
    if lost:
        raise DataError(f"{lost} of {len(x)} samples are not finite, so none is written: train "
                        f"{model} anew, with more rows or fewer layers")  # fmt: skip
    if isinstance(flow, TableFlow):
        _warn_of(flow.outside(x))
    write(out, x if seen is None else torch.cat([x, seen], 1), all_columns(flow))
    print(f"{len(x):,} samples of {listed(columns(flow), 20)}: {out}", file=beside_the_rows(out))


def _drawn(flow: Flow, n: int, context: Tensor | None, seed: int, device: str) -> Tensor:
    parts = []
    with torch.random.fork_rng(devices=[torch.device("cuda")] if device == "cuda" else []):
        torch.manual_seed(seed)
        for first in range(0, n, DRAWN_AT_ONCE):
            if context is None:
                parts.append(flow.sample(min(DRAWN_AT_ONCE, n - first)).cpu())
            else:
                seen = context[first : first + DRAWN_AT_ONCE].to(device)
                parts.append(flow.sample((), seen).cpu())
    return torch.cat(parts)


def _refuse_unwritable(out: Path, *inputs: str | Path) -> None:
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


def _refuse_unkeepable(core: Flow, task: Task) -> None:
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


def _keep(flow: Flow, task: Task) -> None:
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
            place = Path(tempfile.mkdtemp(prefix="cflows-")) / "model.flow"
            flow.save(place)
            kept = f"the model was kept in {place}"
        raise TrainingError(f"{task.out}: {_reason(error, task.out)}; {kept}") from error


def _reason(error: OSError, out: Path) -> str:
    """What went wrong, in words that do not name the file again."""
    return error.strerror.lower() if error.strerror else str(error).removeprefix(f"{out}: ")


def _core(task: Task, rows: Source, depth: int) -> Flow:
    if depth < 1:
        raise ModelError(f"{task.model} needs a depth of at least 1, got {depth}")
    features = len(rows.columns)
    try:
        core = registry.preset(task.model, features, depth, task.seed)
        return _conditional(core, task, len(rows.context)) if rows.context else core
    except ValueError as error:
        raise ModelError(
            f"{task.model} cannot be built for {features} columns at depth {depth}: {error}"
        ) from error


def _conditional(core: Flow, task: Task, features: int) -> Flow:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(task.seed)
            return again(core, context_features=features)
    except TypeError as error:
        raise ModelError(f"{task.model} takes no context; leave --context out") from error


def _named(flow: Flow, rows: Source, seen: Tensor) -> TableFlow:
    if rows.context_map is None:
        return TableFlow(flow.bijector, flow.base, rows.columns, extent=seen)
    loc, scale = rows.context_map.loc, rows.context_map.scale
    return TableFlow(flow.bijector, flow.base, rows.columns, rows.context, loc, scale, seen)


def _data_end(
    task: Task,
    build: Callable[[Bijector | None], Flow],
    train: tuple[Tensor | Stream, Tensor | Stream | None],
    validation: Rows,
    steps: int | None,
    training: dict[str, Any],
    bounds: Bounded | None,
) -> tuple[str, Bijector | None, float]:
    """The map that was asked for, or the one that a part of the training behind each speaks for.

    The third is what the choice has taken of the seconds.
    """
    if task.preprocess == "none":
        return "no preprocessing", bounds, 0.0
    found = data_end.fitted(
        task.preprocess,
        build,
        train,
        validation,
        None if task.checkpoint is None else choice_beside(task.checkpoint),
        steps=steps,
        seconds=task.seconds,
        maps={
            "whiten": inside(bounds, partial(_whitened, weights=training["weights"])),
            "standardise": inside(bounds, partial(standardise, weights=training["weights"])),
        },
        run=_run(build(bounds), train, validation, training),
        **training,
    )
    if found.scores and leads():
        scores = ", ".join(f"{value:.3f} ({name})" for name, value in found.scores.items())
        print(f"validation log-likelihood after a few steps: {scores}")
    return found.name, found.map, found.seconds


def choice_beside(checkpoint: Path) -> Path:
    """Where the choice of the map is kept for a training of that checkpoint."""
    return checkpoint.with_name(f"{checkpoint.name}.map")


def goes_on(checkpoint: Path) -> bool:
    """Whether the same command would go on where one that was interrupted has stopped."""
    return exists(checkpoint) or data_end.begun(choice_beside(checkpoint))


def _run(core: Flow, train: Data, validation: Data, training: dict[str, Any]) -> str:
    """What two runs share where one may take over the other's choice: all but when they end."""
    model = [configuration_of(part) for part in (core, core.bijector, core.base)]
    rows = [rows_for(core, part, "the rows").fingerprint() for part in (train, validation)]
    settings = [training[name] for name in ("objective", "learning_rate", "seed")]
    settings += [
        weights if weights is None else float(weights.double().sum())
        for weights in (training["weights"], training["validation_weights"])
    ]
    return hashlib.sha256(json.dumps([model, rows, settings]).encode()).hexdigest()


def _whitened(rows: Tensor | Stream, weights: Tensor | None) -> Bijector:
    """Whitening with a floor, whose warning becomes a line of the command."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        fitted = whiten(rows, FLOOR, weights=weights)
    for warning in caught:
        print(f"cflows: {warning.message}", file=sys.stderr)
    return fitted


def _print_scores(flow: Flow, rows: Source) -> None:
    print("log-likelihood of a row in nats, ± 2 standard errors:")
    for name in SPLITS:

        def seldom(n: int) -> int:
            return math.ceil(n / SHOWN_ROWS)

        x, context = rows.few(name, seldom)
        # A model of one's own may be in float64.
        dtype = dtype_of(flow)
        x, context = x.to(dtype), None if context is None else context.to(dtype)
        log_prob = log_likelihood(flow, x, context).double()
        mean = log_prob.mean()
        error = 2 * float(log_prob.std()) / math.sqrt(len(log_prob))
        if (weights := rows.weights_of(name, seldom)) is not None:
            shares = weights.double() / weights.double().sum()
            mean = (shares * log_prob).sum()
            error = 2 * float((shares * (log_prob - mean)).square().sum().sqrt())
        bits = _bits(rows, log_prob, x)
        print(f"  {name.replace('train', 'training'):10} {float(mean):10.3f} "
              f"± {error:.3f}   {len(x):,} rows{bits}")  # fmt: skip
    checked = slice(likelihood.CHECKED_ROWS)
    context = None if context is None else context[checked]
    gap = likelihood.solver_gap(flow, x[checked], log_prob[checked], context)
    if gap is not None:
        print(f"  solver gap, mean / max: {float(gap.mean()):.0e} / {float(gap.max()):.0e}")


def _print_draws(flow: TableFlow, rows: Source, task: Task) -> None:
    """How many of some draws leave the training rows: the likelihood does not show these."""
    n = max(100, min(SHOWN_ROWS, DRAWN_NUMBERS // flow.features))
    if any(isinstance(part, ODEBijector) for part in flow.modules()):
        n = max(100, n // 10)
    _, seen = rows.few("train", lambda count: math.ceil(count / n))
    if seen is not None:
        seen = seen.repeat(math.ceil(n / len(seen)), 1)[:n]
    try:
        outside = flow.outside(_drawn(flow, n, seen, task.seed, task.device))
    except (InversionError, SolverError) as error:
        print(f"cflows: the model is kept, and cannot be drawn from: {error}", file=sys.stderr)
        return
    if outside is not None:
        print(f"{n:,} draws: {outside.beyond:,} leave the range of the training rows in a column, "
              f"{outside.far:,} by more than it is wide")  # fmt: skip
        _warn_of(outside)


def _warn_of(outside: Outside | None) -> None:
    if outside is not None and outside.far:
        print(f"cflows: {outside}", file=sys.stderr)


def _bits(rows: Source, log_prob: Tensor, x: Tensor) -> str:
    """Bits per dimension, where the rows are whole images."""
    pixels = rows.rows.pixels if isinstance(rows.rows, Dataset) else None
    if pixels is None or rows.context:
        return ""
    bits = pixels.bits_per_dim(log_prob.numpy(), x.double().numpy()).mean()
    return f"   {bits:.3f} bits per dimension"


def _loaded(model: Path, device: str) -> Flow:
    flow = load(model)
    if not isinstance(flow, Flow):
        raise LoadError(f"{model} holds a {type(flow).__name__}, not a flow")
    return flow.to(device)


def _refuse_context(model: Path, flow: Flow, context: Path | None) -> None:
    if context is not None and not flow.context_features:
        raise DataError(f"{model} takes no context; leave --context out")
