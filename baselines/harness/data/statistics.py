"""What rows are like: column by column, and under a Gaussian of full covariance.

Rows may be memory-mapped and larger than memory: they are read a piece at a time, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from baselines.harness.data.dataset import DataError, Matrix, Part

__all__ = ["Score", "extremes", "gaussian_scores", "moments"]

CHUNK = 2**16  # rows


class Score(NamedTuple):
    """A mean log-likelihood in nats, and two standard errors of it."""

    mean: float
    two_standard_errors: float


def moments(rows: Part) -> tuple[Matrix, Matrix]:
    """The mean and the standard deviation (ddof 0) of each column, (D,) and (D,).

    Example:
        >>> moments(np.array([[1.0, 0.0], [3.0, 0.0]]))
        (array([2., 0.]), array([1., 0.]))

    """
    mean = sum((part.sum(0) for part in _pieces(rows)), np.zeros(rows.shape[1])) / len(rows)
    squares = (np.square(part - mean).sum(0) for part in _pieces(rows))
    return mean, np.sqrt(sum(squares, np.zeros(rows.shape[1])) / len(rows))


def extremes(rows: Part) -> tuple[Matrix, Matrix]:
    """The least and the greatest value of each column, (D,) and (D,)."""
    ends = [(part.min(0), part.max(0)) for part in _pieces(rows)]
    low, high = (np.stack(values) for values in zip(*ends, strict=True))
    return low.min(0), high.max(0)


def gaussian_scores(train: Part, *held_out: Part) -> list[Score]:
    """Mean log-density of rows under the Gaussian of the training rows' mean and covariance.

    log p(x) = -(|L⁻¹(x - m)|² + D log 2π) / 2 - log det L, with the covariance L Lᵀ (ddof 0).

    Training rows are (N, D), others (N', D). DataError where the covariance is singular.
    """
    mean, _ = moments(train)
    products = ((part - mean).T @ (part - mean) for part in _pieces(train))
    covariance = sum(products, np.zeros((len(mean), len(mean)))) / len(train)
    try:
        lower = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        raise DataError(
            "some columns are linear combinations of others in the training rows, which have no "
            "Gaussian density then; drop one of the columns"
        ) from None
    whiten = np.linalg.inv(lower).T
    constant = -0.5 * len(mean) * math.log(2 * math.pi) - np.log(np.diag(lower)).sum()
    scores = []
    for rows in held_out:
        squares = [np.square((part - mean) @ whiten).sum(1) for part in _pieces(rows)]
        log_prob = constant - 0.5 * np.concatenate(squares)
        error = 2 * log_prob.std() / math.sqrt(len(log_prob))
        scores.append(Score(float(log_prob.mean()), float(error)))
    return scores


def _pieces(rows: Part) -> Iterator[Matrix]:
    for first in range(0, len(rows), CHUNK):
        yield np.asarray(rows[first : first + CHUNK], np.float64)
