"""What a training on few rows does otherwise, where it was not told."""

from __future__ import annotations

import math

__all__ = ["FEW", "LEAST", "NO_GAIN", "for_few_rows"]

FEW = 5000  # training rows, from which on nothing changes
LEAST = 200  # steps
NO_GAIN = (
    "the training gained nothing over a Gaussian: fewer layers, a lower learning rate, more rows"
)


def for_few_rows(
    steps: int, learning_rate: float, rows: int, least: int = LEAST
) -> tuple[int, float]:
    """Steps and learning rate for so many training rows.

    From 5000 rows on they are what they were. For N rows less than that the steps are N/5000 times
    as many, 200 at least (or all, where these are fewer), and the learning rate is √(N/5000) times
    as high: small tables are overfitted within some ten steps, and at a high rate affine layers
    throw single draws far off.

    Args:
        steps: of a model on many rows.
        learning_rate: likewise.
        rows: N, the training rows.
        least: steps; 1 where no validation rows choose the best state, and the last one stays.

    Example:
        >>> from cflows.training.few_rows import for_few_rows
        >>> for_few_rows(2000, 5e-3, 1250), for_few_rows(2000, 5e-3, 100_000)
        ((500, 0.0025), (2000, 0.005))

    """
    part = min(1.0, rows / FEW)
    fewer = max(math.ceil(steps * part), min(steps, least))
    return fewer, learning_rate * math.sqrt(part)
