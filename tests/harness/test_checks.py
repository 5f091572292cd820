"""Rows that the models would answer with false figures are refused in one line."""

from __future__ import annotations

import numpy as np
import pytest

from baselines.harness import data
from baselines.harness.data import DataError, Dataset
from baselines.harness.experiment.checks import refuse_unusable

RNG = np.random.default_rng(0)
GOOD = RNG.normal(size=(400, 3)) @ RNG.normal(size=(3, 3))


def dataset(rows, test=None) -> Dataset:
    names = tuple(f"c{i}" for i in range(rows.shape[1]))
    test = rows[:20] if test is None else test
    return Dataset("rows.csv", rows, rows[:20], test, names, "/a/rows.csv", "none", "file")


def changed(column: int, change) -> Dataset:
    rows = GOOD.copy()
    rows[:, column] = change(rows[:, column])
    return dataset(rows)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (changed(1, lambda x: 1.7e9 + 300 * x), ["'c1'", "far from zero", "subtract a constant"]),
        (changed(2, lambda x: 1e4 + x), ["'c2'", "subtract a constant"]),
        (changed(0, lambda x: 1e300 * x), ["'c0'", "beyond 3e+38", "divide the column"]),
        (changed(0, lambda x: 1e-300 * x), ["'c0'", "multiply the column"]),
        (dataset(GOOD, np.full((20, 3), -1e39)), ["'c0'", "divide the column"]),
        (changed(1, lambda x: 2 * GOOD[:, 0] - 3 * GOOD[:, 2]), ["linear", "drop one"]),
        (dataset(GOOD[:3]), ["3 training rows for 3 columns", "drop one"]),
        (dataset(RNG.normal(size=(24, 30))), ["24 training rows for 30 columns", "drop one"]),
    ],
    ids=["clock", "offset", "huge", "tiny", "huge in test", "dependent", "few", "wide"],
)
def test_refused(rows, words):
    with pytest.raises(DataError) as caught:
        refuse_unusable(rows)
    message = str(caught.value)
    assert message.startswith("/a/rows.csv: ")
    assert "\n" not in message
    assert "standardis" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "rows",
    [
        dataset(GOOD),
        changed(1, lambda x: 500 + x),
        changed(1, lambda x: 1e30 * x),
        changed(1, lambda x: 1e-30 * x),
        dataset(GOOD[:4]),
        data.load("pinwheel"),
        data.load("patches4"),
    ],
    ids=["good", "offset", "large", "small", "few", "toy", "images"],
)
def test_accepted(rows):
    refuse_unusable(rows)
