"""Sets of images: their pixels to train, validate and test, as real rows."""

from __future__ import annotations

import numpy as np

from baselines.harness.data.dataset import Dataset
from baselines.harness.data.pixels import Pixels
from cflows.core.arguments import Array

__all__ = ["image_set"]


def image_set(
    name: str,
    pixels: Pixels,
    train: Array,
    test: Array,
    held_out: int,
    seed: int,
    columns: tuple[str, ...],
    source: str,
    licence: str,
) -> Dataset:
    """Rows of whole-numbered images (N, ...) to train and to test, dequantised, as a data set.

    Args:
        name: of the set; columns, source and licence as in ``Dataset``.
        pixels: how rows are made.
        train: of these ``held_out``, drawn at random, validate.
        test: likewise whole numbers.
        held_out: how many.
        seed: of the draw and of the noise.
        columns: the names of the D pixels.
        source: where the images are from.
        licence: its terms.

    """
    draw, *noise = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4))
    order = draw.permutation(len(train))
    parts = (train[np.sort(order[held_out:])], train[np.sort(order[:held_out])], test)
    first, second, third = (
        pixels.rows(part.reshape(len(part), -1), rng)
        for part, rng in zip(parts, noise, strict=True)
    )
    return Dataset(name, first, second, third, columns, source, licence, "image", pixels=pixels)
