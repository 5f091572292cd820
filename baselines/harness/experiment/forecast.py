"""How long a comparison will still take: predictions, corrected by the cells that end."""

from __future__ import annotations

import math
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from statistics import median
from timeit import timeit

import torch

from baselines.harness.data import Dataset
from baselines.harness.data.bounds import bounded
from baselines.harness.experiment.cell import Cell
from baselines.harness.metrics import likelihood
from baselines.models import registry
from baselines.models.model import CLOSED_FORM
from cflows import Lagged, ODEBijector, inside, log_likelihood, whiten
from cflows.objectives import OBJECTIVES
from cflows.training.optimizers import named_optimizer
from cflows.training.pipeline import PART

__all__ = ["Forecast", "predicted"]

ROWS = 500  # that are scored for a prediction
FEW = 256  # that a step is timed on, and a map fitted to
QUALITY = {False: 2.0, True: 0.5}  # seconds that a cell's draws take to compare, if it is quick
CALLS = {False: 16, True: 8}  # of timing a model, each of 1000 rows, likewise
LONGEST = {False: 3.0, True: 1.0}  # seconds that timing a model takes, about, at most, likewise
GROWTH = 2.5  # of a step, where its solver takes more steps as the field bends
LEAST = 0.1  # of a cell's expected seconds, what is left of one that takes longer


class Forecast:
    """The seconds that cells will still take, side by side in processes that take the next one.

    Cells are taken in their order. A prediction is corrected by the cells that have ended, those of
    its own model before others: it weighs as much as one cell of the model.

    Args:
        cells: that are to be done, in their order.
        seconds: predicted for each.
        jobs: how many processes.
        tail: seconds after the last cell.
        clock: of seconds.

    """

    def __init__(
        self,
        cells: Sequence[Cell],
        seconds: Sequence[float],
        jobs: int,
        tail: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._seconds = {cell.key: value for cell, value in zip(cells, seconds, strict=True)}
        self._models = {cell.key: cell.model for cell in cells}
        self._waiting = list(self._seconds)
        self._running: dict[str, float] = {}
        self._ended: dict[str, list[tuple[float, float]]] = defaultdict(list)  # taken, predicted
        self._jobs, self._tail, self._clock = jobs, tail, clock
        self._begin()

    def ended(self, cell: Cell) -> None:
        """Learn from a cell that ends now; the next one begins."""
        begun = self._running.pop(cell.key, None)
        if begun is None:  # another command has done it
            self._waiting = [key for key in self._waiting if key != cell.key]
        else:
            taken = self._clock() - begun
            self._ended[cell.model].append((taken, self._seconds[cell.key]))
        self._begin()

    def left(self) -> float:
        """Seconds until the end."""
        now = self._clock()
        lanes = [0.0] * (self._jobs - len(self._running))
        for key, begun in self._running.items():
            expected = self._expected(key)
            lanes.append(max(expected - (now - begun), LEAST * expected))
        for key in self._waiting:
            lanes[lanes.index(min(lanes))] += self._expected(key)
        return max(lanes) + self._tail

    def _begin(self) -> None:
        while self._waiting and len(self._running) < self._jobs:
            self._running[self._waiting.pop(0)] = self._clock()

    def _expected(self, key: str) -> float:
        # The median: one model that takes long says little of the others.
        ratios = [taken / told for pairs in self._ended.values() for taken, told in pairs if told]
        everywhere = median([1.0, *ratios])
        own = self._ended[self._models[key]]
        taken, told = map(sum, zip(*own, strict=True)) if own else (0.0, 0.0)
        cell = told / len(own) if told else 1.0
        return self._seconds[key] * (taken + everywhere * cell) / (told + cell)


def predicted(cell: Cell, rows: Dataset) -> tuple[float, float]:
    """Seconds of a cell, and of timing its model, from a short step and a few scored rows.

    A model that cannot be built or trained counts as nothing: its cell says why.
    """
    if cell.model in CLOSED_FORM:
        return QUALITY[cell.quick], 0.0
    with suppress(Exception):
        return _tried(cell, rows)
    return 0.0, 0.0


def _tried(cell: Cell, rows: Dataset) -> tuple[float, float]:
    train, test = (
        torch.from_numpy(part[:: -(-len(part) // most)]).to(cell.device, getattr(torch, cell.dtype))
        for part, most in ((rows.train, FEW), (rows.test, ROWS))
    )
    registered = registry.find(cell.located)
    data_end = inside(bounded(cell.bounds), partial(whiten, floor=1e-6))(train)
    flow = registry.build(cell.located, cell.depth, data_end, cell.seed, cell.hidden)
    flow.to(cell.device)
    loss = OBJECTIVES[registered.objective]()
    named = registered.optimizer or loss.usual.get("optimizer", "adamw")
    optimizer = named_optimizer(named, [flow], list(flow.parameters()), cell.learning_rate, 0.0)
    batch = train.repeat(-(-cell.batch_size // len(train)), 1)[: cell.batch_size], None

    def step() -> None:
        loss(flow.train(), batch).backward()
        flow.review()
        optimizer.step()

    devices = [cell.device] if cell.device == "cuda" else []
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        of_step = min(timeit(step, number=1) for _ in range(2))
        of_row = min(timeit(lambda: log_likelihood(flow, test), number=1) for _ in range(2))
    of_row /= len(test)
    parts = [part for part in flow.modules() if isinstance(part, ODEBijector)]
    if registered.objective != "flow_matching" and any(
        isinstance(part.training_solver, Lagged) for part in parts
    ):
        of_step *= GROWTH
    validations = cell.validations
    if cell.steps is not None and cell.validate_every is not None:
        validations = cell.steps // cell.validate_every
    seconds = math.inf if cell.seconds is None else cell.seconds
    steps = math.inf if cell.steps is None else cell.steps * of_step
    if cell.preprocess == "auto":
        steps *= 1 + PART
    validating = validations * min(cell.validation_rows, len(rows.validation))
    training = min(seconds, steps + of_row * validating)
    # The solver's gap is dearer than the likelihood, the round trip of two passes cheaper.
    scored = len(rows.test) + 3 * min(likelihood.CHECKED_ROWS[cell.quick], len(rows.test))
    if rows.features == 2:
        scored += likelihood.GRID**2 // 4
    timing = min(1000 * of_row * CALLS[cell.quick], LONGEST[cell.quick])
    return training + of_row * scored + QUALITY[cell.quick], timing
