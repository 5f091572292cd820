"""Data for the comparisons: toys, patches, the field's tables, the user's own: a ``Dataset``."""

from __future__ import annotations

from baselines.harness.data.dataset import DataError, Dataset, Entry
from baselines.harness.data.files import table
from baselines.harness.data.quantised import Width
from baselines.harness.data.registry import entry, load, names
from baselines.harness.data.toys import toy

__all__ = ["DataError", "Dataset", "Entry", "Width", "entry", "load", "names", "table", "toy"]
