"""The rows that one model is trained on: in memory or on the disk, features and context apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from baselines.harness import data
from baselines.harness.data import DataError, Dataset
from baselines.harness.data.choice import refuse_unknown
from baselines.harness.data.files import stream
from baselines.harness.data.quantised import Width
from baselines.harness.data.rows import SplitName
from baselines.harness.data.streams import Stream, Streamed
from baselines.harness.experiment import checks
from cflows import Affine, standardise

__all__ = ["Rows", "Source", "at_most", "open_rows"]

AT_ONCE = 100_000

Rows = tuple[Tensor, Tensor | None]


class Source:
    """A data set or a streamed table, seen as features and context in float32.

    Args:
        rows: checked by ``open_rows``.
        context: names of columns that are given to the model and not modelled; may be empty.
        weights: the column that says how much each row counts, or None.

    Attributes:
        columns: names of the features.
        context: names of the context columns.
        context_map: x = mean + std z of the context's training rows; None without a context.

    """

    def __init__(
        self, rows: Dataset | Streamed, context: Sequence[str], weights: str | None = None
    ) -> None:
        self.rows, self.context, self.weights = rows, tuple(context), weights
        self.columns = tuple(c for c in rows.columns if c not in context and c != weights)
        self.context_map = self._standard() if self.context else None

    def _standard(self) -> Affine:
        """The map of the context, which only moves what is constant."""
        still = _still(self.rows, self.context)
        vary = [i for i, name in enumerate(self.context) if name not in still]
        loc = self._spaced("train", lambda n: n, self.context)[0]
        scale = torch.ones(len(self.context))
        if vary:
            fitted = standardise(self._whole([self.context[i] for i in vary]))
            loc[vary], scale[vary] = fitted.loc, fitted.scale
        return Affine(loc, scale)

    def train(self) -> tuple[Tensor | Stream, Tensor | Stream | None]:
        """The training rows as ``cflows.fit`` takes them, their context standardised."""
        x = self._whole(self.columns)
        if self.context_map is None:
            return x, None
        context = self._whole(self.context)
        if isinstance(context, Tensor):
            return x, self.context_map.inverse(context)
        loc, scale = self.context_map.loc.numpy(), self.context_map.scale.numpy()
        return x, replace(context, loc=loc, scale=scale)

    def weights_of(self, name: SplitName, distance: Callable[[int], int]) -> Tensor | None:
        """The weights of the rows that ``few`` gives; None where all count alike.

        Raises:
            DataError: none of them is positive.

        """
        if self.weights is None:
            return None
        weights = self._spaced(name, distance, [self.weights])[:, 0]
        if not bool((weights > 0).any()):
            raise DataError(
                f"{self.rows.source}: no {name} row has a positive weight in the column "
                f"{self.weights!r}; give more rows that count"
            )
        return weights

    def few(self, name: SplitName, distance: Callable[[int], int]) -> Rows:
        """Rows of a split, evenly spaced, in the units of the table.

        Args:
            name: of the split.
            distance: from the number of rows to that between two of them.

        """
        context = self._spaced(name, distance, self.context) if self.context else None
        return self._spaced(name, distance, self.columns), context

    def standardised(self, rows: Rows) -> Rows:
        """The same rows with the context as ``train`` gives it."""
        x, context = rows
        if self.context_map is None or context is None:
            return x, None
        return x, self.context_map.inverse(context)

    def _spaced(
        self, name: SplitName, distance: Callable[[int], int], columns: Sequence[str]
    ) -> Tensor:
        positions = [self.rows.columns.index(column) for column in columns]
        if not isinstance(self.rows, Streamed):
            split = getattr(self.rows, name)
            return torch.from_numpy(split[:: distance(len(split)), positions].astype(np.float32))
        part = self.rows.part(name, positions)
        chosen = np.arange(0, len(part), distance(len(part)))
        pieces = range(0, len(chosen), AT_ONCE)  # whole rows are read for some columns
        return torch.from_numpy(np.concatenate([part[chosen[i : i + AT_ONCE]] for i in pieces]))

    def _whole(self, columns: Sequence[str]) -> Tensor | Stream:
        positions = [self.rows.columns.index(column) for column in columns]
        if isinstance(self.rows, Streamed):
            return self.rows.part("train", positions)
        values = self.rows.train
        if len(columns) < len(self.rows.columns):
            values = values[:, positions]
        return torch.from_numpy(values).float()


def at_most(rows: int) -> Callable[[int], int]:
    """The distance between two of the rows that ``few`` takes, for so many of them at most."""
    return lambda n: math.ceil(n / rows)


def open_rows(
    name: str,
    *,
    context: Sequence[str] = (),
    weights: str | None = None,
    dequantise: Width | None = None,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] = (),
) -> Source:
    """Open a data set or a file, a large .npy file without loading it; check it for training.

    Args:
        name: a registered name, or a file.
        context: the columns that are given to the model and not modelled.
        weights: the column that says how much each row counts, and is not modelled.
        dequantise: as ``files.read`` takes it; files alone.
        columns: likewise, the columns to keep beside the context.
        drop: likewise, the columns to leave out.

    Raises:
        DataError: the rows or the columns cannot be used.

    """
    context = tuple(dict.fromkeys(context))
    weighted = () if weights is None else (weights,)
    spared = (*context, *weighted)
    if weights in context:
        raise DataError(
            f"{name}: the column {weights!r} is named by --context and --weights; leave it out of "
            "one"
        )
    rows: Dataset | Streamed | None = None
    if name not in data.names():
        rows = stream(Path(name), dequantise=dequantise, spared=spared, columns=columns, drop=drop)
    if rows is None:
        rows = data.load(name, dequantise=dequantise, spared=spared, columns=columns, drop=drop)
    if twice := [column for column in rows.columns if rows.columns.count(column) > 1]:
        raise DataError(f"{rows.source}: two columns are called {twice[0]!r}; rename one")
    refuse_unknown(name, context, rows.columns, "context")
    refuse_unknown(name, weighted, rows.columns, "weights")
    if len(spared) == len(rows.columns):
        option = "--context" if weights is None else "--context or --weights"
        raise DataError(f"{name}: every column is named by {option}; leave one at least to model")
    checks.refuse_single_precision(rows, (*_still(rows, spared), *weighted))
    if weights is not None:
        _refuse_negative(name, rows, weights)
    return Source(rows, context, weights)


def _still(rows: Dataset | Streamed, names: Sequence[str]) -> tuple[str, ...]:
    """Those of the columns that are constant in training."""
    if isinstance(rows, Streamed):
        return tuple(name for name in names if name in rows.still)
    values = {name: rows.train[:, rows.columns.index(name)] for name in names}
    return tuple(name for name, column in values.items() if (column == column[0]).all())


def _refuse_negative(name: str, rows: Dataset | Streamed, weights: str) -> None:
    """Name the first row of a file, in its order, whose weight is below zero."""
    at, order = rows.columns.index(weights), None
    if isinstance(rows, Streamed):
        values = np.concatenate([chunk[:, at] for _, chunk in rows.chunks()])
    else:
        values, order = np.concatenate([part[:, at] for part in rows.splits]), rows.order
    negative = np.flatnonzero(values < 0)
    if len(negative):
        numbers = negative if order is None else order[negative]
        row = int(numbers.argmin())
        raise DataError(
            f"{name}: the weight {weights!r} is {values[negative[row]]:g} in row "
            f"{numbers[row] + 1}, a header not counted; weights must not be negative: drop or mend "
            "this row"
        )
