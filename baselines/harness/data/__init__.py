"""Data for the comparisons: toys, image patches and the user's own tables, all as a ``Dataset``."""

from __future__ import annotations

from .dataset import DataError, Dataset
from .files import table
from .registry import load, names
from .toys import toy

__all__ = ["DataError", "Dataset", "load", "names", "table", "toy"]
