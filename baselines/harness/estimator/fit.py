"""One model of the user's own: trained on a table.

A model's file is a ``TableFlow``: the flow ends in the map that was fitted to the training rows, so
that densities and samples are in the file's units, and it keeps the column names. All that is
written is written beside its place and renamed: it is there whole, or as it was before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from baselines import InversionError
from baselines.harness.data import Dataset, Width
from baselines.harness.data.bounds import Bounds, bounded, refuse_unknown, within
from baselines.harness.data.rows import SPLITS
from baselines.harness.data.streams import Stream
from baselines.harness.estimator.apply import drawn, refuse_output, warn_of
from baselines.harness.estimator.table_rows import Source, at_most, open_rows
from baselines.harness.metrics import likelihood
from baselines.models import registry
from baselines.models.model import ModelError
from cflows import (
    Bijector,
    Flow,
    SolverError,
    TableFlow,
    TrainingError,
    behind,
    gaussianise,
    log_likelihood,
    standardise,
    whiten,
)
from cflows.core.atomic_write import STDOUT, companion, refuse_unwritable, target
from cflows.core.collectives import leads
from cflows.core.dtypes import dtype_of
from cflows.core.registry import again, configuration_of, packed
from cflows.training.checkpoint import exists, refuse_unusable
from cflows.training.pipeline import Choice, begun, fit_behind
from cflows.training.preprocessing import extent
from cflows.training.rows import Data, rows_for
from cflows.training.schedules import NO_GAIN, for_few_rows

__all__ = ["Task", "goes_on", "train"]

FLOOR = 1e-6  # a direction of a thousandth of the largest spread: what float32 still inverts
VALIDATION_ROWS = 2000
VALIDATIONS = 20
SHOWN_ROWS = 10_000  # of the training rows, whose likelihood is only compared with the others'
DRAWN_NUMBERS = 1_000_000  # of the draws behind a training, at most


@dataclass(frozen=True)
class Task:
    """What ``cflows fit`` was asked for: its options.

    Attributes:
        model: a name that ``registry.find`` knows.
        data: a registered name, or a file.
        out: the model's file.
        depth: layers or blocks; None for the deepest setting of a comparison.
        steps: at most; None for the model's own, or for none where seconds are given.
        seconds: training seconds at most, those of the choice of a map included.
        seed: of the first weights and of the training.
        preprocess: ``"auto"``, ``"standardise"``, ``"whiten"``, ``"gaussianise"`` or ``"none"``.
        device: ``"cpu"`` or ``"cuda"``.
        checkpoint: a path, or None.
        quick: the model's few steps in place of its own.
        context, weights, dequantise, columns, drop: as ``open_rows`` takes them.
        bounds: of columns, by name.

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
    context: Sequence[str] = ()
    weights: str | None = None
    dequantise: Width | None = None
    bounds: Bounds = field(default_factory=dict)
    columns: Sequence[str] | None = None
    drop: Sequence[str] = ()


def train(task: Task) -> None:
    """Train a model behind a fixed map, save it and print what it is worth.

    Raises:
        ModelError: an unknown model, or one that cannot be built for these columns.
        DataError: the rows cannot be used.
        LoadError: the checkpoint is not one of this run.
        OSError: a file cannot be written; found out before the training.
        TrainingError: the training came to no end.

    """
    model = registry.find(task.model)
    _refuse_outputs(task)
    rows = open_rows(
        task.data,
        context=task.context,
        weights=task.weights,
        dequantise=task.dequantise,
        columns=task.columns,
        drop=task.drop,
    )
    refuse_unknown([rows.columns], task.bounds)
    bounds = bounded(within(rows.rows, rows.columns, task.bounds))
    depth = max(model.depths) if task.depth is None else task.depth
    train_rows = rows.train()
    own_steps = model.quick_steps if task.quick else model.steps
    usual, learning_rate = for_few_rows(own_steps, model.learning_rate, len(train_rows[0]))
    steps = task.steps
    if steps is None and (task.seconds is None or task.quick):
        steps = usual

    def build(data_end: Bijector | None) -> Flow:
        flow = behind(_core(task, rows, depth), data_end)
        # With names, which a checkpoint knows then; the context is in units of its spread here.
        network = flow.context_network
        return TableFlow(
            flow.bijector, flow.base, rows.columns, rows.context, context_network=network
        )

    # A model that cannot be built, or kept, says so before the first map is tried.
    core = build(None)
    if leads():
        _refuse_unkeepable(core, task)
        for note in rows.rows.notes:
            print(f"cflows: {note}", file=sys.stderr)
        if isinstance(rows.rows, Dataset) and rows.rows.note:
            print(rows.rows.note)
        if task.seconds is not None:
            print(f"training takes {task.seconds:g} s at most, the choice of a map included")

    def seldom(n: int) -> int:
        return max(1, n // VALIDATION_ROWS)

    validation_rows = rows.standardised(rows.few("validation", seldom))
    rows.weights_of("test", at_most(SHOWN_ROWS))  # refused now, not afterwards
    weights = rows.weights_of("train", lambda _: 1)
    validation_weights = rows.weights_of("validation", seldom)
    choice_file, run = None, ""
    if task.checkpoint is not None:
        choice_file = _choice_beside(task.checkpoint)
        sums = (
            of if of is None else float(of.double().sum()) for of in (weights, validation_weights)
        )
        settings = [model.objective, learning_rate, task.seed, *sums]
        run = _identity(build(bounds), (train_rows, validation_rows), settings)
    done = fit_behind(
        build,
        train_rows,
        validation_rows,
        task.preprocess,
        maps={
            "whiten": partial(_whitened, weights=weights),
            "standardise": partial(standardise, weights=weights),
            "gaussianise": gaussianise,
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
        **model.goal,
        patience=model.patience,
        learning_rate=learning_rate,
        warmup=model.warmup_of(steps),
        seed=task.seed,
        device=task.device,
        progress=sys.stderr.isatty(),
        weights=weights,
        validation_weights=validation_weights,
    )
    if not leads():
        return
    own = rows.context_map
    loc, scale = (None, None) if own is None else (own.loc, own.scale)
    ends = extent(train_rows[0])
    flow = TableFlow(
        done.flow.bijector,
        done.flow.base,
        rows.columns,
        rows.context,
        loc,
        scale,
        ends,
        done.flow.context_network,
    ).to(task.device)
    history = done.history
    _keep(flow, task)
    name = "no preprocessing" if done.name == "none" else done.name
    print(
        f"{model.label}, {model.counted(depth)}, {name}: {history.steps} steps in "
        f"{history.seconds:.1f} s, ended by {history.stopped}; the state of step "
        f"{history.best_step} is kept"
    )
    if history.gain == 0:
        print(f"cflows: {NO_GAIN}", file=sys.stderr)
    _print_scores(flow, rows, task.quick)
    _print_draws(flow, rows, task.seed, task.device)
    print(f"the model: {task.out}")


def goes_on(checkpoint: Path) -> bool:
    """Whether the same command would go on where one that was interrupted has stopped."""
    return exists(checkpoint) or begun(_choice_beside(checkpoint))


def _print_scores(flow: Flow, rows: Source, quick: bool) -> None:
    """The log-likelihood of the three parts, and the solver's gap."""
    print("log-likelihood of a row in nats, ± 2 standard errors:")
    dtype = dtype_of(flow)  # a model of one's own may be in float64
    for name in SPLITS:
        x, context = rows.few(name, at_most(SHOWN_ROWS))
        x, context = x.to(dtype), None if context is None else context.to(dtype)
        log_prob = log_likelihood(flow, x, context).double()
        mean = log_prob.mean()
        error = 2 * float(log_prob.std()) / math.sqrt(len(log_prob))
        if (weights := rows.weights_of(name, at_most(SHOWN_ROWS))) is not None:
            shares = weights.double() / weights.double().sum()
            mean = (shares * log_prob).sum()
            error = 2 * float((shares * (log_prob - mean)).square().sum().sqrt())
        label = name.replace("train", "training")
        bits = _bits(rows, log_prob, x)
        print(f"  {label:10} {float(mean):10.3f} ± {error:.3f}   {len(x):,} rows{bits}")
    checked = slice(likelihood.CHECKED_ROWS[quick])
    context = None if context is None else context[checked]
    gap = likelihood.solver_gap(flow, x[checked], log_prob[checked], context)
    if gap is not None:
        print(f"  solver gap, mean / max: {float(gap.mean()):.0e} / {float(gap.max()):.0e}")


def _print_draws(flow: TableFlow, rows: Source, seed: int, device: str) -> None:
    """How many of some draws leave the training rows: the likelihood does not show these."""
    n = max(100, min(SHOWN_ROWS, DRAWN_NUMBERS // flow.features))
    if flow.is_continuous:
        n = max(100, n // 10)
    _, context = rows.few("train", at_most(n))
    if context is not None:
        context = context.repeat(math.ceil(n / len(context)), 1)[:n]
    try:
        outside = flow.outside(drawn(flow, n, context, seed, device))
    except (InversionError, SolverError) as error:
        print(f"cflows: the model is kept, and cannot be drawn from: {error}", file=sys.stderr)
        return
    assert outside is not None, "training knows its rows' extent"
    print(
        f"{n:,} draws: {outside.beyond:,} leave the range of the training rows in a column, "
        f"{outside.far:,} by more than it is wide"
    )
    warn_of(outside)


def _bits(rows: Source, log_prob: Tensor, x: Tensor) -> str:
    """Bits per dimension, where the rows are whole images."""
    pixels = rows.rows.pixels if isinstance(rows.rows, Dataset) else None
    if pixels is None or rows.context:
        return ""
    bits = pixels.bits_per_dim(log_prob.numpy(), x.double().numpy()).mean()
    return f"   {bits:.3f} bits per dimension"


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


def _tell_choice(choice: Choice) -> None:
    if leads():
        scores = ", ".join(f"{value:.3f} ({name})" for name, value in choice.scores.items())
        print(f"validation log-likelihood after a few steps: {scores}")


def _choice_beside(checkpoint: Path) -> Path:
    """Where the choice of the map is kept for a training of that checkpoint."""
    return companion(checkpoint, ".map")


def _identity(core: Flow, data: Sequence[Data], settings: Sequence[object]) -> str:
    """What two runs share where one may take over the other's choice: all but when they end."""
    model = [configuration_of(part) for part in (core, core.bijector, core.base)]
    rows = [rows_for(core, part, "the rows").fingerprint() for part in data]
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


def _refuse_outputs(task: Task) -> None:
    """Find out before the work that a model or its checkpoint could not be written."""
    refuse_output(task.out, task.data)
    if target(task.out) == STDOUT:
        raise OSError(f"{task.out}: a model is no text to be printed; name a file")
    if task.checkpoint is not None:
        refuse_output(task.checkpoint, task.data, task.out)
        if target(task.out) in map(target, (task.checkpoint, _choice_beside(task.checkpoint))):
            raise FileExistsError(f"{task.out}: cannot be the checkpoint too; name another file")
        refuse_unusable(task.checkpoint)


def _refuse_unkeepable(core: Flow, task: Task) -> None:
    """Find out before the training that its model could not be kept: for its class, or for room."""
    try:
        size = len(packed(core))
    except TypeError as error:
        raise ModelError(f"{task.model} cannot be saved: {error}") from error
    try:
        refuse_unwritable(task.out, size)
    except OSError as error:
        reason = f"{task.out}: {_reason(error, task.out)}; the model takes about {size:,} bytes"
        folder = tempfile.gettempdir()
        try:
            refuse_unwritable(Path(folder) / "model", size)
        except OSError:
            raise OSError(reason) from error
        remedy = "make room before the training ends, or it will be kept in"
        print(f"cflows: {reason}: {remedy} {folder}", file=sys.stderr)


def _keep(flow: Flow, task: Task) -> None:
    """Save a trained model; where that fails, in the temporary folder, and say so as an error."""
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
