"""The rows that one model is trained on: in memory or on the disk, features and context apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from baselines.harness import checks, data
from baselines.harness.data import DataError, Dataset
from baselines.harness.data.dataset import listed, nearest
from baselines.harness.data.files import stream
from baselines.harness.data.quantised import Width
from baselines.harness.data.rows import SplitName
from baselines.harness.data.streams import Stream, Streamed
from cflows import Affine, standardise

__all__ = ["Rows", "Source", "open_rows"]

Rows = tuple[Tensor, Tensor | None]


class Source:
    """A data set or a streamed table, seen as features and context in float32.

    Args:
        rows: checked by ``open_rows``.
        context: names of columns that are given to the model and not modelled; may be empty.

    Attributes:
        columns: names of the features.
        context: names of the context columns.
        context_map: x = mean + std z of the context's training rows; None without a context.

    """

    def __init__(self, rows: Dataset | Streamed, context: Sequence[str]) -> None:
        self.rows, self.context = rows, tuple(context)
        self.columns = tuple(name for name in rows.columns if name not in context)
        self._places = [rows.columns.index(name) for name in self.columns]
        self._context_places = [rows.columns.index(name) for name in self.context]
        self.context_map: Affine | None = None
        if self.context:
            self.context_map = standardise(self._whole(self._context_places))

    def train(self) -> tuple[Tensor | Stream, Tensor | Stream | None]:
        """The training rows as ``cflows.fit`` takes them, their context standardised."""
        x = self._whole(self._places)
        if self.context_map is None:
            return x, None
        context = self._whole(self._context_places)
        if isinstance(context, Tensor):
            return x, self.context_map.inverse(context)
        loc, scale = self.context_map.loc.numpy(), self.context_map.scale.numpy()
        return x, replace(context, loc=loc, scale=scale)

    def few(self, name: SplitName, distance: Callable[[int], int]) -> Rows:
        """Rows of a split, evenly spaced, in the units of the table.

        Args:
            name: of the split.
            distance: from the number of rows to that between two of them.

        """
        if isinstance(self.rows, Streamed):
            part = self.rows.part(name, range(len(self.rows.columns)))
            values = torch.from_numpy(part[:: distance(len(part))])
        else:
            split = getattr(self.rows, name)
            values = torch.from_numpy(np.array(split[:: distance(len(split))], np.float32))
        context = values[:, self._context_places] if self.context else None
        return values[:, self._places], context

    def standardised(self, rows: Rows) -> Rows:
        """The same rows with the context as ``train`` gives it."""
        x, context = rows
        if self.context_map is None or context is None:
            return x, None
        return x, self.context_map.inverse(context)

    def _whole(self, places: Sequence[int]) -> Tensor | Stream:
        if isinstance(self.rows, Streamed):
            return self.rows.part("train", places)
        values = self.rows.train
        if len(places) < len(self.rows.columns):
            values = values[:, places]
        return torch.from_numpy(values).float()


def open_rows(name: str, *, context: Sequence[str] = (), dequantise: Width | None = None) -> Source:
    """Open a data set or a file, a large .npy file without loading it; check it for training.

    Args:
        name: a registered name, or a file.
        context: the columns that are given to the model and not modelled.
        dequantise: as ``files.read`` takes it; files alone.

    Raises:
        DataError: the rows or the columns cannot be used.

    """
    context = tuple(dict.fromkeys(context))
    rows: Dataset | Streamed | None = None
    if name not in data.names():
        rows = stream(Path(name), dequantise=dequantise, spared=context)
    if rows is None:
        rows = data.load(name, dequantise=dequantise, spared=context)
    if twice := [column for column in rows.columns if rows.columns.count(column) > 1]:
        raise DataError(f"{rows.source}: two columns are called {twice[0]!r}; rename one")
    if missing := [column for column in context if column not in rows.columns]:
        raise DataError(f"{name}: has no column {missing[0]!r} for --context; "
                        f"{nearest(missing[0], rows.columns)}its columns are "
                        f"{listed(rows.columns, 20)}")  # fmt: skip
    if len(context) == len(rows.columns):
        raise DataError(f"{name}: every column is named by --context; leave one at least to model")
    checks.refuse_single_precision(rows)
    return Source(rows, context)
