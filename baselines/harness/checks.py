"""What a data set must be for the models of a comparison, checked before anything is written."""

from __future__ import annotations

import numpy as np
import torch

from baselines.harness.data import DataError, Dataset
from cflows import whiten

__all__ = ["refuse_single_precision", "refuse_unusable"]

CHANGE = 1e-4  # in standard deviations: a tenth of what the third decimal of a table shows


def refuse_unusable(rows: Dataset) -> None:
    """Refuse what the models would answer with false figures, or not at all.

    Raises:
        DataError: a column does not survive float32, in which the cells work; the training rows
            have no full-covariance Gaussian. One line with the remedy.

    """
    place = rows.source if rows.kind == "file" else rows.name
    refuse_single_precision(rows)
    if len(rows.train) <= rows.features:
        raise DataError(
            f"{place}: {len(rows.train)} training rows for {rows.features} columns leave a "
            "Gaussian without a density; drop one of the columns at least, or give more rows"
        )
    try:
        whiten(torch.from_numpy(rows.train).float())
    except ValueError as error:  # its own remedies are not at hand on the command line
        raise DataError(
            f"{place}: some columns are linear combinations of others in the training rows, "
            "which have no density then; drop one of the columns"
        ) from error


def refuse_single_precision(rows: Dataset) -> None:
    """Refuse a column that does not survive float32, in which models of the harness work.

    Raises:
        DataError: the column, why, and the remedy, in one line.

    """
    place = rows.source if rows.kind == "file" else rows.name
    for i, column in enumerate(rows.columns):
        train = rows.train[:, i]
        parts = [part[:, i] for part in (rows.train, rows.validation, rows.test)]
        limits = np.finfo(np.float32)
        if max(np.abs(part).max(initial=0.0) for part in parts) > limits.max:
            raise DataError(
                f"{place}: column {column!r} has values beyond {limits.max:.0e}, the largest in "
                "float32; divide the column by a constant"
            )
        spread = train.std()
        if spread < limits.tiny:
            raise DataError(
                f"{place}: column {column!r} has a spread of {spread:.0e}, below the least in "
                "float32; multiply the column by a constant"
            )
        change = np.abs(train.astype(np.float32) - train).max()
        if change > CHANGE * spread:
            raise DataError(
                f"{place}: column {column!r} is far from zero for its spread ({spread:.3g} around "
                f"{train.mean():.10g}), which float32 cannot hold; subtract a constant from the "
                "column, such as its mean"
            )
