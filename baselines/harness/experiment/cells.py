"""The work of cells: one (data, model, depth, seed) at a time, each in a folder of its own.

What is in a cell's folder is written beside and renamed, ``result.json`` last: a cell that has it
is finished, and is not done again. One that was killed goes on from its ``checkpoint.pt``. Whoever
works on it holds the lock of its folder.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from baselines.harness.data.bounds import bounded
from baselines.harness.data.pixels import Pixels
from baselines.harness.experiment import locks
from baselines.harness.experiment.cell import Cell
from baselines.harness.metrics import likelihood, memory, sample_quality, timing
from baselines.harness.metrics.bootstrap import mean_and_error
from baselines.harness.results import layout
from baselines.harness.results.records import HELD, Bits, Failure, Outcome, Result, Training
from baselines.models import registry
from baselines.models.model import CENTRED, CLOSED_FORM, MAPS, centred
from cflows import Bijector, Flow, SolverError, inside, load, standardise, tune_solver
from cflows.core.atomic_write import write_whole
from cflows.training.pipeline import fit_behind
from cflows.training.preprocessing import Fit

__all__ = [
    "HELD",
    "attempt",
    "cost_of",
    "fail",
    "finished",
    "flow_of",
    "is_free",
    "run",
]

BEHIND: dict[str, Fit] = {**MAPS, CENTRED: centred}
TUNING = 0.05  # of a continuous model's seconds, for its evaluation solver
DRAWN = 16  # images of each model in a picture
LEAST_TUNING = 4.0  # seconds, where only steps end the training
TUNED_ON = 128  # validation rows
TOLERANCE = 0.007  # nats, mean gap of the solver on these rows, so that others keep .01


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
    fit_map = inside(bounded(cell.bounds), BEHIND[name])
    flow = _built(cell, fit_map(cell.rows()[0]))
    flow.load_state_dict(torch.load(folder / layout.STATE, weights_only=True))
    return flow.to(cell.device).eval()


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
    if cell.pixels is not None:
        pixels = Pixels(*cell.pixels)
        sheets = {
            "drawn": pixels.pixels(likelihood.drawn(flow, DRAWN)),
            "data": pixels.pixels(test[:DRAWN].double().cpu().numpy()),
        }
        _write(folder / layout.DRAWN, lambda file: np.savez_compressed(file, **sheets))  # type: ignore[arg-type]
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
    # Of an estimated trace a tuning would see the noise.
    tunable = not model.images and _built(cell, standardise(train)).is_continuous
    share = TUNING if tunable else 0.0
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
        maps=BEHIND if cell.preprocess == CENTRED else MAPS,
        bounds=bounded(cell.bounds),
        steps=cell.steps,
        seconds=None if cell.seconds is None else (1 - share) * cell.seconds,
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
    seconds = done.history.seconds + done.chosen_in
    if share:
        tuning = share / (1 - share) * seconds
        tuning = max(tuning, LEAST_TUNING) if cell.seconds is None else tuning
        seconds += _tuned(done.flow, validation, tuning, folder)
    return done.flow, {
        "steps": done.history.steps,
        "train_seconds": seconds,
        "view": cell.view,
        "stopped": done.history.stopped,
        "map": done.name,
    }


def _tuned(flow: Flow, validation: Tensor, seconds: float, folder: Path) -> float:
    """Let a flow evaluate with the cheapest solver that keeps TOLERANCE; the seconds it took.

    What a table needs to know of it is the solver's gap, which it shows.
    """
    began = time.perf_counter()
    with contextlib.suppress(ValueError, SolverError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        some = validation[:: -(-len(validation) // TUNED_ON)]
        tuning = tune_solver(flow, some, tolerance=TOLERANCE, seconds=seconds)
        _write_json(folder / layout.SOLVERS, {"records": tuning.records()})
    return time.perf_counter() - began


def _write_json(path: Path, value: object) -> None:
    write_whole(path, json.dumps(value, indent=1) + "\n")


def _write(path: Path, save: Callable[[io.BytesIO], object]) -> None:
    """Write what numpy and torch save, in memory first: of a full disk they tell no reason."""
    buffer = io.BytesIO()
    save(buffer)
    write_whole(path, buffer.getbuffer())
