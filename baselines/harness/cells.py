"""Cells: one (data, model, depth, seed) at a time, each in a folder of its own.

A cell's key is a hash of its configuration. What is in its folder is written beside and renamed,
``result.json`` last: a cell that has it is finished, and is not done again. One that was killed
goes on from its ``checkpoint.pt``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baselines.harness import data, data_end, likelihood, models, sampling
from baselines.harness.data import Width
from baselines.harness.data.dequantise import Pixels
from cflows import Flow, __version__, fit, load, whiten
from cflows.storage import write_beside

__all__ = ["Cell", "cost_of", "fail", "finished", "rows_of", "run"]

BATCH_SIZE = 512
VALIDATION_ROWS = 2000
VALIDATIONS = 20


@dataclass(frozen=True)
class Cell:
    """All that decides a cell's result.

    Attributes:
        data: what tables call the data set.
        source: its registered name, or the absolute path of its file; not part of the key, since
            the checksum says which rows these are.
        checksum: of its rows.
        model: a model's name, or ``"gaussian"``.
        depth: layers or blocks; None for the Gaussian.
        seed: of the first weights, the order of the rows and the probes.
        steps: optimiser steps at most; None where only seconds end the training.
        seconds: training seconds at most, or None.
        learning_rate: Adam's.
        device: ``"cpu"`` or ``"cuda"``.
        dtype: of rows and weights.
        preprocess: the map that the model ends in, one of ``data_end.PREPROCESS``.
        configuration: a hash of the model's preset, see ``models.configuration``.
        batch_size: rows a step.
        validation_rows: about how many of the validation rows choose the best state.
        validations: how often they do in a run of known steps.
        version: of this package, so that another one's results are not taken for its own.
        dequantise: noise for quantised columns of a file, as ``data.load`` takes it; no part of the
            key, since the checksum is that of the rows with their noise.
        pixels: levels and alpha of rows that are made of pixels, else None; likewise.

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
    pixels: tuple[int, float] | None = None

    @property
    def key(self) -> str:
        """The folder's name: readable, and unique by a hash of the configuration."""
        indirect = ("source", "dequantise", "pixels")
        decisive = {name: value for name, value in asdict(self).items() if name not in indirect}
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
        name = re.sub(r"[^A-Za-z0-9_]+", "-", self.data)[:40]
        depth = "" if self.depth is None else f"-{self.depth}"
        return f"{name}-{self.model}{depth}-seed{self.seed}-{digest[:10]}"

    def folder(self, out: Path) -> Path:
        """Where the cell lives below DIR."""
        return out / "cells" / self.key


def finished(cell: Cell, out: Path) -> dict[str, Any] | None:
    """The result of a cell that is done and did not fail, else None."""
    try:
        result: dict[str, Any] = json.loads((cell.folder(out) / "result.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    return result if result.get("status") == "ok" else None


def run(cell: Cell, out: Path) -> dict[str, Any]:
    """Train and evaluate a cell on one thread, unless it is finished; return its result.

    An exception becomes a result of status ``"failed"`` with its reason: one cell that fails does
    not stop the others.
    """
    done = finished(cell, out)
    if done is not None:
        return done
    torch.set_num_threads(1)
    folder = cell.folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", asdict(cell))
    _forget_peak_memory(cell.device)
    before = _resident_mb("VmRSS")
    try:
        result = _train_and_evaluate(cell, folder)
    except Exception as error:  # whatever it was, it is this cell's and the report says it
        return _fail_with(cell, out, error)
    peak = max(0.0, _resident_mb("VmHWM") - before)
    if cell.device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    result["peak_memory_mb"] = round(peak, 1)
    _write_json(folder / "result.json", result)
    return result


def fail(cell: Cell, out: Path, reason: str) -> dict[str, Any]:
    """Give a cell a result of status ``"failed"``; return it."""
    cell.folder(out).mkdir(parents=True, exist_ok=True)
    result = {"status": "failed", "error": " ".join(reason.split())}
    _write_json(cell.folder(out) / "result.json", result)
    return result


def cost_of(cell: Cell, out: Path) -> dict[str, Any]:
    """Time a finished cell's model, unless that was done on a processor like the present one.

    Nothing else should run meanwhile. An exception makes the cell a failed one, and what is
    returned is its result: what cannot be timed does not stop the others.
    """
    place, processor = cell.folder(out) / "cost.json", sampling.processor(cell.device)
    with contextlib.suppress(FileNotFoundError, ValueError):
        cost: dict[str, Any] = json.loads(place.read_text())
        if cost.get("processor") == processor:
            return cost
    torch.set_num_threads(1)
    try:
        flow = load(cell.folder(out) / "model.pt").to(cell.device)
        test = _rows(cell)[2]
        cost = {**sampling.measure(flow, test), "processor": processor}
    except Exception as error:  # as in run
        return _fail_with(cell, out, error, "timing: ")
    _write_json(place, cost)
    return cost


@functools.lru_cache(maxsize=2)
def rows_of(
    source: str, checksum: str, dtype: str, device: str, dequantise: Width | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Training, validation and test rows as tensors.

    Raises:
        DataError: the rows are not those of the checksum.

    """
    rows = data.load(source, dequantise=dequantise)
    if rows.checksum != checksum:
        raise data.DataError(f"{source} has changed since the command was planned: run it again")
    train, validation, test = (
        torch.from_numpy(part).to(device, getattr(torch, dtype))
        for part in (rows.train, rows.validation, rows.test)
    )
    return train, validation, test


def _rows(cell: Cell) -> tuple[Tensor, Tensor, Tensor]:
    return rows_of(cell.source, cell.checksum, cell.dtype, cell.device, cell.dequantise)


def _fail_with(cell: Cell, out: Path, error: Exception, prefix: str = "") -> dict[str, Any]:
    """Fail with an exception's text; the traceback stays beside the result."""
    (cell.folder(out) / "traceback.txt").write_text(traceback.format_exc())
    return fail(cell, out, f"{prefix}{type(error).__name__}: {error}")


def _train_and_evaluate(cell: Cell, folder: Path) -> dict[str, Any]:
    train, validation, test = _rows(cell)
    result: dict[str, Any] = {"status": "ok", "error": "", "steps": 0, "train_seconds": 0.0}
    if cell.model == models.GAUSSIAN:
        flow = models.build(cell.model, None, whiten(train), cell.seed).to(cell.device)
    else:
        # Evenly spaced, since neighbouring rows of a validation set may come from one place.
        stride = max(1, len(validation) // cell.validation_rows)
        flow, facts = _trained(cell, folder, train, validation[::stride])
        result |= facts
    flow.eval()
    result["parameters"] = sum(p.numel() for p in flow.parameters())
    if cell.model == models.GAUSSIAN:
        features = train.shape[1]
        result["parameters"] = features + features * (features + 1) // 2
    scores, log_prob = likelihood.evaluate(flow, test)
    if cell.pixels is not None:
        bits = Pixels(*cell.pixels).bits_per_dim(
            log_prob.cpu().numpy(), test.double().cpu().numpy()
        )
        result["bits_per_dim"] = float(bits.mean())
    _write_array(folder / "test_log_prob.npy", log_prob.cpu().numpy())
    if train.shape[1] == 2:
        parts = likelihood.picture(flow, test)
        write_beside(folder / "picture.npz", lambda beside: _savez(beside, parts))
    flow.save(folder / "model.pt")
    return result | scores


def _trained(
    cell: Cell, folder: Path, train: Tensor, validation: Tensor
) -> tuple[Flow, dict[str, Any]]:
    """Choose the map, train behind it; the flow, and what the result says of both."""
    model = models.find(cell.model)
    settings: dict[str, Any] = {
        "objective": model.objective,
        "patience": model.patience,
        "batch_size": cell.batch_size,
        "learning_rate": cell.learning_rate,
        "seed": cell.seed,
        "device": cell.device,
        "progress": False,
    }
    name, end, chosen_in = data_end.fitted(
        cell.preprocess,
        lambda end: models.build(cell.model, cell.depth, end, cell.seed),
        train,
        validation,
        folder / "map.json",
        steps=cell.steps,
        seconds=cell.seconds,
        **settings,
    )
    flow = models.build(cell.model, cell.depth, end, cell.seed).to(cell.device)
    history = fit(
        flow,
        train,
        validation,
        steps=cell.steps,
        seconds=None if cell.seconds is None else max(cell.seconds - chosen_in, 1e-9),
        validate_every=None if cell.steps is None else max(1, cell.steps // cell.validations),
        checkpoint=folder / "checkpoint.pt",
        **settings,
    )
    history.write(folder / "history.jsonl")
    return flow, {
        "steps": history.steps,
        "train_seconds": history.seconds + chosen_in,
        "map": name,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_beside(path, lambda beside: beside.write_text(json.dumps(value, indent=1) + "\n"))


def _write_array(path: Path, value: np.ndarray[Any, Any]) -> None:
    def write(beside: Path) -> None:
        with open(beside, "wb") as file:  # np.save would add a suffix to a name
            np.save(file, value)

    write_beside(path, write)


def _savez(path: Path, parts: dict[str, np.ndarray[Any, Any]]) -> None:
    with open(path, "wb") as file:
        np.savez_compressed(file, **parts)  # type: ignore[arg-type]


def _resident_mb(field: str) -> float:
    """Resident memory of this process, ``VmRSS`` now or ``VmHWM`` at its peak, in MB."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource

        scale = 2**20 if os.uname().sysname == "Darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0


def _forget_peak_memory(device: str) -> None:
    """Let the peak start anew for this cell, where the system allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if device == "cuda":  # else a GPU that nobody uses would be given a context
        torch.cuda.reset_peak_memory_stats()
