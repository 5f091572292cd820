"""Data for the comparisons: toys, patches, the field's tables, the user's own: a ``Dataset``.

By name (registry, with catalogue.json): toys, sklearn_images, mnist and cifar (images, pixels,
pickles), and published tables, prepared by tabular. What is fetched comes by download, and store
keeps it. Of the user: pictures, and files, whose bytes come from sources, are read by text, frames
or arrays, or stay on the disk as streams; choice picks columns, rows splits them, quantised and
bounds say what their values are. Beside these: energies, densities without rows, and statistics.
"""

from __future__ import annotations

from baselines.harness.data.dataset import DataError, Dataset, Entry
from baselines.harness.data.files import table
from baselines.harness.data.quantised import Width
from baselines.harness.data.registry import entry, load, names
from baselines.harness.data.toys import toy

__all__ = ["DataError", "Dataset", "Entry", "Width", "entry", "load", "names", "table", "toy"]
