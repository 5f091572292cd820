"""What a data set must be for the models of a comparison, checked before anything is written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from baselines.harness.data import DataError, Dataset, quantised
from baselines.harness.data.streams import Streamed, Summary
from cflows import whiten
from cflows.training.rows import CHANGE, far_from_zero, refuse_fill_values

__all__ = ["refuse_single_precision", "refuse_unusable"]


def refuse_unusable(rows: Dataset) -> None:
    """Refuse what the models would answer with false figures, or not at all.

    Raises:
        DataError: a column does not survive float32, in which the cells work; the training rows
            have no full-covariance Gaussian. One line with the remedy.

    """
    name = rows.source if rows.kind == "file" else rows.name
    refuse_single_precision(rows)
    if len(rows.train) <= rows.features:
        raise DataError(
            f"{name}: {len(rows.train)} training rows for {rows.features} columns leave a "
            "Gaussian without a density; drop one of the columns at least, or give more rows"
        )
    try:
        whiten(torch.from_numpy(rows.train).float())
    except ValueError as error:  # its own remedies are not at hand on the command line
        raise DataError(
            f"{name}: some columns are linear combinations of others in the training rows, "
            "which have no density then; drop one of the columns"
        ) from error


def refuse_single_precision(rows: Dataset | Streamed, still: Sequence[str] = ()) -> None:
    """Refuse a column that does not survive float32, in which models of the harness work.

    Args:
        rows: in memory or on the disk.
        still: columns of which nothing is asked but that float32 holds them: constant ones of a
            context, weights.

    Raises:
        DataError: the column, why, and the remedy, in one line.

    """
    if isinstance(rows, Streamed):
        name, summary = rows.source, rows.summary
    else:
        name, summary = rows.source if rows.kind == "file" else rows.name, _summary(rows)
    limits = np.finfo(np.float32)
    for column, largest, mean, spread, change in zip(rows.columns, *summary, strict=True):
        if largest > limits.max:
            raise DataError(
                f"{name}: column {column!r} has values beyond {limits.max:.0e}, the largest in "
                "float32; divide the column by a constant"
            )
        if column in still:
            continue
        if spread < limits.tiny:
            raise DataError(
                f"{name}: column {column!r} has a spread of {spread:.0e}, below the least in "
                "float32; multiply the column by a constant"
            )
        if change > CHANGE * spread:
            raise DataError(
                f"{name}: column {column!r} {far_from_zero(float(spread), float(mean))}"
            )
    if isinstance(rows, Streamed):
        some = np.asarray(rows.every(quantised.EXAMINED), np.float64)
        looks = [(some, summary.mean, summary.spread)]
    else:  # a fill value may stand among the held-out rows alone
        part = rows.train[:: -(-len(rows.train) // quantised.EXAMINED)]
        every = np.concatenate([part, rows.validation, rows.test], dtype=np.float64)
        train = np.asarray(rows.train, np.float64)
        looks = [(train, summary.mean, summary.spread), (every, every.mean(0), every.std(0))]
    checked = [i for i, column in enumerate(rows.columns) if column not in still]
    labels = [repr(rows.columns[i]) for i in checked]
    chosen: list[int] | slice = checked if still else slice(None)  # a slice copies nothing
    try:
        for look in looks:
            values, centre, width = (
                torch.from_numpy(np.asarray(part, np.float64)[..., chosen]) for part in look
            )
            refuse_fill_values(
                "the rows", values, centre, width, torch.float32, labels, in_order=False
            )
    except ValueError as error:
        raise DataError(f"{name}: {error}") from None


def _summary(rows: Dataset) -> Summary:
    """Of the training rows, except for the largest values, which are those of all splits."""
    train = rows.train
    parts = [np.abs(part).max(0, initial=0.0) for part in (train, rows.validation, rows.test)]
    with np.errstate(over="ignore"):
        change = np.abs(train.astype(np.float32) - train).max(0)
    with np.errstate(over="ignore", invalid="ignore"):
        return Summary(np.max(parts, axis=0), train.mean(0), train.std(0), change)
