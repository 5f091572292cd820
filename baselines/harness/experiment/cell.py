"""A cell: one (data, model, depth, seed), and all else that decides its result."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from baselines.harness import data
from baselines.harness.data import Width
from baselines.harness.data.bounds import Pair
from baselines.harness.results import layout
from baselines.harness.results.records import VIEW
from cflows import __version__

__all__ = ["BATCH_SIZE", "PATIENCE", "VALIDATIONS", "VALIDATION_ROWS", "VIEWS", "Cell", "rows_of"]

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
