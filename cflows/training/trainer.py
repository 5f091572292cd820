"""A run of training: its steps and its validations."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn

from cflows.continuous.solvers import SolverError
from cflows.core import collectives
from cflows.core.dtypes import dtype_of
from cflows.core.flow import log_likelihood
from cflows.objectives import WeightedBatch
from cflows.training import distributed
from cflows.training.batch_statistics import preserved, refresh, start_act_norms
from cflows.training.checkpoint import RunState
from cflows.training.history import History, Record

__all__ = ["History", "Run", "TrainingError"]

ATTEMPTS = 3
SHOWN = 20  # steps between two looks at the loss, which cost a host synchronisation each
SCORED = 2000
VALIDATIONS = 20  # of a run that only seconds end, at most
TRAINED = 9  # seconds between two validations, for each that the one before took
PASSES = 10  # over the rows between two validations, above which there are early ones
USUAL = 100  # steps between two validations, where only seconds are given
EARLY = frozenset("12357")  # the first digit of an early validation's step, zeros behind it


class TrainingError(RuntimeError):
    """Training that cannot go on; the flow holds its best state so far."""


class Run(RunState):
    """A run: its steps and validations, until something ends it."""

    def train(self, show: Callable[[Run, float | None], None], signals: list[int]) -> None:
        """Go on until the steps, the seconds, the patience, a callback or a signal end it.

        A signal to another process is added to ``signals``.
        """
        show(self, None)
        self.flow.train()
        if self.step == 0 and self.held_out is not None and not self.history.records:
            # What training must beat: a flow may be given that is good already.
            self._validate()
        if self.step == 0 and self.rows is not None and collectives.processes() > 1:
            start_act_norms(self.flow, self.objective, self._batch(whole=True), self.seed)
        started, signal = time.perf_counter() - self.elapsed, 0
        while not self.history.stopped and not signal:
            self._step()
            signal = self._look_up(started, signals)
            if self.step >= self.steps:
                self.history.stopped = "steps"
            elif self.elapsed >= self.seconds:
                self.history.stopped = "seconds"
            regular = bool(self.history.stopped) or self._validates()
            validates = regular or self._validates_early()
            if not regular and self.step % SHOWN == 0:
                show(self, self._mean_loss())
            if validates:
                before = self.elapsed
                self._validate(regular)
                signal = self._look_up(started, signals)
                self.validated, self.validating = self.elapsed, self.elapsed - before
            writes = validates
            if self.checkpoint_every is not None:
                writes = bool(self.history.stopped) or self.step % self.checkpoint_every == 0
            if self.checkpoint is not None and (writes or signal):
                self._mean_loss()  # a state that is not finite is no checkpoint
                self.write(self.checkpoint)
                started = time.perf_counter() - self.elapsed
        if signal and not signals:
            signals.append(signal)
        show(self, None)

    def rate(self) -> float:
        """The learning rate of the next step."""
        warm = 1.0
        if self.warmup:
            warm = min(1.0, max((self.step + 1) / self.warmup, 10 * self.elapsed / self.seconds))
        return self.learning_rate * warm * self.schedule.factor(self.done(), self.decays)

    def done(self) -> float:
        """The part of the steps or the seconds that is used up, within [0, 1]."""
        return min(1.0, max(self.step / self.steps, self.elapsed / self.seconds))

    def nfe(self) -> float:
        """Network evaluations a step since the last record."""
        return self.evaluations / max(1, self.step - self.history.steps)

    def _validates(self) -> bool:
        """Whether it is time for a validation: by steps, or by a part of the seconds.

        A dear one comes more seldom, so that the training keeps nine tenths of its seconds.
        """
        if self.validate_every is not None:
            return self.step % self.validate_every == 0
        due = max(self.seconds / VALIDATIONS, TRAINED * self.validating)
        return self.elapsed - self.validated >= due

    def _validates_early(self) -> bool:
        """Whether it is time for one more validation, before the first of the regular ones.

        On few rows a flow may be at its best, and past it, within so many steps; where a batch
        holds all rows, each of them is an epoch.
        """
        if self.held_out is None or self.rows is None or str(self.step).rstrip("0") not in EARLY:
            return False
        between = (self.validate_every or USUAL) * self.batch_size
        if between <= PASSES * len(self.rows) and len(self.rows) >= 2 * self.batch_size:
            return False
        if self.validate_every is None:
            return self.elapsed - self.validated >= TRAINED * self.validating
        return self.step < self.validate_every

    def _look_up(self, started: float, signals: list[int]) -> int:
        """Take the time; return the signal that has come, or 0. All processes see the same."""
        own = time.perf_counter() - started if collectives.leads() else 0.0
        came = signals[0] if signals else 0
        self.elapsed, evaluations, signal = collectives.largest(own, self.evaluations, came)
        self.evaluations = int(evaluations)
        return int(signal)

    def _step(self) -> None:
        """One batch; a solve that fails on it skips it, up to a stated number of times."""
        with distributed.together(self.rows is not None and self.rows.streamed):
            batch = self._batch()
        before = self.flow.evaluations
        try:
            self.losses[self.step + 1] = self._update(batch)
        except SolverError as error:
            if self.skipped == self.step:
                raise  # no batch was ever solved: it is not the batch
            self.skipped += 1
            if self.skipped > self.max_failures:
                raise TrainingError(
                    f"{self.skipped} solves have failed by step {self.step + 1}, the last one so: "
                    f"{error}; lower the learning rate ({self.learning_rate:g}), add a penalty, "
                    f"or allow more with max_failures"
                ) from error
            self.flow.review()  # of several processes, all go on alike
        self.step += 1
        self.evaluations += self.flow.evaluations - before

    def _update(self, batch: WeightedBatch) -> Tensor:
        """One optimiser step; the loss stays on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        # Where a solver's error is far above its tolerance: once more, on more steps.
        for _ in range(ATTEMPTS):
            self.optimizer.zero_grad()
            loss = self._loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            if self.flow.review():
                break
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
        if self.average:
            # Short at first, so that the weights before training leave no trace.
            keep = min(self.ema, self.step / (self.step + 10))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.averaged], 1 - keep)
        return collectives.mean(loss.detach())

    def _loss(self, batch: WeightedBatch) -> Tensor:
        """The loss of this process's rows; a solve that fails in one process fails in all."""
        # Batch norms wait for one another within the pass, where no process may turn back.
        with distributed.together(not self.normed), collectives.whole_batches(self.normed):
            return self.loss(*batch)

    def _batch(self, whole: bool = False) -> WeightedBatch:
        """This process's rows of this step: a function of the seed and the step, to resume by.

        Args:
            whole: all processes' rows.

        """
        share: Callable[[Tensor], Tensor] = Tensor.detach if whole else collectives.share
        if self.rows is None:
            like = torch.zeros((), dtype=dtype_of(self.flow), device=self.device)
            zeros = like.expand(cast(int, self.objective.rows), self.flow.features)
            return share(zeros), None, None
        epoch, position = divmod(self.step, len(self.rows) // self.batch_size)
        if position == 0 or not hasattr(self, "order"):
            self.order = self.rows.order(hash((self.seed, epoch)) % 2**63)
        first = position * self.batch_size
        return self.rows.take(share(self.order[first : first + self.batch_size]))

    def _mean_loss(self) -> float | None:
        """Mean loss since the last record, None where there is none."""
        if not self.losses:
            return None
        losses = torch.stack(list(self.losses.values()))
        mean = float(losses.mean())
        if not math.isfinite(mean):
            bad = (~losses.isfinite()).nonzero().flatten()
            first = f", first at step {list(self.losses)[int(bad[0])]}" if len(bad) else ""
            raise self._diverged("the loss", first)
        return mean

    def _diverged(self, what: str, first: str = "") -> TrainingError:
        return TrainingError(
            f"{what} left the numbers between steps {self.history.steps} and {self.step}{first}: "
            f"lower the learning rate ({self.learning_rate:g}) or clip_norm, or check the rows; "
            f"the flow is in its state of step {self.history.best_step}"
        )

    def _validate(self, regular: bool = True) -> None:
        """Add a record, keep the state if it is the best, and see whether to stop.

        Args:
            regular: whether a state that is no better uses up patience.

        """
        loss, nfe = self._mean_loss(), self.nfe()
        with self._evaluated():
            score = self._score()
            if score is None and not all(bool(p.isfinite().all()) for p in self.averaged):
                raise self._diverged("the weights")
            best = self.history.best_validation
            if score is None or (math.isfinite(score) and (best is None or score > best)):
                self.history.best_validation, self.history.best_step = score, self.step
                self.best = self.flow_state()
                self.stale = self.waiting = 0
            elif regular:
                self.stale += 1
                self.waiting += 1
        if self.schedule.decays_after(self.waiting):
            self.decays, self.waiting = self.decays + 1, 0
        record = Record(
            self.step, round(self.elapsed, 3), loss, score, nfe, self.rate(), self.skipped
        )
        self.history.records.append(record)
        self.losses, self.evaluations = {}, 0
        if not self.history.stopped and self.stale >= self.patience:
            self.history.stopped = "patience"
        asked: list[bool] = []
        with distributed.together():
            if collectives.leads():
                asked = [callback(record) is True for callback in self.callbacks]
        if any(collectives.largest(any(asked))) and not self.history.stopped:
            self.history.stopped = "callback"

    @contextmanager
    def _evaluated(self) -> Iterator[None]:
        """The flow with its averaged weights; training's own come back, and batch norm's too."""
        own = [p.detach().clone() for p in self.averaged] if self.average else []
        with preserved(self.flow) if self.normed else nullcontext(), torch.no_grad():
            try:
                for parameter, value in zip(self.averaged, self.average, strict=False):
                    parameter.copy_(value)
                yield
            finally:
                for parameter, value in zip(self.averaged, own, strict=False):
                    parameter.copy_(value)

    def _score(self) -> float | None:
        """Mean validation log-likelihood, rows by their weights; None without rows.

        -inf where it cannot be computed.
        """
        try:
            if self.rows is not None and self.normed:
                refresh(self.flow, self.rows)
            if self.held_out is None:
                return None
            with distributed.together():
                summed = torch.zeros((), dtype=torch.float64, device=self.device)
                for x, context, weights in self.held_out.batches(SCORED):
                    log_prob = log_likelihood(self.flow, x, context).double()
                    if weights is not None:
                        log_prob = torch.where(weights > 0, weights * log_prob, 0.0)
                    summed += log_prob.sum()
        except SolverError:
            return None if self.held_out is None else -math.inf
        score = float(collectives.total(summed)) / len(self.held_out)
        return score if math.isfinite(score) else -math.inf
