"""Cells: one (data, model, depth, seed) at a time, each in a folder of its own.

A cell's key is a hash of its configuration. What is in its folder is written beside and renamed,
``result.json`` last: a cell that has it is finished, and is not done again. One that was killed
goes on from its ``checkpoint.pt``. Whoever works on it holds the lock of its folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import re
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from baselines.harness import data
from baselines.harness.data import Width
from baselines.harness.data.bounds import Pair, bounded
from baselines.harness.data.pixels import Pixels
from baselines.harness.experiment import locks
from baselines.harness.metrics import likelihood, memory, sample_quality, timing
from baselines.harness.metrics.bootstrap import mean_and_error
from baselines.harness.results import layout
from baselines.harness.results.records import HELD, VIEW, Bits, Failure, Outcome, Result, Training
from baselines.models import registry
from baselines.models.model import CLOSED_FORM, MAPS
from cflows import Bijector, Flow, __version__, inside, load
from cflows.core.atomic_write import write_whole
from cflows.training.pipeline import fit_behind

__all__ = [
    "HELD",
    "VIEWS",
    "Cell",
    "attempt",
    "cost_of",
    "fail",
    "finished",
    "flow_of",
    "is_free",
    "rows_of",
    "run",
]

BATCH_SIZE = 512
VALIDATION_ROWS = 2000
VALIDATIONS = 20
PATIENCE = 30  # validations without a better one, as in Papamakarios et al. 2017
VIEWS = (VIEW, "parameters", "budget")


@dataclass(frozen=True)
class Cell:
    """All that decides a cell's result.

    Attributes:
        data: what tables call the data set.
        source: its registered name, or the absolute path of its file; not part of the key, since
            the checksum says which rows these are.
        checksum: of its rows.
        model: a model's name, or one of ``CLOSED_FORM``.
        depth: layers or blocks; None for a closed form.
        seed: of the first weights, the order of the rows and the probes.
        steps: optimiser steps at most; None where only seconds end the training.
        seconds: training seconds at most, or None.
        learning_rate: Adam's.
        device: ``"cpu"`` or ``"cuda"``.
        dtype: of rows and weights.
        preprocess: the map that the model ends in, ``"auto"`` or one of ``MAPS``, or ``"none"``.
        configuration: a hash of the model's preset, see ``registry.configuration``.
        batch_size: rows a step.
        validation_rows: about how many of the validation rows choose the best state.
        validations: how often they do in a run of known steps.
        version: of this package, so that another one's results are not taken for its own.
        dequantise: as ``data.load`` takes it; not in the key: the checksum is of rows with noise.
        columns: those of a file that were chosen, or None; part of the key where they were.
        pixels: levels and alpha of rows that are made of pixels, else None; likewise.
        view: in which sense the models are compared as equals, one of ``VIEWS``.
        hidden: widths of the hidden layers, or None for the model's own.
        patience: validations without a better one after which training stops.
        validate_every: steps between two validations, in place of ``validations``.
        schedule: of the learning rate, as ``fit`` takes it.
        warmup: steps over which the learning rate rises.
        origin: what finds a user's own model, or ""; not in the key: the configuration has it.
        bounds: of each column, or None where none has any; then no part of the key.
        quick: fewer rows drawn and checked, fewer calls timed; likewise, where it is False.

    """

    data: str
    source: str
    checksum: str
    model: str
    depth: int | None
    seed: int
    steps: int | None
    seconds: float | None
    learning_rate: float
    device: str = "cpu"
    dtype: str = "float32"
    preprocess: str = "auto"
    configuration: str = ""
    batch_size: int = BATCH_SIZE
    validation_rows: int = VALIDATION_ROWS
    validations: int = VALIDATIONS
    version: str = __version__
    dequantise: Width | None = None
    columns: tuple[str, ...] | None = None
    pixels: tuple[int, float] | None = None
    view: str = VIEW
    hidden: tuple[int, ...] | None = None
    patience: int = PATIENCE
    validate_every: int | None = None
    schedule: str = "cosine"
    warmup: int = 0
    origin: str = ""
    bounds: tuple[Pair, ...] | None = None
    quick: bool = False

    @property
    def located(self) -> str:
        """The name that ``registry.find`` knows the model by, from any folder."""
        return self.origin or self.model

    @property
    def key(self) -> str:
        """The folder's name: readable, and unique by a hash of the configuration."""
        left_out = ["source", "dequantise", "pixels", "origin"]
        left_out += [n for n in ("bounds", "columns", "quick") if not getattr(self, n)]
        decisive = {name: value for name, value in asdict(self).items() if name not in left_out}
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
        name, model = (
            re.sub(r"[^A-Za-z0-9_]+", "-", text)[:40] for text in (self.data, self.model)
        )
        depth = "" if self.depth is None else f"-{self.depth}"
        return f"{name}-{model}{depth}-seed{self.seed}-{digest[:10]}"

    def folder(self, out: Path) -> Path:
        """Where the cell lives below DIR."""
        return layout.cell(out, self.key)

    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Training, validation and test rows, (N, D) each; raises as ``rows_of`` does."""
        return rows_of(
            self.source, self.checksum, self.dtype, self.device, self.dequantise, self.columns
        )


def finished(cell: Cell, out: Path) -> Result | None:
    """The result of a cell that is done and did not fail, else None."""
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        result: Outcome = json.loads((cell.folder(out) / layout.RESULT).read_text())
        if result["status"] == "ok":
            return result
    return None


def attempt(cell: Cell, work: Callable[[Cell, Path], Outcome], out: Path, since: float) -> Outcome:
    """Do the work of a cell, unless another process is at it: the result, or ``HELD``.

    `work` is ``run``, or what takes its place. A result younger than `since`, when this command
    began by the clock of DIR's file system, is another's, and is taken as it is, a failure too.
    """
    folder = cell.folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    with locks.claimed(folder / layout.LOCK) as held:
        if not held:
            return HELD
        path = folder / layout.RESULT
        with contextlib.suppress(FileNotFoundError, ValueError):
            if path.stat().st_mtime > since:
                result: Outcome = json.loads(path.read_text())
                return result
        for left in folder.glob(".*.*"):  # what a kill left of a file that was being written
            left.unlink(missing_ok=True)
        return work(cell, out)


def is_free(cell: Cell, out: Path) -> bool:
    """Whether no other process works on a cell at this moment."""
    return locks.is_free(cell.folder(out) / layout.LOCK)


def run(cell: Cell, out: Path) -> Outcome:
    """Train and evaluate a cell on one thread, unless it is finished; return its result.

    An exception becomes a result of status ``"failed"`` with its reason: one cell that fails does
    not stop the others.
    """
    if (done := finished(cell, out)) is not None:
        return done
    torch.set_num_threads(1)
    folder = cell.folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / layout.CONFIG, asdict(cell))
    memory.forget_peak(cell.device)
    before = memory.resident_mb()
    try:
        result = _train_and_evaluate(cell, folder)
    except Exception as error:  # whatever it was, it is this cell's and the report says it
        return _fail_with(cell, out, error)
    result["peak_memory_mb"] = round(memory.peak_mb(cell.device, before), 1)
    _write_json(folder / layout.RESULT, result)
    return result


def fail(cell: Cell, out: Path, reason: str) -> Failure:
    """Give a cell a result of status ``"failed"``; return it."""
    result: Failure = {"status": "failed", "error": " ".join(reason.split())}
    with contextlib.suppress(OSError):  # a full disk: what has no result is done again
        cell.folder(out).mkdir(parents=True, exist_ok=True)
        _write_json(cell.folder(out) / layout.RESULT, result)
    return result


def cost_of(cell: Cell, out: Path) -> timing.Cost | Failure:
    """Time a finished cell's model, unless that was done on a processor like the present one.

    Nothing else should run meanwhile. An exception makes the cell a failed one: what cannot be
    timed does not stop the others.
    """
    path, processor = cell.folder(out) / layout.COST, timing.processor(cell.device)
    with contextlib.suppress(FileNotFoundError, ValueError):
        cost: timing.Cost = json.loads(path.read_text())
        if cost.get("processor") == processor:
            return cost
    torch.set_num_threads(1)
    try:
        cost = timing.measure(flow_of(cell, out), cell.rows()[2], cell.quick)
        cost["processor"] = processor
    except Exception as error:  # as in run
        return _fail_with(cell, out, error, "timing: ")
    _write_json(path, cost)
    return cost


def flow_of(cell: Cell, out: Path) -> Flow:
    """Return the flow of a finished cell, in evaluation mode and on its device."""
    folder = cell.folder(out)
    if (folder / layout.MODEL).exists():
        return load(folder / layout.MODEL).to(cell.device)
    # Of parts that are not registered, so that only its function can build it.
    name = json.loads((folder / layout.RESULT).read_text())["map"]
    fit_map = inside(bounded(cell.bounds), MAPS[name])
    flow = _built(cell, fit_map(cell.rows()[0]))
    flow.load_state_dict(torch.load(folder / layout.STATE, weights_only=True))
    return flow.to(cell.device).eval()


@functools.lru_cache(maxsize=2)
def rows_of(
    source: str,
    checksum: str,
    dtype: str,
    device: str,
    dequantise: Width | None = None,
    columns: tuple[str, ...] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Training, validation and test rows as tensors.

    Raises:
        DataError: the rows are not those of the checksum.

    """
    rows = data.load(source, dequantise=dequantise, columns=columns)
    if rows.checksum != checksum:
        raise data.DataError(f"{source} has changed since the command was planned: run it again")
    train, validation, test = (
        torch.from_numpy(part).to(device, getattr(torch, dtype))
        for part in (rows.train, rows.validation, rows.test)
    )
    return train, validation, test


def _fail_with(cell: Cell, out: Path, error: Exception, prefix: str = "") -> Failure:
    """Fail with an exception's text; the traceback stays beside the result."""
    with contextlib.suppress(OSError):  # a full disk: the reason itself is what counts
        (cell.folder(out) / layout.TRACEBACK).write_text(traceback.format_exc())
    return fail(cell, out, f"{prefix}{type(error).__name__}: {error}")


def _train_and_evaluate(cell: Cell, folder: Path) -> Result:
    train, validation, test = cell.rows()
    if cell.model in CLOSED_FORM:
        started = time.perf_counter()
        end = inside(bounded(cell.bounds), CLOSED_FORM[cell.model].fit)(train, validation)
        seconds = time.perf_counter() - started
        flow = registry.build(cell.model, None, end, cell.seed).to(cell.device)
        training: Training = {"steps": 0, "train_seconds": seconds}
        parameters = registry.numbers(flow)
    else:
        # Evenly spaced, since neighbouring rows of a validation set may come from one place.
        stride = max(1, len(validation) // cell.validation_rows)
        flow, training = _trained(cell, folder, train, validation[::stride])
        parameters = sum(p.numel() for p in flow.parameters())
    flow.eval()
    scores, log_prob = likelihood.evaluate(flow, test, cell.quick)
    if lost := int((~log_prob.isfinite()).sum()):
        raise ArithmeticError(f"log p of {lost} of {len(test)} test rows is not a finite number")
    vector = log_prob.cpu().numpy()
    bits: Bits = {}
    if cell.pixels is not None:
        values = Pixels(*cell.pixels).bits_per_dim(vector, test.double().cpu().numpy())
        mean, error = mean_and_error(values)
        bits = {"bits_per_dim": mean, "bits_per_dim_2se": error}
    _write(folder / layout.LOG_PROB, partial(np.save, arr=vector))
    if train.shape[1] == 2:
        arrays = likelihood.picture(flow, test)
        _write(folder / layout.PICTURE, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]
    _save(flow, folder)
    return {
        "status": "ok",
        "error": "",
        **training,
        "parameters": parameters,
        **bits,
        **scores,
        **sample_quality.evaluate(flow, test, quick=cell.quick),
    }


def _save(flow: Flow, folder: Path) -> None:
    """Keep the flow as ``cflows.load`` reads it; its tensors alone if a part is not registered."""
    try:
        flow.save(folder / layout.MODEL)
    except TypeError:
        _write(folder / layout.STATE, lambda file: torch.save(flow.state_dict(), file))


def _built(cell: Cell, end: Bijector | None) -> Flow:
    assert end is not None
    return registry.build(cell.located, cell.depth, end, cell.seed, cell.hidden)


def _trained(cell: Cell, folder: Path, train: Tensor, validation: Tensor) -> tuple[Flow, Training]:
    """Choose the map, train behind it; the flow, and what the result says of both."""
    model = registry.find(cell.located)
    goal = model.goal
    goal["batch_size"] = cell.batch_size
    every, usual_steps = cell.validate_every, cell.steps
    if cell.steps is not None:
        if every is None:
            every = max(1, cell.steps // cell.validations)
        else:  # of steps that only patience ends, the choice of a map takes a part of fewer
            usual_steps = min(cell.steps, cell.validations * every)
    done = fit_behind(
        partial(_built, cell),
        train,
        validation,
        cell.preprocess,
        maps=MAPS,
        bounds=bounded(cell.bounds),
        steps=cell.steps,
        seconds=cell.seconds,
        usual_steps=usual_steps,
        choice_file=folder / layout.MAP,
        own={
            "validate_every": every,
            "schedule": cell.schedule,
            "checkpoint": folder / layout.CHECKPOINT,
        },
        **goal,
        learning_rate=cell.learning_rate,
        warmup=cell.warmup,
        patience=min(cell.patience, model.patience or cell.patience),
        seed=cell.seed,
        device=cell.device,
        progress=False,
    )
    done.history.write(folder / layout.HISTORY)
    return done.flow, {
        "steps": done.history.steps,
        "train_seconds": done.history.seconds + done.chosen_in,
        "view": cell.view,
        "stopped": done.history.stopped,
        "map": done.name,
    }


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    write_whole(path, json.dumps(value, indent=1) + "\n")


def _write(path: Path, save: Callable[[io.BytesIO], object]) -> None:
    """Write what numpy and torch save, in memory first: of a full disk they tell no reason."""
    buffer = io.BytesIO()
    save(buffer)
    write_whole(path, buffer.getbuffer())
