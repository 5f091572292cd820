"""One training loop for every flow."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from cflows.core import collectives
from cflows.core.arguments import known
from cflows.core.flow import Flow
from cflows.objectives import OBJECTIVES, ForwardKL
from cflows.training import distributed
from cflows.training.checkpoint import Callback, exists, interruptible, refuse_unusable
from cflows.training.history import History
from cflows.training.optimizers import OPTIMIZERS, hidden_weights
from cflows.training.rows import Data, Weights, rows_for
from cflows.training.schedules import Plateau, Schedule, schedule_named
from cflows.training.trainer import Run, TrainingError

__all__ = ["fit"]

USUAL: dict[str, Any] = {
    "learning_rate": 1e-3,
    "optimizer": "adamw",
    "warmup": 0,
    "ema": 0.0,
    "batch_size": 512,
}


@torch.inference_mode(False)  # within a block of either kind gradients are taken too
@torch.enable_grad()
def fit(
    flow: Flow,
    train: Data | None,
    validation: Data | None = None,
    *,
    weights: Weights | None = None,
    validation_weights: Weights | None = None,
    objective: str | nn.Module = "forward_kl",
    steps: int | None = None,
    seconds: float | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    optimizer: str | None = None,
    schedule: str | Schedule = "cosine",
    warmup: int | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = 5.0,
    ema: float | None = None,
    penalties: Mapping[str, float] | None = None,
    validate_every: int | None = None,
    patience: int | None = 30,
    max_failures: int = 10,
    seed: int = 0,
    device: str | torch.device = "auto",
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool | range = True,
) -> History:
    """Train a flow with AdamW or Muon and leave it in evaluation mode, in its best state.

    The best state is the one of the highest validation log-likelihood, or the last one without
    validation rows. The state that the flow came in counts: a second fit, such as maximum
    likelihood after flow matching, loses nothing that the first has gained. A run repeats bit for
    bit on one machine for a given seed, and so does one that was interrupted and goes on from its
    checkpoint, where only ``steps`` ends it.

    Before each validation the batch norms of a Chain store statistics of all training rows, see
    ``batch_statistics.refresh``. The best state holds these; training goes on with its running
    averages.

    Within a process group of ``torch.distributed`` every process calls it alike, with all rows, on
    a device of its own (``torch.cuda.set_device``): each takes its share of every batch, and the
    gradient is that of the whole batch (DistributedDataParallel). Random draws and the step
    control are each process's own, the step counts of a ``Lagged`` solver the largest of all. The
    first process alone writes, shows and calls the callbacks.

    Args:
        flow: any flow; it is moved to the device.
        train: rows (N, D), a pair of rows and context (N, C), or a map-style Dataset of one of
            these. Tensors without a graph, numpy arrays or pandas' frames, whose columns go by
            the names of a ``TableFlow``, cast to the flow's dtype. What is
            memory-mapped, or a ``RowSource`` of ``batches``, stays on the disk, is read and checked
            batch by batch, and gives the same bits as in memory. None for an objective that needs
            no data.
        validation: likewise; None to keep the last state.
        weights: (N,), not negative, how much each training row counts: event or importance weights,
            or the number of times that it was seen. They are scaled to a mean of one over the rows,
            and a batch's loss is Σ_i w_i loss_i / N over its N rows; equal weights are none. Kept
            in memory, also beside rows that are not. The statistics of batch norms and the start of
            act norms count each row once. A row of weight zero may lie where the flow has no
            density: another of its batch stands in for it, with weight zero. For objectives whose
            ``forward`` takes ``weights``.
        validation_weights: likewise, of the validation log-likelihood; None counts each row once.
        objective: a name in ``objectives.OBJECTIVES``, or a module with ``forward(flow, batch)``.
            One with ``needs_data = False`` may train without rows, on batches of ``rows`` zeros.
        steps: optimiser steps at most; 2000 where neither steps nor seconds is given.
        seconds: training seconds at most, validation included, added up across resumes.
        batch_size: rows a step, of all processes together. This, ``learning_rate``, ``optimizer``,
            ``warmup`` and ``ema`` are by default the objective's usual ones: for flow matching
            1024, 5e-3, Muon, 0 and .999; for others 512, 1e-3, AdamW, 0 and 0.
        learning_rate: the optimiser's, in front of the schedule.
        optimizer: ``"adamw"``; or ``"muon"``, which orthogonalises the momentum of the networks'
            matrices between hidden layers and leaves the rest to AdamW, at the same learning rate.
            It takes fewer steps, each dearer by some products of these matrices, whatever the
            batch. A network of one's own names these matrices in a method ``hidden_weights()``.
        schedule: ``"cosine"`` (to zero at the end of the steps or seconds), ``"constant"``,
            ``"plateau"`` (a tenth after ten validations without a better one), or a ``Schedule``.
        warmup: steps over which the learning rate rises linearly, on top of the schedule; a tenth
            of the seconds at most.
        weight_decay: λ, of weight matrices: w <- (1 - learning rate λ) w at each step, beside
            Adam's own (Loshchilov and Hutter 2019). Biases, scales and the like do not decay.
        clip_norm: gradients of a larger norm are scaled down to it; None leaves them.
        ema: m, where the flow is validated and returned with the exponential moving average
            w̄ <- m w̄ + (1 - m) w of its weights; 0 for the weights. m is t / (t + 10) at step
            t where that is less.
        penalties: weights of the penalties that a continuous flow was built with, by name.
        validate_every: steps between two validations; by default 100, or, where only seconds end
            the run, as many as a twentieth of the seconds allow, and more where validations would
            take more than a tenth of them. Where these steps (or 100) are more than ten passes over
            the rows, or an epoch is one step, there are early ones before: after 1, 2, 3, 5, 7, 10,
            20, 30, 50, ... steps.
        patience: validations without a better one after which training stops, early ones not
            counted; None for never.
        max_failures: how many batches may be skipped because their solve failed; where the first
            one fails already, its SolverError is raised.
        seed: of the order of the rows and of the flow's random numbers.
        device: ``"auto"`` is the GPU where there is one.
        checkpoint: a path; where it exists the run goes on from it, if rows, flow and settings are
            those it was written under. Of objective and schedule each public attribute, buffer and
            part counts, and of functions their code. The one before is kept as PATH.previous, and
            is used, with a warning, where the newest is damaged. On SIGINT and SIGTERM the step is
            finished and a checkpoint written before the signal takes effect. Where the disk is full
            a warning says so, and training goes on.
        checkpoint_every: steps between two checkpoints; by default at each validation.
        callbacks: each is called with the ``Record`` of each validation, before the checkpoint. One
            that returns True stops the run, and a run that was stopped so stays stopped. After a
            kill a record may come a second time.
        progress: whether to show a progress bar. Where this training is a part of a longer one, the
            steps from its first to the last of all, which the bar then counts: range(200, 2200).

    Returns:
        The history of the run.

    Raises:
        TypeError: rows that are neither tensors nor arrays of real numbers.
        ValueError: a setting out of range; rows of a wrong shape, with NaN, or that carry a graph;
            a flow and an objective with nothing to train.
        TrainingError: the loss is not finite, or more solves failed than may.
        LoadError: the checkpoint is damaged and there is none before it, or belongs to another run.
        OSError: no checkpoint can be kept at that path.
        ProcessError: several processes cannot share this training, or another one has failed.

    Example:
        >>> import torch
        >>> from cflows import FFJORD, fit
        >>> flow = FFJORD(2, hidden=(8,))
        >>> history = fit(flow, 3 + torch.randn(1000, 2), steps=3, progress=False)
        >>> history.steps
        3

    """
    if steps is None and seconds is None:
        steps = 2000
    if validate_every is None and steps is not None:
        validate_every = 100
    _check(1, steps=steps, batch_size=batch_size)
    _check(1, validate_every=validate_every, checkpoint_every=checkpoint_every)
    _check(0, warmup=warmup, weight_decay=weight_decay, max_failures=max_failures)
    _check(None, seconds=seconds, learning_rate=learning_rate, clip_norm=clip_norm)
    if ema is not None and not 0 <= ema < 1:
        raise ValueError(f"ema must lie in [0, 1), got {ema}")
    schedule = schedule_named(schedule)
    if isinstance(schedule, Plateau) and validation is None:
        raise ValueError('schedule="plateau" needs validation rows')
    if checkpoint is not None:
        refuse_unusable(checkpoint)
    goal = _objective(objective, penalties)
    usual = USUAL | getattr(goal, "usual", {})
    learning_rate = usual["learning_rate"] if learning_rate is None else learning_rate
    warmup = usual["warmup"] if warmup is None else warmup
    ema = usual["ema"] if ema is None else ema
    size: int = usual["batch_size"] if batch_size is None else batch_size
    if optimizer is None:
        optimizer = usual["optimizer"] if hidden_weights([flow]) else "adamw"
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if train is None and getattr(goal, "needs_data", True):
        raise ValueError(f"{type(goal).__name__} needs training rows, got None")
    flow.to(device)
    _check_trains(flow, goal)
    if validation_weights is not None and validation is None:
        raise ValueError("validation_weights need validation rows, got None")
    rows = held_out = None
    if train is not None:
        rows = rows_for(flow, train, "train", weights)
        size = distributed.batch_size_for(size, len(rows))
    if validation is not None:
        held_out = rows_for(flow, validation, "validation", validation_weights)
    if weights is not None:
        _check_weighs(goal, rows is not None and rows.context is not None)
    run = Run(
        flow=flow,
        objective=goal.to(device),
        rows=rows,
        held_out=held_out,
        device=device,
        batch_size=size,
        steps=math.inf if steps is None else steps,
        seconds=math.inf if seconds is None else seconds,
        learning_rate=learning_rate,
        optimizer_name=known("optimizer", optimizer, OPTIMIZERS),
        schedule=schedule,
        warmup=warmup,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        ema=ema,
        validate_every=validate_every,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        patience=math.inf if patience is None else patience,
        max_failures=max_failures,
        seed=seed,
        callbacks=callbacks,
    )
    with (
        interruptible(checkpoint is not None) as signals,
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        _bar(progress if collectives.leads() else False, steps) as show,
    ):
        torch.manual_seed(collectives.own_seed(seed))
        if checkpoint is not None and any(collectives.largest(exists(checkpoint))):
            run.resume(checkpoint)
        try:
            run.train(show, signals)
        finally:
            run.restore_best()
    if held_out is not None and run.history.best_validation is None:
        raise TrainingError(
            "the validation log-likelihood was never finite: look for outliers in the validation "
            "rows; the flow is in its state before training"
        )
    return run.history


def _check_trains(flow: Flow, objective: nn.Module) -> None:
    """Refuse what no step would change, or no step could."""
    if not any(p.requires_grad for p in (*flow.parameters(), *objective.parameters())):
        raise ValueError(
            "there is nothing to train: no parameter of the flow or of the objective requires "
            "grad; flow.requires_grad_(True) where it has some"
        )
    if any(value.is_inference() for value in (*flow.parameters(), *flow.buffers())):
        raise ValueError(
            "the flow was built within torch.inference_mode, and can take no gradient: build it "
            "outside"
        )


def _check_weighs(objective: nn.Module, has_context: bool) -> None:
    name = type(objective).__name__
    if not (has_context or getattr(objective, "needs_data", True)):
        raise ValueError(
            f"{name} learns from no rows, so there is nothing to weigh: leave weights out"
        )
    if "weights" not in inspect.signature(objective.forward).parameters:
        raise ValueError(
            f"{name} does not weigh rows: give its forward an argument, "
            "forward(flow, batch, weights=None), and count each row by it"
        )


def _check(least: int | None, **settings: float | None) -> None:
    """Refuse settings below the least, or below and at zero."""
    for name, value in settings.items():
        if value is not None and not (value > 0 if least is None else value >= least):
            bound = "positive" if least is None else f"at least {least}"
            raise ValueError(f"{name} must be {bound}, got {value}")


def _objective(objective: str | nn.Module, penalties: Mapping[str, float] | None) -> nn.Module:
    if penalties:
        if objective != "forward_kl":
            raise ValueError('penalties go with objective="forward_kl"; give others their own')
        return ForwardKL(penalties)
    if isinstance(objective, nn.Module):
        return objective
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}; got {objective!r}")
    return OBJECTIVES[objective]()


@contextmanager
def _bar(
    progress: bool | range, steps: int | None
) -> Iterator[Callable[[Run, float | None], None]]:
    if progress is False:
        yield lambda *_: None
        return
    from tqdm.auto import tqdm

    first, total = (0, steps) if progress is True else (progress.start, progress.stop)
    with tqdm(total=total, initial=first, unit="step", dynamic_ncols=True) as bar:

        def show(run: Run, loss: float | None) -> None:
            bar.update(first + run.step - bar.n)
            figures = {"loss": loss, "val": run.history.best_validation}
            shown = {name: f"{value:.3f}" for name, value in figures.items() if value is not None}
            if run.nfe():
                shown["nfe"] = f"{run.nfe():.0f}"
            if run.seconds < math.inf and run.done():
                left = run.elapsed * (1 - run.done()) / run.done()
                shown["left"] = tqdm.format_interval(left)
            bar.set_postfix(shown)

        yield show
