"""Data sets that another package brings, by an entry point."""

from __future__ import annotations

import pytest

from baselines.harness import data
from baselines.harness.data import DataError, registry

PACKAGE = """\
import numpy as np
from baselines.harness.data.dataset import Dataset, Entry

def rows(seed):
    x = np.random.default_rng(seed).normal(size=(60, 2))
    return Dataset("clouds", x[:40], x[40:50], x[50:], ("a", "b"), "a package", "CC0", "table")

entry = Entry("clouds", "two columns", 2, (40, 10, 10), "a package", "CC0", rows, lambda: "here")
number = 3
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "cloudsofmine.py").write_text(PACKAGE)
    about = tmp_path / "cloudsofmine-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: cloudsofmine\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[cflows.data]\nclouds = cloudsofmine:entry\nnumber = cloudsofmine:number\n"
        "lost = cloudsofmine.nowhere:entry\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("package")
def test_an_installed_data_set_is_known_by_its_name():
    assert {"clouds", "number", "lost"} <= set(data.names())
    assert data.load("clouds", seed=1).train.shape == (40, 2)
    assert registry.entry("clouds").licence == "CC0"
    with pytest.raises(DataError, match="did you mean clouds"):
        data.load("cloud")
    with pytest.raises(DataError, match="is a int; the entry point must name"):
        data.load("number")
    with pytest.raises(DataError, match="cannot be imported: ModuleNotFoundError"):
        data.load("lost")


def test_without_the_package_it_is_not():
    assert "clouds" not in data.names()
