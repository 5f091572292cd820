"""One training loop for every flow."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from .flow import Flow
from .loop import History, Run, TrainingError
from .objectives import OBJECTIVES, Batch, ForwardKL

__all__ = ["fit"]

Data = Tensor | tuple[Tensor, Tensor] | Dataset[Any]


def fit(
    flow: Flow,
    train: Data,
    validation: Data | None = None,
    *,
    objective: str | nn.Module = "forward_kl",
    steps: int | None = None,
    seconds: float | None = None,
    batch_size: int = 512,
    learning_rate: float = 1e-3,
    schedule: str = "cosine",
    clip_norm: float | None = 5.0,
    penalties: Mapping[str, float] | None = None,
    validate_every: int = 100,
    patience: int | None = 30,
    seed: int = 0,
    device: str | torch.device = "auto",
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> History:
    """Train a flow with Adam and leave it in evaluation mode, in its best state.

    The best state is the one of the highest validation log-likelihood, or the last one without
    validation rows. A run repeats bit for bit on one machine for a given seed, and so does one that
    was interrupted and goes on from its checkpoint, where only ``steps`` ends it.

    Args:
        flow: any flow; it is moved to the device.
        train: rows (N, D), a pair of rows and context (N, C), or a Dataset of one of these.
        validation: likewise; None to keep the last state.
        objective: a name in ``objectives.OBJECTIVES``, or a module with ``forward(flow, batch)``.
        steps: optimiser steps at most; 2000 where neither steps nor seconds is given.
        seconds: training seconds at most, validation included, added up across resumes.
        batch_size: rows a step.
        learning_rate: Adam's, in front of the schedule.
        schedule: ``"cosine"`` (to zero at the end of the steps or seconds) or ``"constant"``.
        penalties: weights of the penalties that a continuous flow was built with, by name.
        clip_norm: gradients of a larger norm are scaled down to it; None leaves them.
        validate_every: steps between two validations, which are also the checkpoints.
        patience: validations without a better one after which training stops; None for never.
        seed: of the order of the rows and of the flow's random numbers.
        device: ``"auto"`` is the GPU where there is one.
        checkpoint: a path; where it exists the run goes on from it.
        progress: whether to show a progress bar.

    Returns:
        The history of the run.

    Raises:
        ValueError: rows of a wrong shape, or with NaN.
        TrainingError: the loss left the numbers.
        LoadError: the checkpoint is damaged or belongs to another run.

    Example:
        >>> import torch
        >>> from cflows import FFJORD, fit
        >>> flow = FFJORD(2, hidden=(8,))
        >>> history = fit(flow, 3 + torch.randn(1000, 2), steps=3, progress=False)
        >>> history.steps
        3

    """
    if schedule not in ("cosine", "constant"):
        raise ValueError(f'schedule must be "cosine" or "constant", got {schedule!r}')
    if steps is None and seconds is None:
        steps = 2000
    for name, value in (
        ("steps", steps),
        ("batch_size", batch_size),
        ("validate_every", validate_every),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    for name, number in (
        ("seconds", seconds),
        ("learning_rate", learning_rate),
        ("clip_norm", clip_norm),
    ):
        if number is not None and not number > 0:
            raise ValueError(f"{name} must be positive, got {number}")
    if checkpoint is not None and not Path(checkpoint).absolute().parent.is_dir():
        raise FileNotFoundError(f"{checkpoint}: there is no folder to write this checkpoint to")
    flow.to(_device(device))
    rows = _rows(flow, train, "train")
    held_out = None if validation is None else _rows(flow, validation, "validation")
    run = Run(
        flow=flow,
        objective=_objective(objective, penalties).to(_device(device)),
        rows=rows,
        held_out=held_out,
        batch_size=min(batch_size, len(rows[0])),
        steps=math.inf if steps is None else steps,
        seconds=math.inf if seconds is None else seconds,
        learning_rate=learning_rate,
        schedule=schedule,
        clip_norm=clip_norm,
        validate_every=validate_every,
        patience=math.inf if patience is None else patience,
        seed=seed,
    )
    with _seeded(seed, rows[0].device), _bar(progress, steps) as bar:
        if checkpoint is not None and Path(checkpoint).exists():
            run.resume(checkpoint)
        try:
            run.train(checkpoint, bar)
        finally:
            run.restore_best()
    if held_out is not None and run.history.best_validation is None:
        raise TrainingError(
            "the validation log-likelihood was never finite: look for outliers in the validation "
            "rows; the flow is in its state before training"
        )
    return run.history


def _rows(flow: Flow, data: Data, name: str) -> Batch:
    """The rows on the flow's device and in its dtype, checked once."""
    if not isinstance(data, Tensor | tuple | Dataset):
        raise TypeError(
            f"{name} must be a tensor, a pair (x, context) of tensors or a Dataset, "
            f"got {type(data).__name__}: torch.as_tensor turns arrays into tensors"
        )
    x, context = _stacked(data) if isinstance(data, Dataset) else _pair(data)
    example = next((v for v in flow.state_dict().values() if v.is_floating_point()), None)
    like = x.float() if example is None else example
    x = x.to(like)
    context = None if context is None else context.to(like)
    if x.dim() != 2 or len(x) == 0:
        raise ValueError(f"{name} must have shape (N, D) with N at least 1, got {tuple(x.shape)}")
    if context is not None and (context.dim() != 2 or len(context) != len(x)):
        raise ValueError(f"{name}'s context must have shape ({len(x)}, C), "
                         f"got {tuple(context.shape)}")  # fmt: skip
    flow.bijector.broadcast(x, context)
    for part, value in ((name, x), (f"{name}'s context", context)):
        if value is not None and not bool(value.isfinite().all()):
            row = int((~value.isfinite()).any(1).nonzero()[0])
            raise ValueError(f"{part} has NaN or infinite values, first in row {row}: drop it")
    return x, context


def _pair(data: Tensor | tuple[Tensor, Tensor]) -> Batch:
    return data if isinstance(data, tuple) else (data, None)


def _stacked(data: Dataset[Any]) -> Batch:
    """All rows of a map-style Dataset of tensors or of pairs."""
    items = [data[index] for index in range(len(data))]  # type: ignore[arg-type]
    if isinstance(items[0], Tensor):
        return torch.stack(items), None
    columns = [torch.stack(column) for column in zip(*items, strict=True)]
    return columns[0], columns[1] if len(columns) > 1 else None


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


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators within a block; the caller's random numbers are left alone."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def _bar(progress: bool, steps: int | None) -> Iterator[Callable[..., None]]:
    if not progress:
        yield lambda *_: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=steps, unit="step", dynamic_ncols=True) as bar:

        def show(step: int, loss: float | None, history: History) -> None:
            bar.update(step - bar.n)
            if loss is not None:
                best = history.best_validation
                bar.set_postfix(
                    loss=f"{loss:.3f}", **({} if best is None else {"val": f"{best:.3f}"})
                )

        yield show
