"""One training loop for every flow."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from .flow import Flow, evaluating
from .objectives import OBJECTIVES, Batch, ForwardKL
from .solvers import SolverError
from .storage import LoadError, configuration_of, read, write_beside

__all__ = ["History", "Record", "TrainingError", "fit", "log_likelihood"]

Data = Tensor | tuple[Tensor, Tensor] | Dataset[Any]
CHECKPOINT_FORMAT = 1
ATTEMPTS = 3


class TrainingError(RuntimeError):
    """Training that cannot go on; the flow holds its best state so far."""


@dataclass(frozen=True)
class Record:
    """One line of a history, written at each validation.

    Attributes:
        step: optimiser steps so far.
        seconds: training seconds so far, added up across resumes.
        loss: mean of the objective since the line before, None at the start.
        validation: mean validation log-likelihood in nats, or None without validation rows.
        nfe: network evaluations a step since the line before.
        learning_rate: at this step.

    """

    step: int
    seconds: float
    loss: float | None
    validation: float | None
    nfe: float
    learning_rate: float


@dataclass
class History:
    """What happened in a run of ``fit``.

    Attributes:
        records: a line at each validation, the first at step 0 where there are validation rows.
        best_step: the step whose state the flow was left in.
        best_validation: its mean validation log-likelihood, None without validation rows.
        stopped: ``"steps"``, ``"seconds"`` or ``"patience"``, or ``""`` while running.

    """

    records: list[Record] = field(default_factory=list)
    best_step: int = 0
    best_validation: float | None = None
    stopped: str = ""

    @property
    def steps(self) -> int:
        """Optimiser steps taken."""
        return self.records[-1].step if self.records else 0

    @property
    def seconds(self) -> float:
        """Training seconds, validation included, added up across resumes."""
        return self.records[-1].seconds if self.records else 0.0

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the records as JSON lines."""
        text = "".join(json.dumps(asdict(record)) + "\n" for record in self.records)
        write_beside(path, lambda beside: beside.write_text(text))


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
    run = _Run(
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


def log_likelihood(
    flow: Flow, x: Tensor, context: Tensor | None = None, *, batch_size: int = 2000
) -> Tensor:
    """Log-density of every row in evaluation mode, in batches, without gradient: (N, D) -> (N,).

    Batches are moved to the flow's device one by one; the answer is where x is.
    """
    place = next((value.device for value in (*flow.parameters(), *flow.buffers())), x.device)
    if context is not None:
        context = context.expand(len(x), -1)
    found = []
    with torch.no_grad(), evaluating(flow):
        for first in range(0, max(len(x), 1), batch_size):
            part = slice(first, first + batch_size)
            seen = None if context is None else context[part].to(place)
            found.append(flow.log_prob(x[part].to(place), seen).to(x.device))
    return torch.cat(found)


@dataclass
class _Run:
    """The state of a run, as a checkpoint holds it."""

    flow: Flow
    objective: nn.Module
    rows: Batch
    held_out: Batch | None
    batch_size: int
    steps: float
    seconds: float
    learning_rate: float
    schedule: str
    clip_norm: float | None
    validate_every: int
    patience: float
    seed: int

    def __post_init__(self) -> None:
        # An objective may hold the flow; what is frozen stays as it is.
        own = dict.fromkeys([*self.flow.parameters(), *self.objective.parameters()])
        self.parameters = [parameter for parameter in own if parameter.requires_grad]
        self.optimizer = (
            torch.optim.Adam(self.parameters, lr=self.learning_rate) if self.parameters else None
        )
        self.history = History()
        self.step = 0
        self.elapsed = 0.0
        self.stale = 0
        self.best = self._copy()

    def train(self, checkpoint: str | os.PathLike[str] | None, bar: Callable[..., None]) -> None:
        bar(self.step, None, self.history)
        self.flow.train()
        if self.step == 0 and self.held_out is not None:
            # What training must beat: a flow may be given that is good already.
            self._validate(None, 0.0)
        started, before = time.perf_counter() - self.elapsed, self.flow.evaluations
        losses: list[Tensor] = []
        while not self.history.stopped:
            losses.append(self._update())
            self.step += 1
            self.elapsed = time.perf_counter() - started
            if self.step >= self.steps:
                self.history.stopped = "steps"
            elif self.elapsed >= self.seconds:
                self.history.stopped = "seconds"
            if self.history.stopped or self.step % self.validate_every == 0:
                nfe = (self.flow.evaluations - before) / len(losses)
                self._validate(self._mean(losses), nfe)
                losses = []
                self.elapsed = time.perf_counter() - started
                if checkpoint is not None:
                    self._write(checkpoint)
                started, before = time.perf_counter() - self.elapsed, self.flow.evaluations
            elif len(losses) % 20 == 0:
                bar(self.step, self._mean(losses[-20:]), self.history)
        bar(self.step, None, self.history)

    def _update(self) -> Tensor:
        """One optimiser step; the loss stays on the device."""
        x, context = self.rows
        chosen = self._indices()
        batch = (x[chosen], None if context is None else context[chosen])
        if self.optimizer is None:
            loss: Tensor = self.objective(self.flow, batch)
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate()
            # Where a solver's error is far above its tolerance: once more, on more steps.
            for _ in range(ATTEMPTS):
                self.optimizer.zero_grad()
                loss = self.objective(self.flow, batch)
                loss.backward()  # type: ignore[no-untyped-call]
                if self.flow.review():
                    break
            if self.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
            self.optimizer.step()
        return loss.detach()

    def _indices(self) -> Tensor:
        """This step's rows: a function of the seed and the step alone, so that a run can resume."""
        x = self.rows[0]
        epoch, position = divmod(self.step, len(x) // self.batch_size)
        if position == 0 or not hasattr(self, "order"):
            generator = torch.Generator("cpu").manual_seed(hash((self.seed, epoch)) % 2**63)
            self.order = torch.randperm(len(x), generator=generator, device="cpu").to(x.device)
        return self.order[position * self.batch_size : (position + 1) * self.batch_size]

    def _rate(self) -> float:
        if self.schedule == "constant":
            return self.learning_rate
        done = min(1.0, max(self.step / self.steps, self.elapsed / self.seconds))
        return 0.5 * self.learning_rate * (1 + math.cos(math.pi * done))

    def _mean(self, losses: list[Tensor]) -> float:
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            raise TrainingError(
                f"the loss left the numbers between steps {self.step - len(losses)} and "
                f"{self.step}: lower the learning rate ({self.learning_rate:g}) or clip_norm, or "
                f"check the rows; the flow is in its state of step {self.history.best_step}"
            )
        return mean

    def _validate(self, loss: float | None, nfe: float) -> None:
        score = self._score()
        best = self.history.best_validation
        if score is None or (math.isfinite(score) and (best is None or score > best)):
            self.history.best_validation, self.history.best_step = score, self.step
            self.best, self.stale = self._copy(), 0
        else:
            self.stale += 1
        self.history.records.append(
            Record(self.step, round(self.elapsed, 3), loss, score, nfe, self._rate())
        )
        if not self.history.stopped and self.stale >= self.patience:
            self.history.stopped = "patience"

    def _score(self) -> float | None:
        """Mean validation log-likelihood; -inf where it cannot be computed, None without rows."""
        if self.held_out is None:
            return None
        try:
            score = float(log_likelihood(self.flow, *self.held_out).double().mean())
        except SolverError:
            return -math.inf
        return score if math.isfinite(score) else -math.inf

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.flow.state_dict().items()}

    def restore_best(self) -> None:
        self.flow.load_state_dict(self.best)
        self.flow.eval()

    def _write(self, path: str | os.PathLike[str]) -> None:
        device = self.rows[0].device
        content = {
            "checkpoint": CHECKPOINT_FORMAT,
            "run": self._identity(),
            "step": self.step,
            "elapsed": self.elapsed,
            "stale": self.stale,
            "history": json.dumps(asdict(self.history)),
            "state": self.flow.state_dict(),
            "objective": self.objective.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict() if self.optimizer else {},
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }
        write_beside(path, lambda beside: torch.save(content, beside))

    def resume(self, path: str | os.PathLike[str]) -> None:
        content = read(path)
        if content.get("checkpoint") != CHECKPOINT_FORMAT or content["run"] != self._identity():
            raise LoadError(
                f"{path} is the checkpoint of another run (rows, model or settings differ): "
                "name another path, or delete it to start anew"
            )
        self.flow.load_state_dict(content["state"])
        self.objective.load_state_dict(content["objective"])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(content["optimizer"])
        device = self.rows[0].device
        self.best = {name: value.to(device) for name, value in content["best"].items()}
        self.step, self.elapsed, self.stale = (content[k] for k in ("step", "elapsed", "stale"))
        past = json.loads(content["history"])
        past["records"] = [Record(**record) for record in past["records"]]
        self.history = History(**past)
        # A run that is allowed more than before may go on.
        if self.step < self.steps and self.elapsed < self.seconds and self.stale < self.patience:
            self.history.stopped = ""
        torch.set_rng_state(content["random"])
        if content["random_cuda"] is not None and device.type == "cuda":
            torch.cuda.set_rng_state(content["random_cuda"], device)

    def _identity(self) -> str:
        """What two runs must share for one to go on where the other stopped."""
        tensors = [*self.rows, *(self.held_out or ())]
        return json.dumps(
            {
                "rows": [
                    None if t is None else [*t.shape, float(t.double().sum())] for t in tensors
                ],
                "flow": configuration_of(self.flow),
                "state": {name: list(v.shape) for name, v in self.flow.state_dict().items()},
                "objective": [
                    type(self.objective).__name__,
                    str(getattr(self.objective, "penalties", None)),
                ],
                "seed": self.seed,
                "batch_size": self.batch_size,
                "learning_rate": self.learning_rate,
                "schedule": self.schedule,
                "clip_norm": self.clip_norm,
                "validate_every": self.validate_every,
            }
        )


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
