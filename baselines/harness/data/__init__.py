"""Data for the comparisons: toys, patches, the field's tables, the user's own: a ``Dataset``."""

from __future__ import annotations

from .dataset import DataError, Dataset, Entry
from .files import table
from .quantised import Width
from .registry import entry, load, names
from .toys import toy

__all__ = ["DataError", "Dataset", "Entry", "Width", "entry", "load", "names", "table", "toy"]
