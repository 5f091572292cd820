"""A run of training: its state, its steps, and how it goes on after an interruption."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from .flow import Flow, log_likelihood
from .objectives import Batch
from .solvers import SolverError
from .storage import LoadError, configuration_of, read, write_beside

__all__ = ["History", "Record", "Run", "TrainingError"]

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


@dataclass
class Run:
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
        """Go on until the steps, the seconds or the patience end."""
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
        """Leave the flow in its best state, in evaluation mode."""
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
        """Take over the state of a checkpoint of this very run."""
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
