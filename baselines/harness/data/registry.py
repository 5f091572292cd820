"""From a name, or the path of a file, to a ``Dataset``."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import files, images, toys
from .dataset import DataError, Dataset

__all__ = ["load", "names"]

_LOADERS: dict[str, Callable[[int], Dataset]] = {
    **{name: partial(toys.dataset, name) for name in toys.TOYS},
    "patches4": images.patches4,
}


def load(name: str | Path, *, seed: int = 0) -> Dataset:
    """Return the data set registered under a name, else the one in a .csv or .npy file.

    A registered name has no suffix and no separator, so it never hides a file: ``./moons`` and
    ``moons.csv`` are always paths.

    Args:
        name: one of ``names()``, or a path.
        seed: fixes the rows of a toy, the training patches and dequantisation noise of images,
            and the split of a file.

    Raises:
        DataError: neither a known name nor a file, or a file that ``files.read`` refuses.

    Example:
        >>> data = load("pinwheel", seed=3)
        >>> data.train.shape, data.validation.shape, data.test.shape
        ((50000, 2), (5000, 2), (10000, 2))

    """
    text = str(name)
    if text in _LOADERS:
        return _LOADERS[text](seed)
    # os.path.exists, unlike Path.exists, is False for a name too long to be a path.
    if files.is_supported(text) or (text and os.path.exists(text)):
        return files.read(text, seed=seed)
    near = difflib.get_close_matches(text.lower(), _LOADERS, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise DataError(
        f"no data set or file is called {text!r}; {hint}"
        f"Known names: {', '.join(names())}; or give the path of a .csv or .npy file"
    )


def names() -> tuple[str, ...]:
    """Return the registered names, in the order in which they are listed to users.

    Example:
        >>> names()[:3]
        ('8gaussians', '2spirals', 'checkerboard')

    """
    return tuple(_LOADERS)
