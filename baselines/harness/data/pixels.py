"""Whole-numbered pixels as real numbers on the whole line, and bits per dimension exactly.

Papamakarios et al. 2017, section 4.3 and appendix E.2: x = (p + u) / levels with u ~ U[0, 1), then
z = logit(α + (1 - 2α) x), which a flow without bounds can model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cflows.core.arguments import Array

__all__ = ["Pixels"]

CHUNK = 2**22  # pixels that are drawn noise for at a time

Matrix = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Pixels:
    """How rows were made from pixels 0, 1, ..., levels - 1.

    Args:
        levels: how many values a pixel may have.
        alpha: α, in (0, 1/2); the paper has 1e-6 for MNIST and 0.05 for CIFAR-10.

    Example:
        >>> pixels = Pixels(levels=256, alpha=0.05)
        >>> rows = pixels.rows(np.array([[0, 128, 255]]), np.random.default_rng(0))
        >>> pixels.pixels(rows)
        array([[  0, 128, 255]])

    """

    levels: int = 256
    alpha: float = 1e-6

    def rows(self, pixels: Array, rng: np.random.Generator) -> Single:
        """Whole numbers (N, D) to z (N, D), with noise of their own; float32, as models take it."""
        rows = np.empty(pixels.shape, np.float32)
        size = max(1, CHUNK // max(1, pixels.shape[1]))
        for first in range(0, len(pixels), size):
            part = pixels[first : first + size]
            x = rng.random(part.shape)
            x += part
            x *= (1 - 2 * self.alpha) / self.levels
            x += self.alpha
            rows[first : first + size] = np.log(x) - np.log1p(-x)
        return rows

    def pixels(self, rows: Matrix | Single) -> npt.NDArray[np.int64]:
        """The whole numbers that z was made from, or the nearest ones to any other z."""
        sigmoid = 0.5 * (1 + np.tanh(np.asarray(rows, np.float64) / 2))
        x = (sigmoid - self.alpha) / (1 - 2 * self.alpha)
        return np.clip(np.floor(x * self.levels), 0, self.levels - 1).astype(np.int64)

    def bits_per_dim(self, log_prob: Matrix, rows: Matrix | Single) -> Matrix:
        """Bits a dimension, (N,) and (N, D) -> (N,), of log-densities in nats of rows z.

            log p(x) = log p(z) + Σ_d log dz_d/dx_d,  dz/dx = (1 - 2α) / (σ(z) (1 - σ(z)))
            bits = log2(levels) - log p(x) / (D log 2)

        With noise in the pixels its mean is an upper bound of the bits of the whole numbers
        themselves (Theis et al. 2016, section 3.1).
        """
        d = rows.shape[1]
        rows = np.asarray(rows, np.float64)
        # log σ(z) + log σ(-z), without overflow.
        log_slope = -np.abs(rows) - 2 * np.log1p(np.exp(-np.abs(rows)))
        log_density = log_prob + d * math.log(1 - 2 * self.alpha) - log_slope.sum(1)
        bits: Matrix = math.log2(self.levels) - log_density / (d * math.log(2))
        return bits
