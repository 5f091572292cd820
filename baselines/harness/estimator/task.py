"""What one training on a table is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from baselines.harness.data.bounds import Bounds
from baselines.harness.data.quantised import Width

__all__ = ["PREPROCESS", "Task"]

PREPROCESS = ("auto", "standardise", "whiten", "none")


@dataclass(frozen=True)
class Task:
    """What ``cflows fit`` was asked for.

    Attributes:
        model: a name that ``registry.find`` knows.
        data: a registered name, or a file.
        out: the model's file.
        depth: layers or blocks; None for the deepest setting of a comparison.
        steps: optimiser steps at most; None for the model's own, or for none where seconds are
            given.
        seconds: training seconds at most, those of the choice of a map included.
        seed: of the first weights and of the training.
        preprocess: one of ``PREPROCESS``.
        device: ``"cpu"`` or ``"cuda"``.
        checkpoint: a path, or None.
        quick: the model's few steps in place of its own.
        context: columns that are given to the model and not modelled.
        weights: the column that says how much each row counts, and is not modelled; or None.
        dequantise: noise for quantised columns, as ``data.files.read`` takes it.
        bounds: of columns, by name; None for none.
        columns: the columns to model, or None for all; likewise.
        drop: columns to leave out; likewise.

    """

    model: str
    data: str
    out: Path
    depth: int | None = None
    steps: int | None = None
    seconds: float | None = None
    seed: int = 0
    preprocess: str = "auto"
    device: str = "cpu"
    checkpoint: Path | None = None
    quick: bool = False
    context: tuple[str, ...] = ()
    weights: str | None = None
    dequantise: Width | None = None
    bounds: Bounds | None = None
    columns: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()
