"""One model of the user's own: trained on a table, then asked for log-densities and samples.

A model's file is a ``TableFlow``: the flow ends in the map that was fitted to the training rows, so
that densities and samples are in the file's units, and it keeps the column names. All that is
written is written beside its place and renamed: it is there whole, or as it was before.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from baselines.harness.data import DataError, Dataset
from baselines.harness.data.bounds import bounded, refuse_unknown, within
from baselines.harness.data.streams import Stream
from baselines.harness.estimator.outputs import keep, refuse_output, refuse_unkeepable
from baselines.harness.estimator.summary import (
    SHOWN_ROWS,
    drawn,
    print_draws,
    print_scores,
    warn_of,
)
from baselines.harness.estimator.table_io import (
    all_columns,
    beside_the_rows,
    columns,
    context_columns,
    read,
    refuse_suffix,
    write,
)
from baselines.harness.estimator.table_rows import Source, open_rows
from baselines.harness.estimator.task import Task
from baselines.models import registry
from baselines.models.model import ModelError
from cflows import Bijector, Flow, TableFlow, behind, load, standardise, whiten
from cflows.core.atomic_write import STDOUT, companion, target
from cflows.core.collectives import leads
from cflows.core.messages import listed
from cflows.core.registry import again, configuration_of
from cflows.training.checkpoint import exists, refuse_unusable
from cflows.training.pipeline import Choice, begun, fit_behind
from cflows.training.preprocessing import extent
from cflows.training.rows import Data, rows_for
from cflows.training.schedules import NO_GAIN, for_few_rows

__all__ = ["goes_on", "sample", "score", "train"]

FLOOR = 1e-6  # a direction of a thousandth of the largest spread: what float32 still inverts
VALIDATION_ROWS = 2000
SCORED_AT_ONCE = 2000
VALIDATIONS = 20


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
    refuse_output(task.out, task.data)
    if target(task.out) == STDOUT:
        raise OSError(f"{task.out}: a model is no text to be printed; name a file")
    if task.checkpoint is not None:
        refuse_output(task.checkpoint, task.data, task.out)
        if target(task.out) in (target(task.checkpoint), target(choice_beside(task.checkpoint))):
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
        refuse_unkeepable(core, task)
        for note in rows.rows.notes:
            print(f"cflows: {note}", file=sys.stderr)
        if isinstance(rows.rows, Dataset) and rows.rows.note:
            print(rows.rows.note)

    def seldom(n: int) -> int:
        return max(1, n // VALIDATION_ROWS)

    held_out = rows.standardised(rows.few("validation", seldom))
    rows.weights_of("test", lambda n: math.ceil(n / SHOWN_ROWS))  # refused now, not afterwards
    training["weights"] = rows.weights_of("train", lambda _: 1)
    training["validation_weights"] = rows.weights_of("validation", seldom)
    of_rows = training["weights"]
    choice_file = None if task.checkpoint is None else choice_beside(task.checkpoint)
    run = "" if choice_file is None else _run(build(bounds), training_rows, held_out, training)
    done = fit_behind(
        build,
        training_rows,
        held_out,
        task.preprocess,
        maps={
            "whiten": partial(_whitened, weights=of_rows),
            "standardise": partial(standardise, weights=of_rows),
        },
        bounds=bounds,
        steps=steps,
        seconds=task.seconds,
        choice_file=choice_file,
        run=run,
        tell=_tell_choice,
        own={
            "validate_every": None if steps is None else max(1, steps // VALIDATIONS),
            "checkpoint": task.checkpoint,
        },
        **training,
    )
    flow, history = done.flow, done.history
    name = "no preprocessing" if done.name == "none" else done.name
    flow = _named(flow, rows, extent(training_rows[0])).to(task.device)
    if not leads():
        return
    keep(flow, task)
    print(
        f"{settings.label}, {settings.counted(depth)}, {name}: {history.steps} steps in "
        f"{history.seconds:.1f} s, ended by {history.stopped}; the state of step "
        f"{history.best_step} is kept"
    )
    if history.gain == 0:
        print(f"cflows: {NO_GAIN}", file=sys.stderr)
    print_scores(flow, rows)
    print_draws(flow, rows, task)
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
        out: .csv with the header ``log_prob``, or .npy; -inf for a row outside of the bounds.
        device: where to compute.
        context: a file of the context columns alone: a row for each row of source, or one for all.

    Raises:
        LoadError: the model is damaged or no flow.
        DataError: a file is no table of finite numbers, or its columns are not the model's.
        OSError: a file is not there or cannot be written.

    """
    refuse_output(out, model, source, *([] if context is None else [context]))
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
    write(out, _scored(flow, x, seen, device)[:, None], ("log_prob",))
    print(f"log-densities of {len(x):,} rows: {out}", file=beside_the_rows(out))


@torch.no_grad()
def _scored(flow: Flow, x: Tensor, context: Tensor | None, device: str) -> Tensor:
    """Log-densities on the CPU; -inf for rows outside of the flow's support."""
    found = []
    for first in range(0, len(x), SCORED_AT_ONCE):
        part = x[first : first + SCORED_AT_ONCE].to(device)
        seen = None
        if context is not None:
            seen = context.expand(len(x), -1)[first : first + SCORED_AT_ONCE].to(device)
        found.append(flow.distribution(seen).log_prob(part).cpu())
    return torch.cat(found)


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
    refuse_output(out, model, *([] if context is None else [context]))
    refuse_suffix(out)
    flow = _loaded(model, device)
    _refuse_context(model, flow, context)
    if context is None and flow.context_features:
        raise DataError(f"{model} wants the context {', '.join(context_columns(flow))}; give it "
                        "with --context FILE")  # fmt: skip
    seen = None
    if context is not None:
        seen = read(context, context_columns(flow), flow).repeat_interleave(n, 0)
    x = drawn(flow, n if seen is None else len(seen), seen, seed, device)
    lost = int((~x.isfinite()).any(1).sum())
    if lost:
        raise DataError(f"{lost} of {len(x)} samples are not finite, so none is written: train "
                        f"{model} anew, with more rows or fewer layers")  # fmt: skip
    if isinstance(flow, TableFlow):
        warn_of(flow.outside(x))
    write(out, x if seen is None else torch.cat([x, seen], 1), all_columns(flow))
    print(f"{len(x):,} samples of {listed(columns(flow), 20)}: {out}", file=beside_the_rows(out))


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


def _tell_choice(choice: Choice) -> None:
    if leads():
        scores = ", ".join(f"{value:.3f} ({name})" for name, value in choice.scores.items())
        print(f"validation log-likelihood after a few steps: {scores}")


def choice_beside(checkpoint: Path) -> Path:
    """Where the choice of the map is kept for a training of that checkpoint."""
    return companion(checkpoint, ".map")


def goes_on(checkpoint: Path) -> bool:
    """Whether the same command would go on where one that was interrupted has stopped."""
    return exists(checkpoint) or begun(choice_beside(checkpoint))


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


def _loaded(model: Path, device: str) -> Flow:
    return load(model).to(device)


def _refuse_context(model: Path, flow: Flow, context: Path | None) -> None:
    if context is not None and not flow.context_features:
        raise DataError(f"{model} takes no context; leave --context out")
